"""Files of a benchmark: where they lie, and that they go."""

from __future__ import annotations

import contextlib
import gc
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_SHM = Path("/dev/shm")
_END_S = 10.0
_DROP_TRIES = 20


@dataclass(frozen=True, slots=True)
class Places:
    """A directory on the disk that is measured, and one in shared memory. Both go at the end."""

    disk: Path
    memory: Path

    def environment(self) -> dict[str, str]:
        """For every variant: our arenas apart from anybody else's, and no other setting of this shell's."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
        root = str(Path(__file__).resolve().parent.parent / "src")
        path = os.pathsep.join(filter(None, [root, kept.get("PYTHONPATH")]))
        return kept | {"HOLDFAST_ARENA_DIR": str(self.memory), "PYTHONPATH": path}


@contextlib.contextmanager
def places(on: Path) -> Iterator[Places]:
    """Make the two directories; in the end, stop what still runs in them and remove them."""
    on.mkdir(parents=True, exist_ok=True)
    found = Places(
        Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=on)),
        Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=os.environ.get("HOLDFAST_ARENA_DIR", _SHM))),
    )
    try:
        yield found
    finally:
        end_agents(found.memory)
        shutil.rmtree(found.disk, ignore_errors=True)
        shutil.rmtree(found.memory, ignore_errors=True)


def agents(memory: Path) -> list[psutil.Process]:
    """The agents whose arena lies in this directory: its name is unique to this run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if "holdfast.agent" in command and command[-1].startswith(f"{memory}{os.sep}"):
                found.append(process)
    return found


def end_agents(memory: Path) -> None:
    """Kill the agents of a run: what they hold is thrown away."""
    processes = agents(memory)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=_END_S)


def await_end_of_agents(memory: Path) -> None:
    """Let the agents of a run that was closed give its memory back and go, so that the next one finds nothing of it."""
    _, alive = psutil.wait_procs(agents(memory), timeout=_END_S)
    if alive:
        raise TimeoutError(f"agents did not end within {_END_S:g} s: {[p.pid for p in alive]}")


def images(home: Path) -> list[Path]:
    """The images of a run. `glob` and not `Path.rglob`: directories that go meanwhile are no error."""
    return [home / found for found in glob.glob("**/*.safetensors", root_dir=home, recursive=True)]


def remove(path: Path) -> None:
    """Remove a file or directory and wait for the file system: its discards must not fall into the next sample."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make what was created or removed in it durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make its bytes durable, whoever wrote them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def forget_cached(path: Path) -> None:
    """Drop a file's pages from the page cache. Raises: RuntimeError where they stay: somebody has it mapped."""
    sync_file(path)
    fd = os.open(path, os.O_RDONLY)
    try:
        for _ in range(_DROP_TRIES):  # what a core has read just now takes a moment
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if not _is_cached(fd):
                return
            gc.collect()
            time.sleep(0.05)
        raise RuntimeError(f"{path.name} cannot be dropped from the page cache: somebody has it mapped")
    finally:
        os.close(fd)


def _is_cached(fd: int) -> bool:
    """Whether the page cache has any of the pages looked at, one in 16 MiB."""
    for offset in range(0, os.fstat(fd).st_size, 16 << 20):
        try:
            os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            continue
        return True
    return False
