"""What rank 0 notes in its image: when a step was saved, and the metrics the loop gave."""

from __future__ import annotations

import time
from collections.abc import Mapping

from holdfast.errors import UsageError
from holdfast.format import notes as codec
from holdfast.model.notes import Notes


def note(metrics: Mapping[str, object] | None) -> bytes:
    """The notes of a save that is made now.

    Raises: UsageError for what is no number, has no proper name, or is too much.
    """
    found = []
    for name, value in (metrics or {}).items():
        if not isinstance(name, str):
            raise UsageError(f"a metric cannot be named {name!r}", hint="names are text")
        try:
            found.append((name, float(value)))  # type: ignore[arg-type]  # also a tensor or an array of one number
        except (TypeError, ValueError, RuntimeError, OverflowError) as e:
            raise UsageError(f"the metric {name!r} is no number: {value!r:.80}", hint="pass a float") from e
    return codec.encode(Notes(max(0, int(time.time())), tuple(sorted(found))))
