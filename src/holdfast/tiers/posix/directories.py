"""Directories of a posix tier: made and synced when needed, removed when empty, walked in key order."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from operator import itemgetter

from holdfast.tiers.contract import TEMPORARY

_REMEMBERED = 4096
_Identity = tuple[int, int]


class Directories:
    """Which directories stand, and whose names are known to be on the disk.

    A directory's name counts as durable when this process has synced its parent while it stood. That it still is the
    same one (another process may have removed it and made it anew, and inodes are reused at once) is told by its inode
    and by its parent's time of change. Threads: any.
    """

    def __init__(self, root: str, fsync: Callable[[int], None]) -> None:
        self._root = root
        self._fsync = fsync
        self._durable: dict[str, _Identity] = {}

    def make_root(self) -> None:
        """Create the tier's own directory, durably. Its parent must exist."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._root)
            self.sync(os.path.dirname(self._root))

    def make(self, path: str) -> None:
        """Create `path` and what is missing above it, below the root; a concurrent removal is met by trying again.

        Raises: FileNotFoundError when the root has gone: made again, it would hide what became of it.
        """
        if path == self._root:
            os.stat(path)
            return
        while True:
            try:
                return os.mkdir(path)
            except FileExistsError:
                if _is_directory(path):
                    return
            except FileNotFoundError:
                self.make(os.path.dirname(path))

    def sync(self, path: str) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._fsync(fd)
        finally:
            os.close(fd)

    def sync_upwards(self, path: str) -> None:
        """Make the names in `path` durable, and the names of directories above that were not synced yet."""
        self.sync(path)
        new: dict[str, _Identity] = {}
        while path != self._root:
            parent = os.path.dirname(path)
            identity = (os.stat(path).st_ino, os.stat(parent).st_ctime_ns)
            if self._durable.get(path) != identity:
                new[path] = identity
                self.sync(parent)
            path = parent
        if len(self._durable) >= _REMEMBERED:
            self._durable.clear()
        self._durable |= new

    def remove_empty(self, path: str) -> None:
        """Remove `path` and directories above it while they are empty. Best effort: the kernel refuses a full one."""
        while path.startswith(self._root + os.sep):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                pass
            except OSError:
                return
            self._durable.pop(path, None)
            path = os.path.dirname(path)


def _is_directory(path: str) -> bool:
    """Whether a directory stands there, by one look; False when what stood there has gone.

    Raises: NotADirectoryError when something else does.
    """
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return True
    except FileNotFoundError:
        if not os.path.islink(path):
            return False
    raise NotADirectoryError(errno.ENOTDIR, "a file stands where a directory is needed", path)


def walk(root: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    """(key, bytes, version) of every object whose key begins with `prefix`, in key order."""
    start = prefix.rpartition("/")[0]
    if any(part in ("", ".", "..") for part in start.split("/")) and start:
        return
    yield from _walk(os.path.join(root, start) if start else root, f"{start}/" if start else "", prefix)


def _walk(directory: str, base: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    for name, status in sorted(_entries(directory), key=itemgetter(0)):
        key = base + name
        if status is None:
            if (key.startswith(prefix) or prefix.startswith(key)) and key != f"{TEMPORARY}/":
                yield from _walk(os.path.join(directory, name[:-1]), key, prefix)
        elif key.startswith(prefix):
            # A rename onto the name is another inode, a write another time.
            yield key, status.st_size, f"{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _entries(directory: str) -> list[tuple[str, os.stat_result | None]]:
    """Names with what is known of them; a directory's ends in a slash (so that sorting is key order), and has None."""
    found: list[tuple[str, os.stat_result | None]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if not entry.name.isprintable():
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        found.append((entry.name + "/", None))
                    elif entry.is_file(follow_symlinks=False):
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found
