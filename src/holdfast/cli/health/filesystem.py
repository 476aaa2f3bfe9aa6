"""Findings about the two file systems that matter: the arena's and the home's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from holdfast.cli.health.abilities import Abilities, try_out
from holdfast.cli.health.finding import Finding, bad, ok, warn
from holdfast.errors import ConfigError
from holdfast.model.place import Scope
from holdfast.tiers.posix.mounts import Mount, existing, mount_of
from holdfast.units import format_bytes, format_seconds
from holdfast.wire.spawn import check_socket_path

_SLOW_FSYNC_S = 0.1
_PASSING = frozenset({"overlay", "aufs"})


def arena_abilities(arena: Path) -> Iterator[Finding]:
    """What the arena's file system must be able to do."""
    try:
        check_socket_path(arena)
    except ConfigError as e:
        yield bad("arena-path", e.message, e.hint)
    where = existing(arena)
    try:
        can = try_out(where)
    except OSError as e:
        yield bad("arena-abilities", f"nothing can be written in {where}: {e.strerror}", "set HOLDFAST_ARENA_DIR")
        return
    lacks = _lacks(("flock", can.flock), ("shared mappings", can.shared_map), ("Unix sockets", can.unix_socket))
    if lacks:
        yield bad("arena-abilities", f"{where} lacks {lacks}", "set HOLDFAST_ARENA_DIR to a tmpfs")
    else:
        yield ok("arena-abilities", f"{where} has flock, shared mappings and Unix sockets")


def home_abilities(home: Path, scope: Scope = Scope.SHARED) -> Iterator[Finding]:
    """What the file system of a file:// tier can do, and who sees it. Nothing is left there."""
    where = existing(home)
    mount = mount_of(where)
    if where not in (home, home.parent):
        yield bad("home", f"{home.parent} does not exist", "create it: only the last directory of a URL is made")
        return
    try:
        can = try_out(where)
    except OSError as e:
        yield bad("home", f"nothing can be written in {where}: {e.strerror}", "check its mode, quota and mount options")
        return
    stat = os.statvfs(where)
    text = f"{where} is {mount.type}, {format_bytes(stat.f_bavail * stat.f_frsize)} free"
    if mount.in_memory:
        yield warn("home", f"{text}: what is durable there ends with the node", "use a directory on a disk")
    elif mount.type in _PASSING:
        yield warn("home", f"{text}: it is removed with the container", "mount a volume and use that")
    else:
        yield ok("home", text)
    yield _seen_by(mount, scope)
    yield from _publishing(can, where)


def _seen_by(mount: Mount, scope: Scope) -> Finding:
    if mount.on_network:
        if scope is Scope.NODE:
            return bad("scope", f"scope is node, but other nodes see {mount.type}, too", 'say scope = "shared"')
        return ok("scope", f"{mount.type}: other nodes see it, too")
    text = f"{mount.type} is this node's own, as far as is known"
    if scope is Scope.SHARED:
        text += ": right for one node; several need a shared file system"
    return ok("scope", text)


def _publishing(can: Abilities, where: Path) -> Iterator[Finding]:
    ways = [n for n, works in (("renameat2(NOREPLACE)", can.rename_noreplace), ("hard links", can.hard_link)) if works]
    if ways:
        yield ok("exclusive-create", f"{' and '.join(ways)}: an attempt has one winner")
    else:
        yield bad(
            "exclusive-create", f"{where} has neither renameat2(NOREPLACE) nor hard links", "use another file system"
        )
    direct = "O_DIRECT works" if can.direct else "no O_DIRECT: flushes pass through the page cache"
    speed = (
        f"fsync of 4 KiB takes {format_seconds(can.fsync_s)}, "
        f"one thread writes {format_bytes(can.write_bytes_per_s)}/s; {direct}"
    )
    if can.fsync_s > _SLOW_FSYNC_S:
        yield warn("fsync", speed, "a commit needs several fsyncs: save less often there, or use a quicker file system")
    else:
        yield ok("fsync", speed)


def _lacks(*what: tuple[str, bool]) -> str:
    return ", ".join(name for name, works in what if not works)
