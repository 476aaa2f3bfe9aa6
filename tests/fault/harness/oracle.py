"""The state of the job under test as a pure function of (life, step), and what images on a tier say, read without
Holdfast.

A life is one process start of the job. Two lives that save the same step save different bytes, so that a mixture of
attempts cannot pass for either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]
PER_RANK = "mine"
_W = (2400, 1024)  # 9.4 MiB: three checksum blocks
_BASE = (np.arange(_W[0] * _W[1], dtype=np.int64) * 2654435761 % 2**31).astype(np.int32).reshape(_W)


class Violation(AssertionError):
    """A promise was broken."""


def expected(life: int, step: int, rank: int = 0) -> Arrays:
    """Every tensor of the state, by name."""
    with np.errstate(over="ignore"):
        w = _BASE + np.int32(life * 1_000_003 + step * 7919)
    return {
        "model.w": w,
        "model.b": np.arange(1000, dtype=np.float32) + np.float32(step + life / 64),
        "model.mean": np.arange(17, dtype=np.float64) / 7 + step + life * 1000,
        "extra": np.array([life, step, life * step, -life, -step], dtype=np.int64),
        PER_RANK: np.array([rank, life, step], dtype=np.int64),
    }


def plain(life: int, step: int) -> dict[str, Any]:
    """Every plain value of the state."""
    return {"life": life, "step": step, "note": {"of": (life, step), "third": step / 3}}


@dataclass(frozen=True, order=True)
class Committed:
    """A checkpoint with a manifest and without tombstone."""

    attempt: int
    step: int


def _pair(name: str) -> Committed:
    attempt, _, step = name.partition("-")
    return Committed(int(attempt), int(step))


def committed(home: Path) -> set[Committed]:
    """What a file tier lists."""
    return _names(home, "manifests") - _names(home, "tombstones")


def _names(home: Path, folder: str) -> set[Committed]:
    return {_pair(p.name) for p in (home / folder).glob("*")}


def stray_images(home: Path) -> list[Path]:
    """Images without a manifest."""
    there = committed(home)
    images = home.glob("images/*/*/*")
    return [p for p in images if Committed(int(p.parent.parent.name), int(p.parent.name)) not in there]


def temporaries(home: Path) -> list[Path]:
    return list((home / ".tmp").glob("*"))


def check_on_disk(home: Path, checkpoint: Committed, *, life: int, world: int) -> None:
    """Compare every byte of a committed checkpoint with what the job computed.

    Raises: Violation.
    """
    folder = home / "images" / f"{checkpoint.attempt:08d}" / f"{checkpoint.step:012d}"
    ranks = {int(p.name.partition("-")[0]): p for p in folder.glob("*.safetensors")}
    if sorted(ranks) != list(range(world)):
        raise Violation(f"{checkpoint} is committed with images of ranks {sorted(ranks)} of {world}")
    covered = {name: np.zeros(array.shape, dtype=bool) for name, array in expected(life, checkpoint.step).items()}
    for rank, path in ranks.items():
        want = expected(life, checkpoint.step, rank)
        for name, place, found in entries(path):
            if not np.array_equal(want[name][place], found):
                raise Violation(f"{checkpoint}: {name}{place} in {path.name} is not what life {life} saved")
            covered[name][place] = True
    holes = [name for name, seen in covered.items() if not seen.all()]
    if holes:
        raise Violation(f"{checkpoint} is committed without all of {holes}")


def check_names(home: Path) -> None:
    """Whatever stands under the name of an image, committed or not, is that image: it was synced before it had a name.

    Raises: Violation.
    """
    for path in home.glob("images/*/*/*.safetensors"):
        attempt, step = int(path.parent.parent.name), int(path.parent.name)
        found = next((found for name, _, found in entries(path) if name == "extra"), None)
        if found is not None and found[1] != step:
            raise Violation(f"{path} is no image of attempt {attempt}, step {step}, but of step {found[1]}")


def entries(path: Path) -> Iterator[tuple[str, tuple[slice, ...], np.ndarray[Any, Any]]]:
    """(tensor, where in it, values) of each entry of an image."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
        pieces = json.loads(header["__metadata__"].get("holdfast.pieces", "{}"))
    except (ValueError, KeyError) as e:
        raise Violation(f"{path} is no image: {e!r}") from e
    for name, entry in header.items():
        if not name.startswith("__"):
            yield _entry(name, entry, pieces.get(name, {}), data[start:])


_DTYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "F64": np.float64}


def _entry(
    name: str, entry: Mapping[str, Any], piece: Mapping[str, Any], data: bytes
) -> tuple[str, tuple[slice, ...], np.ndarray[Any, Any]]:
    begin, end = entry["data_offsets"]
    array = np.frombuffer(data[begin:end], dtype=_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    offsets = piece.get("offsets", [0] * array.ndim)
    place = tuple(slice(o, o + n) for o, n in zip(offsets, array.shape, strict=True))
    return piece.get("fqn", name.partition("@")[0]), place, array
