"""What no image may exceed, and the refusal of what does. Each limit and the attack behind it: docs/format.md."""

from __future__ import annotations

import math
import re
from functools import lru_cache

from holdfast.errors import UsageError
from holdfast.format import names
from holdfast.format.dtypes import SAFETENSORS
from holdfast.format.records import RESERVED, IdentityRecord
from holdfast.model.image import Piece

MAX_HEADER_BYTES = 32 * 2**20
MAX_BYTES = 2**62
MAX_DIMS = 64
MAX_TEXT = 4096
MAX_ITEMSIZE = 64
MAX_FORM = 65536

_STRUCTURE = re.compile(r"[0-9A-Za-z_.:-]{0,128}")
_DTYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_identity(described: IdentityRecord) -> None:
    """Refuse an image that says impossible things of itself. Raises: UsageError."""
    if not is_name(described.run):
        raise UsageError(f"{described.run[:80]!r} cannot be the name of a run", hint=f"1 to {MAX_TEXT} characters")
    check_within("world_size", described.world_size - 1, names.MAX_RANK)
    check_within("rank", described.rank, described.world_size - 1)
    check_within("image_count", described.image_count - 1, names.MAX_IMAGE)
    check_within("image", described.image, described.image_count - 1)
    if not is_structure(described.structure):
        raise UsageError(f"{described.structure[:80]!r} is no structure digest")
    for attempt, step, rank, image in described.relies_on:
        check_within("relies_on attempt", attempt, names.MAX_ATTEMPT)
        check_within("relies_on step", step, names.MAX_STEP)
        check_within("relies_on rank", rank, names.MAX_RANK)
        check_within("relies_on image", image, names.MAX_IMAGE)
    if len(described.relies_on) > names.MAX_IMAGE or len(set(described.relies_on)) != len(described.relies_on):
        raise UsageError("relies_on names an image twice, or too many")


def check_aliases(aliases: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Aliases as a mapping. Raises: UsageError."""
    found = dict(aliases)
    if len(found) != len(aliases):
        raise UsageError("an alias is given twice")
    for alias, target in aliases:
        if not is_tensor_name(alias) or not is_tensor_name(target) or target in found:
            raise UsageError(f"{alias[:80]!r} cannot be an alias of {target[:80]!r}")
    return found


def check_piece(piece: Piece, world_size: int) -> None:
    """Refuse a piece that no image can hold. Raises: UsageError."""
    fqn = piece.fqn
    if not is_tensor_name(fqn):
        raise UsageError(f"{fqn[:80]!r} cannot be the name of a tensor", hint=f"names under {RESERVED} are reserved")
    if not _is_rectangle(piece.offsets, piece.lengths, piece.shape, piece.itemsize):
        raise UsageError(
            f"{fqn[:80]}: {piece.offsets} + {piece.lengths} is no rectangle of {piece.shape}, "
            f"or {piece.itemsize} bytes each no possible size"
        )
    known = SAFETENSORS.get(piece.dtype)
    if not (known[1] == piece.itemsize if known else is_dtype(piece.dtype)):
        raise UsageError(f"{fqn[:80]}: {piece.dtype[:80]!r} of {piece.itemsize} bytes is no dtype")
    if piece.owner_rank is not None and not 0 <= piece.owner_rank < world_size:
        raise UsageError(f"{fqn[:80]}: owner rank {piece.owner_rank} is not in a world of {world_size}")
    if piece.form is not None and len(piece.form) > MAX_FORM:
        raise UsageError(f"{fqn[:80]}: its form has {len(piece.form)} characters, the limit is {MAX_FORM}")


@lru_cache(4096)  # an image has few distinct rectangles, and this runs at every layout and every parse
def _is_rectangle(offsets: tuple[int, ...], lengths: tuple[int, ...], shape: tuple[int, ...], itemsize: int) -> bool:
    """Whether it lies inside its tensor, and neither has more dimensions or bytes than anything real."""
    return (
        len(offsets) == len(lengths) == len(shape) <= MAX_DIMS
        and all(o >= 0 and n >= 0 and o + n <= size for o, n, size in zip(offsets, lengths, shape, strict=True))
        and 0 < itemsize <= MAX_ITEMSIZE
        and itemsize * math.prod(shape) <= MAX_BYTES
    )


def check_within(what: str, value: int, limit: int) -> None:
    """Refuse a number outside of 0..limit. Raises: UsageError."""
    if not 0 <= value <= limit:
        raise UsageError(f"{what} {value} is not in 0..{limit}")


def is_name(text: str) -> bool:
    """Whether a run may have that name."""
    return 0 < len(text) <= MAX_TEXT


def is_tensor_name(fqn: str) -> bool:
    """Whether a tensor may have that name: reserved ones, and the one safetensors reserves, may not."""
    return 0 < len(fqn) <= MAX_TEXT and not fqn.startswith(RESERVED) and fqn != "__metadata__"


def is_dtype(text: str) -> bool:
    """Whether it looks like the name of a torch dtype; which ones there are is not for us to say."""
    return _DTYPE.fullmatch(text) is not None


def is_structure(text: str) -> bool:
    """Whether it looks like a digest."""
    return _STRUCTURE.fullmatch(text) is not None
