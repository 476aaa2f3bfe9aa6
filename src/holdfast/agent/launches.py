"""Who is attached: the one living launch, its ranks, their pages.

Ranks of one launch attach with the id rank 0 made. Another launch is refused only while a process of the first still
exists on the node; sockets are not asked, since torchrun restarts faster than they close.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import RunBusyError
from holdfast.wire.mapped import MappedFile
from holdfast.wire.messages import Launch
from holdfast.wire.pages import PAGE_BYTES, LetGo, TrainerPage
from holdfast.wire.processes import process_alive


@dataclass(slots=True)
class Trainer:
    """One rank of the living launch."""

    rank: int
    file: MappedFile
    page: TrainerPage
    attachments: int = 0
    closed: bool = False
    discard: bool = False

    @property
    def alive(self) -> bool:
        """Whether its process exists and has not let go."""
        return not self.page.let_go and process_alive(self.page.pid, self.page.start)

    @property
    def attached(self) -> bool:
        """Whether its connection is open."""
        return self.attachments > 0


class Launches:
    """Invariants: all trainers belong to `launch`; a rank's page file is made once per process of the rank.

    Threads: the agent's event loop only.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.launch = ""
        self.world_size = 0
        self.trainers: dict[int, Trainer] = {}

    def adopt(self) -> None:
        """Take up the pages of a launch that attached to an agent before this one and has a process that lives.

        Also those of its ranks that are gone: how they went decides how the launch ends.
        """
        self._remove_half_made()
        for path in sorted(self._root.glob("trainer-*.page")):
            file = MappedFile(path)
            page = TrainerPage(file.buffer)
            if page.valid and process_alive(page.pid, page.start):
                self.launch, self.world_size = _launch_of(page), page.world_size
            page.release()
            file.close()
        for path in sorted(self._root.glob("trainer-*.page")):
            file = MappedFile(path)
            page = TrainerPage(file.buffer)
            if self.launch and page.valid and _launch_of(page) == self.launch:
                self.trainers[page.rank] = Trainer(page.rank, file, page, closed=page.let_go == LetGo.CLOSED)
                continue
            page.release()
            file.close()
            path.unlink(missing_ok=True)

    def _remove_half_made(self) -> None:
        """An agent died while making a page: reading one without room would kill this agent, too."""
        for path in self._root.glob("trainer-*.page"):
            found = path.stat()
            if found.st_size < PAGE_BYTES or found.st_blocks == 0:
                path.unlink()

    def blockers(self, launch: str) -> list[int]:
        """Process ids of another launch that still live."""
        if launch == self.launch:
            return []
        return [t.page.pid for t in self.trainers.values() if t.alive]

    def begin(self, launch: Launch) -> bool:
        """Admit one rank; whether this begins a new launch.

        Raises: RunBusyError while a process of another launch lives.
        """
        blockers = self.blockers(launch.launch)
        if blockers:
            raise RunBusyError(
                f"another job of this run lives on this node (process {', '.join(map(str, blockers))})",
                hint="end it first, or give this job another run name or URL",
            )
        new = launch.launch != self.launch
        if new:
            self.forget()
            self.launch, self.world_size = launch.launch, launch.world_size
        self._admit(launch)
        return new

    def _admit(self, launch: Launch) -> None:
        known = self.trainers.get(launch.rank)
        if known is not None and (known.page.pid, known.page.start) == (launch.pid, launch.start):
            known.page.let_go = LetGo.NO
            return
        file = MappedFile(self._root / page_name(launch.rank), PAGE_BYTES)
        page = TrainerPage(file.buffer)
        page.initialise()
        page.launch_hi, page.launch_lo = int(launch.launch[:16], 16), int(launch.launch[16:], 16)
        page.pid, page.start = launch.pid, launch.start
        page.rank, page.world_size = launch.rank, launch.world_size
        page.current_step = page.given_up_step = page.waiting_step = -1
        self.trainers[launch.rank] = Trainer(launch.rank, file, page)

    @contextlib.contextmanager
    def attachment(self, rank: int) -> Iterator[None]:
        """While a connection of a rank is open. One of the launch before may end late: it says nothing of this one."""
        trainer = self.trainers.get(rank)
        if trainer is not None:
            trainer.attachments += 1
        try:
            yield
        finally:
            if trainer is not None:
                trainer.attachments -= 1

    @property
    def complete(self) -> bool:
        """Every rank of the launch on this node attached."""
        return bool(self.trainers) and len(self.trainers) == self.world_size

    @property
    def anyone_alive(self) -> bool:
        return any(t.alive for t in self.trainers.values())

    @property
    def all_closed(self) -> bool:
        return self.complete and all(t.closed for t in self.trainers.values())

    @property
    def left(self) -> list[int]:
        """Ranks that are gone and never closed."""
        return [r for r in range(self.world_size) if self._ending_of(r) is LetGo.LEFT]

    @property
    def open(self) -> list[int]:
        """Ranks that may still save and have yet to close; one without a page (its arena was removed) may yet come."""
        return [r for r in range(self.world_size) if self._ending_of(r) is LetGo.NO]

    def _ending_of(self, rank: int) -> LetGo:
        trainer = self.trainers.get(rank)
        if trainer is not None and trainer.closed:
            return LetGo.CLOSED
        return LetGo.NO if trainer is None or trainer.alive else LetGo.LEFT

    def forget(self) -> None:
        """Drop the pages of a launch that is over."""
        for trainer in self.trainers.values():
            trainer.page.release()
            trainer.file.close()
            trainer.file.path.unlink(missing_ok=True)
        self.trainers.clear()
        self.launch, self.world_size = "", 0

    def close(self) -> None:
        """Unmap; files stay for the next agent."""
        for trainer in self.trainers.values():
            trainer.page.release()
            trainer.file.close()


def _launch_of(page: TrainerPage) -> str:
    return f"{page.launch_hi:016x}{page.launch_lo:016x}"


def page_name(rank: int) -> str:
    """The file of a rank's page in the arena directory."""
    return f"trainer-{rank:05d}.page"
