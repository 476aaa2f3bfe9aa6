"""Which tiers are due at a step, and which comes first when one must be chosen. Pure functions of step and rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from holdfast.errors import ConfigError
from holdfast.model.place import Scope, TierRule

MAX_TIERS = 64
"""A due mask is one 64-bit word of a slot page."""


def due_tiers(step: int, rules: Sequence[TierRule], *, force: bool = False, first: bool = False) -> frozenset[str]:
    """Names of the tiers that get this step by its number: a multiple of `every_steps`; with `force` all of them.

    Args:
        first: nothing was saved yet since the start, or since a load: tiers that are due by time begin now.
    """
    return frozenset(r.name for r in rules if force or (first and r.every_s is not None) or _falls_on(step, r))


def _falls_on(step: int, rule: TierRule) -> bool:
    return rule.every_steps is not None and step % rule.every_steps == 0


def overdue_tiers(rules: Sequence[TierRule], since_s: Mapping[str, float], now_s: float) -> frozenset[str]:
    """Names of the tiers whose `every_s` have passed since they got their last step; `since_s` are those moments."""
    timed = (r for r in rules if r.every_s is not None and r.name in since_s)
    return frozenset(r.name for r in timed if now_s - since_s[r.name] >= (r.every_s or 0.0))


def check_rules(rules: Sequence[TierRule]) -> None:
    """Refuse rules that cannot mean anything.

    Raises: ConfigError naming the tier and the setting.
    """
    if len(rules) > MAX_TIERS:
        raise ConfigError(f"{len(rules)} tiers", hint=f"a run has at most {MAX_TIERS} tiers")
    for rule in rules:
        for what in ("every_steps", "keep_last", "keep_every_steps", "keep_best", "max_bytes_per_s"):
            _check_count(rule, what)
        for what in ("every_s", "keep_for_s"):
            _check_time(rule, what)
        _check_sense(rule)
    for what in ("name", "index"):
        values = [getattr(r, what) for r in rules]
        twice = next((v for v in values if values.count(v) > 1), None)
        if twice is not None:
            raise ConfigError(f"two tiers have the {what} {twice!r}", hint="give each tier a name of its own")
    if not all(0 <= r.index < MAX_TIERS for r in rules):
        raise ConfigError("a tier's index is no bit of a due mask", hint=f"indexes go from 0 to {MAX_TIERS - 1}")


def _check_count(rule: TierRule, what: str) -> None:
    value = getattr(rule, what)
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{what}={value!r} of tier {rule.name}", hint=f"{what} is a whole number from 1 up")


def _check_time(rule: TierRule, what: str) -> None:
    value = getattr(rule, what)
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{what}={value!r} of tier {rule.name}", hint=f"{what} is a time above 0")


def _check_sense(rule: TierRule) -> None:
    """Settings that contradict each other, or mean nothing on this tier."""
    if rule.every_steps is None and rule.every_s is None:
        raise ConfigError(f"tier {rule.name} is never due", hint="set every_steps or every_s")
    if (rule.keep_best is None) != (rule.best_metric is None):
        raise ConfigError(
            f"tier {rule.name} has only one of keep_best and best_metric",
            hint='set both: keep_best = 3, best_metric = "val_loss"',
        )
    if rule.best_mode not in ("min", "max"):
        raise ConfigError(f"best_mode={rule.best_mode!r} of tier {rule.name}", hint='best_mode is "min" or "max"')
    elsewhere = ("keep_every_steps", "keep_for_s", "keep_best", "max_bytes_per_s")
    if rule.is_memory and any(getattr(rule, what) is not None for what in elsewhere):
        raise ConfigError(
            "memory keeps by keep_last alone: its slots are counted beforehand, and nothing is flushed there",
            hint=f"set {', '.join(elsewhere)} on tiers that outlive memory",
        )


def due_mask(names: Iterable[str], rules: Sequence[TierRule]) -> int:
    """The due tiers as the word of a slot page: bit `TierRule.index` of each."""
    wanted = set(names)
    return sum(1 << r.index for r in rules if r.name in wanted)


def names_of_mask(mask: int, rules: Sequence[TierRule]) -> frozenset[str]:
    """The tiers a due mask names; bits of tiers that are no longer configured mean nothing."""
    return frozenset(r.name for r in rules if mask >> r.index & 1)


def durable_order(rules: Sequence[TierRule]) -> tuple[TierRule, ...]:
    """Tiers that outlive the process's memory, best place for a last save first: shared ones in the order configured
    (nearest first), or, where there is none, those of the node."""
    outliving = [r for r in rules if not r.is_memory]
    return tuple([r for r in outliving if r.scope is Scope.SHARED] or outliving)
