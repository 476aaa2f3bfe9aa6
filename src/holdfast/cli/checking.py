"""What `prune` proves before it deletes anything: that a checkpoint stays whose every byte is as it was saved."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.cli.output import progress
from holdfast.cli.runs import Run
from holdfast.errors import HoldfastError, UsageError
from holdfast.model.identity import CheckpointId
from holdfast.store.catalog import read_manifest
from holdfast.store.verify import find_damage


@dataclass(frozen=True, slots=True)
class Checked:
    """What was read, newest first: those found damaged, each with why, and the first that is whole."""

    verified: CheckpointId | None = None
    damaged: tuple[tuple[CheckpointId, HoldfastError], ...] = ()


def check_newest(run: Run, *, besides: frozenset[CheckpointId], quiet: bool) -> Checked:
    """Read the newest checkpoint that a load would take, and older ones until one is whole. Changes nothing.

    Args:
        besides: those that shall go, and so do not count.

    Raises: UsageError when none is whole; TierError when the tier failed.
    """
    loadable = [e for e in run.catalog if e.loadable]
    on = [e for e in loadable if e.id in run.lineage] or loadable
    damaged: list[tuple[CheckpointId, HoldfastError]] = []
    for entry in reversed([e for e in on if e.id not in besides]):
        if entry.manifest is None:
            continue
        with progress(f"checking {entry.id}", entry.size_bytes, quiet=quiet) as bar:
            damage = find_damage(run.home, read_manifest(run.home, entry.id), progress=bar.advance)
        if damage is None:
            return Checked(entry.id, tuple(damaged))
        damaged.append((entry.id, damage))
    raise UsageError(
        f"nothing is deleted, for none that would stay is whole; damaged: {', '.join(str(c) for c, _ in damaged)}",
        hint="`holdfast verify URL --all` shows which are whole; `holdfast prune URL --everything` starts the run over",
        tier=run.home.name,
    )
