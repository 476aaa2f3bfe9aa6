"""Quarantine: a record beside a bad copy that keeps everyone from reading it.

Tiers cannot rename, and copying a bad image aside would cost a full read and write of bytes nobody trusts. So the bad
copy stays where it is, as evidence and for repair, and `quarantine/{its key}` says why it must not be read. That the
record is there is what counts; a damaged record still keeps readers away. It speaks of one tier's copy, never of the
image: other tiers' copies stay good.
"""

from __future__ import annotations

import json

from holdfast.format import names
from holdfast.model.identity import ImageId
from holdfast.tiers.contract import Tier, read_all

QUARANTINE = "quarantine/"


def quarantine_key(image: ImageId) -> str:
    """Where the record stands."""
    return QUARANTINE + names.image_key(image)


def quarantine(tier: Tier, image: ImageId, reason: str) -> None:
    """Keep readers away from this tier's copy of `image`.

    Atomicity: one put. Durability: as the tier. Idempotent: the last reason stands.
    """
    record = json.dumps({"holdfast": "quarantine", "version": 0, "reason": reason}) + "\n"
    tier.put(quarantine_key(image), memoryview(record.encode()))


def release(tier: Tier, image: ImageId) -> None:
    """The copy is good again, or gone. Idempotent."""
    tier.delete(quarantine_key(image))


def quarantined(tier: Tier) -> frozenset[ImageId]:
    """Every image whose copy on this tier must not be read."""
    found = (names.parse_image_key(i.key.removeprefix(QUARANTINE)) for i in tier.list(QUARANTINE))
    return frozenset(image for image in found if image is not None)


def why_quarantined(tier: Tier, image: ImageId) -> str:
    """The recorded reason. Raises: NotFoundError."""
    try:
        return str(json.loads(read_all(tier, quarantine_key(image)))["reason"])
    except (ValueError, KeyError, TypeError):
        return "the record is damaged"
