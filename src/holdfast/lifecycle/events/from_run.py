"""What the run machine tells node machines."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.model.identity import CheckpointId, Lineage


@dataclass(frozen=True, slots=True)
class Resend:
    """The run machine is new, or this agent is: what was said before may be lost, so say everything again."""


@dataclass(frozen=True, slots=True)
class LineageChanged:
    """An attempt was claimed: steps outside the lineage are abandoned.

    Trainers are told of their attempt only when every node has heard of it: before, a node may free what the attempt
    stands on in favour of what it abandons.
    """

    lineage: Lineage


@dataclass(frozen=True, slots=True)
class BecameWhole:
    """All images of the step are verified in memory and cover it."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class InDoubt:
    """Some node says anew what it holds: until it has, the step is not known to be whole."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class Committed:
    """The step's manifest stands on the tier."""

    tier: str
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class CancelFlush:
    """The step will not be committed on this tier, or stands there no more: flushes not begun are cancelled."""

    tier: str
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class CopiesInDoubt:
    """The step could not be committed on the tier: what it shares with other steps is flushed there again before it
    counts."""

    tier: str
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class Release:
    """The step is no longer whole in memory: slots are freed as soon as no flush needs them."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class Forget:
    """The step does not exist any more (dropped, failed, pruned, abandoned): cancel its flushes, free its slots."""

    checkpoint: CheckpointId
    reason: str


@dataclass(frozen=True, slots=True)
class Promote:
    """Flush the step to this tier ahead of everything else, due or not."""

    tier: str
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class FreeAll:
    """The run is over on this node: cancel what has not begun, free every slot."""


FromRun = (
    Resend
    | LineageChanged
    | BecameWhole
    | InDoubt
    | Committed
    | CancelFlush
    | CopiesInDoubt
    | Release
    | Forget
    | Promote
    | FreeAll
)
