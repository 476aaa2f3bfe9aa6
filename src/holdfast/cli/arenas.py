"""The arena directories of this user on this node, looked at from outside: nothing here changes one but `remove`.

An arena outlives its trainers on purpose, and its agent when that was killed. What is in one is read from its pages.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.cli.arguments import config_in_file, config_of
from holdfast.config import Settings
from holdfast.errors import AgentError, HoldfastError, RunBusyError
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.wire.client import AgentClient
from holdfast.wire.pages import SlotState, TrainerPage, copy_page, slot_page
from holdfast.wire.processes import process_alive
from holdfast.wire.spawn import CONFIG, LOCK, SOCKET, answers, read_config

BLOCK_BYTES = 512
"""Unit of `st_blocks`, whatever the file system's own block size."""


@dataclass(frozen=True, slots=True)
class SlotImage:
    """An image that stands in a slot. `committed` says that a slower tier has its checkpoint, too."""

    id: ImageId
    size_bytes: int
    world_size: int
    image_count: int
    committed: bool
    relies_on: ImageId | None = None


@dataclass(frozen=True, slots=True)
class Arena:
    """One arena directory, as it was found. `settings` is None where no readable configuration stands in it."""

    path: Path
    settings: Settings | None
    alive: bool
    """An agent answers, or holds the lock and will."""
    trainers: tuple[int, ...]
    """Process ids of living trainers."""
    size_bytes: int
    images: tuple[SlotImage, ...]

    @property
    def left_over(self) -> bool:
        return not self.alive and not self.trainers

    def serves(self, url: str) -> bool:
        """Whether one of the run's tiers is `url`."""
        return self.settings is not None and any(t.url == url for t in self.settings.tiers)

    def only_here(self) -> list[CheckpointId]:
        """Checkpoints that are whole in this node's memory and durable nowhere."""
        by_checkpoint: dict[CheckpointId, list[SlotImage]] = defaultdict(list)
        for image in self.images:
            by_checkpoint[image.id.checkpoint].append(image)
            shared = [i for i in self.images if i.id == image.relies_on]
            by_checkpoint[image.id.checkpoint] += [replace(i, committed=False) for i in shared]
        return sorted(c for c, held in by_checkpoint.items() if _whole(held) and not any(i.committed for i in held))


def _whole(images: list[SlotImage]) -> bool:
    held = {(i.id.rank, i.id.image) for i in images}
    counts = {i.id.rank: i.image_count for i in images}
    return all((rank, n) in held for rank in range(images[0].world_size) for n in range(counts.get(rank, 1)))


def arenas(arena_dir: str) -> list[Arena]:
    """Every arena of this user under `arena_dir`."""
    root = Path(arena_dir) / f"holdfast-{os.getuid()}"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return [look(path) for path in sorted(root.iterdir()) if path.is_dir()]
    return []


def arena_of(url: str) -> Path:
    """Where the arena of the run at `url` is on this node, or would be.

    An arena whose configuration names `url` among its tiers comes first: a job may have more tiers than the URL says,
    or a run name of its own.
    """
    settings = config_of(url).resolve()
    if (settings.arena / CONFIG).exists():
        return settings.arena
    found = [a for a in arenas(settings.arena_dir) if a.serves(url)]
    return max(found, key=lambda a: a.alive).path if found else settings.arena


def settings_of(url: str) -> Settings:
    """The settings a named file gives, or those the run at `url` has on this node, or those a bare URL means."""
    arena = arena_of(url)
    known = (arena / CONFIG).exists() and config_in_file(url) is None
    return read_config(arena) if known else config_of(url).resolve()


def settings_of_node() -> Settings:
    """Those that no URL changes, where no run is named: its name and its tiers mean nothing."""
    return config_of("file:///nowhere").resolve()


def live_agent(url: str) -> AgentClient | None:
    """A client of the agent that serves `url` on this node, None where there is none."""
    arena = arena_of(url)
    return AgentClient(arena / SOCKET) if answers(arena) else None


def look(path: Path) -> Arena:
    """What stands in one arena directory."""
    settings = None
    with contextlib.suppress(HoldfastError):
        settings = read_config(path)
    files = list(_files(path))
    return Arena(
        path=path,
        settings=settings,
        alive=answers(path) or _locked(path / LOCK),
        trainers=tuple(pid for f in files if f.suffix == ".page" for pid in _trainer(f)),
        size_bytes=sum(_allocated(f) for f in files),
        images=tuple(i for f in files if f.name.startswith("slot-") for i in _slot(f)),
    )


def remove(arena: Arena) -> None:
    """Free an arena that nobody uses. It is locked meanwhile, so that no agent starts in it.

    Raises: RunBusyError when somebody uses it after all; AgentError when the file system refuses.
    """
    try:
        fd = os.open(arena.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if look(arena.path).trainers:
            raise RunBusyError(f"a trainer uses {arena.path}", hint="end the job first")
        shutil.rmtree(arena.path)
    except BlockingIOError as e:
        raise RunBusyError(
            f"an agent started in {arena.path}", hint=f"end it with `holdfast agent --arena {arena.path} --stop`"
        ) from e
    except OSError as e:
        raise AgentError(f"cannot remove {arena.path}: {e.strerror}", hint="look at its owner and mode") from e
    finally:
        os.close(fd)


def _files(path: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(f for f in path.iterdir() if f.is_file())


def _allocated(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_blocks * BLOCK_BYTES
    return 0


def _locked(lock: Path) -> bool:
    """Whether somebody holds the lock, by the kernel's list: trying it would make an agent that just starts lose it."""
    with contextlib.suppress(OSError):
        stat = lock.stat()
        name = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino}"
        return any(name in line.split() for line in Path("/proc/locks").read_text().splitlines())
    return False


def _trainer(path: Path) -> Iterator[int]:
    data = copy_page(path)
    page = TrainerPage(data) if data is not None else None
    if page is not None and page.valid and not page.let_go and process_alive(page.pid, page.start):
        yield page.pid


def _slot(path: Path) -> Iterator[SlotImage]:
    page = slot_page(path)
    if page is not None and page.state in (SlotState.STAGED, SlotState.HELD):
        relied = page.relies_on_step
        yield SlotImage(
            id=ImageId(page.attempt, page.step, page.rank, page.image),
            size_bytes=page.image_bytes,
            world_size=page.world_size,
            image_count=page.image_count,
            committed=page.committed_mask != 0,
            relies_on=None if page.image or relied < 0 else ImageId(page.attempt, relied, page.rank, 1),
        )
