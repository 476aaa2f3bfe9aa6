"""The record of the table: it grows with every run of the command on the same machine, and says which run made what.

Runs may be of several commits of Holdfast: each has its own.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.table.bench import Cell

FORMAT = 1
_PACKAGES = ("holdfast", "torch", "torch-checkpointing", "torchsnapshot", "safetensors", "orbax-checkpoint", "jax")


class BookError(RuntimeError):
    """The record that is there cannot be extended by this run."""


class Book:
    """Invariant: what is on the disk is whole, and has everything that `add` was given.

    Raises: BookError when a record is there that another machine, other packages or another size made.
    """

    def __init__(self, path: Path, disk: Path, *, command: str, quick: bool) -> None:
        self._path = path
        facts = record.machine(disk)
        load_average = facts.pop("load_average_1_min")
        facts["packages"] = _versions()
        self.data: dict[str, Any] = {
            "format": FORMAT, "is_measurement": not quick, "machine": facts, "runs": [], "cells": {}
        }  # fmt: skip
        if path.exists():
            self.data = self._read(facts, quick)
        self.run = len(self.data["runs"]) + 1
        began = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.data["runs"].append({
            "run": self.run, "commit": record.commit(), "command": command, "began": began,
            "load_average_1_min": load_average, "took_s": {},
        })  # fmt: skip

    def _read(self, facts: dict[str, Any], quick: bool) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path.read_text())
        if found.get("format") != FORMAT or found["is_measurement"] == quick:
            raise BookError(f"{self._path} is another kind of record; name another with --json, or remove it")
        differing = sorted(k for k in facts if found["machine"].get(k) != facts[k])
        if differing:
            raise BookError(
                f"{self._path} was made with another {', '.join(differing)}; numbers of two machines are not mixed:"
                " name another record with --json, or remove it"
            )
        return found

    def has(self, key: str) -> bool:
        """Whether both sides of a cell were measured. What failed is tried again by the next run."""
        cell = self.data["cells"].get(key)
        return cell is not None and not cell["failed"] and not cell["ours_failed"]

    def add(self, cells: list[Cell], *, piece: str, took_s: float) -> None:
        """Keep what was measured, and how long the piece took."""
        for cell in cells:
            self.data["cells"][cell.key] = cell.to_dict() | {"run": self.run}
        self.data["runs"][-1]["took_s"][piece] = round(took_s, 1)
        record.write(self._path, self.data)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
