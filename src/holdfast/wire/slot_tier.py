"""Images in a node's memory, looked at from outside: an arena's slots as a tier that can only be read.

No agent is asked and nothing is locked: a slot may be reused while it is read. Then its page says so, and what was read
is thrown away.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from holdfast.errors import HoldfastError, NotFoundError, UsageError
from holdfast.format import manifest as codec
from holdfast.format import names
from holdfast.format.header import parse_header
from holdfast.format.image import notes_of, plain_of
from holdfast.format.manifest import build
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.place import FailureDomain, Scope
from holdfast.tiers.contract import Buffer, Capabilities, ObjectInfo, Upload
from holdfast.wire.pages import PAGE_BYTES, SlotState, slot_page

_READ_ONLY = "memory is only looked at here"


@dataclass(frozen=True, slots=True)
class _Held:
    """An image in a slot, as the slot's page told it."""

    path: Path
    generation: int
    record: ImageRecord


class SlotTier:
    """Invariant: what it answers was in the slot, whole and sealed, before and after it was read.

    A step has a manifest here when all of its images are in this node's slots. Threads: any.
    """

    name = "memory"
    capabilities = Capabilities(Scope.NODE, FailureDomain.PROCESS, 1, 1 << 22, 1, False)

    def __init__(self, arena: Path) -> None:
        held = [found for path in sorted(arena.glob("slot-*")) for found in _held(path)]
        self._held = {names.image_key(h.record.id): h for h in held}
        self._manifests = {names.manifest_key(c): data for c, data in self._whole()}

    def _whole(self) -> Iterator[tuple[CheckpointId, bytes]]:
        headers = {h.record.id: header for h in self._held.values() for header in self._header(h)}
        records = {h.record.id: h.record for h in self._held.values()}
        for checkpoint in sorted({image.checkpoint for image in headers}):
            own = [h for image, h in headers.items() if image.checkpoint == checkpoint]
            older = {image for h in own for image in h.relies_on if image in headers}
            family = [*own, *(headers[image] for image in sorted(older))]
            with suppress(HoldfastError, OSError):  # images are missing: they are other nodes', or not staged yet
                plain, notes = self._spoken(own)
                manifest = build(family, [records[h.id] for h in family], plain, notes=notes)
                yield checkpoint, codec.encode(manifest)

    def _spoken(self, headers: Iterable[ImageHeader]) -> tuple[bytes | None, bytes]:
        """Rank 0's plain values and notes, which a manifest has where they are small."""
        first = next((h for h in headers if (h.id.rank, h.id.image) == (0, 0)), None)
        if first is None:
            return None, b""
        held, layout = self._held[names.image_key(first.id)], first.layout
        room = _read(held, layout.plain_start, layout.plain_capacity_bytes)
        return plain_of(room), notes_of(room)

    def _header(self, held: _Held) -> Iterator[ImageHeader]:
        with suppress(HoldfastError):
            yield parse_header(lambda at, n: _read(held, at, n), held.record.size_bytes)

    def read_into(self, key: str, offset: int, buffer: Buffer, *, cached: bool = False) -> None:
        """Raises: NotFoundError, also when the slot was reused meanwhile."""
        data = self._manifests.get(key)
        part = data[offset : offset + len(buffer)] if data is not None else _read(self._of(key), offset, len(buffer))
        buffer[:] = part

    def size(self, key: str) -> int:
        data = self._manifests.get(key)
        return len(data) if data is not None else self._of(key).record.size_bytes

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        keys = sorted(k for k in (*self._held, *self._manifests) if k.startswith(prefix))
        return (ObjectInfo(key, self.size(key)) for key in keys)

    def _of(self, key: str) -> _Held:
        if key not in self._held:
            raise NotFoundError("no slot holds it", tier=self.name, key=key)
        return self._held[key]

    def put(self, key: str, buffer: Buffer, *, if_absent: bool = False) -> NoReturn:
        raise UsageError(_READ_ONLY)

    def upload(self, key: str, size_bytes: int) -> Upload:
        raise UsageError(_READ_ONLY)

    def delete(self, key: str) -> NoReturn:
        raise UsageError(_READ_ONLY)

    def settle(self, prefix: str) -> None:
        """Nothing here is durable."""

    def sweep(self, *, owner_prefix: str | None = None, untouched_s: float = 0.0) -> int:
        return 0

    def close(self) -> None:
        """Holds nothing open."""


def _held(path: Path) -> Iterator[_Held]:
    page = slot_page(path)
    if page is not None and page.state == SlotState.HELD:
        image = ImageId(page.attempt, page.step, page.rank, page.image)
        yield _Held(path, page.generation, ImageRecord(image, page.image_bytes, page.crc64nvme))


def _read(held: _Held, offset: int, n_bytes: int) -> bytes:
    data = b""
    with suppress(OSError):
        fd = os.open(held.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, n_bytes, PAGE_BYTES + offset)
        finally:
            os.close(fd)
    page = slot_page(held.path)
    if page is None or (page.state, page.generation) != (SlotState.HELD, held.generation) or len(data) != n_bytes:
        hint = "look again: memory keeps only the newest steps"
        key = names.image_key(held.record.id)
        raise NotFoundError(f"{held.record.id} has left memory meanwhile", hint=hint, tier="memory", key=key)
    return data
