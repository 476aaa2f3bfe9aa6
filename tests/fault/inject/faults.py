"""Faults for processes under test: at a named function, before or after its nth call, this process is killed, slowed,
held up or counted. Production code has no seams for this; functions are wrapped as their module is imported.

The plan is a JSON file named by HOLDFAST_TEST_FAULTS, so that the agent a trainer starts has the same one. What fired
is appended to the plan's `fired` file: a test proves that its fault happened, and what happened once does not happen
again in the next process.
"""

from __future__ import annotations

import errno
import functools
import importlib
import importlib.abc
import importlib.machinery
import inspect
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "HOLDFAST_TEST_FAULTS"
TRAINER, AGENT, COMMAND = "trainer", "agent", "command"
_PAUSE_POLL_S = 0.002
_PART_BYTES = 4 << 20


@dataclass(frozen=True)
class Fault:
    """What happens where.

    `at` is `module:function` or `module:Class.method`. `when` is before, after, or amid: the function gets the first
    half of its lists before. `do` is kill (at call `nth` of a process, and once in all), or, from call `nth` on, sleep
    (`arg` seconds), pause (until the file `arg` exists), count, touch (make the file `arg`), fail (with the OSError of
    the name `arg`), half (only the first half of its buffer is passed on), or later (its result is `arg` seconds more).

    It happens only while the file `while_there` exists, and only where the first argument, a descriptor or a path,
    leads below the directory `below`, if these are named.
    """

    process: str
    at: str
    when: str = "before"
    nth: int = 1
    do: str = "kill"
    arg: str = ""
    rank: int = 0
    while_there: str = ""
    below: str = ""

    def applies(self, args: tuple[Any, ...]) -> bool:
        """Whether this call is one that may be hit."""
        if self.while_there and not os.path.exists(self.while_there):
            return False
        if not self.below:
            return True
        path = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else os.fspath(args[0])
        return path.startswith(f"{self.below}/")

    def __str__(self) -> str:
        return f"{self.process} {self.do} {self.when} {self.at} #{self.nth}"


@dataclass(frozen=True)
class Plan:
    """Everything injected into the processes of one test. `defects` are names in defects.py; below `disk` it is
    recorded what a power cut would leave (disk.py)."""

    fired: str
    faults: tuple[Fault, ...] = ()
    defects: tuple[str, ...] = ()
    disk: str = ""

    def write(self, path: Path) -> None:
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self)))
        temporary.replace(path)


def read_plan(path: str) -> Plan:
    data = json.loads(Path(path).read_text())
    faults = tuple(Fault(**f) for f in data.pop("faults"))
    return Plan(data["fired"], faults, tuple(data["defects"]), data["disk"])


def install_in_agent() -> None:
    """Called at the start of every Python process but the trainers, which are forked."""
    if "holdfast.agent" in sys.orig_argv:
        install(AGENT)


def install(process: str, rank: int = 0) -> None:
    """Put the plan's faults into this process. Before anything has taken by name what they replace."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    plan = read_plan(path)
    if plan.disk:
        from tests.fault.inject.disk import record

        record(plan.disk)
    hook = _Hook()
    # An image of the job has three parts then; with those of production it would have one.
    hook.patch("holdfast.tiers.posix.tier:PART_BYTES", lambda real: _PART_BYTES)
    if process != AGENT:
        from tests.fault.inject import spawning

        spawning.install(hook.patch)
    for name in plan.defects:
        from tests.fault.inject.defects import DEFECTS

        DEFECTS[name](hook.patch)
    tally = _Tally(plan.fired)
    for fault in plan.faults:
        if fault.process == process and fault.rank == rank:
            hook.patch(fault.at, functools.partial(_wrapped, fault=fault, tally=tally))
    sys.meta_path.insert(0, hook)


@dataclass
class _Tally:
    """Calls counted in this process; what fired, in a file that outlives it."""

    path: str
    calls: Counter[Fault] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, fault: Fault) -> int:
        with self.lock:
            self.calls[fault] += 1
            return self.calls[fault]

    def note(self, fault: Fault, *, once: bool) -> bool:
        """Write down that it fires now; False if it must not, because it did before."""
        line = f"{fault}\n"
        with self.lock:
            if once and os.path.exists(self.path) and line in Path(self.path).read_text().splitlines(keepends=True):
                return False
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(fd, line.encode())
            os.close(fd)
            return True


def _fire(fault: Fault, tally: _Tally) -> None:
    calls = tally.count(fault)
    if calls < fault.nth or (fault.do == "kill" and calls > fault.nth):
        return
    if not tally.note(fault, once=fault.do == "kill"):
        return
    if fault.do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # delivery is not instant; nothing may run meanwhile
    elif fault.do == "fail":
        number = getattr(errno, fault.arg)
        raise OSError(number, os.strerror(number))
    elif fault.do == "touch":
        Path(fault.arg).touch()
    elif fault.do == "sleep":
        time.sleep(float(fault.arg))
    elif fault.do == "pause":
        while not os.path.exists(fault.arg):
            time.sleep(_PAUSE_POLL_S)


def _wrapped(function: Callable[..., Any], *, fault: Fault, tally: _Tally) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def later(*args: Any, **kwargs: Any) -> Any:
            if fault.when == "before":
                _fire(fault, tally)
            result = await function(*args, **kwargs)
            if fault.when == "after":
                _fire(fault, tally)
            return result

        return later

    @functools.wraps(function)
    def at_once(*args: Any, **kwargs: Any) -> Any:
        if not fault.applies(args):
            return function(*args, **kwargs)
        if fault.when == "amid":
            function(*(a[: len(a) // 2] if isinstance(a, list) else a for a in args), **kwargs)
        if fault.when != "after":
            _fire(fault, tally)
        if fault.do == "half":
            args = tuple(a[: len(a) // 2 or 1] if isinstance(a, memoryview) else a for a in args)
        result = function(*args, **kwargs)
        if fault.when == "after":
            _fire(fault, tally)
        return result + float(fault.arg) if fault.do == "later" else result

    return at_once


Wrap = Callable[[Any], Any]
Patch = Callable[[str, Wrap], None]


class _Hook(importlib.abc.MetaPathFinder):
    """Wraps functions right after their module ran, before anybody can have imported them from it."""

    def __init__(self) -> None:
        self._wanted: dict[str, list[tuple[str, Wrap]]] = {}

    def patch(self, at: str, wrap: Wrap) -> None:
        name, _, path = at.partition(":")
        if name in sys.modules:
            _replace(sys.modules[name], path, wrap)
        else:
            self._wanted.setdefault(name, []).append((path, wrap))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._wanted:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                for inner, wrap in self._wanted[fullname]:
                    _replace(module, inner, wrap)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _replace(module: ModuleType, path: str, wrap: Wrap) -> None:
    owner: Any = module
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, name, wrap(getattr(owner, name)))
