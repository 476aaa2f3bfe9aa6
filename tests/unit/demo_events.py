"""Event logs of a made-up demo, as its processes would write them: exact times, so that every number can be checked."""

import math

from holdfast.demo.events import Event
from holdfast.demo.script import Script
from holdfast.demo.story import MID_FLUSH, MID_STEP, NODE_LOST

STEP_S, FORWARD_S, STALL_S, FLUSH_S = 0.25, 0.1, 0.012, 0.4
START_S, LOAD_S = 3.0, 0.05
STATE_BYTES = 120 << 20


def loss(step: int, rank: int) -> str:
    return (2.0 + 3.5 * math.exp(-step / 25) + 0.1 * math.sin(step * 1.7 + rank)).hex()


class Log:
    """Writes events at a time of its own."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.t = 1000.0
        self.events: list[Event] = []

    def __call__(self, what: str, *, after: float = 0.0, **fields: object) -> None:
        self.events.append({"t": self.t + after, "what": what, "who": "", **fields})

    def ranks(self, what: str, **fields: object) -> None:
        self.events += [
            {"t": self.t, "what": what, "who": "", "rank": rank, "pid": 100 + rank, **fields} for rank in (0, 1)
        ]

    def start(self, step: int | None, source: str | None) -> None:
        self.t += START_S
        self.ranks("ready", age_s=START_S - 0.3, parameters=10**7)
        self.t += 0.1
        self.ranks("attached")
        self.t += LOAD_S
        sources, n_bytes = ([source], STATE_BYTES) if source else ([], 0)
        self.ranks("loaded", step=step, sources=sources, bytes=n_bytes)

    def train(self, first: int, last: int, *, saving: bool, cut: bool = False) -> None:
        """Steps first to last; with `cut` the last one gets no further than its forward pass."""
        for step in range(first, last + 1):
            self.ranks("begin", step=step)
            self.t += FORWARD_S
            self.ranks("backward", step=step)
            if cut and step == last:
                return
            self.t += STEP_S - FORWARD_S
            for rank in (0, 1):
                self("step", rank=rank, pid=100 + rank, step=step, loss=loss(step, rank))
            if saving:
                self._save(step)

    def _save(self, step: int) -> None:
        if step % self.script.memory_every == 0 or step % self.script.disk_every == 0:
            self.t += STALL_S
            due = ["memory"] + ["disk"] * (step % self.script.disk_every == 0)
            self.ranks("save", step=step, stall_s=STALL_S, due=due)
        if step % self.script.disk_every == 0:
            self("committed", after=FLUSH_S, attempt=1, step=step, bytes=STATE_BYTES)

    def end(self) -> None:
        self.ranks("trained", sha256="ab" * 32)
        self.t += 1.0
        self("exit", code=0)


def undisturbed(script: Script) -> list[Event]:
    log = Log(script)
    log("launch")
    log.start(None, None)
    log.train(0, script.steps - 1, saving=False)
    log.end()
    return log.events


def killed(script: Script) -> list[Event]:
    """Lost: one finished step at the first kill, none at the second, those since the last flush at the third."""
    log = Log(script)
    log("launch")
    log.start(None, None)
    log.train(0, script.mid_step, saving=True, cut=True)
    log("kill", scene=MID_STEP, step=script.mid_step, pids=[101], unfinished=True)
    log.start(script.mid_step - script.memory_every, "memory")
    log.train(script.mid_step - script.memory_every + 1, script.mid_flush, saving=True)
    log.t += 0.02
    log("kill", scene=MID_FLUSH, step=script.mid_flush, pids=[100, 101], unfinished=True)
    log.start(script.mid_flush, "memory")
    log.train(script.mid_flush + 1, script.node_lost, saving=True, cut=True)
    log("kill", scene=NODE_LOST, step=script.node_lost, pids=[99, 100, 101, 102], unfinished=True)
    on_disk = script.node_lost // script.disk_every * script.disk_every
    log.start(on_disk, "disk")
    log.train(on_disk + 1, script.steps - 1, saving=True)
    log.end()
    return log.events
