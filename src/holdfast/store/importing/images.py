"""Which images an import makes: those of rank 0 of a world of one, in the order of the source's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from holdfast.format.layout import Template, lay_out
from holdfast.format.names import MAX_IMAGE
from holdfast.store.importing.source import Source, Stored

MOST_BYTES = 16 * 2**30
MOST_ENTRIES = 100_000
_MOST_HEADER_BYTES = 20 * 2**20
_ENTRY_TEXT_BYTES = 320
"""About so much of a header is an entry, besides its name, which stands in it three times at most."""


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """One image: its layout, and of each entry in turn where its bytes lie. The first one has the plain values."""

    number: int
    template: Template
    stored: tuple[Stored, ...]
    plain: bytes

    @property
    def size_bytes(self) -> int:
        return self.template.layout.size_bytes


def plan_images(
    source: Source, *, run: str, most_bytes: int = MOST_BYTES, most_entries: int = MOST_ENTRIES
) -> list[ImagePlan]:
    """Lay out every image. Raises: CapacityError, UsageError: names that no image can hold."""
    total = sum(s.piece.nbytes for s in source.stored)
    groups = list(_groups(source, max(most_bytes, -(-total // (MAX_IMAGE // 2))), most_entries)) or [[]]
    structure = _structure(source)
    plans = []
    for number, group in enumerate(groups):
        names = {s.piece.fqn for s in group}
        payload = source.plain if number == 0 else b""
        template = lay_out(
            [s.piece for s in group],
            [(alias, target) for alias, target in source.aliases if target in names],
            run=run,
            rank=0,
            world_size=1,
            image=number,
            image_count=len(groups),
            structure=structure,
            plain_bytes=len(payload),
        )
        plans.append(ImagePlan(number, template, tuple(group), payload))
    return plans


def _groups(source: Source, most_bytes: int, most_entries: int) -> Iterator[list[Stored]]:
    group: list[Stored] = []
    n_bytes = text_bytes = 0
    for stored in source.stored:
        text = _ENTRY_TEXT_BYTES + 3 * len(stored.piece.fqn.encode("utf-8", "surrogatepass"))
        full = n_bytes + stored.piece.nbytes > most_bytes or text_bytes + text > _MOST_HEADER_BYTES
        if group and (full or len(group) >= most_entries):
            yield group
            group, n_bytes, text_bytes = [], 0, 0
        group.append(stored)
        n_bytes, text_bytes = n_bytes + stored.piece.nbytes, text_bytes + text
    if group:
        yield group


def _structure(source: Source) -> str:
    """A digest of names, shapes, dtypes and ties: the same for the same tensors, wherever they came from."""
    told = sorted({(s.piece.fqn, s.piece.shape, s.piece.dtype) for s in source.stored})
    return hashlib.blake2b(msgspec.json.encode([told, sorted(source.aliases)]), digest_size=16).hexdigest()
