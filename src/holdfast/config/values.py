"""Turns what a user wrote into values: by the name of the setting, which says its unit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from holdfast.config.settings import absolute
from holdfast.errors import ConfigError
from holdfast.units import parse_bytes, parse_seconds

_CORES = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")
_MOST_CORES = 1 << 16
_NICE = range(-20, 20)
_TOO_MANY_BYTES = 1 << 63
"""No file and no mapping is so large."""


def convert(name: str, value: Any) -> Any:
    """The value of a setting of the run. Raises: ConfigError saying what it may be."""
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_s"):
        return duration(value)
    return _BY_NAME[name](value)


def convert_of_tier(name: str, value: Any) -> Any:
    """The value of a setting of a tier; None stays None. Raises: ConfigError saying what it may be."""
    if value is None:
        return None
    if name == "max_bytes_per_s":
        rate = size(value.removesuffix("/s") if isinstance(value, str) else value)
        return at_least(1, rate, 'a tier needs some bandwidth: write for example "500 MB/s"')
    if name.endswith("_s"):
        seconds = duration(value)
        if seconds <= 0:
            raise ConfigError(f"{value!r} is no time", hint='write for example "15 min"')
        return seconds
    if name.startswith(("every_", "keep_")):
        return _count(name, value)
    return text(value)


def _count(name: str, value: Any) -> int:
    hint = f"{name} is a whole number from 1 up"
    try:
        return at_least(1, whole_number(value, exactly=True), hint)
    except ConfigError as e:
        raise ConfigError(e.message, hint=hint) from e


def size(value: Any) -> int:
    """Bytes. Raises: ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ConfigError(f"{value!r} is not a size", hint='write for example "16 GiB", or bytes as a whole number')
    found = at_least(0, parse_bytes(value), "a size is not negative")
    if found >= _TOO_MANY_BYTES:
        raise ConfigError(f"{value!r} is too large", hint="a size is below 8 EiB")
    return found


def duration(value: Any) -> float:
    """Seconds. Raises: ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(f"{value!r} is not a duration", hint='write for example "15 min", or seconds as a number')
    seconds = parse_seconds(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ConfigError(f"{value!r} is not a duration", hint="a duration is finite and not negative")
    return seconds


def whole_number(value: Any, *, exactly: bool = False) -> int:
    """A whole number; a text that says one counts (the environment has only text) unless `exactly`.

    Raises: ConfigError.
    """
    fits = isinstance(value, int) and not isinstance(value, bool)
    if fits or (isinstance(value, str) and not exactly and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value)):
        return int(value)
    raise ConfigError(f"{value!r} is not a whole number", hint="write for example 10")


def at_least(least: int, value: int, hint: str) -> int:
    """The value. Raises: ConfigError when it is too small."""
    if value < least:
        raise ConfigError(f"{value!r} is too small", hint=hint)
    return value


def text(value: Any) -> str:
    """Text that says something. Raises: ConfigError."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{value!r} is no text", hint='write it in quotes: "like this"')
    return value


def cores(value: Any) -> str:
    """ "outside", "all", or a list of cores. Raises: ConfigError."""
    if value in ("outside", "all"):
        return str(value)
    parse_cores(value)
    return str(value)


def parse_cores(value: Any) -> frozenset[int]:
    """The cores that "0-3,8" lists. Raises: ConfigError."""
    found: set[int] = set()
    if isinstance(value, str) and _CORES.fullmatch(value):
        for part in value.split(","):
            first, _, last = part.partition("-")
            if int(last or first) < _MOST_CORES:
                found.update(range(int(first), int(last or first) + 1))
    if not found:
        raise ConfigError(f"{value!r} lists no cores", hint='write "outside", "all", or a list such as "0-3,8"')
    return frozenset(found)


def save_errors(value: Any) -> str:
    """What `on_save_error` may be. Raises: ConfigError."""
    if value in ("warn", "raise"):
        return str(value)
    hint = 'write "warn", "raise", or after how many failed saves in a row to raise'
    try:
        return str(at_least(1, whole_number(value), hint))
    except ConfigError as e:
        raise ConfigError(f"{value!r} is no answer to an error", hint=hint) from e


def nice(value: Any) -> int:
    """A niceness. Raises: ConfigError."""
    number = whole_number(value)
    if number not in _NICE:
        raise ConfigError(f"{number} is no niceness", hint="from -20 (first) to 19 (last)")
    return number


_BY_NAME: dict[str, Callable[[Any], Any]] = {
    "arena_dir": lambda value: absolute(text(value)),
    "on_save_error": save_errors,
    "agent_nice": nice,
    "agent_cores": cores,
}
