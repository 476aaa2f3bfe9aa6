"""`holdfast.Checkpointer`: the one object a training loop holds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch.distributed as dist

from holdfast.config import Config, Settings
from holdfast.errors import ClosedError, UsageError
from holdfast.policy.schedule import due_tiers, names_of_mask
from holdfast.trainer.differences import warn_of
from holdfast.trainer.ending import end
from holdfast.trainer.launch import attach_all, check_one_node, check_tiers, this_node
from holdfast.trainer.load import Loaded, Loader
from holdfast.trainer.noted import Wished, note
from holdfast.trainer.plan import StagePlan
from holdfast.trainer.ranks import Ranks
from holdfast.trainer.save import Save
from holdfast.trainer.saves import Saves, Wanted
from holdfast.trainer.steps import whole_step
from holdfast.trainer.stopping import Stopping
from holdfast.trainer.timed import TimedSaves
from holdfast.wire import messages
from holdfast.wire.pages import LetGo


class Checkpointer:
    """Saves and loads the state of a training run.

    Args:
        url_or_config: where the run lives (`"file:///data/run7"`; memory, newest two, comes in front), or a `Config`.
        every_steps: with a URL: save when `step % every_steps == 0`.
        keep_last: with a URL: how many checkpoints to keep there; None keeps all.
        group: the ranks that save together; None is the default process group, or this process alone.

    Attributes:
        last_load: what the last `load` found, from which tiers its bytes came, and `differences` it passed over. None:
            there was nothing.

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
            check_one_node(talk.each(lambda: this_node(settings)))
            launch, doubts = talk.first(lambda: check_tiers(settings))
            self._session = attach_all(talk, settings, launch)
        for doubt in doubts if self._ranks.rank == 0 else ():
            warnings.warn(doubt, RuntimeWarning, stacklevel=2)
        self._stopping = Stopping(self._session)
        self._timed = TimedSaves(self._session)
        self._wished = Wished(settings.tiers if self._ranks.rank == 0 else ())
        self._plan = StagePlan(settings.run, self._ranks)
        self._saves = Saves(self._session, self._ranks, self._plan)
        self.last_load: Loaded | None = None
        self._closed = False

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
            self._session.slots.page_lock = self._plan.page_lock
            talk.each(lambda: self._session.prepare(*self._plan.sizes))

    def prepared(self) -> bool:
        """Whether the arena is faulted from this side, so that the first save is as quick as any other."""
        return self._session.slots.faulted()

    def load(self, state: dict[str, Any], *, step: int | None = None, strict: bool = True) -> int | None:
        """Load the newest loadable step (or `step` of the lineage) into `state`, in place, on all ranks.

        Collective. Claims nothing and writes nothing on any tier. `strict=False` takes what fits, warns of the rest and
        lists it in `last_load.differences`; nothing is converted or cut.

        Returns: the step, or None when the home holds no attempt, manifest or image.
        Raises: LoadError when something is there and nothing (or not that step) loads; StructureError when state and
            checkpoint differ (with `strict=False`: when nothing fits), before anything is copied; DeadlineError.
        """
        self._check_open()
        step = None if step is None else whole_step(step, hint="pass a step that was saved, or None")
        loader = Loader(self._session, self._ranks)
        self.last_load = loader.load(state, step=step, strict=strict)
        loaded = self.last_load.checkpoint if self.last_load is not None else None
        self._saves.stand_on(loaded)
        self.prepare(state)
        if self.last_load is not None:
            # Last: a warning that is made an error must not leave the other ranks alone in a collective.
            warn_of(self.last_load.differences, loaded)
        return None if loaded is None else loaded.step

    def save(
        self,
        step: int,
        state: dict[str, Any],
        *,
        force: bool = False,
        metrics: Mapping[str, float] | None = None,
        overlap: bool = False,
    ) -> Save | None:
        """Save `state` as `step` if a tier is due: one copy into shared memory, the agent does the rest.

        Args:
            force: save on every tier though none is due.
            metrics: numbers that go with the step, rank 0's: `keep_best` of a tier decides by them, `holdfast ls` shows
                them.
            overlap: accepted; the copy is made at once until overlapping is built.

        Returns: a handle, or None when no tier is due.
        Raises: StepExistsError; ClosedError; UnsupportedValueError with the value's path; CapacityError;
            SupersededError when a later attempt owns the run; with `on_save_error`, what went wrong with an earlier
            save, on all ranks at the same step.
        """
        self._check_open()
        step = whole_step(step, hint="pass the training step")
        began = time.perf_counter()
        self._session.ensure()
        rules = self._settings.tiers
        due = due_tiers(step, rules, force=force, first=self._saves.first)
        if due:
            self._saves.check_order(step)
        self._session.page.current_step = step
        timed = names_of_mask(self._timed.due(step), rules) - due
        if self._stopping.observe(step):
            due = due_tiers(step, rules, force=True)
        self._saves.report_background_errors()
        if not (due or timed) or step <= self._saves.last_step:
            return None
        # Nothing comes after the last save that could be slowed; half of the time is left to close(), where the other
        # ranks wait for this one.
        patience_s = self._settings.close_timeout_s / 2 if self._stopping.reached else 0.0
        # Not noted before this is needed: a metric may be a tensor on a device.
        wanted = Wanted(step, due | timed, timed - due, lambda: note(metrics) if self._ranks.rank == 0 else b"")
        made = self._saves.make(state, wanted, began=began, patience_s=patience_s)
        self._wished.check(due | timed, metrics)
        return made

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
        self._session.check_process()
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
        self._session.check_process()

    def _detach(self) -> None:
        """Leave without closing: the agent finishes flushes, promotes, and keeps the memory for a restart."""
        if not self._closed:
            self._closed = True
            self._stopping.uninstall()
            self._let_go(LetGo.LEFT)

    def _let_go(self, how: LetGo) -> None:
        self._plan.forget()
        self._session.detach(how)

    def _await_end(self, discard: bool) -> None:
        error = end(self._session, discard=discard)
        self._saves.keep_answers()
        if error is not None:
            raise error
