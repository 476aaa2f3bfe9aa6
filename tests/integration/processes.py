"""Processes of tests: ranks forked from one that has imported torch, and agents, which are found by their arena."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import psutil
from tests.fault.harness.processes import Zygote, started_agents
from tests.fault.inject import spawning
from tests.integration.place import until

_PRELOAD = [
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "holdfast.trainer.checkpointer",
    "tests.integration.processes",
    "tests.integration.jobs",
    "tests.integration.sharded_jobs",
]

_STUCK_S = 45.0
"""Then a rank shows where it stands: below the limit of `results`."""
_PR_SET_PDEATHSIG = 1

meeting_dir = Path(tempfile.gettempdir())
"""Where ranks leave a file by which they find each other. Each test has a directory of its own."""


def start_forker() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    multiprocessing.forkserver.ensure_running()
    return context


@dataclass
class Outcome:
    """What became of a process: what its function returned, or what it raised, or only an exit code."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    exit_code: int | None = None


@dataclass(eq=False)
class Ranks:
    """Processes under way. Every one is ended by `results` or `end`, by its own id, or else with its test."""

    rendezvous: Path
    processes: list[Any]
    pipes: list[Connection]

    def pid(self, rank: int) -> int:
        pid = self.processes[rank].pid
        assert pid is not None
        return int(pid)

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pid(rank), number)

    def hear(self, rank: int, within_s: float = 40.0) -> Any:
        """The next thing that rank tells with `tell`."""
        assert self.pipes[rank].poll(within_s), f"rank {rank} told nothing within {within_s:g} s"
        kind, value = self.pipes[rank].recv()
        assert kind == "told", (kind, value)
        return value

    def results(self, within_s: float = 60.0) -> list[Outcome]:
        """Wait for all of them. A process that does not end in time is killed, and the test fails."""
        deadline = time.monotonic() + within_s
        outcomes: list[Outcome | None] = [None] * len(self.pipes)
        open_pipes = dict(zip(self.pipes, range(len(self.pipes)), strict=True))
        while open_pipes and time.monotonic() < deadline:
            for pipe in wait(list(open_pipes), timeout=0.2):
                assert isinstance(pipe, Connection)
                rank = open_pipes[pipe]
                try:
                    kind, value = pipe.recv()
                except EOFError:  # it died
                    outcomes[rank] = outcomes[rank] or Outcome()
                    del open_pipes[pipe]
                    continue
                if kind == "outcome":
                    outcomes[rank] = value
        for process in self.processes:
            process.join(max(0.1, deadline - time.monotonic()))
        late = [r for r, p in enumerate(self.processes) if p.exitcode is None]
        self.end()
        assert not late, f"ranks {late} did not end within {within_s:g} s; others: {outcomes}"
        done = [o or Outcome() for o in outcomes]
        for outcome, process in zip(done, self.processes, strict=True):
            outcome.exit_code = process.exitcode
        return done

    def values(self, within_s: float = 60.0) -> list[Any]:
        """What every rank returned; fails if one did not."""
        done = self.results(within_s)
        for rank, outcome in enumerate(done):
            assert outcome.exit_code == 0, f"rank {rank}: exit {outcome.exit_code}\n{outcome.trace}"
            assert outcome.error is None, f"rank {rank}:\n{outcome.trace}"
        return [o.value for o in done]

    def end(self) -> None:
        for process in self.processes:
            if process.exitcode is None:
                process.kill()
                process.join(30)
        for pipe in self.pipes:
            pipe.close()
        self.rendezvous.unlink(missing_ok=True)
        if self in _under_way:
            _under_way.remove(self)


_under_way: list[Ranks] = []


def end_ranks() -> None:
    """Kill those that a test left when it failed."""
    for ranks in list(_under_way):
        ranks.end()


def start(
    context: Any,
    world_size: int,
    job: Callable[..., Any],
    /,
    *args: Any,
    env: dict[str, str] | None = None,
    **kwargs: Any,
) -> Ranks:
    """Fork `world_size` ranks, each of which calls `job(tell, *args, **kwargs)` with torch.distributed ready."""
    ranks = Ranks(meeting_dir / f"rendezvous-{uuid.uuid4().hex}", [], [])
    _under_way.append(ranks)
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=True)
        settings = _settings() | (env or {})
        task = _Task(rank, world_size, str(ranks.rendezvous), settings, job, args, kwargs)
        process = context.Process(target=_run, args=(theirs, task), daemon=True)
        process.start()
        theirs.close()
        ranks.processes.append(process)
        ranks.pipes.append(ours)
    return ranks


def _settings() -> dict[str, str]:
    """What the forker's copies do not have: it was started before the test."""
    return {k: v for k, v in os.environ.items() if k.startswith(("HOLDFAST_", "PYTEST_"))}


@dataclass
class _Task:
    """What one rank is to do."""

    rank: int
    world_size: int
    rendezvous: str
    settings: dict[str, str]
    job: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _run(pipe: Connection, task: _Task) -> None:
    import torch
    import torch.distributed as dist

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the forker ends with the session, however that ends
    os.environ.update(task.settings)
    spawning.install_here()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(_STUCK_S)
    many = task.world_size > 1
    if many:
        size = str(task.world_size)
        os.environ.update(RANK=str(task.rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size, GLOO_SOCKET_IFNAME="lo")
        meeting = f"file://{task.rendezvous}"
        dist.init_process_group("gloo", init_method=meeting, rank=task.rank, world_size=task.world_size)
    outcome = Outcome()
    try:
        outcome.value = task.job(lambda value: pipe.send(("told", value)), *task.args, **task.kwargs)
    except Exception as e:
        outcome.error, outcome.trace = e, traceback.format_exc()
    pipe.send(("outcome", outcome))
    pipe.close()
    if many and outcome.error is None:
        dist.destroy_process_group()
    os._exit(0)


# Agents --------------------------------------------------------------------------------------------------------------
zygotes: list[Zygote] = []
"""Those that fork agents in this session."""


def agents(arena_dir: Path) -> list[psutil.Process]:
    """The agents whose arena lies in that directory, started or forked."""
    found = []
    for pid in [*started_agents(arena_dir), *(pid for zygote in zygotes for pid in zygote.agents(arena_dir))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return found


def the_agent(arena_dir: Path) -> psutil.Process:
    """The one that is left when another, started because the machine is slow, has seen that it is not needed."""
    return until(lambda: found[0] if len(found := agents(arena_dir)) == 1 else None, "one agent")


def end_agents(arena_dir: Path) -> None:
    """Kill what still runs there, each by its id."""
    deadline = time.monotonic() + 30.0
    for process in (ended := agents(arena_dir)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    # Not until they are reaped: of those that were started that is for init, which may look once a second.
    while any(_runs(p) for p in ended) and time.monotonic() < deadline:
        time.sleep(0.005)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
