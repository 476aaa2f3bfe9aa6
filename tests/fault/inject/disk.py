"""What of a directory tree would survive a power cut. kill -9 cannot tell: the page cache outlives a process.

In the processes under test `record` notes every creation, write, fsync and removal below the tree; fsync itself is
skipped. After they were killed, `cut_power` puts the tree into a state that a disk could have: what was fsynced is
there, everything else is there, gone or damaged, as a seed decides. `seed=None` loses all that may be lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Identity = tuple[int, int]
"""An inode number, and how often it had been given to a new directory before."""


def _journal(disk: str) -> str:
    return f"{disk}.journal"


def _graves(disk: str) -> str:
    """Where files stay that were removed, for the removal may not have reached the disk."""
    return f"{disk}.graves"


# In the process under test ----------------------------------------------------------------------------------------
def record(disk: str) -> None:
    """Note from now on what this process does below `disk`."""
    os.makedirs(_graves(disk), exist_ok=True)
    recorder = _Recorder(disk)
    for name in ("open", "close", "pwrite", "fsync", "mkdir", "unlink", "replace"):
        setattr(os, name, getattr(recorder, name))


class _Recorder:
    """The functions of `os` that a posix tier uses, with notes. Threads: any."""

    def __init__(self, disk: str) -> None:
        self._disk = disk
        self._real: dict[str, Callable[..., Any]] = {
            name: getattr(os, name) for name in ("open", "close", "pwrite", "mkdir", "unlink", "replace")
        }
        self._fd = os.open(_journal(disk), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def _note(self, what: str, inode: int, **more: Any) -> None:
        os.write(self._fd, (json.dumps({"what": what, "inode": inode, **more}) + "\n").encode())

    def _ours(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._disk + "/")

    def open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        fd: int = self._real["open"](path, flags, *args, **kwargs)
        if self._ours(path) and flags & (os.O_WRONLY | os.O_RDWR):
            with self._lock:
                self._files[fd] = os.fstat(fd).st_ino
            if flags & os.O_CREAT:
                self._note("written", self._files[fd])
        return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._files.pop(fd, None)
        self._real["close"](fd)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        inode = self._files.get(fd)
        if inode is not None:
            self._note("written", inode)
        n: int = self._real["pwrite"](fd, data, offset)
        return n

    def fsync(self, fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(fd) as entries:
                names = {e.name: [e.inode(), e.is_dir(follow_symlinks=False)] for e in entries}
            self._note("names", status.st_ino, names=names)
        else:
            self._note("synced", status.st_ino)

    def mkdir(self, path: Any, *args: Any, **kwargs: Any) -> None:
        self._real["mkdir"](path, *args, **kwargs)
        if self._ours(path):
            with contextlib.suppress(FileNotFoundError):
                self._note("made", os.stat(path).st_ino)

    def unlink(self, path: Any, *args: Any, **kwargs: Any) -> None:
        self._bury(path)
        self._real["unlink"](path, *args, **kwargs)

    def replace(self, source: Any, target: Any, **kwargs: Any) -> None:
        self._bury(target)
        self._real["replace"](source, target, **kwargs)

    def _bury(self, path: Any) -> None:
        if self._ours(path):
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                os.link(path, os.path.join(_graves(self._disk), str(os.stat(path).st_ino)))


# Afterwards -----------------------------------------------------------------------------------------------------------
@dataclass
class _Disk:
    """What the journal says is on the disk for certain."""

    synced: set[int] = field(default_factory=set)
    names: dict[Identity, dict[str, tuple[Identity, bool]]] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)

    def identity(self, inode: int) -> Identity:
        return inode, self.made.get(inode, 0)

    def take(self, line: dict[str, Any]) -> None:
        inode = line["inode"]
        if line["what"] == "written":
            self.synced.discard(inode)
        elif line["what"] == "synced":
            self.synced.add(inode)
        elif line["what"] == "made":
            self.made[inode] = self.made.get(inode, 0) + 1
        else:
            names = {name: (self.identity(i) if d else (i, 0), d) for name, (i, d) in line["names"].items()}
            self.names[self.identity(inode)] = names


def cut_power(disk: Path, seed: int | None = None) -> None:
    """Leave of the tree what a disk may have kept. Nothing of the run lives any more."""
    known = _Disk()
    journal = Path(_journal(str(disk)))
    lines = journal.read_bytes()
    for line in lines[: lines.rfind(b"\n") + 1].splitlines():
        known.take(json.loads(line))
    rebuilt = disk.with_name(disk.name + ".rebuilt")
    files = {e.stat().st_ino: e for d in (disk, Path(_graves(str(disk)))) for e in d.rglob("*") if e.is_file()}
    chance = random.Random(seed) if seed is not None else None
    _Rebuild(known, files, chance).directory(disk, disk.stat().st_ino, rebuilt)
    shutil.rmtree(disk)
    shutil.rmtree(_graves(str(disk)))
    rebuilt.rename(disk)
    journal.write_text("".join(json.dumps(line) + "\n" for line in _survivors(disk)))


def _survivors(disk: Path) -> Iterator[dict[str, Any]]:
    """What stands after a cut is on the disk, and survives the next."""
    for directory, _, names in os.walk(disk):
        with os.scandir(directory) as entries:
            listed = {e.name: [e.inode(), e.is_dir()] for e in entries}
        yield {"what": "names", "inode": os.stat(directory).st_ino, "names": listed}
        yield from ({"what": "synced", "inode": listed[name][0]} for name in names)


class _Rebuild:
    def __init__(self, known: _Disk, files: dict[int, Path], random: random.Random | None) -> None:
        self._known, self._files, self._random = known, files, random

    def directory(self, live: Path | None, inode: int, to: Path, identity: Identity | None = None) -> None:
        """Copy what survives of a directory (`live` is where it stands, if it does)."""
        to.mkdir()
        identity = identity or self._known.identity(inode)
        for name, (child, is_dir) in self._names(live, identity).items():
            if is_dir:
                below = live / name if live is not None and self._stands(live / name, child) else None
                self.directory(below, child[0], to / name, child)
            elif child[0] in self._files:
                self._file(child[0], to / name)

    def _stands(self, path: Path, identity: Identity) -> bool:
        return path.is_dir() and self._known.identity(path.stat().st_ino) == identity

    def _names(self, live: Path | None, identity: Identity) -> dict[str, tuple[Identity, bool]]:
        """Names certainly on the disk, and of what was added or removed since, what chance gives."""
        durable = self._known.names.get(identity, {})
        now = {}
        for entry in os.scandir(live) if live is not None else ():
            is_dir = entry.is_dir()
            now[entry.name] = (self._known.identity(entry.inode()) if is_dir else (entry.inode(), 0), is_dir)
        chosen = {}
        for name in sorted(durable.keys() | now.keys()):
            old, new = durable.get(name), now.get(name)
            found = new if old != new and self._random is not None and self._random.random() < 0.5 else old
            if found is not None:
                chosen[name] = found
        return chosen

    def _file(self, inode: int, to: Path) -> None:
        data = self._files[inode].read_bytes()
        if inode not in self._known.synced:
            fate = self._random.choice(("intact", "zeros", "short")) if self._random is not None else "zeros"
            data = {"intact": data, "zeros": bytes(len(data)), "short": data[: len(data) // 2]}[fate]
        to.write_bytes(data)
