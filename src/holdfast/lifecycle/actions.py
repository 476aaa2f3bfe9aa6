"""What the two machines want done. An action that takes time is answered by one event, named in its docstring.

Actions are performed in the order given; those that take time may overlap and finish in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.lifecycle.events import Error, FromNode, FromRun
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord


# Of both machines -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class StartTimer:
    """Answer `TimerFired(timer)` after this long; a running timer of that name starts anew."""

    timer: str
    after_s: float


@dataclass(frozen=True, slots=True)
class StopTimer:
    """Let the timer not fire; it may have fired or never have run."""

    timer: str


# Of the node machine ----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Seal:
    """Fill the block table of a staged image: `Sealed` or `SealFailed`."""

    slot: int


@dataclass(frozen=True, slots=True)
class Verify:
    """Compare an adopted image with its block table: `Verified` or `VerifyFailed`."""

    slot: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Mark the slot's page held (staged -> held) and note the checksum there. At once."""

    slot: int
    generation: int
    crc64nvme: int


@dataclass(frozen=True, slots=True)
class MarkCommitted:
    """Note on the slot's page that the tier has this step committed. At once."""

    slot: int
    generation: int
    tier: str


@dataclass(frozen=True, slots=True)
class Free:
    """Mark the slot's page free, if it still has this generation. At once."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class Upload:
    """Flush an image to a tier: `Uploaded` or `UploadFailed`. The slot stays until then.

    Without a record the image is still being sealed: what lies before its block table may be written meanwhile, but it
    may appear on the tier only after `Sealed` was told, and never after `SealFailed`.
    """

    tier: str
    slot: int
    image: ImageId
    record: ImageRecord | None


@dataclass(frozen=True, slots=True)
class ToRun:
    """Bring this event to the run machine, wherever it is, after those sent before."""

    event: FromNode


# Of the run machine -----------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image as receipts describe it."""

    record: ImageRecord
    header: ImageHeader


@dataclass(frozen=True, slots=True)
class CheckWhole:
    """Check that these images cover the step completely (build the manifest; keep it for `Commit`): `WholeChecked`."""

    checkpoint: CheckpointId
    images: tuple[KnownImage, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Publish the manifest of these images on the tier: `CommitDone` or `CommitFailed`.

    On a node-scoped tier every node gets the same manifest. An equal manifest that already stands is success.
    """

    tier: str
    checkpoint: CheckpointId
    images: tuple[KnownImage, ...]


@dataclass(frozen=True, slots=True)
class Prune:
    """Delete committed checkpoints from a tier, by tombstone: `PruneDone` or `PruneFailed`. One at a time per tier.

    Images of theirs that another manifest names stay, and so do those of `spare`: steps under way may name them. One
    that has to stay for now is refused.
    """

    tier: str
    checkpoints: frozenset[CheckpointId]
    spare: frozenset[ImageId] = frozenset()


@dataclass(frozen=True, slots=True)
class Sweep:
    """Remove images of steps that will not be committed there, without tombstone: `PruneDone` or `PruneFailed`.

    Those that a manifest names stay, and so do those of `spare`.
    """

    tier: str
    checkpoints: frozenset[CheckpointId]
    spare: frozenset[ImageId] = frozenset()


@dataclass(frozen=True, slots=True)
class ToNodes:
    """Bring this event to one node machine, or (None) to all, after those sent before."""

    event: FromRun
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Notify:
    """The status of this step changed: wake whoever waits for its handle. At once."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class Report:
    """An error behind the training loop: to the log, the metrics and the trainers' warnings. At once."""

    error: Error


@dataclass(frozen=True, slots=True)
class Ended:
    """The run needs this agent no more: "closed", "idle" or "terminated". `free`: its memory may be given back.

    With an error the newest whole step is durable nowhere: after "closed" the agent stays, and another `Ended` follows
    when it is asked again; after "terminated" the memory is left to the next agent.
    """

    reason: str
    error: Error | None = None
    free: bool = False


NodeAction = StartTimer | StopTimer | Seal | Verify | Hold | MarkCommitted | Free | Upload | ToRun
RunAction = StartTimer | StopTimer | CheckWhole | Commit | Prune | Sweep | ToNodes | Notify | Report | Ended
