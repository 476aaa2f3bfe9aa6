"""One typed configuration. `Config` is what a user gives, `Settings` is everything decided, each value with its source.

Precedence: argument, environment (`HOLDFAST_<NAME>`), file, default. Only `Config.resolve`, called by the composition
roots (Checkpointer, agent, CLI), reads the environment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from holdfast.errors import ConfigError
from holdfast.model.place import Scope, TierRule
from holdfast.tiers import SUPPORTED_URLS
from holdfast.units import parse_bytes, parse_seconds

RESERVED_TIER_NAMES = frozenset({"staged", "durable", "memory"})
_SCHEME_NAMES = {"memory": "memory", "file": "posix", "s3": "s3"}
_RUN_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier as a user names it.

    `every_steps` is modulo the step number; `keep_last=None` keeps everything; `scope` is "node" or "shared"
    (None: memory is node, everything else shared); `name` is how handles and the CLI call it (None: from the scheme).
    """

    url: str
    every_steps: int = 1
    keep_last: int | None = None
    keep_every_steps: int | None = None
    scope: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """What a user sets; None means "not said here" and lets environment and default decide.

    Sizes accept "16 GiB", durations "15 min". See docs/reference.md for each setting.
    """

    tiers: tuple[TierConfig, ...]
    run: str | None = None
    arena_dir: str | None = None
    arena_budget_bytes: int | str | None = None
    slot_wait_s: float | str | None = None
    prepare_timeout_s: float | str | None = None
    stop_wait_s: float | str | None = None
    agent_start_timeout_s: float | str | None = None
    load_timeout_s: float | str | None = None
    close_timeout_s: float | str | None = None
    busy_wait_s: float | str | None = None
    idle_s: float | str | None = None
    grace_s: float | str | None = None
    agent_nice: int | None = None

    @classmethod
    def from_url(cls, url: str, *, every_steps: int = 1, keep_last: int | None = None) -> Config:
        """What a bare URL means: memory (newest two) and that URL, `every_steps` for both."""
        if url.startswith("memory:"):
            raise ConfigError("memory alone survives no node loss", hint="name a directory: file:///data/run7")
        memory = TierConfig("memory:", every_steps=every_steps, keep_last=2)
        return cls(tiers=(memory, TierConfig(url, every_steps=every_steps, keep_last=keep_last)))

    def resolve(self, environ: Mapping[str, str] = os.environ) -> Settings:
        """Decide every value and check all of them.

        Raises: ConfigError naming the setting, where it came from and what it may be.
        """
        rules = _rules(self.tiers)
        home = next(r.url for r in rules if not r.is_memory)
        run = self.run or environ.get("HOLDFAST_RUN") or unquote(home.rstrip("/").rpartition("/")[2])
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for setting in dataclasses.fields(Settings):
            if setting.name in ("run", "tiers", "sources"):
                continue
            values[setting.name], sources[setting.name] = _decide(setting, getattr(self, setting.name), environ)
        return Settings(run=run, tiers=rules, sources=sources, **values)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything decided. `sources` says for each value whether argument, environment or default set it."""

    run: str
    tiers: tuple[TierRule, ...]
    arena_dir: str = "/dev/shm"
    arena_budget_bytes: int = 0
    """0: whatever the arena's file system has free."""
    prepare_timeout_s: float = 300.0
    slot_wait_s: float = 2.0
    """How long a save waits for a slot before a slow tier counts as lagging; after twice that the step is dropped."""
    stop_wait_s: float = 10.0
    agent_start_timeout_s: float = 60.0
    load_timeout_s: float = 1800.0
    close_timeout_s: float = 1800.0
    busy_wait_s: float = 30.0
    """How long a new launch waits for processes of the launch before to disappear."""
    idle_s: float = 900.0
    grace_s: float = 25.0
    agent_nice: int = 10
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> str:
        """The URL of the tier on which attempts are claimed: the first that is not memory."""
        return next(t.url for t in self.tiers if not t.is_memory)

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


def arena_directory(arena_dir: str, run: str, home: str) -> Path:
    """Where the node keeps a run's slots: one directory per user, run and home."""
    digest = hashlib.sha256(home.encode()).hexdigest()[:12]
    return Path(_absolute(arena_dir)) / f"holdfast-{os.getuid()}" / f"{_RUN_NAME.sub('_', run)[:40]}-{digest}"


def _absolute(arena_dir: str) -> str:
    """Trainers and agent must mean the same directory: the agent works in `/`, and a job may change its own."""
    return os.path.abspath(os.path.expanduser(arena_dir))


def normalise_url(url: str) -> str:
    """A URL with its scheme: a bare path becomes an absolute `file://` URL.

    Raises: ConfigError for an empty URL, an unknown scheme, and a file: URL that does not say an absolute path.
    """
    if not url:
        raise ConfigError("the URL is empty", hint="name a directory: file:///data/run7, or a plain path")
    scheme = urlsplit(url).scheme if "://" in url or url.startswith("memory:") else ""
    if scheme == "memory":
        return "memory:"
    if scheme and scheme not in _SCHEME_NAMES:
        raise ConfigError(f"{url!r} has no known scheme", hint=SUPPORTED_URLS)
    if url[:5].lower() == "file:":
        return "file://" + quote(os.path.abspath(_path_in(url)))
    return url.rstrip("/") if scheme else "file://" + quote(os.path.abspath(url))


def _path_in(url: str) -> str:
    """The path a file: URL says. One with fewer than three slashes would quietly become another path."""
    hint = "write three slashes: file:///data/run7"
    if not url[5:].startswith("//"):
        raise ConfigError(f"{url!r} is not a file URL", hint=hint)
    host = urlsplit(url).netloc
    if host not in ("", "localhost"):
        raise ConfigError(f"{url!r} names a host, not a path", hint=hint)
    path = unquote(url[len("file://") + len(host) :])
    if not path:
        raise ConfigError(f"{url!r} names no directory", hint=hint)
    return path


def _rules(tiers: tuple[TierConfig, ...]) -> tuple[TierRule, ...]:
    rules: list[TierRule] = []
    for index, tier in enumerate(tiers):
        url = normalise_url(tier.url)
        base = tier.name or _SCHEME_NAMES[urlsplit(url).scheme]
        taken = {r.name for r in rules}
        name = next(n for n in (base, *(f"{base}-{i}" for i in range(2, 99))) if n not in taken)
        if (tier.name in RESERVED_TIER_NAMES and not url.startswith("memory:")) or (tier.name and name != tier.name):
            raise ConfigError(f"the tier name {tier.name!r} is taken", hint="give each tier a name of its own")
        scope = tier.scope or ("node" if url == "memory:" else "shared")
        if scope not in ("node", "shared"):
            raise ConfigError(f"scope {scope!r} of tier {name}", hint='scope is "node" or "shared"')
        rules.append(TierRule(index, name, url, Scope(scope), tier.every_steps, tier.keep_last, tier.keep_every_steps))
        _check_cadence(rules[-1])
    if not any(not r.is_memory for r in rules):
        raise ConfigError("no tier outlives the node", hint="add a tier such as file:///data/run7")
    if sum(r.is_memory for r in rules) > 1:
        raise ConfigError("two memory tiers", hint="one memory: tier is all a node has")
    return tuple(rules)


def _check_cadence(rule: TierRule) -> None:
    for what, value in (
        ("every_steps", rule.every_steps),
        ("keep_last", rule.keep_last),
        ("keep_every_steps", rule.keep_every_steps),
    ):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{what}={value!r} of tier {rule.name}", hint=f"{what} is a whole number from 1 up")


def _decide(setting: dataclasses.Field[Any], given: Any, environ: Mapping[str, str]) -> tuple[Any, str]:
    variable = f"HOLDFAST_{setting.name.upper()}"
    if given is not None:
        value, source = given, "argument"
    elif environ.get(variable):
        value, source = environ[variable], f"environment {variable}"
    else:
        return setting.default, "default"
    try:
        return _convert(setting.name, value), source
    except ConfigError as e:
        raise ConfigError(f"{setting.name}={value!r} from {source}: {e.message}", hint=e.hint) from e


def _convert(name: str, value: Any) -> Any:
    if name.endswith("_bytes"):
        return parse_bytes(value)
    if name.endswith("_s"):
        return parse_seconds(value)
    if name == "arena_dir":
        return _absolute(str(value))
    return _whole_number(value) if name == "agent_nice" else str(value)


def _whole_number(value: Any) -> int:
    try:
        return int(value)
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{value!r} is not a whole number", hint="write for example 10") from e
