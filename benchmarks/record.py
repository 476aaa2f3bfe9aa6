"""What a suite leaves: numbers against goals, tables for information, every raw sample."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.stats import Estimate, estimate, ratios, verdict

Pairs = list[tuple[float, float]]
_ROOT = Path(__file__).resolve().parent.parent
_MEASURED = ("src", "benchmarks", ":(exclude)benchmarks/results")


FLOORS = {
    "copy": "torch._foreach_copy_ of the same tensors into a faulted mapping of /dev/shm, same torch threads",
    "write": "O_DIRECT write of the same bytes to a new file in the same directory, then fsync",
    "read": "O_DIRECT read of the same file into a faulted mapping of /dev/shm",
    "checked copy": "a fresh process maps a file of /dev/shm, CRC64NVMEs every block and copies it, 2 threads",
    "checked copy, 1 thread": "the same with one thread",
    "steady save": "median stall of the three saves that follow in the same process",
    "median step": "median of the quiet steps (40 in a full run) just before the save",
}


@dataclass(frozen=True, slots=True)
class Number:
    """One number of ours against its floor, pair by pair, in seconds. `goal` None: for information, no verdict.

    `floor` is a key of `FLOORS`, `pairs` are (floor, ours), `raw` is whatever else was sampled.
    """

    key: str
    what: str
    floor: str
    goal: float | None
    pairs: Pairs
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def floors(self) -> Estimate:
        return estimate([floor for floor, _ in self.pairs])

    @property
    def ours(self) -> Estimate:
        return estimate([ours for _, ours in self.pairs])

    @property
    def ratio(self) -> Estimate:
        return ratios(self.pairs)

    @property
    def verdict(self) -> str:
        return "information" if self.goal is None else verdict(self.ratio, self.goal)

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "what": self.what,
            "floor": self.floor,
            "floor_s": self.floors.to_dict(),
            "ours_s": self.ours.to_dict(),
            "ratio": self.ratio.to_dict(),
            "goal": self.goal,
            "verdict": self.verdict,
            "pairs_floor_ours_s": self.pairs,
            "raw": self.raw,
        }


@dataclass(frozen=True, slots=True)
class Flat:
    """Memory over many saves: `growth_bytes` from the second tenth to the last, and what is allowed."""

    key: str
    what: str
    growth_bytes: int
    allowed_bytes: int
    samples_bytes: list[int]

    @property
    def verdict(self) -> str:
        return "reached" if self.growth_bytes <= self.allowed_bytes else "not reached"

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "what": self.what,
            "growth_bytes": self.growth_bytes,
            "allowed_bytes": self.allowed_bytes,
            "verdict": self.verdict,
            "samples_bytes": self.samples_bytes,
        }


Result = Number | Flat


def machine(disk: Path) -> dict[str, Any]:
    """What numbers depend on; no names and no paths."""
    return {
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "file_system": _file_system(disk),
        "python": platform.python_version(),
        "torch": version("torch"),
        "load_average_1_min": os.getloadavg()[0],
    }


def commit(root: Path = _ROOT) -> str:
    """Of what is measured: its hash, with "+" where the code here differs from it; "unknown" outside a repository."""
    try:
        prefix, head = _git(root, "rev-parse", "--show-prefix", "HEAD").splitlines()
        differs = _git(root, "--no-optional-locks", "status", "--porcelain", "--", *_MEASURED)
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return "unknown"
    if prefix:  # a repository of something else, which has a copy of ours
        return "unknown"
    return f"{head}+" if differs else head


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout


def _file_system(path: Path) -> str:
    mounts = [m for m in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "unknown"


def write(path: Path, record: dict[str, Any]) -> None:
    """Atomicity: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
