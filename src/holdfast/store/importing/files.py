"""Files of a source: regular ones, read by ranges, never written."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from holdfast.errors import CorruptError, HoldfastError, NotFoundError, TierError, TierPermissionError

_KEPT_OPEN = 64


class SourceFile:
    """A regular file, opened for reading.

    Args:
        follow: whether its name may be a link.

    Raises: NotFoundError, CorruptError when it is no regular file, TierPermissionError, TierError.
    """

    def __init__(self, path: Path, *, follow: bool = True) -> None:
        self.path = path
        # Without waiting: opening a pipe would wait for whoever writes into it.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
        with _translated(path):
            self._fd = os.open(path, flags)
            status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CorruptError(f"{path} is no regular file")
        self.size_bytes = status.st_size

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Exactly these bytes. Raises: CorruptError where the file ends before; TierError."""
        out = bytearray(self._within(offset, n_bytes))
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer. Raises: as `read`."""
        self._within(offset, len(buffer))
        done = 0
        with _translated(self.path):
            while done < len(buffer):
                n = os.preadv(self._fd, [buffer[done:]], offset + done)
                if n == 0:
                    raise CorruptError(f"{self.path} became shorter while it was read")
                done += n

    def _within(self, offset: int, n_bytes: int) -> int:
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.size_bytes:
            raise CorruptError(f"{self.path} ends at byte {self.size_bytes}, before byte {offset + n_bytes}")
        return n_bytes

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Files:
    """The files of one source, few of them open at once. Threads: one.

    Args:
        follow: whether their names may be links.
    """

    def __init__(self, *, follow: bool = True) -> None:
        self._follow = follow
        self._open: OrderedDict[Path, SourceFile] = OrderedDict()

    def get(self, path: Path) -> SourceFile:
        """The file, opened. Raises: as `SourceFile`."""
        if path not in self._open:
            if len(self._open) >= _KEPT_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = SourceFile(path, follow=self._follow)
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        """Idempotent."""
        while self._open:
            self._open.popitem()[1].close()


@contextlib.contextmanager
def open_files(*, follow: bool = True) -> Iterator[Files]:
    """Files that are closed again."""
    files = Files(follow=follow)
    try:
        yield files
    finally:
        files.close()


def names_in(folder: Path) -> list[str]:
    """What is in a folder, by name. Raises: as `SourceFile`."""
    with _translated(folder):
        return sorted(os.listdir(folder))


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise _error(path, e) from e


def _error(path: Path, e: OSError) -> HoldfastError:
    if isinstance(e, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"{path} is not there")
    if e.errno == errno.ELOOP:
        return CorruptError(f"{path} is a link")
    if isinstance(e, PermissionError):
        return TierPermissionError(f"{path} may not be read")
    return TierError(f"{path} cannot be read: {e.strerror or e}")
