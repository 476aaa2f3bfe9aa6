"""Watches the durable tier from outside, as anyone may: what stands in the directory is what is there."""

from __future__ import annotations

from pathlib import Path

from holdfast.demo.events import EventLog
from holdfast.format.names import MANIFESTS, parse_manifest_key, step_prefix
from holdfast.model.identity import CheckpointId


class Disk:
    """The directory of the file tier. `look` is called often and logs what changed since it last looked."""

    def __init__(self, folder: Path, log: EventLog) -> None:
        self._folder = folder
        self._unfinished = folder / ".tmp"
        self._manifests = folder / MANIFESTS
        self._log = log
        self._committed: frozenset[CheckpointId] = frozenset()

    def committed(self) -> frozenset[CheckpointId]:
        """Every checkpoint whose manifest stands there at this moment."""
        found = (parse_manifest_key(MANIFESTS + name) for name in _names(self._manifests))
        return frozenset(checkpoint for checkpoint in found if checkpoint is not None)

    def has(self, step: int) -> bool:
        return any(checkpoint.step == step for checkpoint in self.committed())

    def writing(self) -> bool:
        """Whether files stand there that are not yet published."""
        return bool(_names(self._unfinished))

    def look(self) -> None:
        """Log `committed` and `pruned` for each manifest that came or went."""
        now = self.committed()
        for checkpoint in sorted(now - self._committed):
            self._log("committed", attempt=checkpoint.attempt, step=checkpoint.step, bytes=self._size_bytes(checkpoint))
        for checkpoint in sorted(self._committed - now):
            self._log("pruned", attempt=checkpoint.attempt, step=checkpoint.step)
        self._committed = now

    def _size_bytes(self, checkpoint: CheckpointId) -> int:
        return sum(path.stat().st_size for path in (self._folder / step_prefix(checkpoint)).iterdir())


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
