"""`holdfast verify --repair`: bad copies are re-made, by the live agent or by this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast.cli.runs import Run
from holdfast.errors import AgentError, CorruptError, HoldfastError, UsageError
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.store.catalog import CatalogEntry, Wound, is_tombstoned, read_catalog
from holdfast.store.quarantine import release
from holdfast.store.repair import repair_image, repair_manifest
from holdfast.tiers import open_tier
from holdfast.tiers.contract import Tier
from holdfast.wire import messages

_AGENT_S = 1800.0
"""An image is read from one tier and written to another meanwhile."""


@dataclass(frozen=True, slots=True)
class Mended:
    """What became of one bad copy; `image` None is the manifest. `source` is where the good one came from, or may."""

    id: CheckpointId
    image: ImageId | None
    source: str = ""
    done: bool = False
    error: HoldfastError | None = None

    @property
    def text(self) -> str:
        what = f"manifest of {self.id}" if self.image is None else str(self.image)
        if self.error is not None:
            return f"left  {what}: {self.error}"
        return f"{'mended' if self.done else 'would re-make'} {what}, from {self.source}"


@contextlib.contextmanager
def open_sources(urls: Sequence[str]) -> Iterator[list[Tier]]:
    """The tiers `--from` names, for reading. Raises: NotFoundError, ConfigError."""
    with contextlib.ExitStack() as opened:
        tiers = []
        for number, url in enumerate(urls):
            tier = open_tier(url, name=f"from-{number} ({url})", owner="0.source", create=False)
            opened.callback(tier.close)
            tiers.append(tier)
        yield tiers


def mend(run: Run, wounded: list[tuple[CheckpointId, list[Wound]]], sources: list[Tier], *, yes: bool) -> list[Mended]:
    """Re-make everything that is bad, or say from where that would be tried. One that fails keeps no other from it."""
    others = [t.tier for t in run.tiers if t.tier is not run.home] + sources
    done = []
    for checkpoint, wounds in wounded:
        for wound in wounds:
            try:
                source = _mend(run, checkpoint, wound, others) if yes else _plan(run, checkpoint, wound, others)
                done.append(Mended(checkpoint, wound.image, source, yes))
            except HoldfastError as e:
                done.append(Mended(checkpoint, wound.image, error=e))
        if yes and not wounds:
            _release_good(run, checkpoint)
    return done


def _release_good(run: Run, checkpoint: CheckpointId) -> None:
    """Every byte was just read and is right: what said otherwise was mended by other hands."""
    entry = run.catalog.get(checkpoint)
    for image in entry.bad if entry else ():
        release(run.home, image)


def _plan(run: Run, checkpoint: CheckpointId, wound: Wound, others: list[Tier]) -> str:
    """Where a good copy may be, by listing. Raises: CorruptError where there can be none."""
    places = ["the live agent's memory or tiers"] if run.agent is not None else []
    for tier in others:
        entry = read_catalog(tier).get(checkpoint)
        if entry is not None and entry.loadable:
            places.append(tier.name)
    if wound.image is None:
        places.append("its images")
    if not places:
        raise CorruptError("no other place has it", hint="name a tier that has a good copy with --from")
    return " or ".join(places)


def _mend(run: Run, checkpoint: CheckpointId, wound: Wound, others: list[Tier]) -> str:
    if run.agent is not None:
        body = messages.Repair(run.url, checkpoint, wound.image, wound.reason)
        try:
            return run.agent.post("/repair", body, messages.Repaired, timeout_s=_AGENT_S).source
        except (AgentError, CorruptError, UsageError):
            if not others and wound.image is not None:
                raise
    entry = read_catalog(run.home).get(checkpoint)
    if entry is None or is_tombstoned(run.home, checkpoint):
        raise UsageError(f"{checkpoint} was deleted meanwhile", hint="look at `holdfast ls`")
    if wound.image is None:
        return repair_manifest(run.home, entry, others)
    record = next((r for r in (entry.manifest.images if entry.manifest else ()) if r.id == wound.image), None)
    if record is None:
        raise CorruptError("its manifest cannot be read", hint="the manifest is repaired first: say it again")
    return repair_image(run.home, record, others, checkpoint=checkpoint, reason=wound.reason)


def read_again(run: Run, entries: list[CatalogEntry]) -> list[CatalogEntry]:
    """The same checkpoints, as they stand now."""
    now = read_catalog(run.home)
    return [e for e in (now.get(old.id) for old in entries) if e is not None]


def mending_document(mended: list[Mended], *, yes: bool) -> dict[str, object]:
    """The keys that --repair adds to the JSON document."""
    return {
        "dry_run": not yes,
        "repairs": [
            {
                "attempt": m.id.attempt,
                "step": m.id.step,
                "rank": m.image.rank if m.image else None,
                "image": m.image.image if m.image else None,
                "from": m.source,
                "done": m.done,
                "error": m.error.to_dict() if m.error else None,
            }
            for m in mended
        ],
    }
