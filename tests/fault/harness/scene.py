"""A run under test: private home and arena, one life after the other, faults in between."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fault.harness.job import Job
from tests.fault.harness.oracle import Violation
from tests.fault.harness.processes import Trainer, Zygote, kill_all
from tests.fault.inject import spawning
from tests.fault.inject.disk import cut_power
from tests.fault.inject.faults import COMMAND, VARIABLE, Fault, Plan

LIMIT_S = 60.0
_POLL_S = 0.005
_SETTINGS = {
    "HOLDFAST_AGENT_NICE": "0",
    "HOLDFAST_IDLE_S": "60",
    "HOLDFAST_LOAD_TIMEOUT_S": "20",
    "HOLDFAST_CLOSE_TIMEOUT_S": "30",
    "HOLDFAST_AGENT_START_TIMEOUT_S": "30",
}

Event = dict[str, Any]


class Scene:
    """Invariant: after `close` no process and no memory of it is left."""

    def __init__(self, zygote: Zygote, directory: Path) -> None:
        self._zygote = zygote
        self.directory = directory
        self.home = directory / "disk" / "run"
        self.home.parent.mkdir()
        self.arena = Path(tempfile.mkdtemp(prefix=f"holdfast-test-{os.getpid()}-", dir="/dev/shm"))
        self.log = directory / "log"
        self.fired_log = directory / "fired"
        self.job = Job(url=f"file://{self.home}", log=str(self.log))
        self.life = 0
        self._commands = 0
        self._events: list[Event] = []
        self._log_read = 0
        self.trainers: list[Trainer] = []
        self._forked: list[Trainer] = []
        self.inject()

    # -- faults -------------------------------------------------------------------------------------------------------
    def inject(self, *faults: Fault, defects: tuple[str, ...] = (), record: bool = False) -> None:
        """From the next process on; `record` what a power cut would leave."""
        disk = str(self.home.parent) if record else ""
        self._plan = Plan(str(self.fired_log), faults, defects, disk)
        self._plan.write(self.directory / "plan")

    def fired(self, fault: Fault) -> int:
        """How often it happened."""
        text = self.fired_log.read_text() if self.fired_log.exists() else ""
        return text.splitlines().count(str(fault))

    # -- lives --------------------------------------------------------------------------------------------------------
    def job_with(self, **changes: Any) -> Job:
        return dataclasses.replace(self.job, **changes)

    def start(self, **changes: Any) -> Trainer:
        """Begin a life; every rank of it. Returns rank 0."""
        self.life += 1
        world = changes.get("world", self.job.world)
        rendezvous = str(self.directory / f"rendezvous-{self.life}")
        self.trainers = [
            self._fork(dataclasses.replace(self.job, life=self.life, rank=r, rendezvous=rendezvous, **changes))
            for r in range(world)
        ]
        return self.trainers[0]

    def _fork(self, job: Job) -> Trainer:
        environ = {
            **_SETTINGS,
            "HOLDFAST_ARENA_DIR": str(self.arena),
            VARIABLE: str(self.directory / "plan"),
            spawning.VARIABLE: self._zygote.socket,
            **job.environ,
        }
        out = self.directory / f"out-{job.life}-{job.rank}"
        made = Trainer(self._zygote, self._zygote.fork(dataclasses.asdict(job), environ, out), out)
        self._forked.append(made)
        return made

    def run(self, **changes: Any) -> list[int]:
        """A whole life; the exit codes of its ranks."""
        self.start(**changes)
        return [t.wait(LIMIT_S) for t in self.trainers]

    def finish(self, **changes: Any) -> None:
        """A whole life that has to end well. Raises: Violation."""
        codes = self.run(**changes)
        if any(codes):
            said = [e["trace"] for e in self.events("error", life=self.life, rank=None)]
            raise Violation(
                "\n".join([f"exit codes {codes}", *said, *(t.said() for t in self.trainers), self.agent_log()])
            )

    def command(self, *args: str) -> tuple[int, str]:
        """`holdfast ARGS`: exit code and what it said."""
        self._commands += 1
        job = self.job_with(
            script="tests.fault.harness.scripts:command", process=COMMAND, args=args, life=-self._commands
        )
        process = self._fork(job)
        return process.wait(LIMIT_S), process.said()

    def kill_trainers(self) -> None:
        for trainer in self.trainers:
            trainer.kill()

    def kill_agent(self) -> None:
        kill_all(self.agents())

    def agents(self) -> list[int]:
        """Process ids of the agent, and of any that is starting."""
        return self._zygote.agents(self.arena)

    def until(self, look: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
        """The first true answer of `look`. Raises: Violation when it never comes."""
        end = time.monotonic() + limit_s
        while not (found := look()):
            if time.monotonic() > end:
                said = "\n".join(t.said() for t in self.trainers)
                raise Violation(f"waited {limit_s:g} s for {what}\n{said}\n{self.agent_log()}")
            time.sleep(_POLL_S)
        return found

    # -- what was seen ------------------------------------------------------------------------------------------------
    def events(self, *names: str, life: int | None = None, rank: int | None = 0) -> list[Event]:
        """What the trainers wrote, oldest first."""
        self._read_log()
        return [
            e
            for e in self._events
            if (not names or e["event"] in names) and life in (None, e["life"]) and rank in (None, e["rank"])
        ]

    def _read_log(self) -> None:
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(self._log_read)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._log_read += len(whole)
            self._events += [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, name: str, *, life: int | None = None, **fields: Any) -> Event:
        """The first such event of this life."""
        life = self.life if life is None else life

        def look() -> list[Event]:
            return [e for e in self.events(name, life=life) if all(e.get(k) == v for k, v in fields.items())]

        event: Event = self.until(look, f"{name} {fields} in life {life}")[0]
        return event

    def loaded(self, life: int | None = None) -> int | None:
        """The step the life began with."""
        step: int | None = self.wait_for("loaded", life=life)["step"]
        return step

    def agent_log(self) -> str:
        return "".join(p.read_text(errors="replace")[-4000:] for p in self.arena.glob("*/*/agent.log"))

    def slots(self) -> list[Path]:
        return sorted(self.arena.glob("*/*/slot-*"))

    # -- the end ------------------------------------------------------------------------------------------------------
    def lose_memory(self) -> None:
        """As when the node goes: processes and arena."""
        self.kill_trainers()
        self.kill_agent()
        for path in self.arena.iterdir():
            shutil.rmtree(path)

    def lose_power(self, seed: int | None = None) -> None:
        """Everything stops; the disk keeps what was synced, and what chance gives. Needs `inject(record=True)`."""
        self.lose_memory()
        cut_power(self.home.parent, seed)

    def close(self) -> None:
        try:
            for process in self._forked:  # also of an earlier life, and a command that did not end in time
                process.kill()
        finally:
            self.kill_agent()
        shutil.rmtree(self.arena, ignore_errors=True)
        if os.path.exists(self.arena):
            raise RuntimeError(f"{self.arena} cannot be removed")
