"""Claims and tombstones: one line each, every byte of which matters."""

import pytest

from holdfast.errors import CorruptError, FormatVersionError, UsageError
from holdfast.format import attempt
from holdfast.format.checksum import crc64nvme
from holdfast.model.identity import Attempt, CheckpointId

CLAIM = Attempt("run7", 2, CheckpointId(1, 50), "10.0.0.1:4711")
STONE = CheckpointId(1, 100)


def signed(body):
    return body + b',"crc64nvme":"%016x"}\n' % crc64nvme(body)


@pytest.mark.parametrize("claim", [CLAIM, Attempt("run é", 1, None), Attempt("", 99_999_999, CheckpointId(0, 0), "x")])
def test_a_claim_comes_back(claim):
    line = attempt.encode(claim)
    assert attempt.decode(line) == claim
    assert attempt.decode(memoryview(line)) == claim
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


def test_a_tombstone_comes_back():
    assert attempt.decode_tombstone(attempt.encode_tombstone(STONE)) == STONE


def test_what_they_look_like():
    assert attempt.encode(CLAIM).startswith(
        b'{"holdfast":"attempt","version":0,"run":"run7","attempt":2,"parent":[1,50],"coordinator":"10.0.0.1:4711",'
    )
    assert attempt.encode_tombstone(STONE).startswith(
        b'{"holdfast":"tombstone","version":0,"attempt":1,"step":100,"crc'
    )


@pytest.mark.parametrize(
    ("line", "decode"),
    [(attempt.encode(CLAIM), attempt.decode), (attempt.encode_tombstone(STONE), attempt.decode_tombstone)],
)
def test_every_bit_and_every_byte_matters(line, decode):
    for bit in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptError):
            decode(flipped)
    for cut in range(len(line)):
        with pytest.raises(CorruptError):
            decode(line[:cut])
    for more in (b"\n", b" ", line):
        with pytest.raises(CorruptError):
            decode(line + more)


def test_one_is_not_the_other():
    with pytest.raises(CorruptError):
        attempt.decode(attempt.encode_tombstone(STONE))
    with pytest.raises(CorruptError):
        attempt.decode_tombstone(attempt.encode(CLAIM))


def test_a_newer_version_is_told_apart():
    with pytest.raises(FormatVersionError):
        attempt.decode(signed(b'{"holdfast":"attempt","version":1,"shape":"unknown"'))
    with pytest.raises(FormatVersionError):
        attempt.decode_tombstone(signed(b'{"holdfast":"tombstone","version":12,"attempt":1'))


HOSTILE = [
    b"",
    b"{",
    b"[" * 10_000,
    b'{"holdfast":"attempt","version":0,"run":"r","attempt":-1,"parent":null,"coordinator":""',
    b'{"holdfast":"attempt","version":0,"run":"r","attempt":100000000,"parent":null,"coordinator":""',
    b'{"holdfast":"attempt","version":0,"run":"r","attempt":1,"parent":[1,-1],"coordinator":""',
    b'{"holdfast":"attempt","version":0,"run":"r","attempt":1,"parent":[1],"coordinator":""',
    b'{"holdfast":"attempt","version":0,"run":"r","attempt":1,"coordinator":""',
    b'{"holdfast":"attempt","version":0,"run":"r", "attempt":1,"parent":null,"coordinator":""',
    b'{"holdfast":"attempt","version":0,"run":"r","run":"r","attempt":1,"parent":null,"coordinator":""',
    b'{"holdfast":"attempt","version":0,"run":"\xff","attempt":1,"parent":null,"coordinator":""',
    b'{"holdfast":"attempt","version":0,"run":"r","attempt":' + b"9" * 5000 + b',"parent":null,"coordinator":""',
]


def is_corrupt(line, decode=attempt.decode):
    try:
        decode(line)
    except CorruptError:
        return True
    return False


def test_a_right_checksum_excuses_nothing():
    assert [body[:200] for body in HOSTILE if not is_corrupt(signed(body))] == []


def test_impossible_steps_are_corrupt():
    begin = b'{"holdfast":"tombstone","version":0,"attempt":1,"step":'
    for step in (b"-1", b"1000000000000", b"1.0", b'"1"'):
        assert is_corrupt(signed(begin + step), attempt.decode_tombstone), step


def test_what_could_not_be_read_back_is_not_written():
    with pytest.raises(UsageError):
        attempt.encode(Attempt("r", 10**8, None))
    with pytest.raises(UsageError):
        attempt.encode(Attempt("\ud800", 1, None))
    with pytest.raises(UsageError):
        attempt.encode(Attempt("r" * 10**5, 1, None))
    with pytest.raises(UsageError):
        attempt.encode_tombstone(CheckpointId(1, 10**12))
