"""What the agent does to the bytes of a slot, in worker threads: read the header, seal, check."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict

from holdfast.errors import CorruptError
from holdfast.format.header import parse_header
from holdfast.format.image import check, seal
from holdfast.format.layout import ATTEMPT_AT, STEP_AT
from holdfast.model.identity import ImageId
from holdfast.model.image import ImageHeader, ImageRecord

_DIGITS = 20
_KEPT = 64


class Headers:
    """Parsed headers, by their bytes without attempt and step: a layout is parsed once, not once per save.

    Invariant: a hit is proven by comparing all header bytes, never by a digest alone.
    Threads: any.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, ImageHeader] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, image: memoryview) -> ImageHeader:
        """The header of an image.

        Raises: CorruptError, FormatVersionError.
        """
        n = min(8 + int.from_bytes(image[:8], "little"), len(image))
        raw = bytearray(image[:n])
        digits = bytes(raw[ATTEMPT_AT : ATTEMPT_AT + _DIGITS]), bytes(raw[STEP_AT : STEP_AT + _DIGITS])
        raw[ATTEMPT_AT : ATTEMPT_AT + _DIGITS] = raw[STEP_AT : STEP_AT + _DIGITS] = bytes(_DIGITS)
        key = bytes(raw)
        with self._lock:
            known = self._known.get(key)
        if known is None or known.size_bytes != len(image) or not all(d.isdigit() for d in digits):
            known = parse_header(image, len(image))
            with self._lock:
                self._known[key] = known
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            return known
        attempt, step = (int(d) for d in digits)
        return dataclasses.replace(known, id=ImageId(attempt, step, known.id.rank, known.id.image))


def seal_image(image: memoryview, expected: ImageId, headers: Headers) -> tuple[ImageRecord, ImageHeader]:
    """Checksum a staged image: fill its block table, prove that its header says what its page says.

    Raises: CorruptError.
    """
    header = _expected(image, expected, headers)
    crc = seal(image, header.layout)
    return ImageRecord(header.id, header.size_bytes, crc), header


def final_while_sealed(image: memoryview, headers: Headers) -> int:
    """How many bytes from the front of a staged image sealing leaves alone."""
    try:
        return headers.read(image).layout.table_start
    except CorruptError:
        return 0  # no image: sealing will say so


def check_image(image: memoryview, expected: ImageId, headers: Headers) -> tuple[ImageRecord, ImageHeader]:
    """Prove every byte of a held image against its own table: never recompute it, that would launder a flipped bit.

    Raises: CorruptError naming the first bad block.
    """
    header = _expected(image, expected, headers)
    crc = check(image, header.layout)
    return ImageRecord(header.id, header.size_bytes, crc), header


def _expected(image: memoryview, expected: ImageId, headers: Headers) -> ImageHeader:
    header = headers.read(image)
    if header.id != expected:
        raise CorruptError(f"the slot holds {header.id}, its page says {expected}")
    return header
