"""What trainer and agent say over the Unix socket: JSON bodies as typed structs."""

from __future__ import annotations

import msgspec

from holdfast.model.identity import CheckpointId, ImageId

PROTOCOL = 5
"""Trainer and agent must agree; a trainer that finds another number asks for a fresh agent."""


class Launch(msgspec.Struct, frozen=True):
    """Who attaches: one process of one launch. `launch` is a hex id made by rank 0."""

    launch: str
    rank: int
    world_size: int
    pid: int
    start: int
    protocol: int
    settings: dict[str, object]


class LaunchAnswer(msgspec.Struct, frozen=True):
    """The rank is admitted; the files of its page and of the run page, in the arena directory."""

    trainer_page: str
    run_page: str


class Prepare(msgspec.Struct, frozen=True):
    """`image_bytes` is the size of this rank's image, `shared_bytes` that of the image its steps share (0: none)."""

    rank: int
    image_bytes: int
    shared_bytes: int = 0


class PrepareAnswer(msgspec.Struct, frozen=True):
    """Slots that are or will be dealt to the rank (their pages say when), by number."""

    slots: list[int]
    shared_slots: list[int] = []


class ClaimAttempt(msgspec.Struct, frozen=True):
    """Claim the next attempt, standing on `parent` (None: on nothing)."""

    parent: CheckpointId | None


class AttemptAnswer(msgspec.Struct, frozen=True):
    """The attempt claimed. `left` is the newest checkpoint there is, where the attempt stands on nothing."""

    attempt: int
    left: CheckpointId | None = None


class Loadable(msgspec.Struct, frozen=True):
    """The answer to "what is newest": None and `empty` on a fresh home."""

    checkpoint: CheckpointId | None
    empty: bool
    problems: list[str]
    """Newer things that are there and cannot be loaded, in words."""


class Fetch(msgspec.Struct, frozen=True):
    """Bring every image of a checkpoint into slots, pinned for the rank until it unpins."""

    checkpoint: CheckpointId
    rank: int


class Place(msgspec.Struct, frozen=True):
    """The answer to "may the rank read this checkpoint by itself": the tier that has it. None: have it fetched."""

    tier: str | None


class FetchedImage(msgspec.Struct, frozen=True):
    """Where an image now stands, and what its bytes must hash to. `source` names the tier it was read from ("memory":
    it was here)."""

    id: ImageId
    slot: int
    generation: int
    size_bytes: int
    crc64nvme: int
    source: str


class FetchAnswer(msgspec.Struct, frozen=True):
    """Where the images stand now, by rank and image."""

    images: list[FetchedImage]


class BadImage(msgspec.Struct, frozen=True):
    """A trainer found that the image in a slot contradicts its checksum."""

    id: ImageId
    slot: int
    reason: str


class TierState(msgspec.Struct, frozen=True):
    """One tier's view of a step: not-due, waiting, flushing, committed, skipped, failed or dropped."""

    state: str
    error: dict[str, object] | None = None


class SaveStatus(msgspec.Struct, frozen=True):
    """What became of a saved step. `memory` is staged, whole, gone, failed, dropped or lost."""

    memory: str
    tiers: dict[str, TierState]
    error: dict[str, object] | None = None

    @property
    def settled(self) -> bool:
        """Nothing is under way any more."""
        moving = {"waiting", "flushing"}
        return self.memory != "staged" and not any(t.state in moving for t in self.tiers.values())


class StepInfo(msgspec.Struct, frozen=True):
    """One step of the run: where it is whole or committed, and whether the lineage left it behind."""

    step: int
    attempt: int
    tiers: list[str]
    size_bytes: int
    abandoned: bool
    problem: str = ""


class Close(msgspec.Struct, frozen=True):
    """A rank is done. The answer comes when everything is flushed and promoted, or after `wait_s`."""

    rank: int
    discard: bool
    wait_s: float = 0.0


class Unpin(msgspec.Struct, frozen=True):
    """A load of this rank is over; slots it read from may be reused.

    `loaded`: it worked and the next save stands on it, so what is in memory alone stays until that save has claimed.
    """

    rank: int
    loaded: bool = False


class Prune(msgspec.Struct, frozen=True):
    """Delete these checkpoints on every tier, memory included."""

    checkpoints: list[CheckpointId]


class Repair(msgspec.Struct, frozen=True):
    """Re-make a bad copy on the tier at `url`: of an image that the checkpoint names, or (None) of its manifest."""

    url: str
    checkpoint: CheckpointId
    image: ImageId | None
    reason: str


class Repaired(msgspec.Struct, frozen=True):
    """Where the good copy came from: "memory", the name of a tier, or "its images" for a manifest made anew."""

    source: str


class Stop(msgspec.Struct, frozen=True):
    """End the agent: `discard` frees the memory without promoting."""

    discard: bool = False


class ClosedAnswer(msgspec.Struct, frozen=True):
    """Whether the end is reached; `waiting_for` says for what not."""

    closed: bool
    waiting_for: str = ""
    error: dict[str, object] | None = None


class ErrorList(msgspec.Struct, frozen=True):
    """Background errors after number `since`; `last` is the number of the newest.

    `fatal` is the error of a save for which training is to end, if there is one.
    """

    last: int
    errors: list[dict[str, object]]
    fatal: dict[str, object] | None = None


class Ok(msgspec.Struct, frozen=True):
    """Done; nothing more to say."""

    ok: bool = True
