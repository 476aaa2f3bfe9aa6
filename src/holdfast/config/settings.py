"""Everything decided, and where the arena of a run stands."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.model.place import TierRule
from holdfast.policy.schedule import durable_order

_RUN_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything decided. `sources` says for each value whether argument, environment, file or default set it.

    Values of tiers are named there as `tiers.posix.every_steps`.
    """

    run: str
    tiers: tuple[TierRule, ...]
    arena_dir: str = "/dev/shm"
    arena_budget_bytes: int = 0
    """0: whatever the arena's file system has free."""
    on_save_error: str = "warn"
    """"warn", "raise", or after how many failed saves in a row to raise."""
    prepare_timeout_s: float = 300.0
    slot_wait_s: float = 2.0
    """How long a save waits for a slot before a slow tier counts as lagging; after twice that the step is dropped."""
    stop_wait_s: float = 10.0
    agent_start_timeout_s: float = 60.0
    call_timeout_s: float = 60.0
    """How long a call to the agent may take that does not wait for work to be done."""
    load_timeout_s: float = 1800.0
    close_timeout_s: float = 1800.0
    busy_wait_s: float = 30.0
    """How long a new launch waits for processes of the launch before to disappear."""
    idle_s: float = 900.0
    grace_s: float = 25.0
    retry_s: float = 60.0
    """How long a call to a tier that may succeed later is repeated."""
    agent_nice: int = 10
    agent_cores: str = "outside"
    """"outside" (those that no trainer may run on, where there are any), "all", or a list such as "0-3,8"."""
    sources: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Iterator[tuple[str, object, str]]:
        """Every value with its name and its source: those of the run, then those of each tier."""
        for setting in dataclasses.fields(self):
            if setting.name not in ("tiers", "sources"):
                yield setting.name, getattr(self, setting.name), self.sources.get(setting.name, "")
        for rule in self.tiers:
            for of_tier in dataclasses.fields(rule):
                name = f"tiers.{rule.name}.{of_tier.name}"
                if of_tier.name != "index":
                    value = getattr(rule, of_tier.name)
                    yield name, getattr(value, "value", value), self.sources.get(name, "")

    @property
    def home_tier(self) -> TierRule:
        """The tier on which attempts are claimed."""
        return durable_order(self.tiers)[0]

    @property
    def home(self) -> str:
        """Its URL."""
        return self.home_tier.url

    @property
    def beyond_memory(self) -> tuple[TierRule, ...]:
        """The tiers that images are flushed to, in the order configured."""
        return tuple(t for t in self.tiers if not t.is_memory)

    @property
    def memory(self) -> TierRule | None:
        return next((t for t in self.tiers if t.is_memory), None)

    @property
    def slots_per_rank(self) -> int:
        """keep_last of memory + 2: one being filled, one being flushed."""
        return (self.memory.keep_last or 0 if self.memory else 0) + 2

    @property
    def arena(self) -> Path:
        return arena_directory(self.arena_dir, self.run, self.home)

    @property
    def saves_to_fail(self) -> int:
        """After how many failed saves in a row training is to end; 0: never."""
        words = {"warn": 0, "raise": 1}
        return words[self.on_save_error] if self.on_save_error in words else int(self.on_save_error)


def arena_directory(arena_dir: str, run: str, home: str) -> Path:
    """Where the node keeps a run's slots: one directory per user, run and home."""
    digest = hashlib.sha256(home.encode()).hexdigest()[:12]
    return Path(absolute(arena_dir)) / f"holdfast-{os.getuid()}" / f"{_RUN_NAME.sub('_', run)[:40]}-{digest}"


def absolute(arena_dir: str) -> str:
    """Trainers and agent must mean the same directory: the agent works in `/`, and a job may change its own."""
    return os.path.abspath(os.path.expanduser(arena_dir))
