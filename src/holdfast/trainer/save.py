"""The handle of one save: what it cost, what became of it."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from holdfast.errors import (
    ClosedError,
    DeadlineError,
    HoldfastError,
    NotDueError,
    SkippedError,
    StepDroppedError,
    StepLostError,
    TierError,
    from_dict,
)
from holdfast.policy.schedule import durable_order
from holdfast.wire.messages import SaveStatus, TierState

if TYPE_CHECKING:
    from holdfast.trainer.session import Session


class Save:
    """One save under way. Errors stand here, in metrics and in status; nothing is raised in the training loop.

    Attributes:
        step, attempt: what was saved.
        stall_s: seconds the training loop waited in `save`.
        due: names of the tiers that are due at this step.
    Threads: any.
    """

    def __init__(
        self,
        session: Session,
        *,
        attempt: int,
        step: int,
        due: frozenset[str],
        stall_s: float,
        dropped: HoldfastError | None = None,
    ) -> None:
        self._session = session
        self._final: SaveStatus | None = None
        self.attempt = attempt
        self.step = step
        self.due = due
        self.stall_s = stall_s
        if dropped is not None:
            self._final = SaveStatus("dropped", {}, dropped.to_dict())

    def __repr__(self) -> str:
        return f"<Save step {self.step} of attempt {self.attempt}, due on {', '.join(sorted(self.due)) or 'nothing'}>"

    def done(self) -> bool:
        """Whether nothing is under way any more: committed, skipped, failed or dropped on every due tier."""
        return self._status(wait_s=0).settled

    @property
    def error(self) -> HoldfastError | None:
        """The first error of this step on any due tier so far, or None."""
        status = self._status(wait_s=0)
        return next((e for e in (self._outcome(status, t) for t in ("memory", *sorted(self.due))) if e), None)

    def wait(self, what: str = "durable", timeout_s: float | None = None) -> None:
        """Block until the step is "staged", whole in "memory", "durable" (committed on a shared tier, which outlives
        the node; on a disk of the node where no tier is shared) or committed on the named tier.

        Raises:
            NotDueError: `what` is not due at this step, or no tier's name, so waiting would never end.
            DeadlineError: not within `timeout_s` (None: the close time-out of the run).
            StepDroppedError, StepLostError, SkippedError, TierError, ...: it will never come true, and why.
        """
        if what == "staged" and self._final is None:
            return
        targets = self._targets(what)
        limit_s = self._session.settings.close_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        while True:
            left_s = deadline - time.monotonic()
            status = self._status(wait_s=max(0.0, min(left_s, 5.0)), targets=targets)
            errors = [self._outcome(status, t) for t in targets]
            if any(self._reached(status, t) for t in targets):
                return
            if all(errors):
                raise next(e for e in errors if e)
            if status.settled:
                raise StepLostError(
                    f"step {self.step} is settled and nothing is known of {what}: {self._words(status)}",
                    hint="the agent was replaced, or the step is long past; look with `holdfast ls URL`",
                    step=self.step,
                )
            if left_s <= 0:
                raise DeadlineError(
                    f"step {self.step} is not {what} after {limit_s:g} s; it is {self._words(status)}",
                    hint="look at `holdfast ls` and at the agent's status page for a slow or failing tier",
                    step=self.step,
                )

    def keep_answer(self) -> None:
        """Remember what became of the step, for questions after the Checkpointer is closed."""
        with contextlib.suppress(HoldfastError):
            self._status(wait_s=0)

    def _targets(self, what: str) -> list[str]:
        if what == "staged":
            return ["staged"]
        rules = self._session.settings.tiers
        names = [r.name for r in rules]
        if what == "durable":
            targets = [r.name for r in durable_order(rules) if r.name in self.due]
        elif what in ("memory", *names):
            targets = [what] if what in self.due else []
        else:
            known = dict.fromkeys(("staged", "memory", "durable", *names))
            raise NotDueError(f"no tier is called {what!r}", hint=f"there are {', '.join(known)}", step=self.step)
        if not targets:
            raise NotDueError(
                f"{what!r} is not due at step {self.step} (due: {', '.join(sorted(self.due)) or 'none'})",
                hint="wait for a due tier, or save with force=True",
                step=self.step,
            )
        return targets

    def _status(self, wait_s: float, targets: list[str] | None = None) -> SaveStatus:
        if self._final is not None:
            return self._final
        if self._session.closed:
            raise ClosedError(
                f"the Checkpointer was closed before step {self.step} was settled",
                hint="look with `holdfast ls URL`",
                step=self.step,
            )
        path = f"/save/{self.attempt}/{self.step}"
        query = {"wait_s": wait_s, "for": ",".join(targets or [])} if wait_s else {}
        status = self._session.ask(
            path, SaveStatus, timeout_s=wait_s + self._session.settings.call_timeout_s, query=query
        )
        if status.settled:
            self._final = status
        return status

    def _reached(self, status: SaveStatus, target: str) -> bool:
        if target == "staged":
            return status.memory not in ("dropped", "lost", "failed")
        if target == "memory":
            return status.memory in ("whole", "gone")
        return target in status.tiers and status.tiers[target].state == "committed"

    def _outcome(self, status: SaveStatus, target: str) -> HoldfastError | None:
        """Why `target` can no longer be reached, or None."""
        if status.memory in ("dropped", "lost", "failed") and not self._reached(status, target):
            if status.error is not None:
                return from_dict(status.error)
            kind = {"dropped": StepDroppedError, "lost": StepLostError}.get(status.memory, HoldfastError)
            return kind(f"step {self.step} was {status.memory}", step=self.step)
        state = status.tiers.get(target, TierState("waiting"))
        if state.state == "skipped":
            return SkippedError(f"{target} was lagging and skipped this step", tier=target, step=self.step)
        if state.state == "failed":
            return from_dict(state.error) if state.error else TierError("failed", tier=target, step=self.step)
        return None

    def _words(self, status: SaveStatus) -> str:
        return ", ".join([f"memory {status.memory}", *(f"{n} {t.state}" for n, t in sorted(status.tiers.items()))])
