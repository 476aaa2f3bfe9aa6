"""For every test: what it needs is there, and nothing of it is left behind."""

import contextlib
import gc
import importlib.util
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture import engine

# A failing example is printed before the test runs out of time: it is made smaller for so long only (Hypothesis then
# speaks of five minutes), and not explained, which traces every line of many more runs.
engine.MAX_SHRINKING_SECONDS = 40
PHASES = [p for p in Phase if p is not Phase.explain]
# What is slow is the machine, if anything: other work may run beside this.
SLOW = [HealthCheck.too_slow]
settings.register_profile("ci", deadline=None, derandomize=True, phases=PHASES, suppress_health_check=SLOW)
settings.register_profile("explore", deadline=None, max_examples=2000, phases=PHASES, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

GRACE_S = 10.0
# awscrt keeps its event loops for good, CUDA its devices.
KEPT_BY_LIBRARIES = ("anon_inode:", "/dev/nvidia", "/dev/null", "/dev/urandom", "/proc/", "/sys/")
# Carried by every process a test starts, also by one whose parent is gone.
MARK_NAME = "PYTEST_HOLDFAST_SESSION"
MARK = os.environ[MARK_NAME] = f"{os.getpid()}-{time.time_ns()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("torch") and importlib.util.find_spec("torch") is None:
            item.add_marker(pytest.mark.skip(reason="torch is not installed"))
        elif item.get_closest_marker("gpu") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that leaves a process, thread, descriptor or shared-memory file."""
    before = _what_is_open()
    memory, pids = _shared_memory(), set(psutil.pids())
    yield
    # A test that Ctrl-C cut short may leave things; an error here would take the place of pytest's summary.
    interrupted = request.session.exitstatus == pytest.ExitCode.INTERRUPTED
    if interrupted or request.node.get_closest_marker("leaks"):
        return
    end = time.monotonic() + GRACE_S
    while left := _left_behind(before, memory, pids):
        if time.monotonic() > end:
            pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)
        gc.collect()
        time.sleep(0.02)


def _left_behind(before: Counter[str], memory: set[Path], pids: set[int]) -> list[str]:
    # What another run on the same machine made is not ours; asking for that is slow, so only for what is new.
    files = [f"shared memory {p}" for p in sorted(_shared_memory() - memory) if not _in_use_elsewhere(p)]
    return sorted((_what_is_open() - before).elements()) + files + sorted(_processes(pids))


def _what_is_open() -> Counter[str]:
    return Counter([*_threads(), *_descriptors()])


def _threads() -> Iterator[str]:
    """Libraries keep daemon threads of their own; ours are all named."""
    for thread in threading.enumerate():
        if not thread.daemon or thread.name.startswith("holdfast"):
            yield f"thread {thread.name} {thread.ident}"


def _descriptors() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that lists
            continue
        if not target.startswith(KEPT_BY_LIBRARIES):
            yield f"descriptor {target}"


def _shared_memory() -> set[Path]:
    """Without what another run on the same machine made: it says whose it is."""
    mine = f"holdfast-test-{os.getpid()}-"
    found = Path("/dev/shm").glob("holdfast-*")
    return {p for p in found if p.name.startswith(mine) or not p.name.startswith(("holdfast-test-", "holdfast-bench-"))}


def _in_use_elsewhere(path: Path) -> bool:
    """Whether its name or memory is that of a process no test of ours started: another run on the same machine."""
    named = re.match(r"holdfast-demo-(\d+)-", path.name)
    with contextlib.suppress(OSError):  # of a process that is gone
        if named and not _is_ours(int(named[1])):
            return True
    for pid in psutil.pids():
        try:
            mapped = str(path) in Path(f"/proc/{pid}/maps").read_text()
            if mapped and pid != os.getpid() and not _is_ours(pid):
                return True
        except OSError:
            continue
    return False


def _processes(known: set[int]) -> Iterator[str]:
    new = set(psutil.pids()) - known
    children = {child.pid for child in psutil.Process().children(recursive=True)} if new else set()
    for pid in new:
        try:
            process = psutil.Process(pid)
            if not (pid in children or _is_ours(pid)) or process.status() == psutil.STATUS_ZOMBIE:
                continue
            command = " ".join(process.cmdline())
        except (psutil.Error, OSError):  # gone meanwhile
            continue
        if "multiprocessing.resource_tracker" not in command:
            yield f"process {pid} {command}"


def _is_ours(pid: int) -> bool:
    return f"{MARK_NAME}={MARK}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()
