"""Keys: what they look like, that they sort, and that foreign keys are not ours."""

import pytest

from holdfast.errors import UsageError
from holdfast.format import names
from holdfast.model.identity import CheckpointId, ImageId

CHECKPOINT = CheckpointId(1, 100)


def test_keys_are_as_the_reference_says():
    assert names.attempt_key(1) == "attempts/00000001"
    assert names.step_prefix(CHECKPOINT) == "images/00000001/000000000100/"
    assert names.image_key(ImageId(1, 100, 7, 2)) == "images/00000001/000000000100/00007-2.safetensors"
    assert names.manifest_key(CHECKPOINT) == "manifests/00000001-000000000100"
    assert names.tombstone_key(CHECKPOINT) == "tombstones/00000001-000000000100"


def test_every_key_is_parsed_back():
    image = ImageId(names.MAX_ATTEMPT, names.MAX_STEP, names.MAX_RANK, names.MAX_IMAGE)
    assert names.parse_image_key(names.image_key(image)) == image
    assert names.parse_attempt_key(names.attempt_key(42)) == 42
    assert names.parse_manifest_key(names.manifest_key(CHECKPOINT)) == CHECKPOINT
    assert names.parse_tombstone_key(names.tombstone_key(CHECKPOINT)) == CHECKPOINT


def test_key_order_is_attempt_and_step_order():
    checkpoints = [CheckpointId(a, s) for a in (1, 2, 10) for s in (0, 9, 10, 1000)]
    assert sorted(checkpoints) == sorted(checkpoints, key=names.manifest_key)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "manifests/",
        "manifests/1-100",
        "manifests/00000001-000000000100\n",
        "manifests/00000001-000000000100.tmp",
        "x/manifests/00000001-000000000100",
        "tombstones/00000001-00000000010a",
        "attempts/0000001",
        "attempts/" + "\u0661" * 8,
        "images/00000001/000000000100/00000-00.safetensors",
        "images/00000001/000000000100/00000-0.safetensors.part",
        "images/00000001/000000000100/00000-1000.safetensors",
        "images/00000001/../00000-0.safetensors",
    ],
)
def test_foreign_keys_are_none_of_ours(key):
    parsers = (
        names.parse_attempt_key,
        names.parse_image_key,
        names.parse_manifest_key,
        names.parse_tombstone_key,
    )
    assert [parse(key) for parse in parsers] == [None] * 4


def test_a_manifest_is_no_tombstone():
    assert names.parse_tombstone_key(names.manifest_key(CHECKPOINT)) is None
    assert names.parse_manifest_key(names.tombstone_key(CHECKPOINT)) is None


def test_numbers_that_would_widen_a_key_are_refused():
    for numbers in [(-1, 0, 0), (10**8, 0, 0), (0, 10**12, 0), (0, 0, 10**5), (0, 0, 0, 1000)]:
        with pytest.raises(UsageError):
            names.image_key(ImageId(*numbers))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("step_100", 100),
        ("ckpt-0100", 100),
        ("100", 100),
        ("epoch=3-step=70", 70),
        ("v1.5", None),
        ("1.15", None),
        ("step", None),
        ("step_1/", None),
        ("", None),
        ("1" * 13, None),
        ("x100\n", None),
    ],
)
def test_the_number_at_the_end_of_a_name(text, number):
    assert names.trailing_number(text) == number
