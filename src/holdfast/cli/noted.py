"""When a step was saved and how well the run did, for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timezone

from holdfast.model.notes import Notes


def told_metrics(notes: Notes | None) -> str:
    """`"val_loss=0.25 acc=0.9"`."""
    return " ".join(f"{name}={value:.6g}" for name, value in notes.metrics) if notes is not None else ""


def told_notes(notes: Notes | None) -> Iterator[str]:
    """Lines about one step."""
    if notes is not None:
        when = datetime.fromtimestamp(notes.saved_at_s, timezone.utc)
        yield f"saved {when:%Y-%m-%d %H:%M:%S} UTC, by the clock of rank 0"
        if notes.metrics:
            yield f"metrics: {told_metrics(notes)}"


def notes_document(notes: Notes | None) -> dict[str, object]:
    """The keys of a JSON document; a metric that is no finite number is a word: "nan", "inf", "-inf"."""
    if notes is None:
        return {"saved_at_s": None, "metrics": {}}
    metrics = {name: value if math.isfinite(value) else str(value) for name, value in notes.metrics}
    return {"saved_at_s": notes.saved_at_s, "metrics": metrics}
