"""Events of a run: whose it is, what stands on its tiers, its end; answers to the actions of the run machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.lifecycle.events.both import Error, Reconfigured, TimerFired
from holdfast.lifecycle.events.from_node import FromNode
from holdfast.model.identity import CheckpointId, Lineage
from holdfast.model.notes import Notes


@dataclass(frozen=True, slots=True)
class AttemptOwned:
    """This run's agents own the highest attempt: just claimed, or found again by a new coordinator.

    To be followed by what stands on each tier: `TierReceipt` for images found without manifest (and for those that they
    rely on), then `CatalogRead` or `CatalogFailed`. Until all tiers are read, no step is dropped for want of an image;
    nor until each of `nodes` has told what it holds (a new coordinator of several nodes names them here and sends each
    a `Resend`).
    """

    attempt: int
    lineage: Lineage
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SupersededBy:
    """A higher attempt of somebody else exists: commit and prune nothing more."""

    attempt: int


@dataclass(frozen=True, slots=True)
class CatalogRead:
    """A tier was listed: what is committed there, and what has begun to be deleted."""

    tier: str
    committed: frozenset[CheckpointId]
    tombstoned: frozenset[CheckpointId]
    notes: Mapping[CheckpointId, Notes] = field(default_factory=dict)
    """What committed ones say of themselves, for retention."""


@dataclass(frozen=True, slots=True)
class CatalogFailed:
    """A tier could not be listed."""

    tier: str
    error: Error


@dataclass(frozen=True, slots=True)
class WholeChecked:
    """`CheckWhole` is done; `error` says where the images do not cover the step."""

    checkpoint: CheckpointId
    error: Error | None = None


@dataclass(frozen=True, slots=True)
class CommitDone:
    """The manifest stands on the tier; what it says of the checkpoint, for retention."""

    tier: str
    checkpoint: CheckpointId
    notes: Notes | None = None


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """The commit failed for good; whether the manifest stands is not known."""

    tier: str
    checkpoint: CheckpointId
    error: Error


@dataclass(frozen=True, slots=True)
class PruneAsked:
    """A person wants these checkpoints gone, everywhere."""

    checkpoints: frozenset[CheckpointId]


@dataclass(frozen=True, slots=True)
class PruneDone:
    """`Prune` or `Sweep` is done: these are gone. `refused` have to stay for now, and why."""

    tier: str
    checkpoints: frozenset[CheckpointId]
    refused: Mapping[CheckpointId, Error] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PruneFailed:
    """`Prune` or `Sweep` failed; a prune is tried again after the next commit on the tier."""

    tier: str
    checkpoints: frozenset[CheckpointId]
    error: Error


@dataclass(frozen=True, slots=True)
class LoadBegun:
    """A load reads this checkpoint: retention leaves it alone. Counted."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """A load of this checkpoint is over."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class TrainersGone:
    """No trainer of the launch lives any more and not all had closed."""


@dataclass(frozen=True, slots=True)
class TrainersBack:
    """A launch attached."""


@dataclass(frozen=True, slots=True)
class CloseAsked:
    """Every rank has closed. Asked again, what failed is tried again."""

    discard: bool = False


@dataclass(frozen=True, slots=True)
class TermSignal:
    """The agent has to end within `grace_s`."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node and its memory are lost."""

    node: str


RunEvent = (
    FromNode
    | TimerFired
    | Reconfigured
    | AttemptOwned
    | SupersededBy
    | CatalogRead
    | CatalogFailed
    | WholeChecked
    | CommitDone
    | CommitFailed
    | PruneAsked
    | PruneDone
    | PruneFailed
    | LoadBegun
    | LoadEnded
    | TrainersGone
    | TrainersBack
    | CloseAsked
    | TermSignal
    | NodeGone
)
