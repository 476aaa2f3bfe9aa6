"""Every key on a tier: where attempts, images, manifests and tombstones stand.

    attempts/00000001
    images/00000001/000000000100/00000-0.safetensors      attempt / step / rank - image
    manifests/00000001-000000000100
    tombstones/00000001-000000000100

Numbers have a fixed width, so that listing in key order is listing in (attempt, step, rank) order. The parsers answer
None to any key that the makers would not have made: a foreign file beside ours is not ours.
"""

from __future__ import annotations

import re

from holdfast.errors import UsageError
from holdfast.model.identity import CheckpointId, ImageId

ATTEMPTS = "attempts/"
IMAGES = "images/"
MANIFESTS = "manifests/"
TOMBSTONES = "tombstones/"

MAX_ATTEMPT = 10**8 - 1
MAX_STEP = 10**12 - 1
MAX_RANK = 10**5 - 1
MAX_IMAGE = 10**3 - 1

_ATTEMPT = re.compile(r"attempts/([0-9]{8})")
_IMAGE = re.compile(r"images/([0-9]{8})/([0-9]{12})/([0-9]{5})-(0|[1-9][0-9]{0,2})\.safetensors")
_TRAILING = re.compile(r"(?<![0-9.])([0-9]{1,12})\Z")
_CHECKPOINT = re.compile(r"(?:manifests|tombstones)/([0-9]{8})-([0-9]{12})")


def attempt_key(attempt: int) -> str:
    """The key of an attempt's claim."""
    return f"{ATTEMPTS}{_number('attempt', attempt, MAX_ATTEMPT):08d}"


def parse_attempt_key(key: str) -> int | None:
    """The attempt a claim's key names."""
    match = _ATTEMPT.fullmatch(key)
    return int(match[1]) if match else None


def attempt_prefix(attempt: int) -> str:
    """What the keys of all images of an attempt begin with."""
    return f"{IMAGES}{_number('attempt', attempt, MAX_ATTEMPT):08d}/"


def step_prefix(checkpoint: CheckpointId) -> str:
    """What the keys of all images of a checkpoint begin with."""
    return f"{attempt_prefix(checkpoint.attempt)}{_number('step', checkpoint.step, MAX_STEP):012d}/"


def image_key(image: ImageId) -> str:
    """The key of an image."""
    rank = _number("rank", image.rank, MAX_RANK)
    number = _number("image", image.image, MAX_IMAGE)
    return f"{step_prefix(image.checkpoint)}{rank:05d}-{number}.safetensors"


def parse_image_key(key: str) -> ImageId | None:
    """The image a key names."""
    match = _IMAGE.fullmatch(key)
    return ImageId(*(int(g) for g in match.groups())) if match else None


def manifest_key(checkpoint: CheckpointId) -> str:
    """The key of a checkpoint's manifest: the commit."""
    return MANIFESTS + _checkpoint(checkpoint)


def parse_manifest_key(key: str) -> CheckpointId | None:
    """The checkpoint a manifest's key names."""
    return _parse_checkpoint(key, MANIFESTS)


def tombstone_key(checkpoint: CheckpointId) -> str:
    """The key of a checkpoint's tombstone: a deletion that has begun."""
    return TOMBSTONES + _checkpoint(checkpoint)


def parse_tombstone_key(key: str) -> CheckpointId | None:
    """The checkpoint a tombstone's key names."""
    return _parse_checkpoint(key, TOMBSTONES)


def trailing_number(text: str) -> int | None:
    """The number at the end of a name: 100 of `step_100`, `ckpt-0100` or `100`; None where none is, or a decimal."""
    match = _TRAILING.search(text)
    return int(match[1]) if match else None


def _checkpoint(checkpoint: CheckpointId) -> str:
    attempt = _number("attempt", checkpoint.attempt, MAX_ATTEMPT)
    return f"{attempt:08d}-{_number('step', checkpoint.step, MAX_STEP):012d}"


def _parse_checkpoint(key: str, prefix: str) -> CheckpointId | None:
    match = _CHECKPOINT.fullmatch(key)
    return CheckpointId(int(match[1]), int(match[2])) if match and key.startswith(prefix) else None


def _number(what: str, value: int, limit: int) -> int:
    if not 0 <= value <= limit:
        raise UsageError(
            f"{what} {value} is not in 0..{limit}", hint="keys have a fixed width, so numbers have a limit"
        )
    return value
