"""A run of the demo's job, followed through the event logs of all its processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil

from holdfast.demo.disk import Disk
from holdfast.demo.events import Event, EventLog, Tail
from holdfast.demo.job import kill, processes_with, start
from holdfast.demo.script import Script
from holdfast.errors import HoldfastError

_POLL_S = 0.002
_SILENCE_S = 120.0


class Run:
    """Starts and kills the job, and sees every event once, in order.

    Args:
        folder: for event logs, the processes' output and, with `durable`, the disk tier.
        memory: the directory of the job's shared memory.
        tell: called with each event as it is seen.
    """

    def __init__(
        self, folder: Path, script: Script, *, memory: Path, durable: bool, tell: Callable[[Event], None]
    ) -> None:
        self.events: list[Event] = []
        self._output = folder / "output.txt"
        self._logs = folder / "events"
        self._logs.mkdir(parents=True)
        self._script = script
        self._memory = memory
        self._checkpoints = folder / "checkpoints" if durable else None
        self._log = EventLog(self._logs / "conductor.jsonl", who="conductor")
        self._disk = Disk(folder / "checkpoints", self._log)
        self._tail = Tail(self._logs)
        self._unseen: deque[Event] = deque()
        self._tell = tell
        self._job: subprocess.Popen[bytes] | None = None

    def launch(self, *, restarts: int = 0) -> None:
        """Start the job on a new node: no process of it is there and nothing is in memory."""
        self._memory.mkdir(exist_ok=True)
        self._log("launch")
        arguments = self._script.arguments(events=self._logs, checkpoints=self._checkpoints)
        self._job = start(arguments, restarts=restarts, output=self._output, memory=self._memory)

    def until(self, what: str, want: Callable[[Event], bool]) -> Event:
        """Follow the job to the first event that is wanted; `what` says in words what that is.

        Raises: HoldfastError when the job ends before, or nothing happens for two minutes.
        """
        while True:
            event = self._next(what)
            if want(event):
                return event
            if event["what"] == "exit":
                raise self._failed(f"the job ended with exit code {event['code']} before {what}")

    def _next(self, what: str) -> Event:
        deadline = time.monotonic() + _SILENCE_S
        while not self._unseen:
            if self._job is not None and self._job.poll() is not None:
                self._log("exit", code=self._job.returncode)
                self._job = None
            self._disk.look()
            self._unseen.extend(self._tail.new())
            if time.monotonic() > deadline:
                raise self._failed(f"nothing happened for {_SILENCE_S:g} s while waiting for {what}")
            time.sleep(0 if self._unseen else _POLL_S)
        event = self._unseen.popleft()
        self.events.append(event)
        self._tell(event)
        return event

    def writing(self, step: int) -> bool:
        """Wait until the disk tier is writing `step`. Returns: False when it was committed meanwhile."""
        deadline = time.monotonic() + _SILENCE_S
        while not self._disk.has(step):
            if self._disk.writing():
                return True
            if time.monotonic() > deadline:
                raise self._failed(f"step {step} was not written to disk within {_SILENCE_S:g} s")
            time.sleep(_POLL_S / 4)
        return False

    def kill_ranks(self, ranks: set[int], *, scene: str, step: int) -> bool:
        """SIGKILL to the newest process of each rank. Returns: whether `step` was not yet committed on disk then."""
        pids = {e["rank"]: e["pid"] for e in self.events if e.get("rank") in ranks}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        unfinished = not self._disk.has(step)
        self._log("kill", scene=scene, step=step, pids=sorted(pids.values()), unfinished=unfinished)
        return unfinished

    def lose_node(self, *, scene: str, step: int) -> None:
        """SIGKILL to launcher, trainers and agent, and their memory wiped."""
        processes = processes_with(self._memory)
        self._log("kill", scene=scene, step=step, pids=sorted(p.pid for p in processes), unfinished=True)
        self._end(processes)

    def finish(self) -> None:
        """Follow the job to its end. Raises: HoldfastError when it does not end well."""
        self.until("its end", lambda e: e["what"] == "exit" and e["code"] == 0)

    def close(self) -> None:
        """Leave no process and no memory, however the story went."""
        self._end(processes_with(self._memory))
        self._log.close()

    def _end(self, processes: list[psutil.Process]) -> None:
        kill(processes)
        if self._job is not None:
            self._job.wait(_SILENCE_S)
            self._job = None
        shutil.rmtree(self._memory, ignore_errors=True)

    def _failed(self, message: str) -> HoldfastError:
        lines = self._output.read_text(errors="replace").splitlines() if self._output.exists() else []
        tail = "\n".join(lines[-15:])
        return HoldfastError(f"{message}; the processes' last words:\n{tail}", hint=f"all of them: {self._output}")
