"""Which tiers are due at a step, and which comes first when one must be chosen. Pure functions of step and rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.errors import ConfigError
from holdfast.model.place import Scope, TierRule

MAX_TIERS = 64
"""A due mask is one 64-bit word of a slot page."""


def due_tiers(step: int, rules: Sequence[TierRule], *, force: bool = False) -> frozenset[str]:
    """Names of the tiers that get this step: `step` is a multiple of `every_steps`; with `force` all of them."""
    return frozenset(r.name for r in rules if force or step % r.every_steps == 0)


def check_rules(rules: Sequence[TierRule]) -> None:
    """Refuse rules that cannot mean anything.

    Raises: ConfigError naming the tier and the setting.
    """
    if len(rules) > MAX_TIERS:
        raise ConfigError(f"{len(rules)} tiers", hint=f"a run has at most {MAX_TIERS} tiers")
    for rule in rules:
        for what in ("every_steps", "keep_last", "keep_every_steps"):
            _check_count(rule, what)
    for what in ("name", "index"):
        values = [getattr(r, what) for r in rules]
        twice = next((v for v in values if values.count(v) > 1), None)
        if twice is not None:
            raise ConfigError(f"two tiers have the {what} {twice!r}", hint="give each tier a name of its own")
    if not all(0 <= r.index < MAX_TIERS for r in rules):
        raise ConfigError("a tier's index is no bit of a due mask", hint=f"indexes go from 0 to {MAX_TIERS - 1}")


def _check_count(rule: TierRule, what: str) -> None:
    value = getattr(rule, what)
    if value is None and what != "every_steps":
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{what}={value!r} of tier {rule.name}", hint=f"{what} is a whole number from 1 up")


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


def fastest_shared_tier(rules: Sequence[TierRule]) -> TierRule | None:
    """The tier a step is promoted to when the run ends; None when no tier outlives the memory."""
    return next(iter(durable_order(rules)), None)
