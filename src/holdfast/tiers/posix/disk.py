"""System calls a posix tier is made of: positioned reads and writes past the page cache, room, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable

import numpy as np

ALIGNMENT_BYTES = 4096
_DIRECT: int = getattr(os, "O_DIRECT", 0)
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
_NO_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)
_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


class File:
    """One open file: a buffered descriptor and, where the file system takes it, one past the page cache.

    Invariants: `close` is idempotent and closes both. Threads: any, until `close`.
    """

    def __init__(self, path: str, flags: int, *, direct: bool) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
        self._direct_fd: int | None = None
        if direct and _DIRECT:
            try:
                self._direct_fd = os.open(path, (flags & ~(os.O_CREAT | os.O_EXCL)) | os.O_CLOEXEC | _DIRECT)
            except OSError as e:
                if e.errno not in _NO_DIRECT:
                    self.close()
                    raise
        self._use_direct = self._direct_fd is not None

    @property
    def is_direct(self) -> bool:
        return self._use_direct

    def stands_at(self, path: str) -> bool:
        """Whether this is still the file of that name."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path))
        except FileNotFoundError:
            return False

    def write(self, offset: int, buffer: memoryview) -> None:
        """All of `buffer` at `offset`; goes on after short writes."""
        self._move(os.pwrite, offset, buffer)

    def read(self, offset: int, buffer: memoryview, *, cached: bool = False) -> int:
        """Fill `buffer` from `offset`; fewer bytes only at the end of the file. Returns how many.

        `cached`: begin with what the page cache has.
        """
        done = self._read_cached(offset, buffer) if cached and self._use_direct else 0
        return done + self._move(lambda fd, part, at: os.preadv(fd, [part], at), offset + done, buffer[done:])

    def _read_cached(self, offset: int, buffer: memoryview) -> int:
        """As many bytes from `offset` as the page cache has, without any I/O."""
        done = 0
        with contextlib.suppress(OSError):  # EAGAIN: not there; EOPNOTSUPP: this file system cannot tell
            while _NOWAIT and done < len(buffer):
                moved = os.preadv(self.fd, [buffer[done:]], offset + done, _NOWAIT)
                if moved == 0:
                    break
                done += moved
        return done

    def _move(self, call: Callable[[int, memoryview, int], int], offset: int, buffer: memoryview) -> int:
        done = 0
        while done < len(buffer):
            part = buffer[done:]
            fd, n = self._choose(offset + done, part)
            try:
                moved = call(fd, part[:n], offset + done)
            except OSError as e:
                if fd != self._direct_fd or e.errno not in _NO_DIRECT:
                    raise
                self._use_direct = False  # this file system wants another alignment, or lied at open
                continue
            if moved == 0:
                break
            done += moved
        return done

    def _choose(self, offset: int, part: memoryview) -> tuple[int, int]:
        """Which descriptor takes the next bytes, and how many of them."""
        n = len(part) - len(part) % ALIGNMENT_BYTES
        if self._use_direct and n and offset % ALIGNMENT_BYTES == 0 and address(part) % ALIGNMENT_BYTES == 0:
            assert self._direct_fd is not None
            return self._direct_fd, n
        return self.fd, len(part)

    def close(self) -> None:
        fds, self.fd, self._direct_fd = (self.fd, self._direct_fd), -1, None
        for fd in fds:
            if fd is not None and fd >= 0:
                os.close(fd)


def address(buffer: memoryview) -> int:
    """Where a non-empty buffer begins in memory; also of a read-only one, which ctypes would refuse."""
    return int(np.frombuffer(buffer, dtype=np.uint8).__array_interface__["data"][0])


def reserve(fd: int, size_bytes: int) -> None:
    """Give a file its length, and have the file system promise the room, so that a full disk is known before the first
    byte. One of that length already, whose room it has, is left alone.

    Not `os.posix_fallocate`: where the file system cannot, glibc would write every block.
    """
    now_bytes = os.fstat(fd).st_size
    if now_bytes >= size_bytes:
        if now_bytes > size_bytes:
            os.ftruncate(fd, size_bytes)
        return
    if size_bytes and _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)) == 0:
        return
    number = ctypes.get_errno() if size_bytes else errno.EOPNOTSUPP
    if number not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        raise OSError(number, os.strerror(number))
    os.ftruncate(fd, size_bytes)


def renameat2(source: str, target: str, flags: int) -> None:
    """The system call. Raises: OSError, ENOSYS where the C library has none."""
    call = getattr(_libc, "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def rename_without_replacing(source: str, target: str) -> None:
    """Move a file unless the name is taken.

    Atomicity: one winner among racers. Raises: FileExistsError.
    """
    try:
        renameat2(source, target, _RENAME_NOREPLACE)
    except OSError as e:
        if e.errno not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        _link(source, target)


def _link(source: str, target: str) -> None:
    """For file systems that cannot rename without replacing (NFS, older Lustre)."""
    try:
        os.link(source, target)
    except OSError:
        # On NFS the answer to a link that worked may be lost and the repetition says "exists": count the names.
        if os.stat(source).st_nlink != 2:
            raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(source)
