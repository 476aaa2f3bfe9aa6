"""Notes as JSON: {"saved_at_s":1767225600,"metrics":{"val_loss":1.25}}, written one way only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from holdfast.errors import CorruptError, UsageError
from holdfast.format.records import Size, strictly
from holdfast.model.notes import Notes

MAX_NOTES_BYTES = 3072
MAX_NAME_CHARACTERS = 128
MAX_SAVED_AT_S = 2**40

_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class NotesRecord(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Notes as they are written; what JSON has no number for is a word."""

    saved_at_s: Size
    metrics: dict[str, float | str]


def encode(notes: Notes) -> bytes:
    """The bytes of notes.

    Raises: UsageError when they are more than an image has room for, or a name is none.
    """
    for name, _ in notes.metrics:
        if not _is_name(name):
            raise UsageError(
                f"a metric cannot be named {name[:80]!r}",
                hint=f"names are printable, at most {MAX_NAME_CHARACTERS} characters",
            )
    data = msgspec.json.encode(to_record(notes))
    if len(data) > MAX_NOTES_BYTES:
        raise UsageError(
            f"{len(notes.metrics)} metrics take {len(data)} bytes, {MAX_NOTES_BYTES} is the most",
            hint="pass those that retention or a person needs; keep the others in the state or in your logs",
        )
    return data


def decode(data: bytes) -> Notes:
    """The notes these bytes are. Raises: CorruptError."""
    if len(data) > MAX_NOTES_BYTES:
        raise CorruptError(f"notes of {len(data)} bytes pass the limit of {MAX_NOTES_BYTES}")
    return from_record(strictly(data, NotesRecord, "the notes"))


def to_record(notes: Notes) -> NotesRecord:
    """Notes as they are written."""
    return NotesRecord(notes.saved_at_s, {name: _written(value) for name, value in sorted(notes.metrics)})


def from_record(record: NotesRecord) -> Notes:
    """Notes as they were written. Raises: CorruptError."""
    names = list(record.metrics)
    if record.saved_at_s > MAX_SAVED_AT_S or names != sorted(names) or not all(map(_is_name, names)):
        raise CorruptError("the notes name an impossible time or metric")
    return Notes(record.saved_at_s, tuple(_read(record.metrics)))


def _written(value: float) -> float | str:
    if math.isfinite(value):
        return float(value)
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _read(metrics: Mapping[str, float | str]) -> list[tuple[str, float]]:
    found = []
    for name, value in metrics.items():
        if isinstance(value, str) and value not in _WORDS:
            raise CorruptError(f"the metric {name!r} is no number")
        found.append((name, _WORDS[value] if isinstance(value, str) else value))
    return found


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME_CHARACTERS and name.isprintable()
