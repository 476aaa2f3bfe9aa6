"""The agent's life: one winner by lock, serve until done, leave or free the memory."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from holdfast.agent.agent import Agent
from holdfast.agent.arena import remove_files
from holdfast.agent.log import begin_log, bound_log
from holdfast.agent.server import Server
from holdfast.config import Settings
from holdfast.errors import HoldfastError
from holdfast.wire.spawn import LOCK, SOCKET, answers, read_config, served

log = logging.getLogger("holdfast.agent")

_PREDECESSOR_S = 10.0
_FINISH_S = 5.0
"""What runs in threads may take so long once the agent has ended: less than a successor waits for the lock."""
_LOCK_POLL_S = 0.02


def run(arena: Path) -> int:
    """Run the agent of an arena directory until it ends. Returns the exit code; 0 also when another agent lives."""
    begin_log()
    faulthandler.enable()
    with _lock(arena) as won:
        if not won:
            log.info("another agent holds %s", arena / LOCK)
            return 0
        bound_log(arena)
        try:
            settings = read_config(arena)
            with contextlib.suppress(OSError):
                os.nice(settings.agent_nice)
            return asyncio.run(_serve(arena, settings))
        except HoldfastError as e:
            log.error("%s: %s", e.kind, e)
            return e.exit_code


@contextlib.contextmanager
def _lock(arena: Path) -> Iterator[bool]:
    """Hold the arena's lock for the life of the process; False when another agent serves the arena."""
    deadline = time.monotonic() + _PREDECESSOR_S
    while (fd := _try_lock(arena)) is None:
        # Whoever holds it may be on its way out: a trainer waits for us, and would try again only after seconds.
        if answers(arena) or time.monotonic() > deadline:
            yield False
            return
        time.sleep(_LOCK_POLL_S)
    try:
        yield True
    finally:
        os.close(fd)


def _try_lock(arena: Path) -> int | None:
    """The locked file; None while somebody else holds it, or when it was removed by the one who did."""
    arena.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        fd = os.open(arena / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # the directory went just now
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(arena / LOCK)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return None


async def _serve(arena: Path, settings: Settings) -> int:
    agent = Agent(arena, settings)
    loop = asyncio.get_running_loop()
    runner = None
    try:
        await agent.start()
        # First: whoever sees that it serves may tell it to end.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, agent.terminate)
        runner = await Server(agent).serve(arena / SOCKET)
        served(arena)
        log.info("agent %d serves %s", os.getpid(), arena)
        await agent.run()
        return 0
    finally:
        if runner is not None:
            (arena / SOCKET).unlink(missing_ok=True)
            await runner.cleanup()
        with _bounded(agent):
            await agent.finish()
        log.info("agent %d ends", os.getpid())


@contextlib.contextmanager
def _bounded(agent: Agent) -> Iterator[None]:
    """End this process if what is within takes longer than `_FINISH_S`: a thread may hang in a tier for ever."""
    timer = threading.Timer(_FINISH_S, _give_up, [agent])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(agent: Agent) -> None:
    """Leave without what still runs.

    As safe as kill -9, after which the next agent verifies what it finds in memory and sweeps what was being written.
    An interpreter that ends in good order would wait for its threads.
    """
    log.warning("agent %d leaves after %g s; what still runs:", os.getpid(), _FINISH_S)
    faulthandler.dump_traceback(all_threads=True)
    try:
        if agent.closing.free_memory:
            remove_files(agent.root)  # not unmapped: threads still look into it
    finally:
        os._exit(0)
