"""The mark of a value that belongs to one rank alone: random states, data loaders, batch-norm statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from holdfast.errors import UsageError

OnResize = Literal["error", "drop"] | Callable[[list[Any], int, int], Any]
"""What a load at another world size does: refuse, leave the live value as it is, or make one from all ranks' values:
`callable(values, rank, world_size)`."""


class PerRank:
    """A marked value. `load` copies into tensors in place, calls `load_state_dict`, or replaces `value`."""

    __slots__ = ("on_resize", "value")

    def __init__(self, value: Any, on_resize: OnResize) -> None:
        self.value = value
        self.on_resize = on_resize

    def __repr__(self) -> str:
        return f"per_rank({self.value!r})"


def per_rank(x: Any, on_resize: OnResize = "error") -> PerRank:
    """Mark `x`, anything a state may hold, as this rank's own: every rank saves and loads its own.

    Args:
        on_resize: what to do when the checkpoint is of another number of ranks.

    Raises: UsageError.
    """
    if isinstance(x, PerRank):
        raise UsageError("per_rank was applied twice", hint="mark the outermost value only")
    if on_resize not in ("error", "drop") and not callable(on_resize):
        raise UsageError(f"on_resize={on_resize!r} is neither 'error', 'drop' nor a callable")
    return PerRank(x, on_resize)
