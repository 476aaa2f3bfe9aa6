"""A run as the commands see it: its tiers opened for reading, its attempts, its live agent on this node."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from holdfast.cli.arenas import arena_of, live_agent, look, settings_of
from holdfast.config import Settings
from holdfast.errors import HoldfastError, NotFoundError
from holdfast.model.identity import Attempt, CheckpointId, Lineage
from holdfast.model.manifest import Manifest
from holdfast.store.attempts import IMPORTER, Attempts, read_attempts
from holdfast.store.catalog import Catalog, CatalogEntry, read_catalog, read_manifest
from holdfast.tiers import open_tier, same_place
from holdfast.tiers.contract import Tier
from holdfast.wire import spawn
from holdfast.wire.client import AgentClient
from holdfast.wire.messages import StepInfo
from holdfast.wire.spawn import answers, read_config

MEMORY = "memory"
_CALL_S = 30.0


@dataclass(slots=True)
class OpenTier:
    """A tier of the run that could be opened."""

    url: str
    tier: Tier

    @property
    def name(self) -> str:
        return self.tier.name


@dataclass
class Run:
    """Invariant: `home` is the tier the URL names; `tiers` has it and those others the node's configuration knows."""

    url: str
    settings: Settings
    home: Tier
    tiers: list[OpenTier]
    problems: list[str] = field(default_factory=list)
    """Tiers that could not be looked at, in words."""

    @cached_property
    def attempts(self) -> Attempts:
        return read_attempts([t.tier for t in self.tiers])

    @property
    def authority(self) -> Tier:
        """The tier attempts are claimed on, where it could be opened."""
        return next((t.tier for t in self.tiers if t.url == self.settings.home), self.home)

    @property
    def owner(self) -> Attempt | None:
        """The highest attempt, where its claim can be read."""
        return next((a for a in self.attempts.records if a.attempt == self.attempts.highest), None)

    @cached_property
    def lineage(self) -> Lineage:
        """Without any claim nobody can tell what was abandoned: a tier beside the home, copied elsewhere, has none."""
        if not self.attempts.highest:
            return Lineage(dict.fromkeys((e.id.attempt for e in self.catalog), None))
        return self.attempts.lineage

    @cached_property
    def catalog(self) -> Catalog:
        """What is on the tier the URL names."""
        return read_catalog(self.home)

    @cached_property
    def agent(self) -> AgentClient | None:
        """The live agent on this node: where the URL leads, or else where the highest attempt was claimed."""
        found = live_agent(self.url)
        socket = coordinator_socket(self.owner) if found is None else None
        if socket is None or not answers(socket.parent):
            return found
        # What was copied names the coordinator of what it was copied from, which leads another run. Settings tell:
        # an agent that hangs would not.
        home = read_config(socket.parent).home
        return AgentClient(socket) if same_place(home, self.settings.home) else None

    @cached_property
    def owning_agent(self) -> AgentClient | None:
        """The live agent if it acts for the highest attempt: one without, or superseded, may delete nothing."""
        if self.agent is None:
            return None
        status = self.agent.get("/status", dict[str, Any], timeout_s=_CALL_S)
        return self.agent if status.get("attempt") == self.attempts.highest else None

    @cached_property
    def in_memory(self) -> list[StepInfo]:
        """What the live agent has in this node's memory; what it cannot say, or only an agent could, is a problem."""
        if self.agent is None:
            self.problems += _left_in_memory(self.arena)
            return []
        try:
            steps = self.agent.get("/steps", list[StepInfo], timeout_s=_CALL_S)
        except HoldfastError as e:
            self.problems.append(f"{MEMORY}: {e.message}")
            return []
        return [s for s in steps if MEMORY in s.tiers]

    @property
    def arena(self) -> Path:
        return self.agent.socket_path.parent if self.agent is not None else arena_of(self.url)

    def at(self, tier: str | None) -> Run:
        """The same run, looked at on another of its tiers; "memory" is what this node's slots hold.

        Raises: NotFoundError naming the tiers there are.
        """
        if tier is None:
            return self
        if tier == MEMORY:
            from holdfast.wire.slot_tier import SlotTier

            return replace(self, home=SlotTier(self.arena))
        found = next((t.tier for t in self.tiers if t.name == tier), None)
        if found is None:
            known = ", ".join((MEMORY, *(t.name for t in self.tiers)))
            raise NotFoundError(f"no tier {tier!r} of this run is known here", hint=f"there are {known}")
        return replace(self, home=found)

    @property
    def where(self) -> str:
        """The tier that is looked at, in words."""
        beside = self.home not in [t.tier for t in self.tiers if t.url == self.url]
        return f"on tier {self.home.name} of {self.url}" if beside else f"at {self.url}"

    def require_something(self) -> None:
        """Raises: NotFoundError when no attempt, manifest or image is there: perhaps the URL is not a run's."""
        if not self.attempts.highest and not any(self.catalog):
            raise NotFoundError(f"no run is at {self.url}", hint=_CHECK)

    def find(self, step: int) -> CatalogEntry:
        """The checkpoint `--step` names: committed on the home, on the lineage.

        Raises: NotFoundError saying what is there instead.
        """
        found = [e for e in self.catalog.committed if e.id.step == step]
        on = [e for e in found if e.id in self.lineage]
        if not on:
            raise _not_found(step, found, self)
        return max(on, key=lambda e: e.id)

    def manifest(self, step: int | None) -> Manifest:
        """Of the step, or (None) of the newest. Raises: NotFoundError; what is wrong with the manifest."""
        entry = self.find(step) if step is not None else self.newest()
        if entry.problem is not None:
            raise entry.problem
        if entry.manifest is None:
            raise NotFoundError(f"{entry.id} was deleted meanwhile", tier=self.home.name, step=entry.id.step)
        return read_manifest(self.home, entry.id)

    def newest(self) -> CatalogEntry:
        """The newest committed checkpoint on the lineage, damaged or not. Raises: NotFoundError."""
        on = [e for e in self.catalog.committed if e.id in self.lineage]
        if not on:
            raise NotFoundError(f"no checkpoint is whole {self.where}", hint=_LS.format(self.url))
        return max(on, key=lambda e: e.id)


@contextlib.contextmanager
def open_run(url: str) -> Iterator[Run]:
    """Open the run at `url` for reading; nothing is created.

    Raises: NotFoundError when nothing is there; ConfigError for a scheme that is not supported.
    """
    settings = settings_of(url)
    problems: list[str] = []
    tiers: list[OpenTier] = []
    try:
        for rule in settings.tiers:
            if rule.is_memory:
                continue
            try:
                tier = open_tier(rule.url, name=rule.name, owner=_owner(), scope=rule.scope, create=False)
            except HoldfastError as e:
                if rule.url == url:
                    raise _nothing_there(url, e) from e
                problems.append(f"{rule.name} ({rule.url}): {e.message}")
                continue
            tiers.append(OpenTier(rule.url, tier))
        home = next(t.tier for t in tiers if t.url == url)
        yield Run(url, settings, home, tiers, problems)
    finally:
        for opened in tiers:
            opened.tier.close()


def coordinator_socket(attempt: Attempt | None) -> Path | None:
    """The socket of the agent that claimed the attempt, when that was on this node since its last boot."""
    return None if attempt is None else spawn.coordinator_socket(attempt.coordinator)


def claimed_elsewhere(attempt: Attempt | None) -> bool:
    """Whether the attempt was claimed by another node: whether it lives cannot be seen from here. No import does."""
    if attempt is None or not attempt.coordinator or attempt.coordinator.startswith(IMPORTER):
        return False
    return coordinator_socket(attempt) is None


def describe_lineage(attempts: Attempts) -> str:
    """`"attempt 3, standing on step 50 (attempt 1)"`."""
    by_number: dict[int, Attempt] = {a.attempt: a for a in attempts.records}
    current, parts, seen = by_number.get(attempts.highest), [f"attempt {attempts.highest}"], set[int]()
    while current is not None and current.parent is not None and current.attempt not in seen:
        seen.add(current.attempt)
        parts.append(f"standing on {current.parent}")
        current = by_number.get(current.parent.attempt)
    return ", ".join(parts)


def _left_in_memory(path: Path) -> Iterator[str]:
    arena = look(path)
    if arena.only_here():
        steps = ", ".join(map(str, arena.only_here()))
        yield f"{MEMORY}: no agent runs, and {arena.path} alone holds {steps}, which the next launch loads"


def _owner() -> str:
    return f"0.cli{os.getpid()}"


def _nothing_there(url: str, error: HoldfastError) -> HoldfastError:
    if isinstance(error, NotFoundError):
        return NotFoundError(f"nothing is at {url}", hint=_CHECK)
    return error


def _not_found(step: int, abandoned: list[CatalogEntry], run: Run) -> NotFoundError:
    hint = _LS.format(run.url)
    if abandoned:
        which = ", ".join(str(e.id) for e in abandoned)
        return NotFoundError(f"{which} is abandoned: the run went back before it and on", hint=hint, step=step)
    other = next((t for t in run.tiers if t.tier is not run.home and _has(t.tier, step)), None)
    if other is not None:
        hint = f"tier {other.tier.name} has it: say --tier {other.tier.name}, or give {other.url} for the URL"
    return NotFoundError(f"step {step} is not committed {run.where}", hint=hint, step=step)


def _has(tier: Tier, step: int) -> bool:
    try:
        return any(e.id.step == step for e in read_catalog(tier).committed)
    except HoldfastError:  # a hint is not worth another error
        return False


_CHECK = "check the URL; a run appears with its first save"
_LS = "`holdfast ls {}` shows what is there"


def name_of(checkpoint: CheckpointId | None) -> dict[str, int] | None:
    """How JSON documents name a checkpoint."""
    return None if checkpoint is None else {"attempt": checkpoint.attempt, "step": checkpoint.step}
