"""New files and folders: whole and on the disk when they have their name, gone when something fails."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from holdfast.errors import NotFoundError, UsageError
from holdfast.tiers.posix.disk import rename_without_replacing
from holdfast.tiers.posix.translate import translated

_NAME = "export"
"""How errors call the place, as they do a tier."""


def check_new(path: Path) -> None:
    """Raises: UsageError: something is there already; NotFoundError: its folder is not."""
    if os.path.lexists(path):
        raise UsageError(f"{path} is there already", hint="an export replaces nothing: name a new place")
    if not path.parent.is_dir():
        raise NotFoundError(f"the folder of {path} is not there", hint=f"mkdir -p {path.parent}")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write. Atomicity: a rename, at the end. Durability: file and name are on the disk then.

    Raises: UsageError when something is there; TierError.
    """
    check_new(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.part"
    with translated(_NAME, path.name, str(path.parent)):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            rename_without_replacing(str(temporary), str(path))
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; after an error it goes, with what is in it. Raises: as `new_file`."""
    check_new(path)
    with translated(_NAME, path.name, str(path.parent)):
        path.mkdir()
        try:
            yield path
            sync(path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
