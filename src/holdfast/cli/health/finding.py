"""A finding: what was looked at, how it stands, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """From good to bad. Only BAD makes `doctor` exit with 1."""

    OK = 0
    WARN = 1
    BAD = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` is a stable name for programs; `todo` says what to do, empty where nothing is to be done."""

    check: str
    level: Level
    message: str
    todo: str = ""


def ok(check: str, message: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Level.OK, message)


def warn(check: str, message: str, todo: str) -> Finding:
    """Works, with a loss one should know of."""
    return Finding(check, Level.WARN, message, todo)


def bad(check: str, message: str, todo: str) -> Finding:
    """Saving or loading will fail."""
    return Finding(check, Level.BAD, message, todo)
