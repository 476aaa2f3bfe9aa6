"""Clear a run wholly, so that it can be started over. The order, from which every crash can be gone on:

1. the agent without trainers ends and frees its memory; arenas it left are removed: nothing is flushed any more;
2. on each tier every checkpoint is deleted in prune's own order, then images no manifest names, then tombstones;
3. the claims of attempts go last, the highest at the very end: while one stands, a load fails and does not start
   from zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.cli.arenas import Arena, arenas, look, remove
from holdfast.cli.output import Bar, counted
from holdfast.cli.runs import Run
from holdfast.cli.stopping import stop_agent
from holdfast.errors import RunBusyError
from holdfast.format import names
from holdfast.policy.retention import Reason
from holdfast.store.attempts import require_authority
from holdfast.store.catalog import Catalog, read_catalog
from holdfast.store.prune import Deletion, PrunePlan, execute_prune
from holdfast.store.quarantine import QUARANTINE
from holdfast.tiers.contract import Tier
from holdfast.units import format_bytes


@dataclass(frozen=True, slots=True)
class ClearPlan:
    """What goes: per tier everything, the claims, this node's memory."""

    tiers: tuple[tuple[Tier, PrunePlan], ...]
    attempts: int
    arenas: tuple[Arena, ...]

    @property
    def size_bytes(self) -> int:
        return sum(p.size_bytes for _, p in self.tiers) + sum(a.size_bytes for a in self.arenas)

    def lines(self) -> Iterator[str]:
        """The plan for a person."""
        for arena in self.arenas:
            what = "its agent, and " if arena.alive else ""
            yield f"memory of this node: {what}{format_bytes(arena.size_bytes)} in {arena.path}"
        for tier, plan in self.tiers:
            yield f"{tier.name}: {counted(len(plan.deletions), 'checkpoint')}, {format_bytes(plan.size_bytes)}"
        yield f"claims of attempts: {self.attempts}"

    def document(self) -> dict[str, object]:
        """The plan for a program."""
        return {
            "arenas": [str(a.path) for a in self.arenas],
            "tiers": [
                {"tier": t.name, "checkpoints": len(p.deletions), "size_bytes": p.size_bytes} for t, p in self.tiers
            ],
            "attempts": self.attempts,
        }


def plan_clear(run: Run) -> ClearPlan:
    """Everything of the run that can be seen from here.

    Raises: RunBusyError while trainers of it live on this node.
    """
    own = [a for a in arenas(run.settings.arena_dir) if a.serves(run.url)]
    if run.arena.is_dir() and run.arena not in (a.path for a in own):
        own.append(look(run.arena))
    busy = [pid for a in own for pid in a.trainers]
    if busy:
        raise RunBusyError(
            f"a job of this run lives on this node (process {', '.join(map(str, busy))})", hint="end it first"
        )
    plans = tuple((t.tier, _all_of(run.catalog if t.tier is run.home else read_catalog(t.tier))) for t in run.tiers)
    return ClearPlan(plans, len(run.attempts.records) + len(run.attempts.problems), tuple(own))


def _all_of(catalog: Catalog) -> PrunePlan:
    """Every checkpoint; tombstones stay until all of it is gone."""
    deletions = tuple(
        Deletion(e.id, Reason.ASKED, tuple(sorted(e.images)), sum(e.images.values()), drop_tombstone=False)
        for e in catalog
    )
    return PrunePlan(catalog.tier, deletions, ())


def clear(run: Run, plan: ClearPlan, bar: Bar) -> None:
    """Do it. Idempotent. Raises: RunBusyError; SupersededError when an attempt was claimed meanwhile; TierError."""
    owner = run.attempts.highest
    for arena in plan.arenas:
        stop_agent(arena.path, discard=True)
        remove(look(arena.path))
        bar.advance(arena.size_bytes)
    for tier, everything in plan.tiers:
        execute_prune(tier, everything, authority=run.authority, owner=owner, done=lambda d: bar.advance(d.size_bytes))
        require_authority(run.authority, owner)
        for prefix in (names.IMAGES, QUARANTINE, names.TOMBSTONES):
            _delete_all(tier, prefix)
        tier.sweep()
    for tier, _ in reversed(plan.tiers):
        _delete_all(tier, names.ATTEMPTS)


def _delete_all(tier: Tier, prefix: str) -> None:
    """Everything of ours under a prefix, in key order; a foreign file is left."""
    for info in list(tier.list(prefix)):
        if _is_ours(info.key):
            tier.delete(info.key)


def _is_ours(key: str) -> bool:
    parsers = names.parse_image_key, names.parse_tombstone_key, names.parse_attempt_key
    return any(parse(key.removeprefix(QUARANTINE)) is not None for parse in parsers)
