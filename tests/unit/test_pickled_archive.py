"""The directory of a zip: where bytes stand is found, and what says two things of one byte is refused."""

import io
import struct
import zipfile
import zlib

import pytest

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format.pickled import archive
from holdfast.format.pickled.archive import read_directory

CONTENT = {"archive/data.pkl": b"pickle", "archive/data/0": b"x" * 1000, "archive/empty": b"", "archive/é": b"last"}


def zipped(content=CONTENT, *, method=zipfile.ZIP_STORED, comment=b"", large=False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with made.open(info, "w", force_zip64=large) as record:
                record.write(data)
        made.comment = comment
    return out.getvalue()


def directory(data: bytes):
    def read(offset: int, n_bytes: int) -> bytes:
        assert 0 <= offset <= offset + n_bytes <= len(data), "read beyond the zip"
        return data[offset : offset + n_bytes]

    return read_directory(read, len(data))


def contents(data: bytes) -> dict[str, bytes]:
    return {name: data[r.start : r.stop] for name, r in directory(data).items()}


@pytest.mark.parametrize("comment", [b"", b"a comment", b"PK\x05\x06" + bytes(30)])
@pytest.mark.parametrize("large", [False, True])
def test_every_record_is_found_with_its_checksum(comment, large):
    data = zipped(comment=comment, large=large)
    assert contents(data) == CONTENT
    assert {name: r.crc32 for name, r in directory(data).items()} == {n: zlib.crc32(c) for n, c in CONTENT.items()}


def test_an_empty_zip_has_no_records():
    assert directory(zipped({})) == {}


def test_sizes_and_places_in_64_bit(monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    data = bytearray(zipped(large=True))
    assert contents(bytes(data)) == CONTENT
    end = data.rfind(b"PK\x05\x06")
    struct.pack_into("<2H2I", data, end + 8, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1)
    assert contents(bytes(data)) == CONTENT
    for sign in (b"PK\x06\x06", b"PK\x06\x07"):
        with pytest.raises(CorruptError, match="end of a large zip"):
            directory(bytes(data).replace(sign, b"PK\x06\x08"))


def test_a_zip_that_ends_early_is_corrupt_wherever_it_ends():
    data = zipped()
    for end in range(len(data)):
        with pytest.raises(CorruptError):
            directory(data[:end])


def test_compressed_and_encrypted_records_are_refused():
    with pytest.raises(UnsupportedValueError, match="compressed or encrypted"):
        directory(zipped(method=zipfile.ZIP_DEFLATED))
    data = bytearray(zipped())
    data[data.rfind(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(UnsupportedValueError, match="compressed or encrypted"):
        directory(bytes(data))


def entry_of(data: bytes, name: str) -> int:
    """Where in the directory the entry of that name begins."""
    return data.rfind(name.encode()) - 46


def test_a_record_that_reaches_into_the_next_is_refused():
    data = bytearray(zipped())
    at = entry_of(bytes(data), "archive/data.pkl")
    struct.pack_into("<2I", data, at + 20, 100, 100)
    with pytest.raises(CorruptError, match="overlap"):
        directory(bytes(data))


def test_a_record_that_reaches_into_the_directory_is_refused():
    data = bytearray(zipped())
    at = entry_of(bytes(data), "archive/é")
    struct.pack_into("<2I", data, at + 20, 20, 20)
    with pytest.raises(CorruptError, match="overlap"):
        directory(bytes(data))


def test_two_records_in_one_place_are_refused():
    data = bytearray(zipped({"a": b"xx", "b": b"yy"}))
    at = entry_of(bytes(data), "b")
    struct.pack_into("<I", data, at + 42, 0)
    with pytest.raises(CorruptError, match="another name"):
        directory(bytes(data))
    data[at + 46] = ord("a")
    with pytest.raises(CorruptError, match=r"overlap|two records"):
        directory(bytes(data))


@pytest.mark.parametrize("where", [10**6, 2**32 - 2])
def test_a_record_beyond_the_zip_is_refused(where):
    data = bytearray(zipped())
    struct.pack_into("<I", data, entry_of(bytes(data), "archive/data.pkl") + 42, where)
    with pytest.raises(CorruptError, match="outside"):
        directory(bytes(data))


def test_a_name_that_is_no_text_is_refused():
    data = zipped({"abc": b"x"}).replace(b"abc", b"\xff\xfe\xfd")
    with pytest.raises(CorruptError):
        directory(data)


def test_numbers_of_records_have_a_limit(monkeypatch):
    data = zipped()
    monkeypatch.setattr(archive, "MAX_RECORDS", 3)
    with pytest.raises(CorruptError, match="too large"):
        directory(data)
    monkeypatch.undo()
    monkeypatch.setattr(archive, "MAX_DIRECTORY_BYTES", 100)
    with pytest.raises(CorruptError, match="too large"):
        directory(data)


def test_a_count_that_is_wrong_is_refused():
    data = bytearray(zipped())
    end = data.rfind(b"PK\x05\x06")
    for count in (3, 5):
        struct.pack_into("<2H", data, end + 8, count, count)
        with pytest.raises(CorruptError):
            directory(bytes(data))
