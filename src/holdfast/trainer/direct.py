"""A load past the arena: each rank reads what it needs from a tier straight into its tensors.

Worth it where nothing of the step is in memory and no two ranks need the same bytes: every byte is read once all the
same, and no fresh memory is faulted on its way. Everything is proven before it is copied, as anywhere.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from holdfast.config import Settings
from holdfast.errors import DeadlineError, NotFoundError, TierError
from holdfast.model.identity import CheckpointId
from holdfast.store.catalog import read_manifest
from holdfast.store.ranged import RangedImage
from holdfast.store.verify import DAMAGE
from holdfast.tiers import open_tier
from holdfast.tiers.contract import Tier
from holdfast.tiers.wrappers import Retry, RetryPolicy
from holdfast.trainer.apply import LoadPlan, plan_load, ranks_needed
from holdfast.trainer.differences import Differences
from holdfast.trainer.opened import Opened
from holdfast.trainer.ranks import Talk
from holdfast.trainer.saved import Source

T = TypeVar("T")
MOST_READ = 1.05
"""What all ranks together may read for each byte of the images; above that they are better read once for the node."""
_BAD = (*DAMAGE, TierError)
_LAST_COPY_S = 1.0
"""Within this a thread that is not in a read has copied what it was copying: 16 MiB at most."""


@dataclass(frozen=True, slots=True)
class _Opened:
    """The images of a checkpoint that a rank needs, as a plan and as a read see them; and how much all of them are."""

    images: list[RangedImage]
    sources: list[Source]
    size_bytes: int


class _Count:
    """Bytes read; told of after each read and before anything of it is copied. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given_up = False
        self.n_bytes = 0

    def give_up(self) -> None:
        """A read that answers from now on is an error: the tensors may be another load's by then."""
        self._given_up = True

    def __call__(self, n_bytes: int) -> None:
        if self._given_up:
            raise DeadlineError("this load was given up before", hint="load again, or restart the job")
        with self._lock:
            self.n_bytes += n_bytes


@dataclass
class DirectLoad:
    """One load of one checkpoint from one tier, on all ranks.

    Attributes:
        touched: something may have been copied.
        notes: why it was not loaded so.
        read_bytes: what all ranks read; `differences`: what `strict=False` passed over.
    """

    settings: Settings
    talk: Talk
    tier: str
    touched: bool = False
    notes: list[str] = field(default_factory=list)
    read_bytes: int = 0
    differences: Differences = field(default_factory=Differences)
    _count: _Count = field(default_factory=_Count)

    def run(self, checkpoint: CheckpointId, state: dict[str, Any], *, strict: bool) -> bool:
        """Load the checkpoint. False: it is better loaded in another way, or cannot be had so; `notes` say why.

        Raises: StructureError, UnsupportedValueError before anything is copied; LoadError; DeadlineError.
        """
        with contextlib.ExitStack() as stack:
            opened = self._each(lambda: self._open(stack, checkpoint, state))
            if opened is None:
                return False
            plan = self._each(lambda: self._plan(opened, state, strict=strict))
            if plan is None or not self._is_worth_it(plan, opened):
                return False
            self.touched = True
            if self._each(lambda: self._fill(plan, opened)) is None:
                return False
            self.talk.each(plan.finish)
            self.read_bytes, self.differences = sum(self.talk.gather(self._count.n_bytes)), plan.differences
            return True

    def _each(self, work: Callable[[], T]) -> T | None:
        """This rank's result; None when the tier failed any rank, which is noted."""
        mine: list[T] = []

        def attempt() -> str | None:
            try:
                mine.append(work())
            except _BAD as e:
                return e.message
            return None

        problems = [p for p in self.talk.each(attempt) if p is not None]
        self.notes += [f"directly from {self.tier}: {problem}" for problem in problems]
        return None if problems else mine[0]

    def _open(self, stack: contextlib.ExitStack, checkpoint: CheckpointId, state: dict[str, Any]) -> _Opened:
        tier = self._in_time(lambda: _open_tier(self.settings, self.tier))
        stack.callback(tier.close)
        needed = partial(ranks_needed, state, rank=self.talk.rank, world_size=self.talk.size)
        return self._in_time(lambda: _open_images(tier, checkpoint, needed, self._count))

    def _plan(self, opened: _Opened, state: dict[str, Any], *, strict: bool) -> LoadPlan:
        return plan_load(state, opened.sources, rank=self.talk.rank, world_size=self.talk.size, strict=strict)

    def _fill(self, plan: LoadPlan, opened: _Opened) -> bool:
        self._in_time(lambda: plan.filling.fill_from(opened.images))
        return True

    def _is_worth_it(self, plan: LoadPlan, opened: _Opened) -> bool:
        """Whether the ranks together read hardly more than each byte once."""
        return sum(self.talk.gather(plan.filling.span_bytes)) <= MOST_READ * opened.size_bytes

    def _in_time(self, call: Callable[[], T]) -> T:
        limit_s = self.settings.load_timeout_s
        return in_time(call, limit_s, f"reading from tier {self.tier!r}", give_up=self._count.give_up)


def _open_tier(settings: Settings, name: str) -> Tier:
    """A tier of the run, opened for reading by this process. Raises: NotFoundError, TierError."""
    rule = next((r for r in settings.beyond_memory if r.name == name), None)
    if rule is None:
        raise NotFoundError(f"no tier {name!r} is configured here", tier=name)
    tier = open_tier(rule.url, name=name, scope=rule.scope, owner=f"0.load{os.getpid()}", create=False)
    return Retry(tier, RetryPolicy(deadline_s=settings.retry_s))


def _open_images(
    tier: Tier, checkpoint: CheckpointId, needed: Callable[[int], set[int]], count: Callable[[int], None]
) -> _Opened:
    """Raises: CorruptError, NotFoundError, TierError."""
    manifest = read_manifest(tier, checkpoint)
    opened = Opened([tier], manifest, count)
    ranks = needed(manifest.world_size)
    images = opened.images_for(lambda tensor: True, ranks)
    return _Opened(images, opened.sources(images, ranks), sum(r.size_bytes for r in manifest.images))


def in_time(call: Callable[[], T], limit_s: float, what: str, *, give_up: Callable[[], None]) -> T:
    """`call()` in a thread of its own, for so long: a file system that hangs lets nobody go.

    Raises: DeadlineError, and the thread is left to itself, after `give_up()`; what `call` raises.
    """
    found: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            found.append(call())
        except Exception as e:
            errors.append(e)

    thread = threading.Thread(target=work, name="holdfast-load", daemon=True)
    thread.start()
    try:
        thread.join(limit_s)
    finally:  # also by Ctrl-C
        late = thread.is_alive()
        if late:
            give_up()
            thread.join(_LAST_COPY_S)
    if errors and not late:
        raise errors[0]
    if not found:
        raise DeadlineError(f"{what} took longer than {limit_s:g} s", hint="look at the tier, then restart the job")
    return found[0]
