"""Images that stand on several tiers: the nearest good block is taken, and the last tier has the last word."""

import pytest
from tests.unit.store_fixtures import make_image

from holdfast.errors import CorruptError, NotFoundError
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.model.identity import ImageId
from holdfast.store.ranged import RangedImage
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.wrappers.faults import Fault, Faults, Raise

IMAGE = make_image(ImageId(1, 10, 0), elements=3 * BLOCK_BYTES, plain=b"{}")


def spoilt(at):
    """The image with a bit flipped."""
    data = bytearray(IMAGE.data)
    data[at] ^= 1
    return data


def tier(data=None, *faults):
    """A tier that holds these bytes as the image; nothing if there are none."""
    made = MemoryTier(HeapSlots())
    if data is not None:
        handle = made.upload(IMAGE.key, len(data))
        handle.write(0, memoryview(data))
        handle.publish()
    return Faults(made, *faults)


def read(near, last):
    """All blocks, read one by one; and how often each tier was asked."""
    image = RangedImage(last, IMAGE.record, nearer=[near])
    stop = image.header.layout.table_start
    data = bytearray(stop)
    for block in range(-(-stop // BLOCK_BYTES)):
        image.read(block, memoryview(data)[block * BLOCK_BYTES : image.stop_of(block)])
    assert data == IMAGE.data[:stop]
    assert image.plain() == b"{}"
    return near.calls.get("read_into", 0), last.calls.get("read_into", 0)


def test_what_is_near_is_read_there_alone():
    assert read(tier(IMAGE.data), tier())[1] == 0


def test_a_bad_block_is_read_from_the_next_tier_and_no_other(caplog):
    asked_near, asked_last = read(tier(spoilt(2 * BLOCK_BYTES)), tier(IMAGE.data))
    assert asked_near > 4
    assert asked_last == 1
    assert "block 2) do not match their checksum; it is read from the next tier" in caplog.text


@pytest.mark.parametrize("at", [9, IMAGE.header.layout.table_start], ids=["header", "table"])
def test_an_image_that_cannot_be_opened_near_is_opened_from_the_next_tier(at):
    read(tier(spoilt(at)), tier(IMAGE.data))


def test_a_tier_that_does_not_have_it_is_asked_once():
    near, last = tier(), tier(IMAGE.data)
    assert read(near, last)[0] == 1
    left = tier(IMAGE.data, Fault("read_into", Raise(NotFoundError("it has left memory")), after=3))
    assert read(left, last)[0] == 4


def test_what_no_tier_has_as_it_was_saved_is_an_error_of_the_last_one():
    last = tier(spoilt(2 * BLOCK_BYTES))
    last.name = "last"
    with pytest.raises(CorruptError, match="block 2") as caught:
        read(tier(spoilt(2 * BLOCK_BYTES)), last)
    assert (caught.value.tier, caught.value.key) == ("last", IMAGE.key)
    with pytest.raises(NotFoundError):
        read(tier(), tier())
