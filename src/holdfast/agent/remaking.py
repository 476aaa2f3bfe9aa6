"""Re-makes bad copies on the agent's tiers from good ones."""

from __future__ import annotations

import contextlib
from collections import Counter

from holdfast.agent.open_tiers import OpenTiers
from holdfast.errors import HoldfastError, NotFoundError
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageRecord
from holdfast.store import catalog as catalogs
from holdfast.store import repair


class Remaking:
    """Re-makes copies and manifests, each from the first good source.

    Attributes:
        repaired: copies re-made, by tier, since the agent began.

    Threads: any; each method blocks.
    """

    def __init__(self, tiers: OpenTiers) -> None:
        self._tiers = tiers
        self.repaired: Counter[str] = Counter()

    def record(self, checkpoint: CheckpointId, image: ImageId) -> ImageRecord | None:
        """What an image has to be, by the first manifest of the checkpoint that can be read."""
        for _, tier in self._tiers.shelved():
            with contextlib.suppress(HoldfastError):
                found = catalogs.read_manifest(self._tiers.patient(tier), checkpoint)
                return next((r for r in found.images if r.id == image), None)
        return None

    def image(self, tier: str, record: ImageRecord, checkpoint: CheckpointId, reason: str) -> str:
        """Re-make a copy from another tier's; its name. Raises: see store.repair."""
        return repair.repair_image(
            self._tiers[tier], record, self._tiers.others(tier), checkpoint=checkpoint, reason=reason
        )

    def from_memory(
        self, tier: str, record: ImageRecord, image: memoryview, checkpoint: CheckpointId, reason: str
    ) -> None:
        """Re-make a copy from a proven image in memory. Raises: see store.repair."""
        repair.repair_image_from_memory(
            self._tiers[tier], record, image, self._tiers.parts(tier), checkpoint=checkpoint, reason=reason
        )

    def manifest(self, tier: str, checkpoint: CheckpointId) -> str:
        """Re-make a manifest from another tier's, or from the images; which. Raises: see store.repair."""
        entry = self._tiers.look_at(tier).get(checkpoint)
        if entry is None:
            raise NotFoundError(f"{checkpoint} is not there any more", tier=tier, step=checkpoint.step)
        return repair.repair_manifest(self._tiers[tier], entry, self._tiers.others(tier))
