"""What was measured of a tier: kept for the planner in the user's state directory, one file per tier and node.

Not beside the tier: the figures are those of this node with that tier, and a run's home belongs to its run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from holdfast.errors import FormatVersionError

FORMAT = 1
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")


class Bandwidth(msgspec.Struct, frozen=True):
    """Bytes per second of objects of one size: median, least and most of the samples.

    `calls_at_once` calls were under way, each moving a part. `publish_s` (of a write, else None): the median of how
    long an object took to become visible and durable once its bytes were written; it is in the bandwidth.
    """

    direction: str
    size_bytes: int
    calls_at_once: int
    bytes_per_s: float
    low_bytes_per_s: float
    high_bytes_per_s: float
    samples: int
    publish_s: float | None = None


class Latency(msgspec.Struct, frozen=True):
    """Seconds of one call, one at a time. `size_bytes`: of the object; for `list` the number of keys is `keys`."""

    operation: str
    size_bytes: int
    keys: int
    median_s: float
    p95_s: float
    samples: int


class Facts(msgspec.Struct, frozen=True):
    """What the figures depend on: the tier as it describes itself, and this machine."""

    scope: str
    survives: str
    part_bytes: int
    concurrency: int
    atomic_create: bool
    host: str
    cores: int
    memory_bytes: int
    kernel: str
    architecture: str
    file_system: str


class Figures(msgspec.Struct, frozen=True):
    """One measurement of one tier. `notes`: what a reader should know, in words (a live run there, sizes left out)."""

    format: int
    url: str
    measured_at: str
    """UTC, ISO 8601."""
    took_s: float
    space_bytes: int
    facts: Facts
    bandwidth: tuple[Bandwidth, ...]
    latency: tuple[Latency, ...]
    notes: tuple[str, ...] = ()


def state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_STATE_HOME/holdfast/tiers`, by default `~/.local/state/holdfast/tiers`."""
    root = environ.get("XDG_STATE_HOME", "")
    base = Path(root) if root.startswith("/") else Path.home() / ".local" / "state"
    return base / "holdfast" / "tiers"


def figures_path(directory: Path, url: str) -> Path:
    """Where the figures of a tier are: its last name for people, a hash for the rest."""
    name = _SAFE.sub("-", url.rstrip("/").rpartition("/")[2]) or "tier"
    return directory / f"{name[:40]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}.json"


def keep_figures(directory: Path, figures: Figures) -> Path:
    """Keep them in place of older ones. Atomicity: rename. Raises: OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    path = figures_path(directory, figures.url)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_figures(directory: Path, url: str) -> Figures | None:
    """The newest figures of a tier on this node, None where it was never measured or the file is unreadable.

    Raises: FormatVersionError when a newer Holdfast wrote them.
    """
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
        found = msgspec.json.decode(figures_path(directory, url).read_bytes(), type=Figures)
        if found.format > FORMAT:
            raise FormatVersionError(f"the figures of {url} have format {found.format}, known is {FORMAT}")
        return found
    return None
