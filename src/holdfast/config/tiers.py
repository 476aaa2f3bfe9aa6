"""Tiers as a user names them, and the rules that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from holdfast.config.urls import SCHEME_NAMES, normalise_url, refuse_file
from holdfast.config.values import convert_of_tier, text
from holdfast.errors import ConfigError
from holdfast.model.place import Scope, TierRule
from holdfast.policy.schedule import MAX_TIERS, check_rules

RESERVED_TIER_NAMES = frozenset({"staged", "durable", "memory"})


@dataclass(frozen=True, slots=True)
class TierConfig:
    """One tier as a user names it.

    A step is due when it is a multiple of `every_steps`, or when `every_s` have passed since the last one, whichever
    comes first; with neither every step is. What none of `keep_last`, `keep_every_steps`, `keep_for_s` and `keep_best`
    keeps goes, once one of them but `keep_every_steps` is set. `scope` is "node" or "shared" (None: memory is node,
    everything else shared); `name` is how handles and the CLI call it (None: from the scheme).
    """

    url: str
    every_steps: int | None = None
    every_s: float | str | None = None
    keep_last: int | None = None
    keep_every_steps: int | None = None
    keep_for_s: float | str | None = None
    keep_best: int | None = None
    best_metric: str | None = None
    best_mode: str | None = None
    max_bytes_per_s: int | str | None = None
    scope: str | None = None
    name: str | None = None


_WORDS = ("url", "name", "scope", "best_metric", "best_mode")


def rules_of(tiers: Sequence[TierConfig], said: Mapping[str, str]) -> tuple[TierRule, ...]:
    """The rules of all tiers, checked.

    Args:
        said: where values come from, by `tiers.0.every_steps`: for errors.

    Raises: ConfigError naming the tier and the setting.
    """
    if len(tiers) > MAX_TIERS:
        raise ConfigError(f"{len(tiers)} tiers", hint=f"a run has at most {MAX_TIERS} tiers")
    rules: list[TierRule] = []
    for index, tier in enumerate(tiers):
        rules.append(_rule(index, tier, {r.name for r in rules}, said))
    if not any(not r.is_memory for r in rules):
        raise ConfigError("no tier outlives the node", hint="add a tier such as file:///data/run7")
    if sum(r.is_memory for r in rules) > 1:
        raise ConfigError("two memory tiers", hint="one memory: tier is all a node has")
    _check_places(rules)
    check_rules(rules)
    return tuple(rules)


def _check_places(rules: Sequence[TierRule]) -> None:
    """Two tiers at one place would prune each other's checkpoints."""
    urls = [r.url for r in rules]
    twice = next((r for r in rules if urls.count(r.url) > 1), None)
    if twice is not None:
        raise ConfigError(f"two tiers have the URL {twice.url}", hint="give each tier a place of its own")


def _rule(index: int, tier: TierConfig, taken: set[str], said: Mapping[str, str]) -> TierRule:
    words = {key: _value(tier, key, index, said) for key in _WORDS}
    refuse_file(words["url"])
    url = normalise_url(words["url"])
    name = _name(words["name"], url, taken)
    scope = words["scope"] or ("node" if url == "memory:" else "shared")
    if scope not in ("node", "shared"):
        raise ConfigError(f"scope {scope!r} of tier {name}", hint='scope is "node" or "shared"')
    numbers = {
        f.name: _value(tier, f.name, index, said, called=name)
        for f in dataclasses.fields(TierConfig)
        if f.name not in _WORDS
    }
    if numbers["every_steps"] is None and numbers["every_s"] is None:
        numbers["every_steps"] = 1
    return TierRule(
        index=index,
        name=name,
        url=url,
        scope=Scope(scope),
        best_metric=words["best_metric"],
        best_mode=words["best_mode"] or "min",
        **numbers,
    )


def _value(tier: TierConfig, key: str, index: int, said: Mapping[str, str], called: str = "") -> Any:
    given = getattr(tier, key)
    try:
        if key == "url" and given == "":
            return given  # normalise_url says it better
        return text(given) if key == "url" else convert_of_tier(key, given)
    except ConfigError as e:
        source = said.get(f"tiers.{index}.{key}", "argument")
        where = "" if source == "argument" else f" from {source}"
        raise ConfigError(f"{key}={given!r} of tier {called or index + 1}{where}: {e.message}", hint=e.hint) from e


def _name(given: str | None, url: str, taken: set[str]) -> str:
    base = given or SCHEME_NAMES[urlsplit(url).scheme]
    name = next(n for n in (base, *(f"{base}-{i}" for i in range(2, MAX_TIERS + 2))) if n not in taken)
    if given in RESERVED_TIER_NAMES and not url.startswith("memory:"):
        raise ConfigError(f"the tier name {given!r} has a meaning of its own", hint="give the tier another name")
    if given and name != given:
        raise ConfigError(f"the tier name {given!r} is taken", hint="give each tier a name of its own")
    return name
