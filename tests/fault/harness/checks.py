"""The oracle: what the job was told and what stands on the disk, against what Holdfast promises."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fault.harness import oracle
from tests.fault.harness.oracle import Committed, Violation
from tests.fault.harness.processes import stopped
from tests.fault.harness.scene import Event, Scene

Saved = tuple[int, int]
"""(life, step); a later life's steps come after an earlier one's."""


@dataclass
class History:
    """What all lives so far saw.

    Attributes:
        memory_lost: lives at whose end the arena was removed: only what they heard to be durable counts.
        asked: lives that loaded a step by its number.
        failed: lives of which a rank was killed: the others may raise.
        rotten: steps of which a bit was flipped, so that what was whole is no longer.
        floor: the newest step that was ever reported whole (in memory or durable) since the run last went back. A later
            load may give a newer one, never an older.
    """

    memory_lost: Collection[int] = ()
    asked: Collection[int] = ()
    failed: Collection[int] = ()
    rotten: Collection[Saved] = ()
    saved: set[Saved] = field(default_factory=set)
    life_of: dict[Committed, int] = field(default_factory=dict)
    durable: list[Committed] = field(default_factory=list)
    loads: list[Saved | None] = field(default_factory=list)
    floor: Saved | None = None
    went_back: dict[int, Saved] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """One event of rank 0. Raises: Violation."""
        life, name = event["life"], event["event"]
        if name == "error" and life not in self.failed and not (event["kind"] == "load" and self.floor is None):
            raise Violation(f"life {life}: {event['trace']}")
        if name == "loaded":
            self._loaded(event)
        elif name == "saving":
            self.saved.add((life, event["step"]))
            # From the first save on the run stands where this life loaded.
            self.floor = self.went_back.pop(life, self.floor)
        elif name in ("staged", "memory", "durable"):
            self._told((life, event["step"]), Committed(event["attempt"], event["step"]), name)

    def _told(self, saved: Saved, checkpoint: Committed, what: str) -> None:
        if self.life_of.setdefault(checkpoint, saved[0]) != saved[0]:
            raise Violation(f"{checkpoint} is of life {self.life_of[checkpoint]} and of {saved[0]}")
        if what == "durable":
            self.durable.append(checkpoint)
        lasts = what == "durable" or (what == "memory" and saved[0] not in self.memory_lost)
        if lasts and saved not in self.rotten:
            self.floor = max(self.floor or saved, saved)

    def _loaded(self, event: Event) -> None:
        where = f"life {event['life']} loaded step {event['step']} of life {event['of_life']}"
        if event["wrong"]:
            raise Violation(f"{where}, and these are wrong: {event['wrong']}")
        got = None if event["step"] is None else (event["of_life"], event["step"])
        self.loads.append(got)
        if got is not None and got not in self.saved:
            raise Violation(f"{where}, which never saved it")
        if event["life"] in self.asked and got is not None:
            self.went_back[event["life"]] = got
        elif self.floor is not None and (got is None or got < self.floor):
            raise Violation(f"{where}, but step {self.floor[1]} of life {self.floor[0]} was whole")


def read(events: Iterable[Event], **known: Any) -> History:
    """Follow what rank 0 of every life saw; `known` are `memory_lost`, `asked`, `failed`, `rotten` of it.

    Raises: Violation.
    """
    history = History(**known)
    for event in events:
        history.take(event)
    return history


def check_disk(
    home: Path, history: History, *, keep_last: int | None, world: int = 1, pruned: Collection[Committed] = ()
) -> None:
    """What is durable is there and right, and nothing else is.

    Raises: Violation.
    """
    there = oracle.committed(home)
    for checkpoint in sorted(there):
        life = history.life_of.get(checkpoint) or _life_on_disk(home, checkpoint)
        if (life, checkpoint.step) not in history.saved:
            raise Violation(f"{checkpoint} is committed; life {life} never saved that step")
        oracle.check_on_disk(home, checkpoint, life=life, world=world)
    for checkpoint in set(history.durable) - there - set(pruned):
        newer = [c for c in there if c > checkpoint]
        if keep_last is None or len(newer) < keep_last:
            raise Violation(f"{checkpoint} was durable and is gone; newer ones are only {sorted(newer)}")


def _life_on_disk(home: Path, checkpoint: Committed) -> int:
    """Of a step whose trainer died before it could say under which attempt it saved."""
    image = home / "images" / f"{checkpoint.attempt:08d}" / f"{checkpoint.step:012d}" / "00000-0.safetensors"
    return int(next(found[0] for name, _, found in oracle.entries(image) if name == "extra"))


def check(scene: Scene, *, pruned: Collection[Committed] = (), **known: Any) -> History:
    """Everything, now; arguments as in `read`. Raises: Violation.

    Agents are stopped meanwhile, and only then what the trainers wrote is read: what is committed was saved before, and
    nothing is deleted under who looks. Where another agent has started since, all is looked at again.
    """
    while True:
        agents = scene.agents()
        with stopped(agents):
            try:
                return _check(scene, pruned, known)
            except (FileNotFoundError, Violation):
                if set(scene.agents()) <= set(agents):
                    raise


def _check(scene: Scene, pruned: Collection[Committed], known: dict[str, Any]) -> History:
    history = read(scene.events(), **known)
    for other in range(1, scene.job.world):
        _check_other_rank(scene, other)
    check_disk(scene.home, history, keep_last=scene.job.keep_last, world=scene.job.world, pruned=pruned)
    return history


def _check_other_rank(scene: Scene, rank: int) -> None:
    """Every rank loads what rank 0 loads."""
    first = {e["life"]: e["step"] for e in scene.events("loaded")}
    for event in scene.events("loaded", rank=rank):
        if event["wrong"] or first.get(event["life"], event["step"]) != event["step"]:
            raise Violation(f"rank {rank} of life {event['life']} loaded {event['step']}, wrong: {event['wrong']}")


def check_tidy(scene: Scene) -> None:
    """After a clean end nothing is left but what is committed.

    Raises: Violation.
    """
    scene.until(lambda: not scene.agents(), "the agent to leave")
    left = [*oracle.temporaries(scene.home), *scene.slots()]
    newest = max(oracle.committed(scene.home))
    older = [p for p in oracle.stray_images(scene.home) if oracle.Committed(*_place(p)) < newest]
    if left or older:
        raise Violation(f"left behind: {[str(p) for p in [*left, *older]]}")


def _place(image: Path) -> tuple[int, int]:
    return int(image.parent.parent.name), int(image.parent.name)
