"""The training script, as a user would write it. torchrun starts it on every rank, and starts it again when one dies.

Only the calls of `log` are there for the demo's sake. What Holdfast needs of a script is `Checkpointer`, `load` and
`save`; without `--checkpoints` the same script trains without it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

import holdfast
from holdfast.demo.events import EventLog, process_age_s
from holdfast.demo.gpt import GPT, Shape
from holdfast.demo.text import Batches, standard_library

BATCH = 4
SEED = 20


def main() -> None:
    """Train to the last step from wherever the newest checkpoint stands."""
    args = arguments()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    shape = Shape(layers=args.layers, width=args.width, heads=args.width // 64)
    model = DistributedDataParallel(GPT(shape))
    optimizer = AdamW(model.parameters(), lr=1e-3, fused=True)
    schedule = OneCycleLR(optimizer, max_lr=1e-3, total_steps=args.steps)
    torch.manual_seed(SEED + 1 + rank)
    batches = Batches(standard_library(), batch=BATCH, context=shape.context, rank=rank, seed=SEED)
    state = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        # Dropout's dice: with their state it goes on with the numbers it would have drawn.
        "random": holdfast.per_rank(torch.default_generator),
    }
    log = EventLog(args.events / f"rank-{rank}.jsonl", who=f"rank {rank}", rank=rank, pid=os.getpid())
    log("ready", age_s=process_age_s(), parameters=sum(p.numel() for p in model.parameters()))

    with checkpointer(args) as ckpt:
        log("attached")
        start = ckpt.load(state) if ckpt else None
        log("loaded", step=start, **origin(ckpt))
        for step in range(0 if start is None else start + 1, args.steps):
            log("begin", step=step)
            loss = model(*batches.at(step))
            optimizer.zero_grad()
            log("backward", step=step)
            loss.backward()
            optimizer.step()
            schedule.step()
            log("step", step=step, loss=loss.item().hex())
            save = ckpt.save(step, state) if ckpt else None
            if save:
                log("save", step=step, stall_s=save.stall_s, due=sorted(save.due))
        log("trained", sha256=fingerprint(model))
    log("end")
    dist.destroy_process_group()


def checkpointer(args: argparse.Namespace) -> Any:
    """Two tiers, each at its own cadence; or nothing at all."""
    if not args.checkpoints:
        return contextlib.nullcontext()
    return holdfast.Checkpointer(
        holdfast.Config(
            tiers=(
                holdfast.TierConfig("memory:", every_steps=args.memory_every, keep_last=2),
                holdfast.TierConfig(args.checkpoints, name="disk", every_steps=args.disk_every, keep_last=3),
            )
        )
    )


def origin(ckpt: Any) -> dict[str, Any]:
    """Which tiers the load read from, and how much."""
    found = ckpt.last_load.bytes_by_tier if ckpt and ckpt.last_load else {}
    return {"sources": sorted(found), "bytes": sum(found.values())}


def fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 of all weights: equal only if every bit is."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def arguments() -> argparse.Namespace:
    """The command line, as `Script.arguments` makes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--checkpoints", help="URL of the durable tier; without it nothing is saved")
    parser.add_argument("--memory-every", type=int, default=3)
    parser.add_argument("--disk-every", type=int, default=12)
    parser.add_argument("--events", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
