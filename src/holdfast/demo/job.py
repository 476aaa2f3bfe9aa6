"""One launch of the training script by torchrun, and the means to kill it for real."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil

RANKS = 2
_GONE_S = 20.0


def start(arguments: Iterable[str], *, restarts: int, output: Path, memory: Path) -> subprocess.Popen[bytes]:
    """A torchrun of the training script.

    Args:
        restarts: how often torchrun may start all ranks again when one died.
        output: where everything the processes print goes; torchrun's own directory is made beside it.
        memory: the directory for the job's shared memory. All its processes carry the path in their environment, by
            which they are found again whoever their parents are.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    launcher += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    launcher += ["--log-dir", str(output.parent / "torchrun")]  # else in a directory that stays in /tmp
    with output.open("ab") as out:
        return subprocess.Popen(
            [*launcher, "-m", "holdfast.demo.worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=_environment(memory),
            start_new_session=True,  # Ctrl-C is ours to handle
        )


def new_memory(needed_bytes: int) -> Path:
    """A directory of our own for shared memory, so that no real run of the user is touched.

    Where shared memory lacks the room, as in a container with 64 MB of it, it is an ordinary directory.
    """
    shared = Path(os.environ.get("HOLDFAST_ARENA_DIR", "/dev/shm"))
    if not shared.is_dir() or shutil.disk_usage(shared).free < needed_bytes:
        shared = Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix=f"holdfast-demo-{os.getpid()}-", dir=shared))


def processes_with(memory: Path) -> list[psutil.Process]:
    """Every process of the job: launcher, trainers, agent. Never ourselves: our environment lacks the path."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("HOLDFAST_ARENA_DIR") == str(memory):
                found.append(process)
    return found


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to each, by its pid, and wait until all are gone."""
    processes = list(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_GONE_S)


def _environment(memory: Path) -> dict[str, str]:
    """Ours, without settings of Holdfast that were meant for other runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
    return kept | {
        "HOLDFAST_ARENA_DIR": str(memory),
        "OMP_NUM_THREADS": "1",  # sums have one order, and the ranks do not fight for processors
        "PYTHONUNBUFFERED": "1",
        # Else restarted ranks read addresses of the ranks before: https://github.com/pytorch/pytorch/issues/135712
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
