"""The catalog: what exists on one tier, rebuilt by listing.

Foreign files are passed over; damage is told, not raised.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from holdfast.errors import CorruptError, FormatVersionError, HoldfastError, NotFoundError
from holdfast.format import manifest as codec
from holdfast.format import names
from holdfast.model.identity import CheckpointId, ImageId, Lineage
from holdfast.model.image import ImageRecord
from holdfast.model.manifest import Manifest, ManifestSummary
from holdfast.model.notes import Notes
from holdfast.store.quarantine import quarantined
from holdfast.tiers.contract import Tier, read_all


@dataclass(frozen=True, slots=True)
class Wound:
    """What is wrong with a checkpoint on one tier: a bad or missing copy of an image, or (None) its manifest."""

    tier: str
    image: ImageId | None
    reason: str


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One checkpoint on one tier.

    `images` are those under its own step, with their sizes; `missing` are those its manifest calls for here that are
    not here whole, `bad` those in quarantine; `problem` is why the manifest cannot be used.
    """

    id: CheckpointId
    manifest: ManifestSummary | None
    images: Mapping[ImageId, int]
    tombstoned: bool = False
    missing: tuple[ImageId, ...] = ()
    bad: tuple[ImageId, ...] = ()
    problem: HoldfastError | None = None

    @property
    def committed(self) -> bool:
        """Whether its manifest stands and no deletion has begun."""
        return not self.tombstoned and (self.manifest is not None or self.problem is not None)

    @property
    def loadable(self) -> bool:
        """Committed, readable, and every image called for is here and not known to be bad."""
        return self.committed and self.problem is None and not self.missing and not self.bad

    def wounds(self, tier: str) -> Iterator[Wound]:
        """Why a committed checkpoint does not load from here, as far as listing tells.

        What a newer Holdfast wrote is no damage.
        """
        if isinstance(self.problem, CorruptError) and not self.tombstoned:
            yield Wound(tier, None, self.problem.message)
        if self.committed:
            yield from (Wound(tier, i, "it is not there whole") for i in self.missing)
            yield from (Wound(tier, i, "it is in quarantine") for i in self.bad if i not in self.missing)

    @property
    def size_bytes(self) -> int:
        return self.manifest.size_bytes if self.manifest else sum(self.images.values())


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything on one tier, oldest checkpoint first: they are found by their order."""

    tier: str
    entries: tuple[CatalogEntry, ...]
    quarantined: frozenset[ImageId] = frozenset()

    def __iter__(self) -> Iterator[CatalogEntry]:
        return iter(self.entries)

    def get(self, checkpoint: CheckpointId) -> CatalogEntry | None:
        at = bisect_left(self.entries, checkpoint, key=lambda e: e.id)
        return self.entries[at] if at < len(self.entries) and self.entries[at].id == checkpoint else None

    def newest(self, lineage: Lineage) -> CatalogEntry | None:
        """The newest loadable checkpoint on the lineage."""
        return next((e for e in reversed(self.entries) if e.loadable and e.id in lineage), None)

    @property
    def committed(self) -> list[CatalogEntry]:
        return [e for e in self.entries if e.committed]

    @property
    def notes(self) -> dict[CheckpointId, Notes]:
        """What the manifests say of when and how well."""
        return {e.id: e.manifest.notes for e in self.entries if e.manifest is not None and e.manifest.notes is not None}

    @property
    def image_sizes(self) -> dict[ImageId, int]:
        return {image: size for e in self.entries for image, size in e.images.items()}

    @property
    def highest_attempt(self) -> int:
        """The highest attempt any key names, for `claim(seen=)`."""
        return max((e.id.attempt for e in self.entries), default=0)

    def named(self, *, besides: frozenset[CheckpointId] = frozenset()) -> set[ImageId]:
        """Every image that a readable manifest names, deletions that have begun and `besides` not counted."""
        keeping = (e for e in self.entries if e.manifest and not e.tombstoned and e.id not in besides)
        return {record.id for e in keeping if e.manifest for record in e.manifest.images}


class KnownManifests:
    """What was read of one tier's manifests before, so that a listing reads only those that are new or changed.

    Threads: any; each listing leaves what it saw.
    """

    def __init__(self) -> None:
        self._known: dict[CheckpointId, tuple[str, ManifestSummary]] = {}

    def get(self, checkpoint: CheckpointId, version: str) -> ManifestSummary | None:
        """What the manifest said, if it cannot have changed since."""
        known = self._known.get(checkpoint)
        return known[1] if known is not None and version and known[0] == version else None

    def leave(self, seen: dict[CheckpointId, tuple[str, ManifestSummary]]) -> None:
        """These and no others stand there now."""
        self._known = seen


def read_catalog(
    tier: Tier,
    *,
    calls_for: Callable[[ImageId], bool] = lambda image: True,
    known: KnownManifests | None = None,
) -> Catalog:
    """List a tier and read its manifests.

    Args:
        calls_for: which of a manifest's images belong on this tier; on a node-scoped tier those of the node.
        known: what earlier calls read. Bits that rot without a trace are found when a manifest is next read for its own
            sake, as every load does.

    Raises: what listing raises. A manifest that cannot be read is the `problem` of its entry.
    """
    images = _images(tier, names.IMAGES)
    tombstones = {names.parse_tombstone_key(i.key) for i in tier.list(names.TOMBSTONES)} - {None}
    versions = {c: i.version for i in tier.list(names.MANIFESTS) if (c := names.parse_manifest_key(i.key)) is not None}
    manifests = _manifests(tier, versions, known or KnownManifests())
    called = {c: [r for r in m.images if calls_for(r.id)] for c, (m, _) in manifests.items() if m is not None}
    _look_again(tier, images, [r for c, records in called.items() if c not in tombstones for r in records])
    sizes = {image: size for step in images.values() for image, size in step.items()}
    bad = quarantined(tier)
    entries = []
    for checkpoint in sorted({*images, *manifests, *(c for c in tombstones if c is not None)}):
        manifest, problem = manifests.get(checkpoint, (None, None))
        records = called.get(checkpoint, [])
        entry = CatalogEntry(
            id=checkpoint,
            manifest=manifest,
            images=images.get(checkpoint, {}),
            tombstoned=checkpoint in tombstones,
            missing=tuple(r.id for r in records if sizes.get(r.id) != r.size_bytes),
            bad=tuple(r.id for r in records if r.id in bad),
            problem=problem,
        )
        entries.append(entry)
    return Catalog(tier.name, tuple(entries), bad)


_Read = tuple[ManifestSummary | None, HoldfastError | None]


def _images(tier: Tier, prefix: str) -> dict[CheckpointId, dict[ImageId, int]]:
    images: dict[CheckpointId, dict[ImageId, int]] = {}
    for info in tier.list(prefix):
        image = names.parse_image_key(info.key)
        if image is not None:
            images.setdefault(image.checkpoint, {})[image] = info.size_bytes
    return images


def _manifests(tier: Tier, versions: Mapping[CheckpointId, str], known: KnownManifests) -> dict[CheckpointId, _Read]:
    found: dict[CheckpointId, _Read] = {}
    seen: dict[CheckpointId, tuple[str, ManifestSummary]] = {}
    for checkpoint, version in versions.items():
        manifest, problem = known.get(checkpoint, version), None
        if manifest is None:
            manifest, problem = _read(tier, checkpoint)
        if manifest is not None:
            seen[checkpoint] = version, manifest
        found[checkpoint] = manifest, problem
    known.leave(seen)
    return found


def _look_again(tier: Tier, images: dict[CheckpointId, dict[ImageId, int]], called: Iterable[ImageRecord]) -> None:
    """Images are listed before manifests: those of a checkpoint committed just in between seem to be missing."""
    for checkpoint in {r.id.checkpoint for r in called if r.id not in images.get(r.id.checkpoint, {})}:
        images.update(_images(tier, names.step_prefix(checkpoint)))


def read_manifest(tier: Tier, checkpoint: CheckpointId) -> Manifest:
    """The manifest of a checkpoint on a tier.

    Raises: NotFoundError; CorruptError, FormatVersionError, naming tier and key.
    """
    key = names.manifest_key(checkpoint)
    try:
        manifest = codec.decode(read_all(tier, key))
        if manifest.id != checkpoint:
            raise CorruptError(f"the manifest is that of {manifest.id}")
    except (CorruptError, FormatVersionError) as e:
        e.tier, e.key, e.step = tier.name, key, checkpoint.step
        raise
    return manifest


def is_tombstoned(tier: Tier, checkpoint: CheckpointId) -> bool:
    """Whether a deletion has begun. The key decides: a damaged tombstone is still one."""
    try:
        tier.size(names.tombstone_key(checkpoint))
    except NotFoundError:
        return False
    return True


def _read(tier: Tier, checkpoint: CheckpointId) -> _Read:
    try:
        manifest = read_manifest(tier, checkpoint)
        return ManifestSummary(checkpoint, manifest.images, manifest.notes), None
    except NotFoundError:  # deleted since it was listed
        return None, None
    except HoldfastError as e:
        return None, e
