"""Sizes and times, parsed and printed."""

from __future__ import annotations

import pytest

from holdfast.errors import ConfigError
from holdfast.units import format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "n"),
    [("16 GiB", 16 << 30), ("500MB", 500_000_000), ("1.5 KiB", 1536), ("42", 42), (42, 42), ("7 b", 7)],
)
def test_parse_bytes(text: str | int, n: int) -> None:
    assert parse_bytes(text) == n


@pytest.mark.parametrize(("text", "s"), [("250ms", 0.25), ("15 min", 900.0), ("2h", 7200.0), (3, 3.0), ("1.5", 1.5)])
def test_parse_seconds(text: str | float, s: float) -> None:
    assert parse_seconds(text) == s


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 parsec", "1e9", "nan", "0x10", "1 GiB extra", "9" * 400])
def test_what_is_no_quantity_is_refused_with_an_example(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        with pytest.raises(ConfigError, match="write for example"):
            parse(text)


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (2_050_000_000, "1.91 GiB"), (1010 << 20, "1010 MiB")],
)
def test_format_bytes(n: int, text: str) -> None:
    assert format_bytes(n) == text


@pytest.mark.parametrize(
    ("s", "text"), [(0.0841, "84.1 ms"), (1.25, "1.25 s"), (200, "3 min 20 s"), (7260, "2 h 1 min")]
)
def test_format_seconds(s: float, text: str) -> None:
    assert format_seconds(s) == text
