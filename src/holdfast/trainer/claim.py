"""Claims an attempt, in the name of all ranks."""

from __future__ import annotations

from holdfast.model.identity import CheckpointId
from holdfast.trainer.session import Session
from holdfast.wire import messages


def claim(session: Session, parent: CheckpointId | None) -> messages.AttemptAnswer:
    """Claim the next attempt, standing on `parent`; one rank does it. Raises: what the agent refuses with."""
    return session.tell("/attempt", messages.ClaimAttempt(parent), messages.AttemptAnswer)


def abandons(answer: messages.AttemptAnswer, home: str) -> str:
    """A warning where an attempt that starts from nothing abandons what is there; else empty."""
    if answer.left is None:
        return ""
    return (
        f"attempt {answer.attempt} of {home} starts from nothing and abandons what is there, up to {answer.left}"
        "\n  hint: call load(state) before the first save to go on from it, or begin a run in a directory of its own"
    )
