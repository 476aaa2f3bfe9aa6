"""Images that several steps name: what the run machine knows of them, whichever steps those are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from holdfast.lifecycle.actions import KnownImage
from holdfast.lifecycle.steps import StepRecord, TierProgress
from holdfast.model.identity import CheckpointId, ImageId


@dataclass(slots=True)
class SharedImage:
    """One image. `tiers` have it, whole; `steps` name it and are not over."""

    known: KnownImage | None = None
    held: set[str] = field(default_factory=set)
    memory: set[str] = field(default_factory=set)
    tiers: set[str] = field(default_factory=set)
    steps: set[CheckpointId] = field(default_factory=set)

    def hold(self, node: str) -> None:
        """A node has it, verified or not yet."""
        self.held.add(node)

    def let_go(self, node: str) -> None:
        """A node has it no more."""
        self.held.discard(node)
        self.memory.discard(node)


@dataclass(slots=True)
class Sharing:
    """Invariant: what a record says of a shared image is what stands here.

    Size: images held, and those of open steps.
    """

    images: dict[ImageId, SharedImage] = field(default_factory=dict)

    def of(self, image: ImageId) -> SharedImage:
        """What is known of an image, from now on."""
        return self.images.setdefault(image, SharedImage())

    def link(self, record: StepRecord, image: ImageId) -> None:
        """The step names the image: it has what is known of it. It is announced once somebody holds or described it."""
        shared = self.of(image)
        shared.steps.add(record.id)
        record.shared.add(image)
        if shared.held or shared.known is not None:
            self.fill(record, image)
        for tier, progress in record.tiers.items():
            if tier in shared.tiers:
                progress.images.add(image)

    def fill(self, record: StepRecord, image: ImageId) -> None:
        """Bring what the record says of the image up to date."""
        shared = self.images[image]
        record.announce(image, record.image_counts[image.rank])
        for known, places in ((shared.held, record.held), (shared.memory, record.memory)):
            if known:
                places[image] = set(known)
        if shared.known is not None:
            record.known.setdefault(image, shared.known)

    def begin(self, record: StepRecord, tier: str) -> TierProgress:
        """Open the step on a tier; what it shares may stand there already."""
        record.tiers[tier] = TierProgress(images={i for i in record.shared if tier in self.images[i].tiers})
        return record.tiers[tier]

    def stand(self, record: StepRecord, tier: str) -> None:
        """The step's manifest stands on the tier, and with it what it names."""
        for image in record.shared & self.images.keys():
            self.images[image].tiers.add(tier)

    def unlink(self, record: StepRecord) -> list[ImageId]:
        """The step is over and its memory gone; the images that nobody needs any more."""
        for image in record.shared:
            record.held.pop(image, None)
            record.memory.pop(image, None)
            if image in self.images:
                self.images[image].steps.discard(record.id)
        images, record.shared = record.shared, set()
        return self.idle(images)

    def idle(self, images: Iterable[ImageId]) -> list[ImageId]:
        """Those that no step names and nobody holds."""
        return [i for i in images if i in self.images and not self.images[i].steps and not self.images[i].held]
