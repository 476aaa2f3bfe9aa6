"""CRC64NVME: the published check value, buffers of every kind, combination."""

import mmap

import numpy as np
import pytest

from holdfast.format.checksum import BLOCK_BYTES, block_count, combine, crc64nvme

DATA = bytes(range(256)) * 16


def test_published_check_value():
    assert crc64nvme(b"123456789") == 0xAE8B14860A799888


def test_any_contiguous_buffer_gives_the_same():
    with mmap.mmap(-1, len(DATA)) as mapped:
        mapped[:] = DATA
        view = memoryview(mapped)
        grid = np.frombuffer(DATA, np.float32).reshape(8, -1).data
        assert {crc64nvme(b) for b in (bytearray(DATA), memoryview(DATA), view, grid)} == {crc64nvme(DATA)}
        view.release()


def test_a_strided_buffer_is_refused_not_copied():
    with pytest.raises(BufferError):
        crc64nvme(memoryview(DATA)[::2])


@pytest.mark.parametrize("cut", [0, 1, 100, len(DATA)])
def test_parts_combine_to_the_whole(cut):
    a, b = DATA[:cut], DATA[cut:]
    assert combine(crc64nvme(a), crc64nvme(b), len(b)) == crc64nvme(DATA) == crc64nvme(b, crc64nvme(a))


def test_block_count():
    assert [block_count(n) for n in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1)] == [0, 1, 1, 2]
