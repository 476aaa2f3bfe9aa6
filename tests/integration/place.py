"""Where one test's run lives, and how to look at it from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from holdfast.config import Config
from holdfast.wire.client import AgentClient
from holdfast.wire.spawn import SOCKET

if TYPE_CHECKING:  # a place needs no torch
    from holdfast.trainer.save import Save

T = TypeVar("T")


@dataclass
class Place:
    """The home of a run on disk and the arena directory of its node."""

    home: Path
    arena_dir: Path

    @property
    def url(self) -> str:
        return f"file://{self.home}"

    @property
    def arena(self) -> Path:
        """The arena of the run at `url`."""
        return Config.from_url(self.url).resolve().arena

    def agent(self) -> AgentClient:
        return AgentClient(self.arena / SOCKET)

    def status(self) -> dict[str, Any]:
        return self.agent().get("/status", dict[str, Any], timeout_s=20)

    def manifests(self) -> list[str]:
        """Names of the manifests in the home, oldest first."""
        return sorted(p.name for p in (self.home / "manifests").glob("*"))

    def committed(self) -> list[tuple[int, int]]:
        """(attempt, step) of what is committed in the home and not being deleted."""
        dead = {p.name for p in (self.home / "tombstones").glob("*")}
        pairs = (name.split("-") for name in self.manifests() if name not in dead)
        return [(int(attempt), int(step)) for attempt, step in pairs]

    def images(self, attempt: int, step: int) -> list[Path]:
        return sorted((self.home / "images" / f"{attempt:08d}" / f"{step:012d}").glob("*"))

    def manifest(self, attempt: int, step: int) -> Path:
        return self.home / "manifests" / f"{attempt:08d}-{step:012d}"


def due(save: Save | None) -> Save:
    """The handle of a save that was due."""
    assert save is not None
    return save


def until(look: Callable[[], T], what: str, within_s: float = 30.0) -> T:
    """Poll until `look` gives something true, and return that."""
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)
    return found
