"""A world for the two machines: slots, tiers and trainers as plain data, work that finishes when the test says so.

`World` performs actions as the agent's executor does, and asserts with every action what must never happen. What it
knows of slots and tiers is its own; it never looks into a machine to decide whether the machine is right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from holdfast.lifecycle import actions, events
from holdfast.lifecycle.node import NodeMachine
from holdfast.lifecycle.run import RunMachine
from holdfast.model.identity import Attempt, CheckpointId, ImageId, Lineage, lineage_of
from holdfast.model.image import ImageHeader, ImageLayout, ImageRecord
from holdfast.model.place import Scope, TierRule
from holdfast.policy.schedule import due_tiers

LAYOUT = ImageLayout((), (), 4096, 4096, 0, 4096, 8192)
ERROR = {"kind": "tier", "message": "planted", "hint": "", "tier": None, "key": None, "step": None}
TIMED = (actions.Seal, actions.Verify, actions.Upload, actions.CheckWhole, actions.Commit, actions.Prune, actions.Sweep)


def tier(
    index: int, name: str, every_steps: int = 1, keep_last: int | None = None, scope: Scope = Scope.SHARED
) -> TierRule:
    url = "memory:" if name == "memory" else f"file:///{name}"
    return TierRule(index, name, url, Scope.NODE if name == "memory" else scope, every_steps, keep_last)


def rules_of(keep_memory: int = 2, **every_steps: int) -> tuple[TierRule, ...]:
    """A memory tier and others by name and cadence."""
    others = (tier(i, name, every, keep_last=3) for i, (name, every) in enumerate(every_steps.items(), 1))
    return (tier(0, "memory", 1, keep_memory), *others)


def record_of(image: Any) -> ImageRecord:
    return ImageRecord(image, 8192, hash(image) & 0xFFFF)


@dataclass
class Page:
    """A slot as its page shows it."""

    rank: int | None
    state: str = "free"
    generation: int = 0
    image: ImageId | None = None
    due: frozenset[str] = frozenset()
    committed: set[str] = field(default_factory=set)
    world_size: int = 0
    pins: int = 0
    bad: bool = False
    filler_alive: bool = True


@dataclass
class Store:
    """What stands on a tier."""

    images: set[ImageId] = field(default_factory=set)
    manifests: dict[CheckpointId, frozenset[ImageId]] = field(default_factory=dict)
    tombstones: set[CheckpointId] = field(default_factory=set)


@dataclass(frozen=True)
class Task:
    """Work an action started: `owner` is a node, or None for the run machine."""

    owner: str | None
    action: Any


class World:
    """One run: `nodes` x `ranks_per_node` ranks, `slots` per rank. Messages move when `pump` or `deliver` says so."""

    def __init__(
        self,
        rules: tuple[TierRule, ...],
        *,
        nodes: int = 1,
        ranks_per_node: int = 1,
        slots: int | None = None,
        image_count: int = 1,
    ) -> None:
        self.rules = rules
        self.image_count = image_count
        memory = next((r.keep_last or 0 for r in rules if r.is_memory), 0)
        self.slots_per_rank = (slots or memory + 2) * image_count
        self.names = [f"n{i}" for i in range(nodes)]
        self.world_size = nodes * ranks_per_node
        self.node_of = {r: self.names[r // ranks_per_node] for r in range(self.world_size)}
        self.pages: dict[tuple[Any, int], Page] = {}
        self.stores = {r.name: Store() for r in rules if not r.is_memory}
        self.attempts: list[Attempt] = []
        self.superseded = False
        self.tasks: list[Task] = []
        self.timers: dict[tuple[str | None, str], float] = {}
        self.inboxes: dict[tuple[str | None, str | None], deque[Any]] = {}
        self.ended: list[actions.Ended] = []
        self.reports: list[Any] = []
        self.log: list[tuple[str | None, Any]] = []
        self.checked: set[CheckpointId] = set()
        self.excused: set[CheckpointId] = set()
        """Steps somebody said may go: pruned, found bad, ended."""
        self.asked: set[CheckpointId] = set()
        self.loading: list[CheckpointId] = []
        self.nodes = {n: self._new_node(n) for n in self.names}
        self.run = RunMachine(rules, idle_s=900)
        self.pump_at_once = True
        self.broken = False
        """An assertion here failed: what follows says nothing."""
        for rank in range(self.world_size):
            for _ in range(self.slots_per_rank):
                self.add_slot(rank)

    def _new_node(self, name: str) -> NodeMachine:
        return NodeMachine(name, self.rules, slot_wait_s=2.0)

    # -- identity -----------------------------------------------------------------------------------------------------
    @property
    def attempt(self) -> int:
        return self.attempts[-1].attempt if self.attempts else 0

    @property
    def lineage(self) -> Lineage:
        return lineage_of(self.attempts)

    def images_of(self, checkpoint: CheckpointId) -> set[ImageId]:
        """The images the step needs, by the world size its images were staged with."""
        a, s = checkpoint.attempt, checkpoint.step
        return {ImageId(a, s, r, i) for r in range(self.world_size) for i in range(self.image_count)}

    def header(self, image: Any) -> ImageHeader:
        return ImageHeader(0, "run", image, self.world_size, self.image_count, "s", (), LAYOUT)

    def claim(self, parent: CheckpointId | None = None) -> None:
        """Claim the next attempt and list the tiers, as the coordinator does."""
        self.superseded = False
        self.attempts.append(Attempt("run", self.attempt + 1, parent))
        self.tell_run(events.AttemptOwned(self.attempt, self.lineage, frozenset(self.names)))
        for node in self.names:
            self.tell_node(node, events.Resend())
        self.list_tiers()
        self.pump()

    def list_tiers(self) -> None:
        for name, store in self.stores.items():
            for image in sorted(store.images):
                if image.checkpoint not in store.manifests and image.checkpoint not in store.tombstones:
                    self.tell_run(events.TierReceipt("", name, image, record_of(image), self.header(image)))
            committed = frozenset(store.manifests.keys() - store.tombstones)
            self.tell_run(events.CatalogRead(name, committed, frozenset(store.tombstones)))

    # -- messages -----------------------------------------------------------------------------------------------------
    def tell_node(self, node: Any, event: Any) -> None:
        self._perform(node, self.nodes[node].handle(event))
        self._pump_if_asked()

    def tell_run(self, event: Any) -> None:
        self._perform(None, self.run.handle(event))
        self._pump_if_asked()

    def _pump_if_asked(self) -> None:
        if self.pump_at_once:
            self.pump()

    def pump(self) -> None:
        """Deliver every message."""
        while channels := self.channels():
            self.deliver(channels[0])

    def channels(self) -> list[tuple[str | None, str | None]]:
        return [c for c, box in self.inboxes.items() if box]

    def deliver(self, channel: tuple[str | None, str | None]) -> None:
        event = self.inboxes[channel].popleft()
        to = channel[1]
        self._perform(to, self.nodes[to].handle(event) if to is not None else self.run.handle(event))

    def _post(self, sender: str | None, to: str | None, event: Any) -> None:
        self.inboxes.setdefault((sender, to), deque()).append(event)

    # -- actions ------------------------------------------------------------------------------------------------------
    def _perform(self, owner: str | None, wanted: list[Any]) -> None:
        for action in wanted:
            self.log.append((owner, action))
            self.broken = True
            self._check(owner, action)
            self._do(owner, action)
            self.broken = False

    def _do(self, owner: str | None, action: Any) -> None:
        if isinstance(action, TIMED):
            self.tasks.append(Task(owner, action))
        elif isinstance(action, actions.ToRun):
            self._post(owner, None, action.event)
        elif isinstance(action, actions.ToNodes):
            if isinstance(action.event, events.FreeAll):
                self.excused |= {p.image.checkpoint for p in self.pages.values() if p.image}
            for node in [action.node] if action.node else self.names:
                self._post(None, node, action.event)
        elif isinstance(action, actions.StartTimer):
            self.timers[owner, action.timer] = action.after_s
        elif isinstance(action, actions.StopTimer):
            self.timers.pop((owner, action.timer), None)
        elif isinstance(action, actions.Ended):
            self.ended.append(action)
        elif isinstance(action, actions.Report):
            self.reports.append(action.error)
        elif owner is not None:
            self._do_page(owner, action)

    def _do_page(self, node: str, action: Any) -> None:
        if isinstance(action, actions.MarkTier):
            return
        page = self.pages[node, action.slot]
        assert page.generation == action.generation
        if isinstance(action, actions.Hold):
            assert page.state == "staged"
            page.state = "held"
        elif isinstance(action, actions.MarkCommitted):
            page.committed.add(action.tier)
        elif isinstance(action, actions.Free):
            page.state, page.image, page.committed, page.bad = "free", None, set(), False

    # -- what must never happen ---------------------------------------------------------------------------------------
    def _check(self, owner: str | None, action: Any) -> None:
        checks: dict[type, Any] = {
            actions.Free: self._check_free,
            actions.Upload: self._check_upload,
            actions.Commit: self._check_commit,
            actions.Prune: self._check_prune,
            actions.Sweep: self._check_sweep,
            actions.Ended: self._check_ended,
        }
        check = checks.get(type(action))
        if check is not None:
            check(owner, action)

    def _check_free(self, node: str | None, action: actions.Free) -> None:
        assert node is not None
        page = self.pages[node, action.slot]
        assert page.state != "free", "freed twice"
        assert page.state != "filling" or not page.filler_alive, "freed under a live filler"
        assert page.pins == 0, "freed under a reader"
        assert not self.work_on(node, action.slot), "freed while in use"
        if page.image is not None and page.state == "held" and not page.bad:
            step = page.image.checkpoint
            durable = any(c >= step and c in self.lineage for s in self.stores.values() for c in s.manifests)
            has_memory = any(r.is_memory for r in self.rules)
            only_copy = step == self.newest_whole() and (has_memory or not durable)
            assert not only_copy or step in self.excused, f"freed the newest whole step {step}"

    def _check_upload(self, node: str | None, action: actions.Upload) -> None:
        assert node is not None
        page = self.pages[node, action.slot]
        assert page.state == ("held" if action.record is not None else "staged"), "flushed what nobody seals"
        assert page.image == action.image
        running = [t for t in self.tasks if t.owner == node and isinstance(t.action, actions.Upload)]
        mine = [t.action.image for t in running if t.action.tier == action.tier]
        assert action.image not in mine, "flushed twice at once"
        assert {i.checkpoint for i in mine} <= {action.image.checkpoint}, "two steps at once"

    def _check_commit(self, owner: str | None, action: actions.Commit) -> None:
        images = {i.record.id for i in action.images}
        step, store = action.checkpoint, self.stores[action.tier]
        assert {i.checkpoint for i in images} == {step}, "mixed attempts or steps"
        assert images == self.images_of(step), "committed what is not complete"
        assert images <= store.images, "committed before all images stand there"
        assert step in self.checked, "committed unchecked"
        assert step in self.lineage, "committed what was abandoned"
        assert step not in store.tombstones, "committed what is being deleted"
        assert not self.superseded, "committed after being superseded"
        assert not self._under_way(actions.Commit, action.tier, step), "committed twice at once"

    def _check_prune(self, owner: str | None, action: actions.Prune) -> None:
        store = self.stores[action.tier]
        assert not self._deleting(action.tier), "two deletions at once"
        assert not self.superseded
        for step in action.checkpoints:
            assert step not in self.loading, "pruned under a load"
            assert not self._under_way(actions.Commit, action.tier, step), "pruned while committing"
            newest = max((c for c in store.manifests if c in self.lineage), default=None)
            assert step != newest or step in self.asked | store.tombstones, "retention removed the newest"

    def _check_sweep(self, owner: str | None, action: actions.Sweep) -> None:
        assert not self._deleting(action.tier), "two deletions at once"
        for step in action.checkpoints:
            assert step not in self.stores[action.tier].manifests, "swept images under a manifest"
            assert not self._under_way(actions.Commit, action.tier, step), "swept while committing"

    def _check_ended(self, owner: str | None, action: actions.Ended) -> None:
        newest = self.newest_whole()
        if action.free and newest is not None and newest not in self.excused and not self.superseded:
            assert any(newest in s.manifests for s in self.stores.values()), "let go of the only copy"

    def check_always(self) -> None:
        """Between any two events: what tiers show is sound, and lagging tiers hold nothing a save needs."""
        for name, store in self.stores.items():
            for step, images in store.manifests.items():
                broken = step in store.tombstones or images <= store.images
                assert broken, f"{name} shows {step} without its images"
        for node in self.names:
            self._check_room(node)

    def _check_room(self, node: str) -> None:
        machine = self.nodes[node]
        lagging = {t.name for t in machine.tiers() if t.lagging}
        newest = machine.newest_whole()
        for rank in [r for r, n in self.node_of.items() if n == node]:
            views = [v for v in machine.slots() if v.rank == rank]
            if sum(v.image is None for v in views) >= self.image_count or newest is None:
                continue
            for v in views:
                if v.image is None or v.image.checkpoint >= newest or v.state != "held" or v.pins:
                    continue
                held_by = {t for t, f in v.flushes.items() if f in ("waiting", "running", "cancelled")}
                assert held_by, f"{v.image} idles in a slot that rank {rank} needs"
                waiting = {t for t, f in v.flushes.items() if f == "waiting"}
                if held_by == waiting and waiting <= lagging:
                    begun = {t for t in waiting if self._begun(machine, t, v.image.checkpoint)}
                    assert begun, f"lagging {waiting} hold a slot that rank {rank} needs"

    def _begun(self, machine: NodeMachine, tier: str, step: CheckpointId) -> bool:
        same = [v for v in machine.slots() if v.image is not None and v.image.checkpoint == step]
        if any(v.flushes.get(tier) in ("running", "uploaded", "cancelled") for v in same):
            return True
        # An image may have been flushed and freed already.
        return any(i.checkpoint == step for i in self.stores[tier].images)

    # -- looking ------------------------------------------------------------------------------------------------------
    def newest_whole(self) -> CheckpointId | None:
        """The newest step of the lineage all of whose images are held, verified and known to cover it."""
        held = {p.image for p in self.pages.values() if p.state == "held" and not p.bad and p.image is not None}
        held -= {self.pages[t.owner, t.action.slot].image for t in self.tasks if isinstance(t.action, actions.Verify)}
        steps = {i.checkpoint for i in held} & self.checked
        whole = [s for s in steps if self.images_of(s) <= held and (s in self.lineage or not self.attempts)]
        return max(whole, default=None)

    def work_on(self, node: str, slot: int) -> list[Task]:
        timed = (actions.Seal, actions.Verify, actions.Upload)
        return [t for t in self.tasks if t.owner == node and isinstance(t.action, timed) and t.action.slot == slot]

    def _under_way(self, kind: Any, tier: str, step: CheckpointId) -> bool:
        return any(
            isinstance(t.action, kind) and (t.action.tier, t.action.checkpoint) == (tier, step) for t in self.tasks
        )

    def _deleting(self, tier: str) -> bool:
        return any(isinstance(t.action, (actions.Prune, actions.Sweep)) and t.action.tier == tier for t in self.tasks)

    def find(self, kind: type, **fields: Any) -> Iterator[Task]:
        """Work under way of this kind whose action has these fields."""
        for task in list(self.tasks):
            if isinstance(task.action, kind) and all(getattr(task.action, k) == v for k, v in fields.items()):
                yield task

    def status(self, step: int, attempt: int | None = None) -> Any:
        return self.run.status(CheckpointId(attempt or self.attempt, step))

    # -- trainers -----------------------------------------------------------------------------------------------------
    def add_slot(self, rank: int | None, node: str | None = None) -> tuple[str, int]:
        node = node or self.node_of[rank or 0]
        number = sum(n == node for n, _ in self.pages)
        self.pages[node, number] = Page(rank)
        if rank is not None:
            self.tell_node(node, events.Dealt(number, rank))
        return node, number

    def free_slots(self, rank: int) -> list[tuple[str, int]]:
        return [k for k, p in self.pages.items() if p.rank == rank and p.state == "free"]

    def fill(self, rank: int, step: int, image: int = 0, due: frozenset[str] | None = None) -> tuple[str, int] | None:
        """free -> filling; None when there is no free slot."""
        free = self.free_slots(rank)
        if not free:
            return None
        page = self.pages[free[0]]
        page.state, page.filler_alive = "filling", True
        page.generation += 1
        page.image = ImageId(self.attempt, step, rank, image)
        page.due = due_tiers(step, self.rules) if due is None else due
        page.world_size = self.world_size
        return free[0]

    def stage(self, key: tuple[str, int]) -> None:
        """filling -> staged, seen by the agent."""
        page = self.pages[key]
        page.state = "staged"
        self.tell_node(key[0], self._image_event(events.Staged, key))

    def _image_event(self, kind: Callable[..., Any], key: tuple[str, int], **more: Any) -> Any:
        p = self.pages[key]
        assert p.image is not None
        return kind(key[1], p.generation, p.image, self.image_count, p.world_size, p.due, 8192, **more)

    def save(self, step: int, ranks: list[int] | None = None, due: frozenset[str] | None = None) -> bool:
        """Every rank saves the step at once; whether each found its slots."""
        found = True
        for rank in range(self.world_size) if ranks is None else ranks:
            self.tell_node(self.node_of[rank], events.RankAt(rank, CheckpointId(self.attempt, step)))
            for image in range(self.image_count):
                key = self.fill(rank, step, image, due)
                found = found and key is not None
                if key is not None:
                    self.stage(key)
        return found

    # -- work ---------------------------------------------------------------------------------------------------------
    def done(self, task: Task) -> None:
        """The work succeeded."""
        action, owner = task.action, task.owner
        if isinstance(action, actions.Upload) and not self._sealed(task):
            self.fail(task)
            return
        self._effect(task)
        self.tasks.remove(task)
        if isinstance(action, (actions.Seal, actions.Verify)):
            image = self.pages[owner, action.slot].image
            kind = events.Sealed if isinstance(action, actions.Seal) else events.Verified
            self.tell_node(owner, kind(action.slot, record_of(image), self.header(image)))
        elif isinstance(action, actions.Upload):
            self.tell_node(owner, events.Uploaded(action.tier, action.slot))
        elif isinstance(action, actions.CheckWhole):
            self.tell_run(events.WholeChecked(action.checkpoint))
        elif isinstance(action, actions.Commit):
            self.tell_run(events.CommitDone(action.tier, action.checkpoint))
        else:
            self.tell_run(events.PruneDone(action.tier, action.checkpoints))

    def _sealed(self, task: Task) -> bool:
        """Whether the image of a flush has its checksums; one that begun while it was sealed waits for them."""
        action, owner = task.action, task.owner
        for seal in self.find(actions.Seal, slot=action.slot):
            if seal.owner == owner:
                self.done(seal)
        return bool(self.pages[owner, action.slot].state == "held")

    def _effect(self, task: Task) -> None:
        """What the work does to the tiers, whether or not anybody hears of it."""
        action = task.action
        if isinstance(action, actions.Upload):
            self.stores[action.tier].images.add(action.image)
        elif isinstance(action, actions.CheckWhole):
            assert {i.record.id for i in action.images} == self.images_of(action.checkpoint), "checked too early"
            self.checked.add(action.checkpoint)
        elif isinstance(action, actions.Commit):
            images = frozenset(i.record.id for i in action.images)
            assert images <= self.stores[action.tier].images, "images went away under a commit"
            self.stores[action.tier].manifests[action.checkpoint] = images
        elif isinstance(action, (actions.Prune, actions.Sweep)):
            store = self.stores[action.tier]
            for step in action.checkpoints:
                store.manifests.pop(step, None)
                store.images -= {i for i in store.images if i.checkpoint == step}
                store.tombstones.discard(step)

    def fail(self, task: Task) -> None:
        """The work failed for good."""
        action, owner = task.action, task.owner
        self.tasks.remove(task)
        if isinstance(action, actions.Seal):
            self.pages[owner, action.slot].bad = True
            self.tell_node(owner, events.SealFailed(action.slot, ERROR))
        elif isinstance(action, actions.Verify):
            self.pages[owner, action.slot].bad = True
            self.tell_node(owner, events.VerifyFailed(action.slot, ERROR))
        elif isinstance(action, actions.Upload):
            self.tell_node(owner, events.UploadFailed(action.tier, action.slot, ERROR))
        elif isinstance(action, actions.CheckWhole):
            self.checked.discard(action.checkpoint)
            self.excused.add(action.checkpoint)
            self.tell_run(events.WholeChecked(action.checkpoint, ERROR))
        elif isinstance(action, actions.Commit):
            self.tell_run(events.CommitFailed(action.tier, action.checkpoint, ERROR))
        else:
            if isinstance(action, actions.Prune):
                self.stores[action.tier].tombstones |= action.checkpoints
            self.tell_run(events.PruneFailed(action.tier, action.checkpoints, ERROR))

    def work(self, *kinds: type, tier: str | None = None) -> None:
        """Do all work of these kinds (default: every kind), and what follows from it."""
        kinds = kinds or TIMED
        while True:
            ready = [
                t for t in self.tasks if isinstance(t.action, kinds) and tier in (None, getattr(t.action, "tier", None))
            ]
            if not ready:
                return
            self.done(ready[0])

    def seal(self) -> None:
        """Checksums and coverage, no flushes."""
        self.work(actions.Seal, actions.Verify, actions.CheckWhole)

    def fire(self, owner: str | None, timer: str) -> None:
        del self.timers[owner, timer]
        event = events.TimerFired(timer)
        self.tell_run(event) if owner is None else self.tell_node(owner, event)

    # -- deaths -------------------------------------------------------------------------------------------------------
    def restart_agents(self, finished: Callable[[Task], bool] = lambda t: False) -> None:
        """Every agent dies and a new one takes over; work under way may have had its effect (`finished`)."""
        for task in self.tasks:
            if finished(task) and isinstance(task.action, (actions.Upload, actions.Commit)):
                self._effect(task)
            elif isinstance(task.action, actions.Prune):
                self.stores[task.action.tier].tombstones |= task.action.checkpoints
        self.tasks.clear()
        self.timers.clear()
        self.inboxes.clear()
        self.loading.clear()
        self.run = RunMachine(self.rules, idle_s=900)
        if self.attempts and not self.superseded:
            self.tell_run(events.AttemptOwned(self.attempt, self.lineage, frozenset(self.names)))
        for node in self.names:
            self.nodes[node] = self._new_node(node)
        for node in self.names:
            self.adopt(node)
            self.tell_node(node, events.Resend())
        self.list_tiers()
        self.pump()

    def restart_node(self, node: str, finished: Callable[[Task], bool] = lambda t: False) -> None:
        """The agent of a node that is not the coordinator dies and a new one takes over."""
        for task in [t for t in self.tasks if t.owner == node]:
            if finished(task) and isinstance(task.action, actions.Upload):
                self._effect(task)
            self.tasks.remove(task)
        for key in [k for k in self.timers if k[0] == node]:
            del self.timers[key]
        # What was said and not heard is said again after Resend; what was meant for the dead one is too late.
        self.inboxes[None, node] = deque()
        self.inboxes[node, None] = deque()
        self.nodes[node] = self._new_node(node)
        if self.attempts:
            self.tell_node(node, events.LineageChanged(self.lineage))
        self.adopt(node)
        self.tell_node(node, events.Resend())

    def lose_node(self, node: str) -> None:
        """A machine is gone, with its memory."""
        self.names.remove(node)
        self.pages = {k: p for k, p in self.pages.items() if k[0] != node}
        self.tasks = [t for t in self.tasks if t.owner != node]
        self.tell_run(events.NodeGone(node))

    def adopt(self, node: str) -> None:
        for key, page in sorted(self.pages.items()):
            if key[0] != node:
                continue
            page.pins = 0
            if page.rank is not None:
                self.tell_node(node, events.Dealt(key[1], page.rank))
            if page.state == "staged":
                self.tell_node(node, self._image_event(events.Staged, key))
            elif page.state == "held":
                committed = frozenset(page.committed)
                self.tell_node(node, self._image_event(events.Adopted, key, committed=committed))

    def kill_trainers(self) -> None:
        """Every trainer dies; the agents see it."""
        for key, page in sorted(self.pages.items()):
            if page.state == "filling":
                page.filler_alive = False
                self.tell_node(key[0], events.OwnerGone(key[1], page.generation))
        for rank, node in self.node_of.items():
            self.tell_node(node, events.RankGone(rank))
        self.pump()
        self.tell_run(events.TrainersGone())

    def fetch(self, step: CheckpointId, source: str) -> list[tuple[str, int]]:
        """A load brings a committed step into slots of its own, pinned."""
        keys = []
        held = {p.image for p in self.pages.values() if p.state == "held"}
        for image in sorted(self.images_of(step) - held):
            key = self._loose(self.node_of[image.rank])
            page = self.pages[key]
            page.state, page.image, page.pins, page.due = "held", image, 1, frozenset()
            page.generation += 1
            page.world_size = self.world_size
            page.committed = {n for n, s in self.stores.items() if step in s.manifests}
            copies = frozenset(page.committed)
            args = (key[1], page.generation, record_of(image), self.header(image), copies, 1)
            self.tell_node(key[0], events.Fetched(*args))
            keys.append(key)
        return keys

    def _loose(self, node: str) -> tuple[str, int]:
        loose = [k for k, p in self.pages.items() if k[0] == node and p.rank is None and p.state == "free"]
        return loose[0] if loose else self.add_slot(None, node)

    def pin(self, key: tuple[str, int]) -> None:
        self.pages[key].pins += 1
        self.tell_node(key[0], events.Pinned(key[1]))

    def unpin(self, key: tuple[str, int]) -> None:
        self.pages[key].pins -= 1
        self.tell_node(key[0], events.Unpinned(key[1]))
