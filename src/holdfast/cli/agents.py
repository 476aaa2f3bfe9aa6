"""The agents of this user on this node, asked how they stand. One that does not answer is shown as such."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from holdfast.cli.arenas import Arena, arena_of, arenas, look
from holdfast.errors import AgentError, HoldfastError
from holdfast.model.identity import CheckpointId
from holdfast.wire.client import AgentClient
from holdfast.wire.spawn import SOCKET
from holdfast.wire.status import History, Status

ANSWER_S = 3.0
"""An agent that lives answers in milliseconds."""
_ASKED_AT_ONCE = 16
SERVING, SILENT, NONE = "serving", "silent", "none"


@dataclass(frozen=True, slots=True)
class Seen:
    """One arena and what its agent said. `state` is serving, silent (it lives and does not answer) or none."""

    arena: Arena
    state: str
    status: Status | None = None
    history: History | None = None
    error: HoldfastError | None = None

    @property
    def run(self) -> str:
        return self.arena.settings.run if self.arena.settings is not None else self.arena.path.name

    @property
    def home(self) -> str:
        return self.arena.settings.home if self.arena.settings is not None else ""

    @property
    def only_here(self) -> list[CheckpointId]:
        """Of an arena without agent: what is whole in it and durable nowhere."""
        return self.arena.only_here() if self.state == NONE else []


def see_all(arena_dir: str) -> list[Seen]:
    """Every arena of this user, each agent asked at the same time as the others."""
    return _ask_all(arenas(arena_dir))


def see(url: str) -> Seen:
    """The arena of one run. Raises: AgentError where no agent runs."""
    place = arena_of(url)
    [seen] = _ask_all([look(place)])
    if seen.state == NONE:
        left = ", ".join(map(str, seen.only_here))
        raise AgentError(
            f"no agent runs for this run on this node ({place})" + (f"; its memory alone holds {left}" if left else ""),
            hint="a job starts it; `holdfast ls URL` lists checkpoints; HOLDFAST_ARENA_DIR must be the job's",
        )
    return seen


def read_page(arena: Path) -> bytes:
    """The agent's page. Raises: AgentError, DeadlineError."""
    return AgentClient(arena / SOCKET).read("/", timeout_s=ANSWER_S)


def _ask_all(found: Iterable[Arena]) -> list[Seen]:
    with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="holdfast-ask") as pool:
        return list(pool.map(_ask, found))


def _ask(arena: Arena) -> Seen:
    if not arena.alive:
        return Seen(arena, NONE)
    client = AgentClient(arena.path / SOCKET)
    try:
        status = client.get("/status", Status, timeout_s=ANSWER_S)
    except HoldfastError as e:
        return Seen(arena, SILENT, error=e)
    history = None
    with contextlib.suppress(HoldfastError):  # an older one keeps none
        history = client.get("/history", History, timeout_s=ANSWER_S)
    return Seen(arena, SERVING, status, history)
