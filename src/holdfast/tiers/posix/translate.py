"""The boundary where errors of the operating system become errors of a tier."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from holdfast.errors import (
    HoldfastError,
    NotFoundError,
    TierError,
    TierFullError,
    TierPermissionError,
    TierUnavailableError,
)

_MEANINGS: tuple[tuple[set[int], type[HoldfastError], str], ...] = (
    (
        {errno.ENOSPC},
        TierFullError,
        "free space under {root}, lower keep_last of this tier, or use another directory",
    ),
    ({errno.EDQUOT}, TierFullError, "a quota on {root} is used up: raise it or lower keep_last of this tier"),
    (
        {errno.EROFS},
        TierPermissionError,
        "{root} is mounted read-only: remount it writable or use another directory",
    ),
    (
        {errno.EACCES, errno.EPERM},
        TierPermissionError,
        "give this user read and write permission on {root} and everything in it",
    ),
    ({errno.EFBIG}, TierError, "files may not be so long: raise the limit (ulimit -f), or use another file system"),
    ({errno.ENXIO, errno.ENODEV}, TierError, "the device under {root} is gone; see dmesg"),
    ({errno.ENOENT}, NotFoundError, ""),
    (
        {errno.ENOTDIR, errno.EISDIR},
        NotFoundError,
        "a file stands where a directory of {root} is needed, or the reverse: move it away",
    ),
    ({errno.EMFILE, errno.ENFILE}, TierUnavailableError, "too many open files: raise the limit (ulimit -n)"),
    (
        {
            errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ENOMEM,
            errno.ENOTCONN, errno.ECONNRESET, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
        },
        TierUnavailableError,
        "the file system under {root} does not answer properly; see dmesg",
    ),
)  # fmt: skip


@contextlib.contextmanager
def translated(tier: str, key: str | None, root: str) -> Iterator[None]:
    """Turn an OSError of the body into the tier error it means."""
    try:
        yield
    except OSError as e:
        raise tier_error(e, tier, key, root) from e


def tier_error(e: OSError, tier: str, key: str | None, root: str) -> HoldfastError:
    """The tier error an OSError means."""
    kind, hint = _meaning(e.errno or 0, root)
    text = e.strerror or str(e)
    return kind(f"{text} ({errno.errorcode.get(e.errno or 0, e.errno)})", hint=hint, tier=tier, key=key)


def _meaning(number: int, root: str) -> tuple[type[HoldfastError], str]:
    for numbers, kind, hint in _MEANINGS:
        if number in numbers:
            return kind, hint.format(root=root)
    return TierError, ""
