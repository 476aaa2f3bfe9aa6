"""Resident memory over many saves: trainer, agent, arena."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.channel import Variant
from benchmarks.files import agents
from benchmarks.plan import Bench
from benchmarks.record import Flat

_ALLOWED_BYTES = 8 << 20
_NAMES = {
    "trainer": "private memory of the trainer",
    "agent": "private memory of the agent",
    "arena": "shared memory of the arena",
}


def memory(bench: Bench) -> list[Flat]:
    """Samples after every save. What a process shares is the arena; what it owns is counted apart from that."""
    samples: dict[str, list[int]] = {key: [] for key in _NAMES}
    with Variant("benchmarks.ours", bench.places.environment(), **bench.setup(threads=2), home=bench.home) as trainer:
        trainer.ready()
        trainer.ask("attach")
        trainer.ask("prepare")
        for index in range(bench.plan.saves):
            bench.say(f"memory: save {index + 1}")
            trainer.ask("save")
            samples["trainer"].append(_private_bytes(trainer.pid))
            samples["agent"].append(sum(_private_bytes(a.pid) for a in agents(bench.places.memory)))
            samples["arena"].append(_allocated_bytes(bench.places.memory))
        trainer.ask("discard")
    return [_flat(key, samples[key]) for key in _NAMES]


def _flat(key: str, samples: list[int]) -> Flat:
    """From the second tenth (the first is warming up) to the last."""
    tenth = max(1, len(samples) // 10)
    growth = statistics.median(samples[-tenth:]) - statistics.median(samples[tenth : 2 * tenth])
    what = f"growth of the {_NAMES[key]} over {len(samples)} saves"
    return Flat(f"memory_{key}", what, round(growth), 0 if key == "arena" else _ALLOWED_BYTES, samples)


def _private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["RssAnon"].split()[0]) * 1024


def _allocated_bytes(directory: Path) -> int:
    return sum(f.stat().st_blocks * 512 for f in directory.rglob("*") if f.is_file())
