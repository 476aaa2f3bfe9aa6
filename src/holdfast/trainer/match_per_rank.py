"""Matches what each rank saves as its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch.nn import Module
from torch.optim import Optimizer

from holdfast.trainer.differences import RESIZED
from holdfast.trainer.per_rank import PerRank
from holdfast.trainer.placing import Build, adopt, give, set_mark

if TYPE_CHECKING:
    from holdfast.trainer.match import Matcher


def match_per_rank(matcher: Matcher, path: str, mark: PerRank) -> Build:
    """Match what was saved of this rank; with another number of ranks the mark says what is done."""
    if not matcher.saved.is_own(path):
        build = matcher.item(path, mark.value, matcher.shared)
    elif matcher.saved.world_size == matcher.world_size:
        build = matcher.item(path, mark.value, matcher.scope_of(matcher.rank))
    else:
        build = _resized(matcher, path, mark)
    return partial(set_mark, mark, build)


def _resized(matcher: Matcher, path: str, mark: PerRank) -> Build:
    before, now = matcher.saved.world_size, matcher.world_size
    matcher.seen(path)
    policy = mark.on_resize
    if policy == "error" or (isinstance(mark.value, (Module, Optimizer)) and policy != "drop"):
        matcher.differences.note("other", path, f"per_rank of {now} ranks {RESIZED}", f"of {before} ranks")
    if not callable(policy) or isinstance(mark.value, (Module, Optimizer)):
        return lambda: mark.value
    scopes = [matcher.scope_of(rank) for rank in range(before)]
    parts = [matcher.new(scope.tree.get(path), scope) for scope in scopes]
    return lambda: adopt(path, mark.value, give(path, policy, [b() for b in parts], matcher.rank, now))
