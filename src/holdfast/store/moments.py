"""What the numbers of a tensor are like, and how two differ: gathered part by part, all in double precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from holdfast.format.numbers import numbers

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


@dataclass(slots=True)
class Moments:
    """Least, greatest, mean, deviation and norm of the finite numbers seen; how many there are of the others.

    Of complex numbers least and greatest are of the absolute values, and there is no mean of use: both parts have one.

    Formula: mean and deviation are merged by part (Chan, Golub, LeVeque 1979), so that no large sum loses small terms.
    """

    count: int = 0
    nan: int = 0
    inf: int = 0
    zero: int = 0
    least: float = math.inf
    greatest: float = -math.inf
    l2: float = 0.0
    mean: float = 0.0
    _finite: int = 0
    _squares: float = 0.0
    """Sum of squared distances from the mean."""

    def add(self, values: Array) -> None:
        """Numbers of any dtype `numbers` gives."""
        self.count += values.size
        finite = np.isfinite(values)
        good = int(finite.sum())
        if good < values.size:
            nan = int(np.isnan(values).sum())
            self.nan, self.inf = self.nan + nan, self.inf + values.size - good - nan
            values = values[finite]
        if not good:
            return
        wide = np.abs(values).astype(np.float64) if values.dtype.kind == "c" else values.astype(np.float64)
        self.zero += int(good - np.count_nonzero(values))
        self.least, self.greatest = min(self.least, float(wide.min())), max(self.greatest, float(wide.max()))
        self.l2 = math.hypot(self.l2, norm(wide))
        with np.errstate(over="ignore", invalid="ignore"):
            self._merge(good, float(wide.mean()), wide)

    def _merge(self, n: int, mean: float, wide: Array) -> None:
        before, self._finite = self._finite, self._finite + n
        away = mean - self.mean
        self.mean += away * n / self._finite
        self._squares += float(np.square(wide - mean).sum()) + away * away * before * n / self._finite

    @property
    def finite(self) -> int:
        return self._finite

    @property
    def deviation(self) -> float:
        """The standard deviation of the whole tensor, not of a sample."""
        return math.sqrt(self._squares / self._finite) if self._finite else 0.0


def norm(wide: Array) -> float:
    """The L2 norm of doubles. Scaled where squares would overflow or vanish."""
    with np.errstate(over="ignore", under="ignore"):
        squares = float(np.dot(wide, wide))
    if 1e-280 < squares < 1e300 or not wide.size:
        return math.sqrt(squares)
    largest = float(np.abs(wide).max())
    if not largest or not math.isfinite(largest):
        return largest
    scaled = wide / largest
    return largest * math.sqrt(float(np.dot(scaled, scaled)))


@dataclass(slots=True)
class Histogram:
    """How many finite numbers lie in each of equal parts between two bounds."""

    low: float
    high: float
    bins: int = 24
    counts: Array = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.bins, np.int64)

    def add(self, values: Array) -> None:
        """Numbers within the bounds; others are left out."""
        wide = np.abs(values) if values.dtype.kind == "c" else values.astype(np.float64)
        wide = wide[np.isfinite(wide)]
        width = self.high / self.bins - self.low / self.bins
        if not width > 0:
            self.counts[0] += wide.size
            return
        with np.errstate(over="ignore", invalid="ignore"):
            place = np.clip(np.floor((wide - self.low) / width), 0, self.bins - 1).astype(np.int64)
        self.counts += np.bincount(place, minlength=self.bins)

    def edges(self) -> list[float]:
        """Where the parts begin, and where the last one ends."""
        share = [i / self.bins for i in range(self.bins + 1)]
        return [self.low * (1 - s) + self.high * s for s in share]


@dataclass(slots=True)
class Change:
    """How the second of two tensors of one shape differs from the first.

    `changed` counts elements whose bytes differ (with other dtypes: whose values do). Norms are of the elements where
    both are finite; `nonfinite` counts those that changed and are not. Integers above 2**53 are rounded for the norms.
    """

    count: int = 0
    changed: int = 0
    nonfinite: int = 0
    l2: float = 0.0
    max_abs: float = 0.0
    first_l2: float = 0.0
    """The norm of the first tensor."""

    def add(self, first: Bytes, second: Bytes, dtypes: tuple[str, str]) -> None:
        """Rows of bytes, one per element."""
        self.count += len(first)
        a = numbers(first, dtypes[0])
        x = _wide(a)
        finite = np.isfinite(x)
        self.first_l2 = math.hypot(self.first_l2, norm(np.abs(x if finite.all() else x[finite])))
        if dtypes[0] == dtypes[1]:
            differs = _unlike(first, second)
            if not differs.any():
                return
        b = numbers(second, dtypes[1])
        if dtypes[0] != dtypes[1]:
            with np.errstate(invalid="ignore"):
                differs = (a != b) & ~(np.isnan(a) & np.isnan(b))
        self.changed += int(np.count_nonzero(differs))
        self._measure(x, _wide(b), differs, finite)

    def _measure(self, x: Array, y: Array, differs: Array, finite: Array) -> None:
        finite &= np.isfinite(y)
        if not finite.all():
            self.nonfinite += int(np.count_nonzero(differs & ~finite))
            x, y = x[finite], y[finite]
        with np.errstate(over="ignore"):
            away = np.abs(np.subtract(y, x, out=y))
        if away.size:
            self.l2, self.max_abs = math.hypot(self.l2, norm(away)), max(self.max_abs, float(away.max()))

    def add_bytes(self, first: Bytes, second: Bytes) -> None:
        """The same where the elements are no numbers for us."""
        self.count += len(first)
        self.changed += int(np.count_nonzero(_unlike(first, second)))

    @property
    def relative(self) -> float:
        """Norm of the change over norm of the first; infinite where that is zero and something changed."""
        if not self.l2:
            return 0.0
        return self.l2 / self.first_l2 if self.first_l2 else math.inf


def _wide(values: Array) -> Array:
    with np.errstate(invalid="ignore"):  # a signalling NaN is no surprise
        return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _unlike(first: Bytes, second: Bytes) -> Array:
    """Which elements differ in some byte. Compared as whole words where there are such: rows of bytes are slow."""
    size = first.shape[1]
    if size in (1, 2, 4, 8):
        word = f"u{size}"
        return np.asarray(first.reshape(-1).view(word) != second.reshape(-1).view(word))
    return np.asarray((first != second).any(1))
