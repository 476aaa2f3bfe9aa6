"""Parse and print sizes and times, one way everywhere."""

from __future__ import annotations

import math
import re

from holdfast.errors import ConfigError

_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "PIB": 2**50}
_SECONDS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes of `"16 GiB"`, `"500MB"` or a bare number.

    Raises:
        ConfigError: not a size.
    """
    if isinstance(text, int):
        return text
    match = _QUANTITY.fullmatch(text)
    n = math.nan if match is None else float(match[1]) * _BYTES.get(match[2].upper(), math.nan)
    if not math.isfinite(n):
        raise ConfigError(f"{text!r} is not a size", hint='write for example "16 GiB" or "500 MB"')
    return round(n)


def parse_seconds(text: str | float) -> float:
    """Seconds of `"15 min"`, `"250ms"` or a bare number.

    Raises:
        ConfigError: not a duration.
    """
    if isinstance(text, (int, float)):
        try:
            return float(text)
        except OverflowError:
            return math.inf if text > 0 else -math.inf
    match = _QUANTITY.fullmatch(text)
    s = math.nan if match is None else float(match[1]) * _SECONDS.get(match[2], math.nan)
    if not math.isfinite(s):
        raise ConfigError(f"{text!r} is not a duration", hint='write for example "15 min", "30 s" or "250 ms"')
    return s


def format_bytes(n: float) -> str:
    """`"1.9 GiB"`: binary units, three significant digits."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n) < 1024 or unit == "TiB":
            return f"{n:.0f} B" if unit == "B" else f"{n:.3g} {unit}" if abs(n) < 1000 else f"{n:.0f} {unit}"
        n /= 1024
    raise AssertionError("unreachable")


def format_seconds(s: float) -> str:
    """`"84 ms"`, `"1.25 s"`, `"3 min 20 s"`."""
    if s < 1:
        return f"{s * 1e3:.3g} ms"
    if s < 120:
        return f"{s:.3g} s"
    minutes, seconds = divmod(round(s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
