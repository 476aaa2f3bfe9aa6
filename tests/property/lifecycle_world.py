"""What happens to the two machines: trainers save, work ends or fails when the test says so, anything dies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from tests.property.lifecycle_place import Place
from tests.property.lifecycle_things import ERROR, TIMED, Page, Task, record_of

from holdfast.lifecycle import actions, events
from holdfast.lifecycle.run import RunMachine
from holdfast.model.identity import CheckpointId, ImageId, lineage_of
from holdfast.model.place import TierRule
from holdfast.policy.schedule import due_tiers

_ENOUGH = 10_000

QUICK = (actions.Seal, actions.Verify, actions.CheckWhole)


class World(Place):
    """A place with trainers in it."""

    # -- trainers -----------------------------------------------------------------------------------------------------
    def free_slots(self, rank: int, number: int = 0) -> list[tuple[str, int]]:
        return [k for k, p in self.pages.items() if (p.rank, p.number, p.state) == (rank, number, "free")]

    def to_stage(self, rank: int, changed: bool = False) -> list[int]:
        """The images of the rank's next step that it cannot take from an older one; its first image last."""
        held = {p.image for p in self.pages.values() if p.state in ("staged", "held") and p.image is not None}
        stale = not self.sharing or changed
        others = [n for n in range(1, self.image_count) if stale or self.newest.get((rank, n)) not in held]
        return [*others, 0]

    def fill(
        self,
        rank: int,
        step: int,
        image: int = 0,
        due: frozenset[str] | None = None,
        timed: frozenset[str] = frozenset(),
    ) -> tuple[str, int] | None:
        """free -> filling; None when there is no free slot."""
        free = self.free_slots(rank, image)
        if not free:
            return None
        page = self.pages[free[0]]
        page.state, page.filler_alive = "filling", True
        page.generation += 1
        page.image = ImageId(self.attempt, step, rank, image)
        by_number = due_tiers(step, self.rules) if due is None else due
        page.due, page.timed = by_number | timed, timed - by_number
        page.world_size = self.world_size
        if self.sharing:
            self._rely(page, page.image)
        return free[0]

    def _rely(self, page: Page, image: ImageId) -> None:
        if image.image:
            self.newest[image.rank, image.image] = image
            return
        mine = [self.newest[image.rank, n] for n in range(1, self.image_count)]
        page.relies_on = tuple(i for i in mine if i.checkpoint != image.checkpoint)
        self.relied[image] = page.relies_on

    def stage(self, key: tuple[str, int]) -> None:
        """filling -> staged, seen by the agent."""
        page = self.pages[key]
        page.state = "staged"
        self.tell_node(key[0], self._image_event(events.Staged, key))

    def give_back(self, key: tuple[str, int]) -> None:
        """filling -> free: it will not be staged."""
        page = self.pages[key]
        page.state, page.image, page.relies_on = "free", None, ()

    def _image_event(self, kind: Callable[..., Any], key: tuple[str, int], **more: Any) -> Any:
        p = self.pages[key]
        assert p.image is not None
        more |= {"relies_on": p.relies_on, "timed": p.timed}
        return kind(key[1], p.generation, p.image, self.image_count, p.world_size, p.due, 8192, **more)

    def save(
        self,
        step: int,
        ranks: list[int] | None = None,
        due: frozenset[str] | None = None,
        *,
        changed: bool = False,
        timed: frozenset[str] = frozenset(),
    ) -> bool:
        """Every rank saves the step at once; whether each found its slots."""
        found = True
        for rank in range(self.world_size) if ranks is None else ranks:
            self.tell_node(self.node_of[rank], events.RankAt(rank, CheckpointId(self.attempt, step)))
            for image in self.to_stage(rank, changed):
                key = self.fill(rank, step, image, due, timed)
                found = found and key is not None
                if key is not None:
                    self.stage(key)
        return found

    # -- work ---------------------------------------------------------------------------------------------------------
    def done(self, task: Task) -> None:
        """The work succeeded, as far as it can: bad bytes are no image to anybody, a new agent neither."""
        action, owner = task.action, task.owner
        unsealed = isinstance(action, actions.Upload) and not self._sealed(task)
        if unsealed or (isinstance(action, (actions.Seal, actions.Verify)) and self.pages[owner, action.slot].bad):
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
            gone: set[ImageId] = set()
            for step in action.checkpoints:
                gone |= {i for i in store.images if i.checkpoint == step} | store.manifests.pop(step, frozenset())
                store.tombstones.discard(step)
            store.images -= gone - action.spare - {i for named in store.manifests.values() for i in named}

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
        for _ in range(_ENOUGH):
            ready = [
                t for t in self.tasks if isinstance(t.action, kinds) and tier in (None, getattr(t.action, "tier", None))
            ]
            if not ready:
                return
            self.done(ready[0])
        raise AssertionError("work without end")

    def seal(self) -> None:
        """Checksums and coverage, no flushes."""
        self.work(*QUICK)

    def all_that_is_quick(self) -> None:
        """Messages, checksums, coverage, until nothing of it is left."""
        self.pump()
        while any(isinstance(t.action, QUICK) for t in self.tasks):
            self.seal()
            self.pump()

    def fire(self, owner: str | None, timer: str) -> None:
        del self.timers[owner, timer]
        event = events.TimerFired(timer)
        if owner is None:
            self.tell_run(event)
            return
        self.tell_node(owner, event)
        rank = int(timer.rpartition("-")[2])
        if not self.wants[rank].image and not self.free_slots(rank):
            self.waited_long.add((owner, rank))

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
        self.waited_long.clear()
        self.inboxes.clear()
        self.loading.clear()
        self.run = RunMachine(self.rules, idle_s=900)
        if self.superseded:
            self.supersede()
        elif self.attempts:
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
        self.waited_long = {w for w in self.waited_long if w[0] != node}
        if self.attempts:
            self.heard[node] = self.lineage
            self.tell_node(node, events.LineageChanged(self.lineage))
        self.adopt(node)
        self.tell_node(node, events.Resend())

    def lose_slot(self, key: tuple[str, int]) -> None:
        """What a dead agent held there is not adopted: its file went, or is no image."""
        page = self.pages[key]
        assert page.image is not None
        self.excused |= self.steps_of(page.image)
        page.state, page.image, page.committed, page.bad, page.relies_on = "free", None, set(), False, ()

    def lose_node(self, node: str) -> None:
        """A machine is gone, with its memory."""
        self.names.remove(node)
        self.pages = {k: p for k, p in self.pages.items() if k[0] != node}
        self.tasks = [t for t in self.tasks if t.owner != node]
        self.timers = {k: after for k, after in self.timers.items() if k[0] != node}
        self.waited_long = {w for w in self.waited_long if w[0] != node}
        self.inboxes = {k: box for k, box in self.inboxes.items() if node not in k}
        self.tell_run(events.NodeGone(node))

    def replace_node(self, node: str) -> str:
        """Another machine takes the ranks of one that is lost."""
        name = f"{node}'"
        self.names.append(name)
        self.heard[name] = lineage_of(())
        self.nodes[name] = self._new_node(name)
        for rank in [r for r, n in self.node_of.items() if n == node]:
            self.node_of[rank] = name
            for number in self.slots_per_rank:
                self.add_slot(rank, number=number)
        return name

    def adopt(self, node: str) -> None:
        # What is held first, then what is staged; of both what others rely on first.
        order = sorted(
            self.pages.items(), key=lambda x: (x[1].state == "staged", not (x[1].image and x[1].image.image))
        )
        for key, page in order:
            if key[0] != node:
                continue
            page.pins = 0
            if page.rank is not None:
                self.tell_node(node, events.Dealt(key[1], page.rank, page.number))
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
            if node in self.names:
                self.tell_node(node, events.RankGone(rank))
        self.wants.clear()
        self.pump()
        self.tell_run(events.TrainersGone())

    def launch(self, rules: tuple[TierRule, ...] | None = None) -> None:
        """A new launch attaches, perhaps with other tiers, and prepares: slots are dealt anew, free ones first."""
        if rules is not None:
            self.rules = rules
            self._tell_all(events.Reconfigured(rules, 2.0, 900.0))
        dealt = sorted(
            ((k, p) for k, p in self.pages.items() if p.rank is not None), key=lambda x: x[1].state != "free"
        )
        for (node, slot), _ in dealt:
            self.tell_node(node, events.Undealt(slot))
        self.tell_run(events.TrainersBack())
        for (node, slot), page in dealt:
            assert page.rank is not None
            self.tell_node(node, events.Dealt(slot, page.rank, page.number))

    def _tell_all(self, event: events.Reconfigured) -> None:
        self.tell_run(event)
        for node in self.names:
            self.tell_node(node, event)

    def fetch(self, step: CheckpointId) -> list[tuple[str, int]]:
        """A load waits for checksums, then has every image of the step in a slot, held or fetched, pinned."""
        self.work(actions.Seal, actions.Verify)
        return [self._held(image) or self._fetch(image, step) for image in sorted(self.images_of(step))]

    def _held(self, image: ImageId) -> tuple[str, int] | None:
        for key, page in self.pages.items():
            if page.image == image and page.state == "held" and not page.bad:
                self.pin(key)
                return key
        return None

    def _fetch(self, image: ImageId, step: CheckpointId) -> tuple[str, int]:
        key = self._loose(self.node_of[image.rank])
        page = self.pages[key]
        page.state, page.image, page.pins, page.due = "held", image, 1, frozenset()
        page.generation += 1
        page.world_size = self.world_size
        page.committed = {n for n, s in self.configured.items() if step in s.manifests}
        page.relies_on = self.relied.get(image, ())
        copies = frozenset(page.committed)
        event = events.Fetched(key[1], page.generation, record_of(image), self.header(image), copies, 1)
        self.tell_node(key[0], event)
        return key

    def _loose(self, node: str) -> tuple[str, int]:
        loose = [k for k, p in self.pages.items() if k[0] == node and p.rank is None and p.state == "free"]
        return loose[0] if loose else self.add_slot(None, node)

    def pin(self, key: tuple[str, int]) -> None:
        self.pages[key].pins += 1
        self.tell_node(key[0], events.Pinned(key[1]))

    def unpin(self, key: tuple[str, int]) -> None:
        self.pages[key].pins -= 1
        self.tell_node(key[0], events.Unpinned(key[1]))
