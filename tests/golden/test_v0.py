"""What version 0 wrote is read as it was meant, and written again to the byte."""

from pathlib import Path

import pytest
from tests.golden import make_v0 as golden

from holdfast.format import attempt, image, manifest, plain
from holdfast.format.checksum import crc64nvme
from holdfast.model.identity import ImageId
from holdfast.model.image import ImageRecord
from holdfast.model.manifest import Chunk, TensorRecord

FILES = {path.name: path.read_bytes() for path in (Path(__file__).parent / "v0").iterdir()}
IMAGE = FILES["image.safetensors"]
IMAGE_CRC = 0xB3DA0D11BBA220BC


@pytest.fixture
def header():
    return image.parse_header(IMAGE, len(IMAGE))


def test_every_file_is_written_again_to_the_byte():
    assert golden.make() == FILES
    assert sum(map(len, FILES.values())) < 50_000


def test_the_image_is_read(header):
    assert header.id == ImageId(3, 100, 0, 0)
    assert (header.run, header.world_size, header.image_count, header.structure) == ("golden", 1, 1, "00ff")
    assert image.check(IMAGE, header.layout) == crc64nvme(IMAGE) == IMAGE_CRC
    assert tuple(e.piece for e in header.layout.entries) == golden.PIECES
    assert {e.name: IMAGE[e.start : e.stop] for e in header.layout.entries} == golden.CONTENT
    assert header.layout.aliases == golden.ALIASES


def test_its_plain_values_are_read(header):
    value = plain.decode(image.read_plain(IMAGE, header.layout))
    assert value == golden.VALUE
    assert repr(value["optim"]) == repr(golden.VALUE["optim"])


def test_the_manifest_is_read():
    read = manifest.decode(FILES["manifest"])
    assert (read.run, read.id, read.world_size, read.structure) == ("golden", golden.CHECKPOINT, 1, "00ff")
    assert read.images == (ImageRecord(ImageId(3, 100, 0, 0), len(IMAGE), IMAGE_CRC),)
    assert plain.decode(read.plain or b"") == golden.VALUE
    by_name = {t.fqn: t for t in read.tensors}
    assert by_name["model.weight"].chunks == (Chunk(0, (0, 0), (2, 3)), Chunk(0, (2, 0), (2, 3)))
    assert by_name["model.tied"] == TensorRecord("model.tied", (4, 3), "float32", (), alias_of="model.weight")
    assert by_name["rng"].owner_rank == 0
    assert manifest.encode(read) == FILES["manifest"]


def test_claim_and_tombstone_are_read():
    assert attempt.decode(FILES["attempt"]) == golden.CLAIM
    assert attempt.decode_tombstone(FILES["tombstone"]) == golden.CHECKPOINT
