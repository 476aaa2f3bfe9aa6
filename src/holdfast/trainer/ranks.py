"""The ranks of a job as Holdfast needs them: outcomes agreed by all, on a group of our own with a deadline.

Nothing here is called while training runs. A collective that one rank never reaches would hang, so every step that
may fail exchanges its outcome first: an error on one rank is raised on all.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist

from holdfast.errors import DeadlineError, HoldfastError, LoadError, UsageError

T = TypeVar("T")


class Ranks:
    """Rank and world size, and short-lived groups for agreements.

    Args:
        group: the process group whose ranks save together; None is the default group, or one process without
            torch.distributed.
    """

    def __init__(self, group: dist.ProcessGroup | None, timeout_s: float) -> None:
        self._timeout = datetime.timedelta(seconds=timeout_s)
        if not dist.is_available() or not dist.is_initialized():
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise UsageError(
                    "WORLD_SIZE is above 1 but torch.distributed is not initialised",
                    hint="call torch.distributed.init_process_group() before holdfast.Checkpointer(...)",
                )
            self.rank, self.size, self._members, self._is_part = 0, 1, None, False
            return
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._members = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
        self._is_part = self.size < dist.get_world_size()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        if local < self.size:
            raise UsageError(
                f"{self.size} ranks on several nodes ({local} here)", hint="several nodes are not supported yet"
            )

    @contextlib.contextmanager
    def talk(self) -> Iterator[Talk]:
        """A fresh group for one agreement, gone afterwards. Collective."""
        if self.size == 1:
            yield Talk(None, 0, 1)
            return
        try:
            # Among its members only: groups that save side by side must not meet under one key of the store.
            group = dist.new_group(
                self._members, timeout=self._timeout, backend="gloo", use_local_synchronization=self._is_part
            )
        except RuntimeError as e:
            raise _peer_error(e) from e
        try:
            yield Talk(group, self.rank, self.size)
        finally:
            with contextlib.suppress(RuntimeError, ValueError):
                dist.destroy_process_group(group)


class Talk:
    """Agreements on one group. Raises LoadError when a rank dies or the deadline passes."""

    def __init__(self, group: dist.ProcessGroup | None, rank: int, size: int) -> None:
        self._group = group
        self.rank = rank
        self.size = size

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        if self._group is None:
            return [value]
        out: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(out, value, group=self._group)
        except RuntimeError as e:
            raise _peer_error(e) from e
        return out

    def each(self, work: Callable[[], T]) -> list[T]:
        """Run `work` on every rank and return all results; an error on any rank is raised on all."""
        outcome: tuple[T | None, HoldfastError | None]
        own: Exception | None = None
        try:
            outcome = (work(), None)
        except HoldfastError as e:
            own, outcome = e, (None, e)
        except Exception as e:
            own, outcome = e, (None, HoldfastError(f"{type(e).__name__}: {e}"))
        outcomes = self.gather(outcome)
        if own is not None:
            raise own
        for rank, (_, error) in enumerate(outcomes):
            if error is not None:
                error.message = f"rank {rank}: {error.message}"
                raise error
        return [value for value, _ in outcomes]  # type: ignore[misc]

    def first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 and return its result everywhere; its error is raised everywhere."""
        return self.each(lambda: work() if self.rank == 0 else None)[0]  # type: ignore[return-value]


def _peer_error(e: RuntimeError) -> HoldfastError:
    text = str(e).splitlines()[0] if str(e) else type(e).__name__
    if "timeout" in text.lower() or "timed out" in text.lower():
        return DeadlineError(f"a rank did not answer in time: {text}", hint="look for a stalled rank; restart the job")
    return LoadError(f"a rank is gone: {text}", hint="look for the rank that failed first; restart the job")
