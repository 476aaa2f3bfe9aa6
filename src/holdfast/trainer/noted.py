"""What rank 0 notes in its image: when a step was saved, and the metrics the loop gave."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence

from holdfast.errors import UsageError
from holdfast.format import notes as codec
from holdfast.model.notes import Notes
from holdfast.model.place import TierRule


class Wished:
    """Warns once of each tier that keeps the best by a metric it is not given: a misspelt one would keep nothing."""

    def __init__(self, rules: Sequence[TierRule]) -> None:
        self._names = {r.name: r.best_metric for r in rules if r.best_metric}

    def check(self, due: Iterable[str], metrics: Mapping[str, object] | None) -> None:
        """What is due where, with these metrics; said at the line that called whoever calls this. None at all may be
        meant."""
        if metrics is None:
            return
        for tier in sorted(self._names.keys() & set(due)):
            wished = self._names[tier]
            if wished in metrics:
                continue
            del self._names[tier]
            given = ", ".join(map(repr, metrics)) or "none"
            warnings.warn(
                f"tier {tier} keeps the best by {wished!r}, and save() was given {given}: such a step is never best",
                RuntimeWarning,
                stacklevel=3,
            )


def note(metrics: Mapping[str, object] | None) -> bytes:
    """The notes of a save that is made now.

    Raises: UsageError for what is no number, has no proper name, or is too much.
    """
    if not isinstance(metrics, Mapping | None):
        raise UsageError(f"metrics are a {type(metrics).__name__}", hint='pass a dict: metrics={"val_loss": loss}')
    found = []
    for name, value in (metrics or {}).items():
        if not isinstance(name, str):
            raise UsageError(f"a metric cannot be named {name!r}", hint="names are text")
        try:
            found.append((name, float(value)))  # type: ignore[arg-type]  # also a tensor or an array of one number
        except (TypeError, ValueError, RuntimeError, OverflowError) as e:
            raise UsageError(f"the metric {name!r} is no number: {value!r:.80}", hint="pass a float") from e
    return codec.encode(Notes(max(0, int(time.time())), tuple(sorted(found))))
