"""A job most of whose bytes nobody trains: what it saved and loaded it says as digests."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from tests.fault.harness.job import Job, Log

ROWS, COLUMNS = 1536, 1024
"""6 MiB of frozen bytes: two checksum blocks."""


def make() -> dict[str, Any]:
    """The state before training."""
    import torch

    torch.manual_seed(3)
    base = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    base.requires_grad_(False)
    adapter = torch.nn.Linear(16, 16)
    model = torch.nn.ModuleDict({"base": base, "adapter": adapter})
    return {"model": model, "optim": torch.optim.SGD(adapter.parameters(), lr=0.1, momentum=0.9)}


def digest(state: dict[str, Any]) -> str:
    """Of every byte of the model."""
    found = hashlib.sha256()
    for name, tensor in sorted(state["model"].state_dict().items()):
        found.update(name.encode() + tensor.detach().numpy().tobytes())
    return found.hexdigest()


def train(job: Job) -> None:
    """Loads, then saves `steps` steps. `args`: "change 3" writes to frozen bytes before step 3."""
    import holdfast

    state, log = make(), Log(job)
    ckpt = holdfast.Checkpointer(job.url, keep_last=job.keep_last)
    loaded = ckpt.load(state, step=job.load_step)
    log("loaded", step=loaded, digest=digest(state))
    begin = 0 if loaded is None else loaded + 1
    for step in range(begin, begin + job.steps):
        _change(job, state, step)
        saved = ckpt.save(step, state)
        assert saved is not None
        log("saved", step=step, digest=digest(state))
        saved.wait("durable", timeout_s=60)
        log("durable", step=step)
    if job.end == "linger":
        time.sleep(600)
    if job.end == "close":
        ckpt.close()


def _change(job: Job, state: dict[str, Any], step: int) -> None:
    import torch

    with torch.no_grad():
        for parameter in state["model"]["adapter"].parameters():
            parameter.fill_(step + job.life / 64)
    if f"change {step}" in job.args:
        state["model"]["base"].weight.data[0] += 1
