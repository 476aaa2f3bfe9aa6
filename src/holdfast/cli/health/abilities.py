"""What a file system can do, found by doing it in a directory of our own that is removed again."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from holdfast.tiers.posix.disk import File, renameat2

_NOREPLACE = 1
_SMALL_BYTES = 4096
_LARGE_BYTES = 32 << 20
_FSYNCS = 7


@dataclass(frozen=True, slots=True)
class Abilities:
    """What was tried in a directory and worked."""

    direct: bool
    rename_noreplace: bool
    hard_link: bool
    flock: bool
    shared_map: bool
    unix_socket: bool
    fsync_s: float
    """Median time of write and fsync of 4 KiB."""
    write_bytes_per_s: float
    """One thread, 32 MiB, fsync included."""


def try_out(directory: Path) -> Abilities:
    """Try everything. Raises: OSError when not even a file can be made there."""
    room = Path(tempfile.mkdtemp(prefix=".holdfast-doctor-", dir=directory))
    try:
        return Abilities(
            direct=_works(lambda: _direct(room / "direct")),
            rename_noreplace=_works(lambda: _exclusive(room, lambda a, b: renameat2(str(a), str(b), _NOREPLACE))),
            hard_link=_works(lambda: _exclusive(room, os.link)),
            flock=_works(lambda: _flock(room / "flock")),
            shared_map=_works(lambda: _shared_map(room / "map")),
            unix_socket=_works(lambda: _unix_socket(room / "s")),
            fsync_s=statistics.median(_timed_write(room / "small", _SMALL_BYTES) for _ in range(_FSYNCS)),
            write_bytes_per_s=_LARGE_BYTES / _timed_write(room / "large", _LARGE_BYTES),
        )
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _works(attempt: Callable[[], bool]) -> bool:
    with contextlib.suppress(OSError):
        return attempt()
    return False


def _direct(path: Path) -> bool:
    file = File(str(path), os.O_RDWR | os.O_CREAT, direct=True)
    try:
        with mmap.mmap(-1, _SMALL_BYTES) as aligned:
            view = memoryview(aligned)
            file.write(0, view)
            view.release()
        return file.is_direct  # a file system may take the flag at open and refuse the write
    finally:
        file.close()


def _exclusive(room: Path, move: Callable[[Path, Path], None]) -> bool:
    """Whether `move` gives a file a free name and refuses a taken one."""
    first, second, target = room / "first", room / "second", room / "target"
    for path in (first, second):
        path.write_bytes(path.name.encode())
    try:
        move(first, target)
        try:
            move(second, target)
        except FileExistsError:
            return target.read_bytes() == b"first"
        return False
    finally:
        for path in (first, second, target):
            path.unlink(missing_ok=True)


def _flock(path: Path) -> bool:
    with path.open("wb") as one, path.open("wb") as two:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _shared_map(path: Path) -> bool:
    path.write_bytes(bytes(_SMALL_BYTES))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), _SMALL_BYTES) as mapped:
        mapped[:4] = b"page"
        return path.read_bytes()[:4] == b"page"


def _unix_socket(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
    return True


def _timed_write(path: Path, n_bytes: int) -> float:
    data = bytes(n_bytes)
    began = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        written = 0
        while written < n_bytes:
            written += os.write(fd, memoryview(data)[written:])
        os.fsync(fd)
    finally:
        os.close(fd)
    return max(time.perf_counter() - began, 1e-9)
