"""A run looked at from outside: no agent, nothing claimed, nothing written, whoever owns it.

Only what is committed on the tier of the URL is seen; steps that are in a job's memory alone are not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from holdfast.config import Config
from holdfast.config.urls import has_scheme
from holdfast.errors import HoldfastError, LoadError, NotFoundError, UsageError
from holdfast.model.identity import CheckpointId, Lineage
from holdfast.model.manifest import Manifest
from holdfast.store.attempts import read_attempts
from holdfast.store.catalog import Catalog, CatalogEntry, read_catalog, read_manifest
from holdfast.store.verify import DAMAGE
from holdfast.tiers import open_tier
from holdfast.tiers.contract import Tier
from holdfast.tiers.wrappers import Retry
from holdfast.trainer.opened import Opened
from holdfast.trainer.steps import whole_step

log = logging.getLogger("holdfast")

T = TypeVar("T")
_MAX_TRIES = 64


class Archive:
    """Invariants: reads only. Threads: one; reads run on several, and are counted.

    Attributes:
        read_bytes: how many bytes of images were read so far.
        notes: checkpoints that were passed over, and why.
    """

    def __init__(self, tier: Tier, url: str) -> None:
        self._tier, self._url = tier, url
        self._counting = threading.Lock()
        self.read_bytes = 0
        self.notes: list[str] = []

    def take(self, step: int | None, use: Callable[[Opened], T]) -> tuple[CheckpointId, T] | None:
        """What `use` makes of the newest checkpoint it can be had from, or of `step`, on the lineage.

        One that proves damaged, or is pruned by its owner meanwhile, is passed over for the next older one, with a
        warning in the log.

        Returns: None when there is no attempt, manifest or image at all and no step was asked for.
        Raises: LoadError when something is there, and nothing or not that step can be used; what `use` raises.
        """
        step = None if step is None else whole_step(step, hint="pass a step that was saved, or None")
        failed: set[CheckpointId] = set()
        for _ in range(_MAX_TRIES):
            opened = self.newest(step, failed)
            if opened is None:
                return None
            checkpoint = opened.manifest.id
            try:
                found = use(opened)
            except DAMAGE as e:
                failed.add(checkpoint)
                self.notes.append(f"{checkpoint}: {e.message}" + (f" [{e.key}]" if e.key else ""))
                continue
            if self.notes:
                log.warning("took %s; passed over: %s", checkpoint, "; ".join(self.notes))
            return checkpoint, found
        raise LoadError(f"gave up after {_MAX_TRIES} steps: {'; '.join(self.notes)}", step=step)

    def newest(self, step: int | None, failed: set[CheckpointId]) -> Opened | None:
        """The newest checkpoint of the lineage, or `step` of it, that is not in `failed`; images are not looked at.

        Args:
            failed: is added to: what cannot be had for its manifest's sake. `notes` says why.

        Returns: None when there is no attempt, manifest or image at all and no step was asked for.
        Raises: LoadError when something is there, and nothing or not that step is left.
        """
        catalog = read_catalog(self._tier)
        attempts = read_attempts([self._tier])
        manifest = self._newest(catalog, attempts.lineage if attempts.highest else None, step, failed)
        if manifest is not None:
            return Opened([self._tier], manifest, self._count)
        if step is None and not attempts.highest and not catalog.entries:
            return None
        raise LoadError(self._nothing(catalog, step), hint=f"run `holdfast ls {self._url}`", step=step)

    def _newest(
        self, catalog: Catalog, lineage: Lineage | None, step: int | None, failed: set[CheckpointId]
    ) -> Manifest | None:
        """Of a tier that has no claims (a copy, or one that is nobody's home) the newest of what it has counts."""
        for entry in reversed(catalog.committed):
            on_lineage = lineage is None or entry.id in lineage
            if entry.id in failed or not on_lineage or step not in (None, entry.id.step):
                continue
            why = _why(entry)
            if entry.loadable and entry.manifest is not None:
                try:
                    return read_manifest(self._tier, entry.id)
                except DAMAGE as e:  # gone, or another, since it was listed
                    why = e.message
            failed.add(entry.id)
            self.notes.append(f"{entry.id}: {why}")
        return None

    def _nothing(self, catalog: Catalog, step: int | None) -> str:
        reasons = list(self.notes)
        if not reasons:
            other = [e.id for e in catalog.committed if step in (None, e.id.step)]
            abandoned = f"the run went back before {', '.join(map(str, other[:5]))} and on"
            reasons = [
                abandoned if other else "it is not committed there" if step is not None else "nothing is committed"
            ]
        what = (
            f"step {step} of {self._url} cannot" if step is not None else f"something is at {self._url} but nothing can"
        )
        return f"{what} be loaded: {'; '.join(reasons)}"

    def _count(self, n_bytes: int) -> None:
        with self._counting:
            self.read_bytes += n_bytes


def _why(entry: CatalogEntry) -> str:
    if entry.problem is not None:
        return entry.problem.message
    if entry.missing:
        return f"{entry.missing[0]} is missing or cut off"
    return f"{entry.bad[0]} is in quarantine" if entry.bad else "its manifest is gone"


@contextlib.contextmanager
def open_archive(url: str) -> Iterator[Archive]:
    """Open the run at a URL for reading; nothing is created.

    Raises: NotFoundError when nothing is there; ConfigError, UsageError for a URL that cannot be read so.
    """
    if not isinstance(url, str):
        raise UsageError(f"{type(url).__name__} is no URL", hint="pass the URL of a tier of the run: file:///data/run7")
    url = _home_in_file(url)
    if url.startswith("memory:"):
        raise UsageError(
            "what is in memory belongs to the agent of its job",
            hint="load it with a Checkpointer of that run; from outside, pass the URL of another tier of the run",
        )
    try:
        tier = open_tier(url, name="archive", owner=f"0.archive{os.getpid()}", create=False)
    except NotFoundError as e:
        raise NotFoundError(f"nothing is at {url}", hint="check the URL; a run appears with its first save") from e
    try:
        yield Archive(Retry(tier), url)
    finally:
        tier.close()


def _home_in_file(url: str) -> str:
    """The home of the run that a configuration describes; what is no file of that name stays a URL."""
    if not url.endswith(".toml") or has_scheme(url) or os.path.isdir(url):
        return url
    return Config.from_file(url).resolve().home


def nothing_at(url: str) -> HoldfastError:
    """The error of whoever needs something to be there."""
    return NotFoundError(f"no checkpoint is at {url}", hint="check the URL; a run appears with its first save")
