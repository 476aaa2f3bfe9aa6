"""Defects planted into the two machines, each one a line that somebody could get wrong.

The state machine has to find every one of them, or its silence means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from holdfast.lifecycle import durability, events, room
from holdfast.lifecycle.book import TierBook
from holdfast.lifecycle.ledger import Ledger
from holdfast.lifecycle.progress import Progress
from holdfast.lifecycle.slots import NodeState, NodeTier, Occupant, SlotState
from holdfast.lifecycle.steps import Check, StepRecord
from holdfast.model.identity import CheckpointId
from holdfast.policy import retention

Plant = Callable[[pytest.MonkeyPatch], None]


def _before_the_last_receipt(patch: pytest.MonkeyPatch) -> None:
    """One image on the tier is all of them."""
    real = StepRecord.holds_all

    def holds_all(record: StepRecord, images: Any) -> bool:
        return real(record, images) if images is record.known or images is record.memory else bool(images)

    patch.setattr(StepRecord, "holds_all", holds_all)


def _coverage_unchecked(patch: pytest.MonkeyPatch) -> None:
    """Whole is what has all its images; whether they cover the tensors is not waited for."""
    real = Progress.advance

    def advance(progress: Progress, record: StepRecord) -> None:
        real(progress, record)
        if record.check is Check.RUNNING:
            record.check = Check.PASSED
            real(progress, record)

    patch.setattr(Progress, "advance", advance)


def _newest_whole_freed(patch: pytest.MonkeyPatch) -> None:
    """What stands on a tier need not stay in memory."""
    real = room._kept
    patch.setattr(room, "_kept", lambda state: {c for c in real(state) if not state.steps[c].committed})


def _only_copy_freed(patch: pytest.MonkeyPatch) -> None:
    """A step that only forms counts as the newest one already."""

    def newest(state: NodeState) -> CheckpointId | None:
        return max((c for c, s in state.steps.items() if s.wanted), default=None)

    patch.setattr(NodeState, "newest_whole", newest)


def _attempts_mixed(patch: pytest.MonkeyPatch) -> None:
    """A step is a step, whatever the attempt: who has not staged his part may bring it in the next one."""
    real = Progress.record

    def record(progress: Progress, checkpoint: CheckpointId) -> StepRecord:
        same = (r for c, r in progress.ledger.records.items() if c.step == checkpoint.step and r.forming)
        return next(same, None) or real(progress, checkpoint)

    patch.setattr(Progress, "record", record)
    patch.setattr(Ledger, "abandoned", lambda ledger, checkpoint: False)
    patch.setattr(Ledger, "missing_rank", lambda ledger, record, rank=None: None)
    patch.setattr(StepRecord, "holds_all", lambda r, images: r.fully_announced and len(images) >= r._expected)


def _abandoned_committed(patch: pytest.MonkeyPatch) -> None:
    """What was left behind goes on."""
    patch.setattr(Ledger, "abandoned", lambda ledger, checkpoint: False)
    patch.setattr(Ledger, "on_lineage", lambda ledger, checkpoint: True)


def _superseded_goes_on(patch: pytest.MonkeyPatch) -> None:
    """Who once owned the run owns it."""
    patch.setattr(Ledger, "owner", property(lambda ledger: ledger.attempt > 0))


def _never_lagging(patch: pytest.MonkeyPatch) -> None:
    """A save waits, and no tier is to blame."""
    patch.setattr(room, "held_up_by", lambda state, rank, image: set())


def _lagging_keeps_its_slot(patch: pytest.MonkeyPatch) -> None:
    """A flush not begun holds its slot, however late its tier is."""
    patch.setattr(room, "may_skip", lambda state, occupant: False)


def _drops_not_told(patch: pytest.MonkeyPatch) -> None:
    """The run machine gives a step up and keeps it to itself."""
    real = Progress.to_nodes

    def to_nodes(progress: Progress, event: Any, node: str | None = None) -> None:
        if not isinstance(event, events.Forget):
            real(progress, event, node)

    patch.setattr(Progress, "to_nodes", to_nodes)


def _retention_takes_the_newest(patch: pytest.MonkeyPatch) -> None:
    """keep_last counts from one too far."""
    patch.setattr(durability, "select_deletions", lambda standing, lineage, keep, **_: standing[-1:])


def _pruned_under_a_load(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks whether what is to go is in use."""
    real, select = TierBook.next_deletion, retention.select_deletions
    patch.setattr(TierBook, "next_deletion", lambda book, in_use, *spare: real(book, (), *spare))

    def of_all(*args: Any, protected: Any, **more: Any) -> Any:
        return select(*args, **more)

    patch.setattr(durability, "select_deletions", of_all)


def _freed_in_flush(patch: pytest.MonkeyPatch) -> None:
    """A running flush does not keep its slot."""

    def busy(occupant: Occupant) -> bool:
        return occupant.state in (SlotState.SEALING, SlotState.VERIFYING) or occupant.pins > 0

    patch.setattr(Occupant, "busy", property(busy))


def _two_steps_at_once(patch: pytest.MonkeyPatch) -> None:
    """A tier begins the next step while it still flushes another."""

    def next_step(state: NodeState, tier: NodeTier) -> CheckpointId | None:
        name = tier.rule.name
        ready = {o.checkpoint for o in state.occupants() if o.state is SlotState.HELD and name in o.waiting}
        return min(ready, default=None)

    patch.setattr(room, "next_step", next_step)


def _relied_on_freed(patch: pytest.MonkeyPatch) -> None:
    """A shared image goes with the step it was staged with."""
    patch.setattr(NodeState, "is_needed", lambda state, occupant: False)


def _wait_unheard(patch: pytest.MonkeyPatch) -> None:
    """A rank's newest shared image stays, though the rank waits to stage another in its place."""
    patch.setattr(NodeState, "_outdated", lambda state, image: False)


def _wait_takes_what_forms(patch: pytest.MonkeyPatch) -> None:
    """Who waits for a slot needs nothing that it staged before."""
    real = room._worth_keeping

    def worth_keeping(state: NodeState, occupant: Occupant, kept: set[CheckpointId]) -> bool:
        outdated = occupant.shared and state._outdated(occupant.image)
        return real(state, occupant, kept) and (not outdated or state.is_needed(occupant))

    patch.setattr(room, "_worth_keeping", worth_keeping)


def _shared_swept(patch: pytest.MonkeyPatch) -> None:
    """What no manifest names is nobody's."""
    real = TierBook.next_deletion
    patch.setattr(TierBook, "next_deletion", lambda book, in_use, spare=frozenset(): real(book, in_use))


def _whole_without_what_it_relies_on(patch: pytest.MonkeyPatch) -> None:
    """A step consists of what was staged with it."""
    patch.setattr(StepRecord, "staged_by", lambda record, rank: 0 in record.announced.get(rank, {}))
    patch.setattr(StepRecord, "holds_all", lambda r, images: 0 < r.world_size == sum(not i.image for i in images))


def _flushed_before_what_it_relies_on(patch: pytest.MonkeyPatch) -> None:
    """The order of flushes does not matter."""

    def startable(state: NodeState, tier: str, checkpoint: CheckpointId) -> list[Occupant]:
        return [o for o in state.occupants(checkpoint) if tier in o.waiting and o.flushable]

    patch.setattr(room, "startable", startable)


DEFECTS: dict[str, tuple[Plant, str]] = {
    "committed before the last receipt": (_before_the_last_receipt, "before all images stand there"),
    "coverage unchecked": (_coverage_unchecked, "committed unchecked|freed the"),
    "newest whole step freed": (_newest_whole_freed, "freed the"),
    "only copy freed": (_only_copy_freed, "freed the"),
    "attempts mixed": (_attempts_mixed, "mixed attempts|to become whole"),
    "abandoned steps committed": (_abandoned_committed, "committed what was abandoned|freed the"),
    "superseded and going on": (_superseded_goes_on, "after being superseded"),
    "no tier ever lags": (_never_lagging, "hold a slot that rank . waits for"),
    "a lagging tier keeps its slot": (_lagging_keeps_its_slot, "lagging .* hold a slot"),
    "drops not told to nodes": (_drops_not_told, "stays, though its step was"),
    "retention takes the newest": (_retention_takes_the_newest, "retention removed the newest"),
    "pruned under a load": (_pruned_under_a_load, "pruned under a load|pruned while committing"),
    "freed in flush": (_freed_in_flush, "freed while in use"),
    "two steps at once": (_two_steps_at_once, "two steps at once"),
    "freed though relied on": (_relied_on_freed, "on which"),
    "a wait is not heard": (_wait_unheard, "stays in a slot that rank . waits for"),
    "a wait takes what forms": (_wait_takes_what_forms, "of a step that forms|freed the"),
    "shared images swept": (
        _shared_swept,
        "before what it relies on|went away under|all images stand there|without its",
    ),
    "whole without what it relies on": (
        _whole_without_what_it_relies_on,
        "mixed attempts or steps|not complete|all images stand there",
    ),
    "flushed before what it relies on": (_flushed_before_what_it_relies_on, "flushed before what it relies on"),
}
"""Per defect how it is planted, and what the checks say then."""
