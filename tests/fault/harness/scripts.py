"""What else a process under test may do: the command line, a short training with a real optimizer, many saves."""

from __future__ import annotations

import gc
import os
import queue
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fault.harness.job import Job, Log, join, make_state, set_state

if TYPE_CHECKING:
    import torch


def command(job: Job) -> None:
    """`holdfast ARGS`."""
    from holdfast.cli import main

    sys.exit(main(list(job.args)))


# A real optimizer -----------------------------------------------------------------------------------------------------
def adamw(job: Job) -> None:
    """Says the losses of `steps` steps with a fresh AdamW; `args` "with": Holdfast looks on, and loads if it can."""
    import holdfast

    state = _fresh()
    log = Log(job)
    begin = 0
    checkpointer = None
    if "with" in job.args:
        checkpointer = holdfast.Checkpointer(job.url)
        checkpointer.prepare(state)
        loaded = checkpointer.load(state)
        begin = 0 if loaded is None else loaded + 1
    for step in range(begin, job.steps):
        log("loss", step=step, loss=_step(state, step).hex())
        if checkpointer is not None:
            checkpointer.save(step, state)
            if f"stop at {step}" in job.args:
                return
    if checkpointer is not None:
        checkpointer.close()


def _fresh() -> dict[str, Any]:
    import torch

    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6])
    return {"model": model, "optimizer": optimizer, "schedule": schedule}


def _step(state: dict[str, Any], step: int) -> float:
    import torch

    batch = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
    loss: torch.Tensor = state["model"](batch).square().mean()
    loss.backward()
    state["optimizer"].step()
    state["optimizer"].zero_grad()
    state["schedule"].step()
    return float(loss)


# Many saves -----------------------------------------------------------------------------------------------------------
def many_saves(job: Job) -> None:
    """Saves `steps` times and says, at the steps in `force`, what the process has grown to."""
    import holdfast

    warnings.simplefilter("default")
    log = Log(job)
    state = make_state(job.rank)
    with holdfast.Checkpointer(job.url, keep_last=job.keep_last) as checkpointer:
        checkpointer.load(state)
        for step in range(job.steps):
            set_state(state, job.life, step, job.rank)
            save = checkpointer.save(step, state)
            assert save is not None
            if step in job.force:
                save.wait("durable", timeout_s=30.0)
                gc.collect()
                log("grown", step=step, **usage(os.getpid()), thread_names=[t.name for t in threading.enumerate()])
                _wait_for(Path(f"{job.go}-{step}"))


# Handles in a thread --------------------------------------------------------------------------------------------------
_MOST_WATCHED = 20


def wait_in_a_thread(job: Job) -> None:
    """Trains until the file `go` exists; another thread waits for each save to become durable, one after the other."""
    import holdfast

    log = Log(job)
    state = make_state(job.rank)
    saves: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with holdfast.Checkpointer(job.url, keep_last=job.keep_last) as checkpointer:
        checkpointer.load(state)
        watcher = threading.Thread(target=_watch, args=(saves, log))
        watcher.start()
        step = 0
        while not os.path.exists(job.go):
            set_state(state, job.life, step, job.rank)
            log("saving", step=step)
            saves.put(checkpointer.save(step, state))
            step += 1
            time.sleep(job.pace_s)
            while saves.qsize() > _MOST_WATCHED:  # else a slow machine would take long to tell of all in the end
                time.sleep(job.pace_s)
        saves.put(None)
        watcher.join(timeout=60.0)
        assert not watcher.is_alive(), "a handle hangs"


def _watch(saves: queue.SimpleQueue[Any], log: Log) -> None:
    from holdfast.errors import HoldfastError

    while (save := saves.get()) is not None:
        try:
            save.wait("durable", timeout_s=60.0)
            log("durable", step=save.step, attempt=save.attempt)
        except HoldfastError as e:
            log("ended", step=save.step, kind=e.kind, text=e.message)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def usage(pid: int) -> dict[str, int]:
    """Private bytes, descriptors and threads of a process. The arena is shared, and counted apart."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:] if ":" in line
    )
    private = sum(int(fields[f"Private_{kind}"].split()[0]) for kind in ("Clean", "Dirty"))
    threads = len(os.listdir(f"/proc/{pid}/task"))
    return {"private_bytes": private * 1024, "descriptors": len(os.listdir(f"/proc/{pid}/fd")), "threads": threads}


# The last save --------------------------------------------------------------------------------------------------------
def until_told_to_stop(job: Job) -> None:
    """Saves; after `steps` of them SIGUSR1 comes; says what became of the agreed last step."""
    import holdfast

    warnings.simplefilter("default")
    join(job)
    log, state = Log(job), make_state(job.rank)
    with holdfast.Checkpointer(job.url, every_steps=1) as checkpointer:
        checkpointer.load(state)
        checkpointer.should_stop()
        for step in range(1000):
            if step == job.steps and job.rank == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
            set_state(state, job.life, step, job.rank)
            log("saving", step=step)
            began = time.monotonic()
            with warnings.catch_warnings(record=True) as caught:
                save = checkpointer.save(step, state)
            stop = checkpointer.should_stop()
            if stop:
                error = save.error if save is not None else None
                said = [str(w.message) for w in caught]
                took_s = time.monotonic() - began
                log("stopped", step=step, took_s=took_s, kind=error.kind if error else "", warnings=said)
                while job.go and not os.path.exists(job.go):
                    time.sleep(0.01)
                return
            time.sleep(job.pace_s)
