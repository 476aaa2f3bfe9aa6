"""A job as users write it, for torchrun: `train_ddp.py URL FOLDER`. One model in DDP, one in FSDP2.

In its first life rank 1 kills itself.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import holdfast

url, folder = sys.argv[1:]
os.environ["GLOO_SOCKET_IFNAME"] = "lo"
torch.set_num_threads(1)
dist.init_process_group("gloo")
life = os.environ["TORCHELASTIC_RESTART_COUNT"]


def tell(what: str) -> None:
    (Path(folder) / f"told-{life}-{dist.get_rank()}-{what.split(maxsplit=1)[0]}").write_text(what)


model = DistributedDataParallel(torch.nn.Linear(8, 8))
optimizer = torch.optim.AdamW(model.parameters())
sharded = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.Linear(5, 8))
fully_shard(sharded)
sharded_optimizer = torch.optim.AdamW(sharded.parameters())
state = {"model": model, "optim": optimizer, "sharded": sharded, "sharded_optim": sharded_optimizer, "step": -1}
with holdfast.Checkpointer(url) as ckpt:
    start = ckpt.load(state)
    tell(f"began at {start}")
    for step in range(0 if start is None else start + 1, 10):
        model(torch.ones(4, 8)).sum().backward()
        optimizer.step()
        sharded(torch.ones(4, 8)).sum().backward()
        sharded_optimizer.step()
        state["step"] = step
        save = ckpt.save(step, state)
        if life == "0" and step == 5:
            assert save is not None
            save.wait("memory", timeout_s=30)
            dist.barrier()
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        if ckpt.should_stop():
            break
tell(f"ended at {state['step']}")
dist.destroy_process_group()
