"""What `prune` means to delete, and who does it: the live agent that owns the run, or this process in its place."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field

from holdfast.cli.checking import Checked, check_newest
from holdfast.cli.output import Bar
from holdfast.cli.runs import MEMORY, Run
from holdfast.errors import DeadlineError, NotFoundError, UsageError, from_dict
from holdfast.format import names
from holdfast.model.identity import CheckpointId
from holdfast.model.place import Keep
from holdfast.store.catalog import Catalog, read_catalog
from holdfast.store.prune import Deletion, PrunePlan, execute_prune, plan_delete, plan_prune
from holdfast.tiers.contract import Tier
from holdfast.wire.client import AgentClient
from holdfast.wire.messages import ErrorList, Ok, Prune

_KEEP_ALL = Keep()
_CALL_S = 60.0
_POLL_S = 0.1


@dataclass(slots=True)
class Intent:
    """A plan on the tier the URL names, and what the run's other tiers have of the same checkpoints."""

    home: PrunePlan
    in_memory: frozenset[CheckpointId] = frozenset()
    """What the live agent holds, and frees with the rest."""
    others: list[tuple[Tier, PrunePlan]] = field(default_factory=list)
    checked: Checked = field(default_factory=Checked)
    """What reading the newest that stays said; nothing, where the agent does it or nothing that loads would go."""

    @property
    def ids(self) -> list[CheckpointId]:
        return [d.id for d in self.home.deletions]

    @property
    def size_bytes(self) -> int:
        return self.home.size_bytes + sum(p.size_bytes for _, p in self.others)

    def where(self, checkpoint: CheckpointId) -> list[str]:
        """Names of the tiers it goes from."""
        plans = [self.home, *(p for _, p in self.others)]
        tiers = [p.tier for p in plans if any(d.id == checkpoint for d in p.deletions)]
        return [MEMORY, *tiers] if checkpoint in self.in_memory else tiers


def plan_intent(run: Run, *, steps: tuple[int, ...], keep: Keep = _KEEP_ALL, quiet: bool = False) -> Intent:
    """What to delete; nothing is done. A step goes from every tier; retention is that of the tier the URL names.

    Reads the newest checkpoint that stays, and older ones until one is whole: that one stays, whatever was asked.

    Raises: NotFoundError for a step that is not there; UsageError when nothing would load any more, or when the agent
        would take from other tiers what is due to go from one.
    """
    if steps:
        asked = frozenset(run.find(step).id for step in steps)
        home = plan_delete(run.catalog, run.lineage, asked)
        checked = _check(run, home, besides=asked, quiet=quiet)
    else:
        home = plan_prune(run.catalog, run.lineage, keep=keep)
        checked = _check(run, home, quiet=quiet)
        if checked.damaged:
            protected = [checked.verified] if checked.verified else []
            home = plan_prune(run.catalog, run.lineage, keep=keep, protected=protected)
        _refuse_elsewhere(run, [d.id for d in home.deletions])
    held = run.in_memory if run.owning_agent is not None else []
    intent = Intent(home, frozenset(CheckpointId(s.attempt, s.step) for s in held), checked=checked)
    for opened in run.tiers:
        if steps and opened.tier is not run.home:
            intent.others.append((opened.tier, _same_there(run, read_catalog(opened.tier), intent.ids)))
    return intent


def _check(run: Run, plan: PrunePlan, *, besides: frozenset[CheckpointId] = frozenset(), quiet: bool) -> Checked:
    """Prove that one stays. Not beside a living owner: it wrote the newest itself, from memory it has checksummed."""
    loadable = {e.id for e in run.catalog if e.loadable}
    if run.owning_agent is not None or loadable.isdisjoint(d.id for d in plan.deletions):
        return Checked()
    return check_newest(run, besides=besides, quiet=quiet)


def _refuse_elsewhere(run: Run, ids: list[CheckpointId]) -> None:
    """The agent deletes a checkpoint wherever it is: a short retention here must not cost a long one there."""
    if run.owning_agent is None:
        return
    for opened in run.tiers:
        there = [] if opened.tier is run.home else [e.id for e in read_catalog(opened.tier).committed if e.id in ids]
        if there:
            raise UsageError(
                f"{max(there)} stands on {opened.name}, too, and the live agent deletes a checkpoint from every tier",
                hint=f"set keep_last of {run.home.name} in the job's configuration, or name steps with --step",
            )


def _same_there(run: Run, catalog: Catalog, ids: list[CheckpointId]) -> PrunePlan:
    """The same checkpoints on another tier, but for the last that loads there."""
    there = {e.id for e in catalog if e.id in ids and not e.tombstoned}
    loadable = {e.id for e in catalog if e.loadable and e.id in run.lineage} or {e.id for e in catalog if e.loadable}
    if loadable and loadable <= there:
        there.discard(max(loadable))
    return plan_delete(catalog, run.lineage, there)


def delete(run: Run, intent: Intent, bar: Bar) -> None:
    """Do it. Idempotent: after an error, or an interrupt, the same command finishes it.

    Raises: SupersededError when a higher attempt was claimed since the plan was made; DeadlineError; TierError.
    """
    if run.owning_agent is not None:
        _through_agent(run, run.owning_agent, intent, bar)
        return
    # The other tiers first: while the one the URL names has its manifest, the same command finds what is left to do.
    for tier, plan in [*intent.others, (run.home, intent.home)]:
        execute_prune(
            tier,
            plan,
            authority=run.authority,
            owner=run.attempts.highest,
            done=lambda deletion: bar.advance(deletion.size_bytes),
        )


def _through_agent(run: Run, agent: AgentClient, intent: Intent, bar: Bar) -> None:
    """Ask the owner and watch until it is done: it deletes from memory, too, and one tier after the other.

    Raises: what the agent reports meanwhile, but for errors of other steps, whose flush may fail beside it.
    """
    seen = agent.get("/errors", ErrorList, timeout_s=_CALL_S, since=2**62).last
    agent.post("/prune", Prune(intent.ids), Ok, timeout_s=_CALL_S)
    left, steps = list(intent.home.deletions), {None, *(d.id.step for d in intent.home.deletions)}
    deadline = time.monotonic() + run.settings.close_timeout_s
    while left:
        for deletion in [d for d in left if _is_gone(run.home, d)]:
            left.remove(deletion)
            bar.advance(deletion.size_bytes)
        news = agent.get("/errors", ErrorList, timeout_s=_CALL_S, since=seen)
        seen = news.last
        if left and (ours := [e for e in news.errors if e.get("step") in steps]):
            raise from_dict(ours[0])
        if left and time.monotonic() > deadline:
            waiting = ", ".join(str(d.id) for d in left)
            raise DeadlineError(
                f"the agent has not deleted {waiting} within {run.settings.close_timeout_s:g} s",
                hint=f"look into {agent.socket_path.parent / 'agent.log'}",
            )
        time.sleep(_POLL_S if left else 0.0)


def _is_gone(tier: Tier, deletion: Deletion) -> bool:
    """Whether neither manifest nor images are there any more; the tombstone may stay."""
    with contextlib.suppress(NotFoundError):
        tier.size(names.manifest_key(deletion.id))
        return False
    here = {names.parse_image_key(i.key) for i in tier.list(names.step_prefix(deletion.id))}
    return here.isdisjoint(deletion.images)
