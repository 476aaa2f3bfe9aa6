"""What else a process under test may do: the command line, a short training with a real optimizer, many saves."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fault.harness.job import Job, Log, make_state, set_state

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
