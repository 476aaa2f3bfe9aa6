"""A committed checkpoint, opened by its manifest: images and plain values are read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from holdfast.errors import CorruptError
from holdfast.model.identity import ImageId
from holdfast.model.image import ImageRecord
from holdfast.model.manifest import Manifest, TensorRecord
from holdfast.store.blocks import Progress
from holdfast.store.ranged import BlockCache, RangedImage
from holdfast.tiers.contract import Tier
from holdfast.trainer.saved import Source

_NO_BUFFER = memoryview(b"")


class Opened:
    """Invariant: an image is opened once. Threads: one.

    Args:
        tiers: where its images may stand, nearest first. The last one is that of the manifest: what another does not
            have, or not as it was saved, is read there.

    Raises: what reading images raises, from every method.
    """

    def __init__(self, tiers: Sequence[Tier], manifest: Manifest, progress: Progress) -> None:
        self.manifest = manifest
        *self._nearer, self._tier = tiers
        self._progress = progress
        self._cache = BlockCache()
        self._images: dict[ImageId, RangedImage] = {}
        self._plain: dict[int, bytes] = {}
        if manifest.plain is not None:
            self._plain[0] = manifest.plain

    def plain(self, rank: int) -> bytes:
        """The plain values in the first image of a rank; rank 0's, if they are few, stand in the manifest."""
        if rank not in self._plain:
            self._plain[rank] = self.image(self._first(rank)).plain()
        return self._plain[rank]

    def images_for(self, wanted: Callable[[TensorRecord], bool], ranks: Collection[int]) -> list[RangedImage]:
        """The images that hold a part of the wanted tensors, and the first ones of these ranks."""
        names = {t.alias_of for t in self.manifest.tensors if t.alias_of is not None and wanted(t)}
        held = {
            chunk.image
            for tensor in self.manifest.tensors
            if tensor.fqn in names or wanted(tensor)
            for chunk in tensor.chunks
        }
        records = [self.manifest.images[i] for i in sorted(held)]
        records += [first for first in map(self._first, sorted(ranks)) if first not in records]
        return [self.image(record) for record in records]

    def sources(self, images: Collection[RangedImage], ranks: Collection[int]) -> list[Source]:
        """The images as a plan sees them, with the plain values of these ranks."""
        firsts = {self._first(rank).id: rank for rank in ranks}
        return [
            Source(image.header, _NO_BUFFER, self.plain(firsts[image.record.id]) if image.record.id in firsts else None)
            for image in images
        ]

    def image(self, record: ImageRecord) -> RangedImage:
        """One image, opened: its header is proven."""
        if record.id not in self._images:
            made = RangedImage(self._tier, record, nearer=self._nearer, cache=self._cache, progress=self._progress)
            if (made.header.run, made.header.world_size) != (self.manifest.run, self.manifest.world_size):
                raise CorruptError(f"{record.id} is of another run or number of ranks than its manifest")
            self._images[record.id] = made
        return self._images[record.id]

    def _first(self, rank: int) -> ImageRecord:
        checkpoint = self.manifest.id
        identity = ImageId(checkpoint.attempt, checkpoint.step, rank, 0)
        found = next((r for r in self.manifest.images if r.id == identity), None)
        if found is None:
            raise CorruptError(f"the manifest names no {identity}")
        return found
