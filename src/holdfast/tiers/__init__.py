"""One file per kind of place, behind one contract (tiers/contract.py), plus wrappers."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.errors import ConfigError
from holdfast.model.place import Scope
from holdfast.tiers.contract import Tier
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.posix import PosixTier, path_of_url
from holdfast.tiers.posix.mounts import mount_of
from holdfast.tiers.posix.recycle import RECYCLE_FROM_BYTES

__all__ = ["SUPPORTED_URLS", "PosixTier", "open_tier", "same_place", "weakness_of"]

SUPPORTED_URLS = "use file:///path or a plain path (in a Config also memory:)"
"""The hint of every error about a URL that nothing here opens."""


def open_tier(
    url: str,
    *,
    name: str,
    owner: str,
    scope: Scope | None = None,
    create: bool = True,
) -> Tier:
    """The tier a URL names.

    Args:
        owner: `{arena}.{agent nonce}`, how this process's temporary objects are known to a successor.
        scope: None: memory is the node's, everything else shared.
        create: create the last component of a path and check that it can be written; false for readers.

    Raises: ConfigError for an unknown scheme or a path that cannot be used; TierPermissionError where it is read-only
        and NotFoundError where it is not there (with `create=False`).
    """
    if url.startswith("memory:"):
        if scope is Scope.SHARED:
            raise ConfigError("memory is seen by one node only", hint='set scope = "node"', tier=name)
        return MemoryTier(HeapSlots(), name=name)
    if url.startswith("s3:"):
        raise ConfigError(f"{url!r}: S3 is not built yet", hint=SUPPORTED_URLS, tier=name)
    if "://" in url and not url.startswith("file://"):
        raise ConfigError(f"{url!r} has an unknown scheme", hint=SUPPORTED_URLS, tier=name)
    # A disk of the node's own: its files are used again. Elsewhere others may read what we cannot see.
    recycle = RECYCLE_FROM_BYTES if scope is Scope.NODE and create else None
    return PosixTier(
        path_of_url(url),
        name=name,
        owner=owner,
        scope=scope or Scope.SHARED,
        create=create,
        recycle_from_bytes=recycle,
    )


def same_place(url: str, other: str) -> bool:
    """Whether two URLs lead to the same objects: a directory may be reached by several paths, a copy is another one."""
    if url == other:
        return True
    try:
        return os.path.samefile(path_of_url(url), path_of_url(other))
    except (OSError, ConfigError):
        return False


def weakness_of(url: str) -> str:
    """Why what is durable at a URL may be lost sooner than its user expects, in words; empty where nothing is known."""
    if not url.startswith("file:"):
        return ""
    mount = mount_of(Path(path_of_url(url)))
    if not mount.in_memory:
        return ""
    return f"{url} is on {mount.type}, a memory file system: what is durable there is lost with the node's memory"
