"""Files of deleted objects, which the next uploads overwrite: no block is freed, and none allocated."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import stat
import threading
from dataclasses import dataclass, field

RECYCLE_FROM_BYTES = 1 << 20
"""Smaller files cost nothing to make anew."""
_MOST_RATIO = 2
"""A file is used again for an object of at most so many times its length, or its length so many times."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file without a name of its own."""

    path: str
    size_bytes: int


@dataclass
class Pool:
    """Files of the directory that lost some last: of one checkpoint, that is, at most one step's worth.

    They lie among the temporary files, named `{owner}-old-{random}`, so that a successor sweeps them like those.

    Invariants: a file that is kept has lost its old name durably; one that anybody has open or linked elsewhere is
    never given away. Threads: any.
    """

    directory: str
    owner: str
    from_bytes: int = RECYCLE_FROM_BYTES
    _files: list[Kept] = field(default_factory=list)
    _home: str = ""
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size(self) -> tuple[int, int]:
        """How many files, and their bytes."""
        with self._lock:
            return len(self._files), sum(f.size_bytes for f in self._files)

    def move_in(self, path: str) -> Kept | None:
        """Take a file's name away; `keep` it once that is durable. None where it has to be unlinked instead.

        Raises: OSError, FileNotFoundError too.
        """
        status = os.stat(path, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) or status.st_size < self.from_bytes or status.st_nlink != 1:
            return None
        to = os.path.join(self.directory, f"{self.owner}-old-{secrets.token_hex(8)}")
        try:
            os.rename(path, to)
        except OSError:  # unlinking needs no room, and no directory
            return None
        return Kept(to, status.st_size)

    def keep(self, kept: Kept, home: str) -> None:
        """The removal of the old name, in directory `home`, is durable: the file may be overwritten."""
        left: list[Kept] = []
        with self._lock:
            if self._closed:
                left = [kept]
            elif home == self._home:
                self._files.append(kept)
            else:
                left, self._files, self._home = self._files, [kept], home
        _unlink(left)

    def move_out(self, to: str, size_bytes: int) -> bool:
        """Give a file of about this length the name `to`. False: there is none."""
        while (found := self._take(size_bytes)) is not None:
            if _move(found.path, to):
                return True
        return False

    def _take(self, size_bytes: int) -> Kept | None:
        if size_bytes < self.from_bytes:
            return None
        with self._lock:
            fitting = [
                f
                for f in self._files
                if f.size_bytes <= _MOST_RATIO * size_bytes and size_bytes <= _MOST_RATIO * f.size_bytes
            ]
            best = min(fitting, key=lambda f: abs(f.size_bytes - size_bytes), default=None)
            if best is not None:
                self._files.remove(best)
        return best

    def drop(self) -> int:
        """Give the room back to the file system. Returns how many files went."""
        with self._lock:
            left, self._files = self._files, []
        return _unlink(left)

    def close(self) -> None:
        """Keep nothing any more."""
        with self._lock:
            self._closed = True
        self.drop()


def _move(path: str, to: str) -> bool:
    """Move a file that nobody else has; whoever has it keeps it, without a name."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # swept, or taken by a person
        return False
    try:
        if not _is_ours_alone(fd):
            _unlink([Kept(path, 0)])
            return False
        os.utime(fd)  # before it has a name that a sweep could find old
        os.rename(path, to)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _is_ours_alone(fd: int) -> bool:
    """Whether no process, this one included, has the file open, mapped or linked but by `fd`.

    The kernel grants a write lease on exactly these terms. Where it knows no leases the file counts as taken.
    """
    if os.fstat(fd).st_nlink != 1:
        return False
    try:
        # Whoever opens it while the lease lasts waits for it to end, and we are told so: not by SIGIO, which kills.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _unlink(files: list[Kept]) -> int:
    gone = 0
    for file in files:
        with contextlib.suppress(OSError):
            os.unlink(file.path)
            gone += 1
    return gone
