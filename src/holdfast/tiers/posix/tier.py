"""The posix tier: one file per object, made durable before its name appears."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from holdfast.errors import AlreadyExistsError, ConfigError, CorruptError, NotFoundError, TierError, TierFullError
from holdfast.model.place import FailureDomain, Scope
from holdfast.tiers.contract import TEMPORARY, Buffer, Capabilities, ObjectInfo, check_key
from holdfast.tiers.posix.directories import Directories, walk
from holdfast.tiers.posix.disk import ALIGNMENT_BYTES, File, rename_without_replacing
from holdfast.tiers.posix.mounts import mount_of
from holdfast.tiers.posix.recycle import Pool
from holdfast.tiers.posix.translate import translated
from holdfast.tiers.posix.upload import PosixUpload

PART_BYTES = 16 << 20
_OTHER_INODES = ("fuse", "overlay")
"""File systems that may give one and the same directory another inode while it is mounted."""
T = TypeVar("T")


def path_of_url(url: str) -> str:
    """The absolute path of a `file://` URL (percent-decoded) or of a plain path (taken literally).

    Raises: ConfigError when the URL names a host or nothing.
    """
    path = url
    if url.startswith("file://"):
        path = unquote(url.removeprefix("file://").removeprefix("localhost"))
        if not path.startswith("/"):
            raise ConfigError(f"{url!r} names a host, not a path", hint="write three slashes: file:///data/run7")
    if not path or "\0" in path:
        raise ConfigError(f"{url!r} names no directory", hint="write for example file:///data/run7")
    return os.path.abspath(path)


class PosixTier:
    """Objects as files under `root`; unfinished ones under `.tmp/`, named `{owner}-{random}`.

    Invariants: a file outside `.tmp/` is whole and on the disk, and its name is too once its `publish` has returned.
    `root` is made when the tier is opened and never again: nothing is written where another directory stands there.
    Threads: any.

    Args:
        owner: begins the names of temporary files, so that a successor can `sweep` exactly those. No two that live at
            one time have the same.
        direct: go past the page cache (O_DIRECT) where address, offset, length and file system allow.
        create: create the last component of `root`, and find out now whether it can be written.
        recycle_from_bytes: files of deleted objects of at least this length become those of new ones; None: none do.
        fsync: a test's place to count, delay, fail or skip every fsync; nothing else calls for one.

    Raises: ConfigError, TierPermissionError, TierFullError when `root` cannot be used, or contradicts `scope`;
        NotFoundError when it is not there and `create` is false.
    """

    def __init__(  # noqa: PLR0913  a backend states all it can be asked
        self,
        root: str,
        *,
        name: str = "posix",
        owner: str = "0.none",
        scope: Scope = Scope.SHARED,
        direct: bool = True,
        create: bool = True,
        recycle_from_bytes: int | None = None,
        fsync: Callable[[int], None] = os.fsync,
    ) -> None:
        if "/" in owner or not owner:
            raise ConfigError(f"owner {owner!r} cannot begin a file name")
        self.name, self.root, self.owner = name, os.path.abspath(root), owner
        self.direct, self.fsync = direct, fsync
        self.mount = mount_of(Path(self.root))
        self.capabilities = Capabilities(
            scope=scope,
            survives=FailureDomain.PROCESS if scope is Scope.NODE or self.mount.in_memory else FailureDomain.NODE,
            alignment_bytes=ALIGNMENT_BYTES,
            part_bytes=PART_BYTES,
            concurrency=8,
            atomic_create=True,
        )
        self._directories = Directories(self.root, fsync)
        self._live: dict[str, PosixUpload] = {}
        self._pool: Pool | None = None
        if recycle_from_bytes is not None:
            self._pool = Pool(os.path.join(self.root, TEMPORARY), owner, recycle_from_bytes)
        with translated(name, None, self.root):
            self._probe(create)
            self._identity = self._look()

    def put(self, key: str, buffer: Buffer, *, if_absent: bool = False) -> None:
        """Store a small object the way images are stored.

        Atomicity: rename. Durability: file and name are on the disk on return. Idempotent: without `if_absent`.
        """
        upload = self.upload(key, len(buffer))
        try:
            upload.write(0, buffer)
            upload.publish(if_absent=if_absent)
        finally:
            upload.abort()

    def upload(self, key: str, size_bytes: int) -> PosixUpload:
        """Begin a temporary file with its room reserved, or one that had its room before. Raises: TierFullError."""
        check_key(key, self.name)
        return self.with_room(lambda: self._begin(key, size_bytes))

    def _begin(self, key: str, size_bytes: int) -> PosixUpload:
        temporary = os.path.join(self.root, TEMPORARY, f"{self.owner}-{secrets.token_hex(8)}")
        with translated(self.name, key, self.root):
            self._require_root(key)
            self._directories.make(os.path.dirname(temporary))
        recycled = self._pool is not None and self._pool.move_out(temporary, size_bytes)
        upload = PosixUpload(self, key, size_bytes, temporary, recycled=recycled)
        self._live[temporary] = upload
        return upload

    def read_into(self, key: str, offset: int, buffer: Buffer, *, cached: bool = False) -> None:
        """Fill `buffer`; goes on after short reads, past the page cache where aligned.

        `cached`: what the page cache holds is taken from there, which is several times as fast as a disk.
        """
        path = self._path(key)
        large = self.direct and len(buffer) >= ALIGNMENT_BYTES
        with translated(self.name, key, self.root):
            file = File(path, os.O_RDONLY, direct=large)
            try:
                if not self.mount.on_network and not file.stands_at(path):
                    # Deleted while it was opened, and perhaps recycled; open in time, it would not have been.
                    raise NotFoundError("deleted just now", tier=self.name, key=key)
                n = file.read(offset, buffer, cached=cached)
            finally:
                file.close()
        if n < len(buffer):
            raise CorruptError(
                f"the object ends at byte {offset + n}, {len(buffer) - n} before the range does",
                tier=self.name,
                key=key,
            )

    def size(self, key: str) -> int:
        """Length of the object in bytes."""
        with translated(self.name, key, self.root):
            status = os.stat(self._path(key))
        if not stat.S_ISREG(status.st_mode):
            raise NotFoundError("this is a directory, not an object", tier=self.name, key=key)
        return status.st_size

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Walks directories; what vanishes meanwhile is left out, names that are not text are not ours.

        Raises: TierError when the tier lost its directory, which is no tier that holds nothing.
        """
        with translated(self.name, prefix, self.root):
            self._require_root(prefix)
            yield from (ObjectInfo(*found) for found in walk(self.root, prefix))
            self._require_root(prefix)  # gone meanwhile, it looks like one without objects

    def delete(self, key: str) -> None:
        """Remove the file, or keep it for an upload under no name of its own; then directories that became empty.

        Atomicity: unlink, rename. Durability: the directory is on the disk on return, also when the file was gone
        already (an earlier call may have died in between). Idempotent.
        """
        path = self._path(key)
        directory, moved = os.path.dirname(path), None
        with translated(self.name, key, self.root):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                moved = self._pool.move_in(path) if self._pool else None
                if moved is None:
                    os.unlink(path)
            try:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    self._directories.sync(directory)
            except OSError:
                if moved is not None:
                    with contextlib.suppress(OSError):
                        os.unlink(moved.path)
                raise
            if self._pool is not None and moved is not None:
                self._pool.keep(moved, directory)
            self._directories.remove_empty(directory)

    def settle(self, prefix: str) -> None:
        """Sync every directory that holds a listed object, and those above; files were synced before they had names."""
        with translated(self.name, prefix, self.root):
            for directory in {os.path.dirname(key) for key, *_ in walk(self.root, prefix)}:
                with contextlib.suppress(FileNotFoundError):
                    self._directories.sync_upwards(os.path.join(self.root, directory).rstrip("/"))

    def sweep(self, *, owner_prefix: str | None = None, untouched_s: float = 0.0) -> int:
        """Remove temporary files. By name, not by what is open here: an upload has its file before it is known."""
        removed = 0
        directory = os.path.join(self.root, TEMPORARY)
        with translated(self.name, None, self.root):
            names = os.listdir(directory) if os.path.isdir(directory) else []
            before = self._now(directory) - untouched_s if untouched_s and names else math.inf
            for name in names:
                path = os.path.join(directory, name)
                if name.startswith(f"{self.owner}-") or not name.startswith(owner_prefix or ""):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(path).st_mtime < before:
                        os.unlink(path)
                        removed += 1
        return removed

    def _now(self, directory: str) -> float:
        """The time on the clock that stamps files there, which may be a server's."""
        path = os.path.join(directory, f"{self.owner}-clock-{secrets.token_hex(8)}")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            return os.fstat(fd).st_mtime
        finally:
            os.close(fd)
            os.unlink(path)

    def close(self) -> None:
        """Abort unfinished uploads: their descriptors and temporary files go, and what was kept for others."""
        for upload in list(self._live.values()):
            upload.abort()
        if self._pool is not None:
            self._pool.close()

    def stands(self) -> bool:
        """Whether the directory is still the one that was opened. Raises: OSError when that cannot be seen."""
        try:
            found = self._look()
        except (FileNotFoundError, NotADirectoryError):
            return False
        if found != self._identity and self._was_mounted_again(found):
            self._identity = found
        return found == self._identity

    def _was_mounted_again(self, found: tuple[int, int]) -> bool:
        """Whether only the device has another number, as a network file system may whenever it is mounted."""
        same = self.mount.on_network and found[1] == self._identity[1]
        return same and mount_of(Path(self.root)) == self.mount

    @property
    def recyclable(self) -> tuple[int, int]:
        """How many files of deleted objects wait for an upload, and their bytes."""
        return self._pool.size if self._pool is not None else (0, 0)

    def with_room(self, call: Callable[[], T]) -> T:
        """`call()`; on a full disk once more, after what is kept for others has been let go of."""
        try:
            return call()
        except TierFullError:
            if self._pool is None or not self._pool.drop():
                raise
        return call()

    # For PosixUpload -------------------------------------------------------------------------------------------
    def move(self, temporary: str, key: str, *, if_absent: bool) -> None:
        """Give a temporary file its name. Raises: AlreadyExistsError; OSError."""
        target = self._path(key)
        rename = rename_without_replacing if if_absent else os.replace
        for _ in range(100):
            self._require_root(key)
            self._directories.make(os.path.dirname(target))
            try:
                return rename(temporary, target)
            except FileExistsError as e:
                # A writer may have died, or a try of ours failed, between rename and this: "exists" has to last.
                self.sync_directory_of(key)
                raise AlreadyExistsError("the key is taken", tier=self.name, key=key) from e
            except FileNotFoundError:
                # A concurrent delete removed the directory because it was empty: make it again.
                self._require_root(key)
                if not os.path.exists(temporary):
                    raise TierError(
                        "the temporary file is gone: another process swept it", tier=self.name, key=key
                    ) from None
        raise TierError("its directory vanishes again and again", tier=self.name, key=key)

    def sync_directory_of(self, key: str) -> None:
        """Make the name of a moved file durable, and those of its directories."""
        try:
            self._directories.sync_upwards(os.path.dirname(self._path(key)))
        except FileNotFoundError:  # deleted already, by somebody who synced
            self._require_root(key)

    def forget(self, temporary: str) -> None:
        """The upload is over; its temporary file, where still there, goes."""
        self._live.pop(temporary, None)
        with translated(self.name, None, self.root), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary)

    def _require_root(self, key: str) -> None:
        """Raises: TierError when another directory stands at the root, or none; OSError."""
        if not self.stands():
            raise TierError(
                f"the directory of the tier, {self.root}, was removed or unmounted while the run used it",
                hint="restart the job to begin it anew; or mount again what was unmounted",
                tier=self.name,
                key=key,
            )

    def _look(self) -> tuple[int, int]:
        """What tells the root from another directory; the dot has it mounted where that is done on demand."""
        status = os.stat(os.path.join(self.root, "."))
        return status.st_dev, 0 if self.mount.type.startswith(_OTHER_INODES) else status.st_ino

    def _path(self, key: str) -> str:
        check_key(key, self.name)
        return os.path.join(self.root, key)

    def _probe(self, create: bool) -> None:
        """Find out now, not at the first save, whether the directory can be used."""
        if os.path.exists(self.root) and not os.path.isdir(self.root):
            raise ConfigError(f"{self.root} is not a directory", hint="name a directory", tier=self.name)
        if not create:
            os.listdir(self.root)
            return
        if self.capabilities.scope is Scope.NODE and self.mount.on_network:
            raise ConfigError(
                f"scope is node, and {self.root} is on {self.mount.type}, which other nodes see as well",
                hint='leave scope out, or say scope = "shared"',
                tier=self.name,
            )
        if not os.path.isdir(os.path.dirname(self.root)):
            raise ConfigError(
                f"the parent directory of {self.root} does not exist",
                hint=f"create it: mkdir -p {os.path.dirname(self.root)}; or correct the path",
                tier=self.name,
            )
        self._directories.make_root()
        temporary = os.path.join(self.root, TEMPORARY, f"{self.owner}-probe-{secrets.token_hex(8)}")
        self._directories.make(os.path.dirname(temporary))
        file = File(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, direct=self.direct)
        self.direct = file.is_direct
        file.close()
        os.unlink(temporary)
