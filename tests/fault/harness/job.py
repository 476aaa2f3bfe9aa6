"""The job under test: one rank of a training run whose state at step s of life L is `oracle.expected(L, s)`.

Everything it sees it writes, as one JSON line per event, to a file that outlives it.
"""

from __future__ import annotations

import json
import os
import time
import traceback
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.fault.harness import oracle

if TYPE_CHECKING:
    from holdfast.trainer.save import Save

_MOST_STEPS = 1_000_000
_LINGER_POLL_S = 0.02


@dataclass(frozen=True)
class Job:
    """What one life does.

    `file_every_steps` is for the file tier, where it differs; `scope` is its own. `load_step` None loads the newest.
    `steps` are trained (the next step number goes on from the one loaded). A `script` other than the training one gets
    `args`.

    `end` is close, exit (without a word), whole (exit once every step is whole in memory), raise (out of the `with`
    block), linger (until killed), durable (train on until some step is durable, wait for the last, close) or told
    (linger until the file `go` exists, then close).
    """

    url: str
    log: str
    life: int = 1
    steps: int = 5
    first_step: int | None = None
    load_step: int | None = None
    every_steps: int = 1
    keep_last: int | None = 3
    file_every_steps: int = 0
    scope: str = "shared"
    pace_s: float = 0.005
    end: str = "close"
    rank: int = 0
    world: int = 1
    rendezvous: str = ""
    go: str = ""
    force: tuple[int, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    process: str = "trainer"
    script: str = "tests.fault.harness.job:train"
    args: tuple[str, ...] = ()


class Log:
    """Threads: any; each line is one write."""

    def __init__(self, job: Job) -> None:
        self._fd = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._job = job

    def __call__(self, event: str, **fields: Any) -> None:
        line = {"event": event, "life": self._job.life, "rank": self._job.rank, "t": time.monotonic(), **fields}
        os.write(self._fd, (json.dumps(line) + "\n").encode())


def train(job: Job) -> None:
    """Load, train, save, end."""
    log = Log(job)
    try:
        _train(job, log)
    except Exception as e:
        log("error", kind=getattr(e, "kind", type(e).__name__), text=str(e), trace=traceback.format_exc())
        raise


def _train(job: Job, log: Log) -> None:
    warnings.simplefilter("default")
    join(job)
    state = make_state(job.rank)
    log("started", pid=os.getpid())
    checkpointer = _checkpointer(job)
    log("attached")
    if job.end == "raise":
        with checkpointer:
            _steps(job, log, checkpointer, state)
            raise KeyboardInterrupt("the job failed")
    last = _steps(job, log, checkpointer, state)
    while job.end == "linger" or (job.end == "told" and not os.path.exists(job.go)):
        last.look()
        time.sleep(_LINGER_POLL_S)
    if job.end == "whole":
        last.settle("memory")
    elif job.end != "exit":
        if job.end == "durable":
            last.settle()
        checkpointer.close()
        log("closed")


def _checkpointer(job: Job) -> Any:
    import holdfast

    if not job.file_every_steps and job.scope == "shared":
        return holdfast.Checkpointer(job.url, every_steps=job.every_steps, keep_last=job.keep_last)
    memory = holdfast.TierConfig("memory:", every_steps=job.every_steps, keep_last=2)
    every_steps = job.file_every_steps or job.every_steps
    file = holdfast.TierConfig(job.url, scope=job.scope, every_steps=every_steps, keep_last=job.keep_last)
    return holdfast.Checkpointer(holdfast.Config(tiers=(memory, file)))


def join(job: Job) -> None:
    """Meet the other ranks."""
    if job.world > 1:
        import torch.distributed as dist

        os.environ["WORLD_SIZE"], os.environ["RANK"] = str(job.world), str(job.rank)
        dist.init_process_group("gloo", init_method=f"file://{job.rendezvous}", rank=job.rank, world_size=job.world)


def _steps(job: Job, log: Log, checkpointer: Any, state: dict[str, Any]) -> Watch:
    loaded = checkpointer.load(state, step=job.load_step)
    _check_loaded(log, state, loaded, job.rank)
    log("steps", steps=[[s.attempt, s.step, list(s.tiers), s.abandoned] for s in checkpointer.steps()])
    begin = job.first_step if job.first_step is not None else 0 if loaded is None else loaded + 1
    watch = Watch(log)
    for step in range(begin, begin + _MOST_STEPS):
        if step >= begin + job.steps and (job.end != "durable" or _all_say(watch.seen_durable, job)):
            break
        set_state(state, job.life, step, job.rank)
        log("saving", step=step)
        save = checkpointer.save(step, state, force=step in job.force)
        if save is not None:
            log("staged", step=step, attempt=save.attempt, stall_s=save.stall_s)
            watch.add(save)
        watch.look()
        time.sleep(job.pace_s)
    log("trained")
    return watch


def _all_say(yes: bool, job: Job) -> bool:
    if job.world == 1:
        return yes
    import torch
    import torch.distributed as dist

    said = torch.tensor([int(yes)])
    dist.all_reduce(said, op=dist.ReduceOp.MIN)
    return bool(said)


class Watch:
    """Handles of saves: says when each becomes whole in memory and durable, or why it never will."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._open: list[tuple[Save, str]] = []
        self.seen_durable = False

    def add(self, save: Save) -> None:
        self._open += [(save, "memory"), (save, "durable")]

    def look(self, timeout_s: float = 0.0, at: tuple[str, ...] = ("memory", "durable")) -> None:
        from holdfast.errors import DeadlineError, HoldfastError, NotDueError

        for save, what in [(s, w) for s, w in self._open if w in at]:
            try:
                save.wait(what, timeout_s=timeout_s)
                self._log(what, step=save.step, attempt=save.attempt)
                self.seen_durable |= what == "durable"
            except DeadlineError:
                continue
            except NotDueError:
                pass
            except HoldfastError as e:
                self._log("ended", what=what, step=save.step, attempt=save.attempt, kind=e.kind, text=e.message)
            self._open.remove((save, what))

    def settle(self, *at: str) -> None:
        self.look(30.0, at or ("memory", "durable"))


# The state ------------------------------------------------------------------------------------------------------------
def make_state(rank: int) -> dict[str, Any]:
    """A state of the right structure that holds nothing yet."""
    import torch

    import holdfast

    arrays = oracle.expected(0, 0, rank)
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(arrays["model.w"].shape, dtype=torch.int32), requires_grad=False)
    model.b = torch.nn.Parameter(torch.zeros(arrays["model.b"].shape))
    model.register_buffer("mean", torch.zeros(arrays["model.mean"].shape, dtype=torch.float64))
    mine = holdfast.per_rank(torch.zeros(arrays["mine"].shape, dtype=torch.int64))
    extra = torch.zeros(arrays["extra"].shape, dtype=torch.int64)
    return {"model": model, "extra": extra, "mine": mine, **oracle.plain(-1, -1)}


def tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Every tensor of the state, as the oracle names them."""
    model = state["model"]
    return {
        "model.w": model.w.detach(),
        "model.b": model.b.detach(),
        "model.mean": model.mean,
        "extra": state["extra"],
        "mine": state["mine"].value,
    }


def set_state(state: dict[str, Any], life: int, step: int, rank: int) -> None:
    """Train: the state becomes that of the step."""
    import torch

    live = tensors(state)
    for name, array in oracle.expected(life, step, rank).items():
        live[name].copy_(torch.from_numpy(array))
    state.update(oracle.plain(life, step))


def _check_loaded(log: Log, state: dict[str, Any], loaded: int | None, rank: int) -> None:
    """Say what was loaded, and what of it is wrong."""
    if loaded is None:
        log("loaded", step=None, of_life=None, wrong=[])
        return
    life, step = state["life"], state["step"]
    live = tensors(state)
    want = oracle.expected(life, step, rank)
    wrong = [name for name, array in want.items() if not bool((live[name].numpy() == array).all())]
    wrong += [key for key, value in oracle.plain(life, step).items() if state[key] != value]
    if step != loaded:
        wrong.append(f"step {step} in step {loaded}")
    log("loaded", step=loaded, of_life=life, wrong=wrong)
