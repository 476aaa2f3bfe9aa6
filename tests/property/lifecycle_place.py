"""Where the two machines run: slots, tiers and messages as plain data.

`Place` performs actions as the agent's executor does, and has every action checked first (lifecycle_checks.py). What it
knows of slots and tiers is its own; it never looks into a machine to decide whether the machine is right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from tests.property.lifecycle_checks import Checks
from tests.property.lifecycle_things import LAYOUT, TIMED, Page, Store, Task, record_of

from holdfast.lifecycle import actions, events
from holdfast.lifecycle.node import NodeMachine
from holdfast.lifecycle.run import RunMachine
from holdfast.model.identity import Attempt, CheckpointId, ImageId, Lineage, lineage_of
from holdfast.model.image import ImageHeader
from holdfast.model.place import TierRule

_ENOUGH = 10_000


class Place:
    """One run: `nodes` x `ranks_per_node` ranks, `slots` per rank. Messages move when `pump` or `deliver` says so."""

    def __init__(
        self,
        rules: tuple[TierRule, ...],
        *,
        nodes: int = 1,
        ranks_per_node: int = 1,
        slots: int | None = None,
        image_count: int = 1,
        sharing: bool = False,
    ) -> None:
        self.rules = rules
        self.image_count = image_count
        self.sharing = sharing
        """Whether steps rely on the other images of an older one, until these change."""
        memory = next((r.keep_last or 0 for r in rules if r.is_memory), 0)
        each = slots or memory + 2
        self.slots_per_rank = [0] * each + [n for n in range(1, image_count) for _ in range(2 if sharing else each)]
        """Per slot of a rank, for which of its images it is."""
        self.relied: dict[ImageId, tuple[ImageId, ...]] = {}
        """Per first image those it relies on."""
        self.newest: dict[tuple[int, int], ImageId] = {}
        """Per rank and number the image its trainer may rely on."""
        self.names = [f"n{i}" for i in range(nodes)]
        self.world_size = nodes * ranks_per_node
        self.node_of = {r: self.names[r // ranks_per_node] for r in range(self.world_size)}
        self.pages: dict[tuple[Any, int], Page] = {}
        self.stores = {r.name: Store() for r in rules if not r.is_memory}
        self.attempts: list[Attempt] = []
        self.heard = dict.fromkeys(self.names, lineage_of(()))
        """Per node the lineage it was told last."""
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
        self.waited_long: set[tuple[str, int]] = set()
        """Ranks that wait for a slot for their first image and have for longer than `slot_wait_s`."""
        self.wants: dict[int, events.SlotWanted] = {}
        """Per rank the wait its page shows. A trainer that waits to stage what it shares relies on none it has."""
        self.checks = Checks(self)
        self.nodes = {n: self._new_node(n) for n in self.names}
        self.run = RunMachine(rules, idle_s=900)
        self.pump_at_once = True
        self.broken = False
        """An assertion here failed: what follows says nothing."""
        for rank in range(self.world_size):
            for number in self.slots_per_rank:
                self.add_slot(rank, number=number)

    def _new_node(self, name: str) -> NodeMachine:
        return NodeMachine(name, self.rules, slot_wait_s=2.0)

    def add_slot(self, rank: int | None, node: str | None = None, number: int = 0) -> tuple[str, int]:
        node = node or self.node_of[rank or 0]
        slot = sum(n == node for n, _ in self.pages)
        self.pages[node, slot] = Page(rank, number)
        if rank is not None:
            self.tell_node(node, events.Dealt(slot, rank, number))
        return node, slot

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
        found = {ImageId(a, s, r) for r in range(self.world_size)}
        for first in list(found):
            relied = {i.image: i for i in self.relied.get(first, ())}
            found |= {relied.get(i, ImageId(a, s, first.rank, i)) for i in range(1, self.image_count)}
        return found

    def steps_of(self, image: ImageId) -> set[CheckpointId]:
        """The steps an image belongs to."""
        named = {first.checkpoint for first, relied in self.relied.items() if image in relied}
        return named | {c for c in [image.checkpoint] if image in self.images_of(c)}

    def header(self, image: Any) -> ImageHeader:
        relied = self.relied.get(image, ())
        return ImageHeader(0, "run", image, self.world_size, self.image_count, "s", relied, LAYOUT)

    def claim(self, parent: CheckpointId | None = None) -> None:
        """Claim the next attempt and list the tiers, as the coordinator does."""
        if self.superseded:
            self.attempts.append(Attempt("run", self.attempt + 1, parent))
        self.superseded = False
        self.newest.clear()
        self.attempts.append(Attempt("run", self.attempt + 1, parent))
        self.tell_run(events.AttemptOwned(self.attempt, self.lineage, frozenset(self.names)))
        for node in self.names:
            self.tell_node(node, events.Resend())
        self.list_tiers()
        self.pump()

    def supersede(self) -> None:
        """Somebody else claims an attempt, and we hear of it; ours comes after."""
        self.superseded = True
        self.tell_run(events.SupersededBy(self.attempt + 1))

    @property
    def configured(self) -> dict[str, Store]:
        """The tiers of the present settings."""
        return {r.name: self.stores[r.name] for r in self.rules if not r.is_memory}

    def list_tiers(self) -> None:
        for name, store in self.configured.items():
            for image in sorted(store.images):
                unnamed = image.checkpoint not in store.manifests and image.checkpoint not in store.tombstones
                if unnamed or (self.sharing and image.image):
                    self.tell_run(events.TierReceipt("", name, image, record_of(image), self.header(image)))
            committed = frozenset(store.manifests.keys() - store.tombstones)
            self.tell_run(events.CatalogRead(name, committed, frozenset(store.tombstones)))

    # -- messages -----------------------------------------------------------------------------------------------------
    def tell_node(self, node: Any, event: Any) -> None:
        if isinstance(event, (events.SlotWantOver, events.RankGone)):
            self.waited_long.discard((node, event.rank))
            self.wants.pop(event.rank, None)
        elif isinstance(event, events.SlotWanted):
            self.waited_long.discard((node, event.rank))
            self.wants[event.rank] = event
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
        for _ in range(_ENOUGH):
            channels = self.channels()
            if not channels:
                return
            self.deliver(channels[0])
        raise AssertionError("the machines talk without end")

    def channels(self) -> list[tuple[str | None, str | None]]:
        return [c for c, box in self.inboxes.items() if box]

    def deliver(self, channel: tuple[str | None, str | None]) -> None:
        event = self.inboxes[channel].popleft()
        to = channel[1]
        if to is None:
            self._perform(None, self.run.handle(event))
            return
        if isinstance(event, events.LineageChanged):
            self.heard[to] = event.lineage
        self._perform(to, self.nodes[to].handle(event))

    def _post(self, sender: str | None, to: str | None, event: Any) -> None:
        self.inboxes.setdefault((sender, to), deque()).append(event)

    # -- actions ------------------------------------------------------------------------------------------------------
    def _perform(self, owner: str | None, wanted: list[Any]) -> None:
        for action in wanted:
            self.log.append((owner, action))
            self.broken = True
            self.checks.action(owner, action)
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
                self.newest.clear()
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
        page = self.pages[node, action.slot]
        assert page.generation == action.generation
        if isinstance(action, actions.Hold):
            assert page.state == "staged"
            page.state = "held"
        elif isinstance(action, actions.MarkCommitted):
            page.committed.add(action.tier)
        elif isinstance(action, actions.Free):
            page.state, page.image, page.committed, page.bad, page.relies_on = "free", None, set(), False, ()

    def check_always(self) -> None:
        """What must be true between any two events."""
        self.checks.always()

    # -- looking ------------------------------------------------------------------------------------------------------
    def newest_whole(self, lineage: Lineage | None = None) -> CheckpointId | None:
        """The newest step of the lineage all of whose images are held, verified and known to cover it."""
        lineage = lineage or self.lineage
        held = {p.image for p in self.pages.values() if p.state == "held" and not p.bad and p.image is not None}
        held -= {self.pages[t.owner, t.action.slot].image for t in self.tasks if isinstance(t.action, actions.Verify)}
        steps = {i.checkpoint for i in held if not i.image} & self.checked
        whole = [s for s in steps if self.images_of(s) <= held and (s in lineage or not self.attempts)]
        return max(whole, default=None)

    def work_on(self, node: str, slot: int) -> list[Task]:
        timed = (actions.Seal, actions.Verify, actions.Upload)
        return [t for t in self.tasks if t.owner == node and isinstance(t.action, timed) and t.action.slot == slot]

    def find(self, kind: type, **fields: Any) -> Iterator[Task]:
        """Work under way of this kind whose action has these fields."""
        for task in list(self.tasks):
            if isinstance(task.action, kind) and all(getattr(task.action, k) == v for k, v in fields.items()):
                yield task

    def status(self, step: int, attempt: int | None = None) -> Any:
        return self.run.status(CheckpointId(attempt or self.attempt, step))
