"""Notes: in an image, in a manifest, and what is refused."""

import math

import pytest
from tests.unit.test_format_manifest import two_ranks

from holdfast.errors import CorruptError, UsageError
from holdfast.format import image, manifest, notes
from holdfast.model.image import Piece
from holdfast.model.notes import Notes

SOME = Notes(1_767_225_600, (("acc", 1.0), ("val_loss", 0.1)))
PIECES = (Piece("w", (0,), (4,), (4,), "float32", 4),)


def test_they_are_written_one_way():
    data = notes.encode(Notes(SOME.saved_at_s, tuple(reversed(SOME.metrics))))
    assert data == b'{"saved_at_s":1767225600,"metrics":{"acc":1.0,"val_loss":0.1}}'
    assert notes.decode(data) == SOME


def test_what_json_has_no_number_for():
    strange = Notes(0, (("a", math.inf), ("b", -math.inf), ("c", math.nan), ("d", -0.0)))
    found = dict(notes.decode(notes.encode(strange)).metrics)
    assert (found["a"], found["b"]) == (math.inf, -math.inf)
    assert math.isnan(found["c"])
    assert math.copysign(1, found["d"]) == -1


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"[]", b"\xff", b'{"saved_at_s":1}', b'{"saved_at_s":-1,"metrics":{}}',
        b'{"saved_at_s":1.5,"metrics":{}}', b'{"saved_at_s":1,"metrics":{"a":1}}',
        b'{"saved_at_s":1,"metrics":{"a":"x"}}',
        b'{"saved_at_s":1,"metrics":{"b":1.0,"a":1.0}}', b'{"saved_at_s":1,"metrics":{"a":1.0,"a":1.0}}',
        b'{"saved_at_s":1,"metrics":{"":1.0}}', b'{"saved_at_s":1,"metrics":{"a\\n":1.0}}',
        b'{"saved_at_s":1,"metrics":{"a":NaN}}', b'{"saved_at_s":1,"metrics":{},"more":1}',
        b'{"saved_at_s":%d,"metrics":{}}' % 2**62, b'{"saved_at_s":1, "metrics":{}}', b" " * 5000,
    ],
)  # fmt: skip
def test_what_is_no_note_is_corrupt(data):
    with pytest.raises(CorruptError):
        notes.decode(data)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 129])
def test_a_metric_has_a_printable_name(name):
    with pytest.raises(UsageError) as caught:
        notes.encode(Notes(0, ((name, 1.0),)))
    assert caught.value.hint


def test_too_many_metrics_are_refused_with_what_to_do():
    with pytest.raises(UsageError, match="200 metrics take") as caught:
        notes.encode(Notes(0, tuple((f"metric number {n}", 1.0) for n in range(200))))
    assert "retention" in caught.value.hint


@pytest.mark.parametrize("payload", [b"{}", b"x" * 10_000])
def test_they_stand_behind_the_plain_values(payload):
    template = image.lay_out(PIECES, run="r", rank=0, world_size=1, plain_bytes=len(payload))
    buffer = bytearray(template.layout.size_bytes)
    image.write_plain(buffer, template.layout, payload)
    assert image.read_notes(buffer, template.layout) == b"", "an image from before there were any"
    most = b"n" * notes.MAX_NOTES_BYTES
    image.write_notes(buffer, template.layout, most)
    assert image.read_notes(buffer, template.layout) == most
    assert image.read_plain(buffer, template.layout) == payload
    image.write_plain(buffer, template.layout, payload)
    assert image.read_notes(buffer, template.layout) == b"", "those of the step before are gone"
    assert image.plain_fits(template.layout, len(payload))


def test_a_length_that_lies_is_corrupt():
    template = image.lay_out(PIECES, run="r", rank=0, world_size=1, plain_bytes=2)
    buffer = bytearray(template.layout.size_bytes)
    image.write_plain(buffer, template.layout, b"{}")
    at = template.layout.plain_start + 8 + 2
    buffer[at : at + 8] = (2**40).to_bytes(8, "little")
    with pytest.raises(CorruptError, match="cannot stand"):
        image.read_notes(buffer, template.layout)


def test_a_manifest_has_them_and_one_from_before_has_not():
    headers, records = zip(*two_ranks(), strict=True)
    with_notes = manifest.build(headers, records, b"{}", notes=notes.encode(SOME))
    without = manifest.build(headers, records, b"{}")
    assert with_notes.notes == SOME
    assert manifest.decode(manifest.encode(with_notes)) == with_notes
    assert manifest.decode(manifest.encode(without)).notes is None
    assert b'"notes":{"saved_at_s":1767225600' in manifest.encode(with_notes)
    assert b"notes" not in manifest.encode(without)
    with pytest.raises(CorruptError):
        manifest.build(headers, records, b"{}", notes=b"{")
