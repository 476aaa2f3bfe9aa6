"""Files of the arena directory, mapped into this process: promised, faulted, and never resized."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from pathlib import Path

from holdfast.errors import AgentError, CapacityError
from holdfast.wire.pages import PAGE_BYTES

_MADV_POPULATE_WRITE = 23
_POPULATE_STEP = 64 << 20


class MappedFile:
    """A file in the arena directory, mapped shared and writable.

    Invariant: the mapping is never resized. `close` is idempotent.
    """

    def __init__(self, path: Path, size_bytes: int | None = None, *, promise_bytes: int | None = None) -> None:
        """Map an existing file, or create it with `size_bytes`, of which `promise_bytes` (None: all) are reserved now.

        Raises: CapacityError when the room is not there; AgentError when the file is gone.
        """
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if size_bytes is not None else 0)
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError as e:
            raise AgentError(f"the arena file {path} is gone", hint="the agent ended; the next call starts one") from e
        try:
            if size_bytes is not None:
                os.ftruncate(fd, size_bytes)
                try:
                    _promise(fd, path, size_bytes if promise_bytes is None else promise_bytes)
                except CapacityError:
                    path.unlink(missing_ok=True)  # a file without room kills whoever looks into it
                    raise
            found = os.fstat(fd)
            self.size_bytes, self.inode = found.st_size, found.st_ino
            self._map = mmap.mmap(fd, self.size_bytes)
        finally:
            os.close(fd)
        self.buffer = memoryview(self._map)

    @property
    def stale(self) -> bool:
        """Whether the path no longer leads to what is mapped: the file was removed, or another stands there."""
        try:
            return self.path.stat().st_ino != self.inode
        except FileNotFoundError:
            return True

    def promise(self, n_bytes: int) -> None:
        """Have the file system reserve the first `n_bytes`.

        Raises: CapacityError.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            _promise(fd, self.path, n_bytes)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmap. Views that still look into the mapping keep it alive until they are gone."""
        if not self._map.closed:
            with contextlib.suppress(BufferError):
                self.buffer.release()
                self._map.close()


def _promise(fd: int, path: Path, n_bytes: int) -> None:
    """Reserve the room now: a full tmpfs must be an error here, not a SIGBUS in training."""
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError as e:
        raise CapacityError(
            f"cannot reserve {n_bytes} bytes in {path.parent}: {e.strerror}",
            hint="set HOLDFAST_ARENA_DIR to a larger memory file system, or enlarge /dev/shm "
            "(docker run --shm-size=..., an emptyDir of medium Memory in Kubernetes)",
        ) from e


def populate(buffer: memoryview) -> None:
    """Fault every page of a mapping, keeping its content; the GIL is free meanwhile.

    A page fault costs ten times the copy into the page, so it is paid here, once, and never in a save. Kernels before
    5.14 do not know MADV_POPULATE_WRITE: there one byte per page is read, which maps what posix_fallocate has made.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for start in range(0, len(buffer), _POPULATE_STEP):
        n = min(_POPULATE_STEP, len(buffer) - start)
        if libc.madvise(ctypes.c_void_p(address + start), ctypes.c_size_t(n), _MADV_POPULATE_WRITE) != 0:
            bytes(buffer[start : start + n : PAGE_BYTES])
