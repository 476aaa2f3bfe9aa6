"""Start the node agent when none answers. One winner by the lock in the arena directory; losers go quietly."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from holdfast.config import Settings
from holdfast.errors import AgentError, ConfigError, DeadlineError
from holdfast.tiers.boot import boot_id
from holdfast.wire.client import AgentClient, connect
from holdfast.wire.processes import process_alive, process_start

SOCKET, LOG, CONFIG, LOCK, STARTING = "agent.sock", "agent.log", "config.json", "agent.lock", "agent.starting"
_POLL_S = 0.02
_RESPAWN_S = 2.0
_MOVE_IN_TRIES = 5
_LONGEST_SOCKET_PATH = 107


def answers(arena: Path) -> bool:
    """Whether an agent accepts connections for this arena directory."""
    try:
        connect(arena / SOCKET, 1.0).close()
    except OSError:
        return False
    return True


def ensure_agent(settings: Settings) -> AgentClient:
    """A client of the run's agent on this node, started if need be.

    Raises: DeadlineError with the end of the agent's log when none answers in time.
    """
    arena = settings.arena
    check_socket_path(arena)
    deadline = time.monotonic() + settings.agent_start_timeout_s
    spawn_at = 0.0
    while not answers(arena):
        now = time.monotonic()
        if now > deadline:
            raise DeadlineError(
                f"no agent answered at {arena / SOCKET} within {settings.agent_start_timeout_s:g} s; its log ends:\n"
                f"{log_tail(arena)}",
                hint="run `holdfast doctor URL`, or raise HOLDFAST_AGENT_START_TIMEOUT_S",
            )
        if not (arena / CONFIG).exists() or (now >= spawn_at and not starts(arena)):
            # Again when an agent that was on its way out took the settings along; else only when none is starting:
            # on a loaded machine that takes long, and a second one would make it longer.
            spawn_agent(settings)
            spawn_at = now + _RESPAWN_S
        time.sleep(_POLL_S)
    return AgentClient(arena / SOCKET)


def starts(arena: Path) -> bool:
    """Whether an agent was started there that lives and does not serve yet, whoever started it."""
    try:
        pid, start = map(int, (arena / STARTING).read_text().split())
    except (OSError, ValueError):  # none, or one that is being noted just now by somebody else
        return False
    return process_alive(pid, start)


def served(arena: Path) -> None:
    """An agent serves: whoever misses it from now on may start the next one at once, even while it ends."""
    (arena / STARTING).unlink(missing_ok=True)


def coordinator_at(arena: Path) -> str:
    """Where another launch can ask whether the agent of this arena lives, as claims have it: boot id and socket."""
    return f"{boot_id()}:{arena / SOCKET}"


def coordinator_socket(coordinator: str) -> Path | None:
    """The socket a claim names; None when it names none, or one of another machine or of a boot before."""
    boot, _, path = coordinator.partition(":")
    return Path(path) if path and boot == boot_id() else None


def check_socket_path(arena: Path) -> None:
    """Raises: ConfigError when the kernel would refuse the path of the socket for its length."""
    length = len(os.fsencode(arena / SOCKET))
    if length > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"the agent's socket {arena / SOCKET} has a path of {length} bytes, {_LONGEST_SOCKET_PATH} are allowed",
            hint="set HOLDFAST_ARENA_DIR to a shorter directory",
        )


def spawn_agent(settings: Settings) -> None:
    """Start an agent process and return at once. It lives in a session of its own, as nobody's child.

    Raises: AgentError when no process can be started, or the arena directory cannot be used; ConfigError when that is
        another user's.
    """
    arena = settings.arena
    log = move_in(arena, settings)
    try:
        # Through a shell that exits at once, so that the agent is never our zombie and outlives us.
        shell = subprocess.run(
            ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", sys.executable, "-m", "holdfast.agent", str(arena)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=_environment(),
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as e:
        raise AgentError(
            f"cannot start the agent: {e}",
            hint="it is started through /bin/sh, which has to be there; perhaps too many processes run (ulimit -u)",
        ) from e
    finally:
        os.close(log)
    _note_start(arena, int(shell.stdout))


def _note_start(arena: Path, pid: int) -> None:
    """Leave word that an agent is starting. Nothing depends on it but how many are started."""
    start = process_start(pid)
    with contextlib.suppress(OSError):
        if start:
            _write(arena / STARTING, f"{pid} {start}".encode())
            if answers(arena):  # before the note was there to be taken away
                served(arena)


def move_in(arena: Path, settings: Settings) -> int:
    """Make the directory, ours alone, and leave the settings there; returns the log, open.

    Raises: AgentError when the file system refuses; ConfigError when the directory is another user's.
    """
    try:
        return _move_in(arena, settings)
    except OSError as e:
        raise AgentError(
            f"cannot use the arena directory {arena}: {e.strerror}",
            hint="set HOLDFAST_ARENA_DIR to a writable memory file system",
        ) from e


def _move_in(arena: Path, settings: Settings) -> int:
    for last in (False,) * (_MOVE_IN_TRIES - 1) + (True,):
        try:
            for directory in (arena.parent, arena):
                _make_private(directory)
            write_config(arena, settings)
            return os.open(arena / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # an agent at its end removed the directory in between
            if last:
                raise
    raise AssertionError("the last try returns or raises")


def _make_private(directory: Path) -> None:
    """A directory that is ours alone. Its name can be guessed, so another user may have made it first.

    Raises: ConfigError when it is not ours.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(
            f"{directory} belongs to user {found.st_uid}, not to {os.getuid()}",
            hint="have it removed, or set HOLDFAST_ARENA_DIR to a directory of your own",
        )
    if found.st_mode & 0o077:
        directory.chmod(0o700)


def _environment() -> dict[str, str]:
    """Ours, with import paths made absolute: the agent runs in `/`, so that it holds no directory of the user's."""
    env = dict(os.environ)
    if env.get("PYTHONPATH"):
        env["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in env["PYTHONPATH"].split(os.pathsep))
    return env


def write_config(arena: Path, settings: Settings) -> None:
    """Leave the settings where an agent that starts later finds them. Atomicity: whole or not at all."""
    _write(arena / CONFIG, msgspec.json.encode(settings))


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def read_config(arena: Path) -> Settings:
    """The settings `write_config` left. Raises: AgentError when they are not there or not readable."""
    try:
        return msgspec.json.decode((arena / CONFIG).read_bytes(), type=Settings)
    except (OSError, msgspec.DecodeError) as e:
        raise AgentError(f"no settings in {arena / CONFIG}: {e}", hint="start it with `holdfast agent URL`") from e


def log_tail(arena: Path, n_bytes: int = 2000) -> str:
    """The end of the agent's log, for error messages."""
    try:
        with (arena / LOG).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - n_bytes))
            return log.read(n_bytes).decode(errors="replace")
    except OSError as e:
        return f"(no log: {e.strerror})"
