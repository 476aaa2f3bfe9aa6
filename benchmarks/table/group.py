"""The processes of one job, told the same at once."""

from __future__ import annotations

import select
import time
import uuid
from collections.abc import Mapping
from typing import Any

from benchmarks.channel import Variant, VariantError

_START_S, _ORDER_S = 240.0, 300.0
Answers = list[dict[str, Any]]


class Group:
    """One variant per rank. Use as a context manager. An error of one rank ends all: the others wait for it.

    Args:
        setup: the first order of each rank, which its `rank` is added to.
    """

    def __init__(self, module: str, env: Mapping[str, str], ranks: int, **setup: Any) -> None:
        token = uuid.uuid4().hex
        self._members = [Variant(module, dict(env), **setup, rank=rank, token=token) for rank in range(ranks)]

    def ready(self) -> Answers:
        """Wait until all are set up. Raises: VariantError."""
        return self._gather("setup", _START_S)

    def ask(self, order: str, **arguments: Any) -> Answers:
        """One order to all ranks; their answers by rank. Raises: VariantError."""
        for member in self._members:
            member.send(order, **arguments)
        return self._gather(order, _ORDER_S)

    def kill(self) -> None:
        """kill -9 of every rank."""
        for member in self._members:
            member.kill()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.kill()
        for member in self._members:
            member.hang_up()  # all of them first: the end of a rank may wait for the others
        for member in self._members:
            member.__exit__()

    def _gather(self, order: str, limit_s: float) -> Answers:
        deadline, waiting = time.monotonic() + limit_s, dict(enumerate(self._members))
        answers: dict[int, dict[str, Any]] = {}
        try:
            while waiting:
                left_s = max(0.0, deadline - time.monotonic())
                readable = select.select(list(waiting.values()), [], [], left_s)[0]
                if not readable:
                    raise VariantError(f"rank {min(waiting)} did not answer {order!r} within {limit_s:g} s")
                for rank in [r for r, member in waiting.items() if member in readable]:
                    answers[rank] = waiting.pop(rank).receive(order)
        except VariantError:
            self.kill()
            raise
        return [answers[rank] for rank in range(len(self._members))]
