"""`holdfast.Checkpointer`: the one object a training loop holds."""

from __future__ import annotations

import time
import warnings
import weakref
from types import TracebackType
from typing import Any

import torch.distributed as dist

from holdfast.config import Config, Settings
from holdfast.errors import (
    ClosedError,
    DeadlineError,
    HoldfastError,
    StepDroppedError,
    StepExistsError,
    SupersededError,
    UsageError,
    from_dict,
)
from holdfast.model.identity import CheckpointId
from holdfast.policy.schedule import due_tiers
from holdfast.trainer.launch import check_one_node, check_tiers, this_node
from holdfast.trainer.load import Loaded, Loader
from holdfast.trainer.plan import StagePlan
from holdfast.trainer.ranks import Ranks, Talk
from holdfast.trainer.save import Save
from holdfast.trainer.session import Session
from holdfast.trainer.stopping import Stopping
from holdfast.wire import messages
from holdfast.wire.pages import LetGo

_CLOSE_POLL_S = 5.0


class Checkpointer:
    """Saves and loads the state of a training run.

    Args:
        url_or_config: where the run lives (`"file:///data/run7"`; memory, newest two, comes in front), or a `Config`.
        every_steps: with a URL: save when `step % every_steps == 0`.
        keep_last: with a URL: how many checkpoints to keep there; None keeps all.
        group: the ranks that save together; None is the default process group, or this process alone.

    Attributes:
        last_load: what the last `load` found and from which tiers its bytes came; None when there was nothing.

    Raises:
        ConfigError, RunBusyError, AgentError, DeadlineError: on all ranks.

    Invariants: within one attempt steps only go up; only the first save after a start or a load is collective.
    Threads: one training thread; `Save` handles may be used from any.
    """

    def __init__(
        self,
        url_or_config: str | Config,
        *,
        every_steps: int = 1,
        keep_last: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        config = url_or_config
        if isinstance(config, str):
            config = Config.from_url(config, every_steps=every_steps, keep_last=keep_last)
        elif every_steps != 1 or keep_last is not None:
            raise UsageError("every_steps and keep_last belong to each tier of a Config", hint="set them on TierConfig")
        settings = config.resolve()
        self._ranks = Ranks(group, settings.load_timeout_s)
        with self._ranks.talk() as talk:
            check_one_node(talk.gather(this_node(settings)))
            launch, doubts = talk.first(lambda: check_tiers(settings))
            self._session = _attach_all(talk, settings, launch)
        for doubt in doubts if self._ranks.rank == 0 else ():
            warnings.warn(doubt, RuntimeWarning, stacklevel=2)
        self._stopping = Stopping(self._session)
        self._plan = StagePlan(settings.run, self._ranks)
        self.last_load: Loaded | None = None
        self._parent: CheckpointId | None = None
        self._attempt = 0
        self._last_step = -1
        self._errors_seen = 0
        self._closed = False
        self._handles: weakref.WeakSet[Save] = weakref.WeakSet()

    # -- public -------------------------------------------------------------------------------------------------------
    def prepare(self, state: dict[str, Any]) -> None:
        """Learn the layout of `state`, size the arena and have it faulted in the background. `load` calls it.

        Collective. Steps no optimizer and changes nothing of the state.

        Raises: CapacityError before training when the state cannot fit, with the sum and what to set;
            UnsupportedValueError; ReplicaMismatchError.
        """
        self._check_open()
        with self._ranks.talk() as talk:
            self._plan.learn(state, talk)
            talk.each(lambda: self._session.prepare(self._plan.image_bytes))

    def prepared(self) -> bool:
        """Whether the arena is faulted from this side, so that the first save is as quick as any other."""
        return self._session.faulted()

    def load(self, state: dict[str, Any], *, step: int | None = None, strict: bool = True) -> int | None:
        """Load the newest loadable step (or `step` of the lineage) into `state`, in place, on all ranks.

        Collective. Claims nothing and writes nothing on any tier.

        Returns: the step, or None when the home holds no attempt, manifest or image.
        Raises: LoadError when something is there and nothing (or not that step) loads; StructureError when state and
            checkpoint differ, before anything is copied; DeadlineError.
        """
        self._check_open()
        loader = Loader(self._session, self._ranks)
        self.last_load = loader.load(state, step=step, strict=strict)
        loaded = self.last_load.checkpoint if self.last_load is not None else None
        if loaded is not None or step is None:
            self._parent, self._attempt, self._last_step = loaded, 0, -1
            self._session.page.attempt, self._session.page.current_step = 0, -1
        self.prepare(state)
        return None if loaded is None else loaded.step

    def save(
        self,
        step: int,
        state: dict[str, Any],
        *,
        force: bool = False,
        metrics: dict[str, float] | None = None,
        overlap: bool = False,
    ) -> Save | None:
        """Save `state` as `step` if a tier is due: one copy into shared memory, the agent does the rest.

        Args:
            force: save on every tier though none is due.
            metrics, overlap: accepted for the retention and the overlapped copy to come; without effect yet.

        Returns: a handle, or None when no tier is due.
        Raises: StepExistsError; ClosedError; UnsupportedValueError with the value's path; CapacityError;
            SupersededError when a later attempt owns the run.
        """
        self._check_open()
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise UsageError(f"step {step!r} is not a whole number from 0 up", hint="pass the training step")
        began = time.perf_counter()
        self._session.ensure()
        due = due_tiers(step, self._settings.tiers, force=force)
        if due and step <= self._last_step:
            raise _order_error(step, self._last_step, self._attempt)
        self._session.page.current_step = step
        if self._stopping.observe(step):
            due = due_tiers(step, self._settings.tiers, force=True)
        self._report_background_errors()
        if not due or step <= self._last_step:
            return None
        return self._save(step, state, due, began)

    def steps(self) -> list[messages.StepInfo]:
        """Every step of the run that exists anywhere, oldest first."""
        self._check_open()
        return self._session.ask("/steps", list[messages.StepInfo], query={})

    def should_stop(self) -> bool:
        """Whether all ranks stop now: SIGTERM or SIGUSR1 reached any of them and the step just saved is the agreed one.

        Call it once per step, after `save`. The first call installs the signal handlers (and keeps those before it).
        """
        self._check_open()
        self._stopping.install()
        return self._stopping.reached

    def close(self, discard: bool = False) -> None:
        """Wait, bounded, for due flushes, promote the newest whole step to a tier that outlives the node, and free the
        memory when every rank has closed. With `discard` nothing is waited for or promoted. Idempotent.

        Raises: DeadlineError, TierError: the memory stays with the agent, which goes on trying. RankGoneError when
            another rank left without closing: what was due is flushed all the same, the memory stays for the restart.
        """
        if self._closed:
            return
        self._closed = True
        self._stopping.uninstall()
        try:
            self._await_end(discard)
        finally:
            self._let_go(LetGo.CLOSED)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._detach()

    # -- private ------------------------------------------------------------------------------------------------------
    @property
    def _settings(self) -> Settings:
        return self._session.settings

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this Checkpointer is closed", hint="make a new one")

    def _detach(self) -> None:
        """Leave without closing: the agent finishes flushes, promotes, and keeps the memory for a restart."""
        if not self._closed:
            self._closed = True
            self._stopping.uninstall()
            self._let_go(LetGo.LEFT)

    def _let_go(self, how: LetGo) -> None:
        self._plan.forget()
        self._session.detach(how)

    def _save(self, step: int, state: dict[str, Any], due: frozenset[str], began: float) -> Save:
        if self._attempt:
            self._plan.follow(state)
        else:
            self._claim(state)
        # Nothing comes after the last save that could be slowed; half of the time is left to close(), where the other
        # ranks wait for this one.
        patience_s = self._settings.close_timeout_s / 2 if self._stopping.reached else 0.0
        slot = self._session.take(step, self._plan.image_bytes, patience_s=patience_s)
        page = self._session.page
        self._last_step = step
        if slot is None:
            page.given_up_step = step
            error = _dropped(step, patience_s)
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)
            return self._handle(step, due, began, error)
        try:
            self._plan.stage(slot, attempt=self._attempt, step=step, due_mask=self._mask(due))
        except BaseException:
            # Also an interrupt: a slot left filling by a living process would be nobody's for ever.
            page.given_up_step = step
            self._session.give_back(slot)
            raise
        return self._handle(step, due, began, None)

    def _handle(self, step: int, due: frozenset[str], began: float, dropped: HoldfastError | None) -> Save:
        stall_s = time.perf_counter() - began
        page = self._session.page
        page.saves += 1
        page.stall_last_ns = round(stall_s * 1e9)
        page.stall_ns += round(stall_s * 1e9)
        handle = Save(self._session, attempt=self._attempt, step=step, due=due, stall_s=stall_s, dropped=dropped)
        self._handles.add(handle)
        return handle

    def _mask(self, due: frozenset[str]) -> int:
        return sum(1 << r.index for r in self._settings.tiers if r.name in due)

    def _claim(self, state: dict[str, Any]) -> None:
        """The first save after a start or a load: the one collective of a save."""
        body = messages.ClaimAttempt(self._parent)
        with self._ranks.talk() as talk:
            talk.each(lambda: self._plan.follow(state))
            # Compared first: an attempt that saves nothing would only stand in front of what is there.
            warning = self._plan.settle(talk)
            answer = talk.first(lambda: self._session.tell("/attempt", body, messages.AttemptAnswer))
        self._attempt = answer.attempt
        self._session.page.attempt = answer.attempt
        if warning:
            # Only now: a warning that is made an error must not leave the other ranks alone in a collective.
            warnings.warn(warning, RuntimeWarning, stacklevel=4)

    def _report_background_errors(self) -> None:
        """Warn of what went wrong behind the loop since the last save; being superseded always raises."""
        run = self._session.run_page
        if run.superseded_by > self._attempt > 0:
            raise SupersededError(
                f"attempt {run.superseded_by} owns the run now; this is attempt {self._attempt}",
                hint="another job of the same run was started; end this one",
            )
        if run.errors <= self._errors_seen:
            return
        news = self._session.glance("/errors", messages.ErrorList, query={"since": self._errors_seen})
        if news is not None:
            self._errors_seen = news.last
            for error in news.errors:
                warnings.warn(str(from_dict(error)), RuntimeWarning, stacklevel=4)

    def _await_end(self, discard: bool) -> None:
        """Ask again and again: the call is idempotent and survives the agent's death."""
        deadline = time.monotonic() + self._settings.close_timeout_s
        body = messages.Close(self._session.rank, discard, wait_s=_CLOSE_POLL_S)
        while True:
            answer = self._session.tell("/close", body, messages.ClosedAnswer)
            if answer.closed or answer.error is not None:
                for handle in list(self._handles):
                    handle.keep_answer()
                if answer.error is not None:
                    raise from_dict(answer.error)
                return
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"not everything was flushed within {self._settings.close_timeout_s:g} s: {answer.waiting_for}",
                    hint="the agent goes on flushing; look at `holdfast ls`, or raise HOLDFAST_CLOSE_TIMEOUT_S",
                )


def _attach_all(talk: Talk, settings: Settings, launch: str) -> Session:
    """Attach every rank; an error on one is raised on all, and those that attached let go."""
    made: list[Session] = []
    try:
        talk.each(lambda: made.append(Session(settings, launch=launch, rank=talk.rank, world_size=talk.size)))
    except Exception:
        for session in made:
            session.detach()
        raise
    return made[0]


def _dropped(step: int, patience_s: float) -> StepDroppedError:
    if not patience_s:
        return StepDroppedError(
            "no slot came free in time, so this step was dropped",
            hint="a tier is too slow for its every_steps: save less often there, or raise HOLDFAST_SLOT_WAIT_S",
            step=step,
        )
    return StepDroppedError(
        f"no slot came free in {patience_s:g} s for the last step before the stop: training stops without saving it",
        hint="a restart loads the step before; look at the agent's log for a tier that hangs",
        step=step,
    )


def _order_error(step: int, last: int, attempt: int) -> HoldfastError:
    if step == last:
        return StepExistsError(
            f"step {step} was already saved in attempt {attempt}",
            hint="save each step once; a load starts anew",
            step=step,
        )
    return StepExistsError(
        f"step {step} comes after step {last} in attempt {attempt}",
        hint="steps go up within an attempt; call load(step=...) to go back",
        step=step,
    )
