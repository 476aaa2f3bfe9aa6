"""Files of the arena directory, mapped into this process: promised, faulted, and never resized."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from pathlib import Path

from holdfast.errors import AgentError, CapacityError, ConfigError, HoldfastError
from holdfast.wire.pages import PAGE_BYTES

_MADV_POPULATE_WRITE = 23
_POPULATE_STEP = 64 << 20
_ROOM = (
    "set HOLDFAST_ARENA_DIR to a larger memory file system, or enlarge /dev/shm "
    "(docker run --shm-size=..., an emptyDir of medium Memory in Kubernetes)"
)
_LIMITS = {
    errno.EMFILE: "this process has too many files open: raise that limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine: raise fs.file-max",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.ENOMEM: "memory is used up, or this process may map no more of it (ulimit -v, vm.max_map_count)",
}


class MappedFile:
    """A file in the arena directory, mapped shared and writable.

    Invariant: the mapping is never resized. `close` is idempotent.
    """

    def __init__(self, path: Path, size_bytes: int | None = None, *, promise_bytes: int | None = None) -> None:
        """Map an existing file, or create it with `size_bytes`, of which `promise_bytes` (None: all) are reserved now.

        Raises: CapacityError when the room is not there, or a limit is reached; AgentError when the file is gone;
            ConfigError when it is not ours to use. A file that was made here is gone then.
        """
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if size_bytes is not None else 0)
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as e:
            raise _as_ours(e, path) from e
        made = False
        try:
            if size_bytes is not None:
                made = os.fstat(fd).st_blocks == 0
                os.ftruncate(fd, size_bytes)
                os.posix_fallocate(fd, 0, size_bytes if promise_bytes is None else promise_bytes)
            found = os.fstat(fd)
            self.size_bytes, self.inode = found.st_size, found.st_ino
            self._map = mmap.mmap(fd, self.size_bytes)
        except OSError as e:
            if made:
                path.unlink(missing_ok=True)  # a file without room kills whoever looks into it
            raise _as_ours(e, path) from e
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
        """Have the file system reserve the first `n_bytes`: a full one must be an error here, not a SIGBUS in training.

        Raises: as the constructor.
        """
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(fd, 0, n_bytes)
            finally:
                os.close(fd)
        except OSError as e:
            raise _as_ours(e, self.path) from e

    def close(self) -> None:
        """Unmap. Views that still look into the mapping keep it alive until they are gone."""
        if not self._map.closed:
            with contextlib.suppress(BufferError):
                self.buffer.release()
                self._map.close()


def _as_ours(error: OSError, path: Path) -> HoldfastError:
    if isinstance(error, FileNotFoundError):
        return AgentError(f"the arena file {path} is gone", hint="the agent ended; the next call starts one")
    what = f"cannot map the arena file {path}: {error.strerror}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(what, hint="set HOLDFAST_ARENA_DIR to a directory of your own")
    return CapacityError(what, hint=_LIMITS.get(error.errno or 0, _ROOM))


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
