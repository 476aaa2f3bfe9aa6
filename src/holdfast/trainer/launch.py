"""How a launch begins: its ranks share one node, its tiers can be used, then every rank attaches."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.config import Settings
from holdfast.errors import ConfigError, UsageError
from holdfast.tiers import open_tier, weakness_of
from holdfast.tiers.boot import boot_id
from holdfast.tiers.posix import path_of_url
from holdfast.tiers.posix.mounts import existing
from holdfast.trainer.ranks import Talk
from holdfast.trainer.session import Session


@dataclass(frozen=True, slots=True)
class Node:
    """Where a rank runs, as far as it must be where the others run: the memory that the arena stands in."""

    host: str
    boot_id: str
    arena: str
    device: int
    """Two containers of one host have a path in common, but not its file system."""


def this_node(settings: Settings) -> Node:
    """The node of this process."""
    device = existing(settings.arena).stat().st_dev
    return Node(os.uname().nodename, boot_id(), str(settings.arena), device)


def check_one_node(nodes: Sequence[Node]) -> None:
    """Raises: UsageError when some rank does not share rank 0's arena: its agent would wait for that rank for ever."""
    first = nodes[0]
    others = [r for r, node in enumerate(nodes) if node != first]
    if not others:
        return
    ranks, other = ", ".join(map(str, others)), nodes[others[0]]
    if (other.boot_id, other.device) == (first.boot_id, first.device):
        raise UsageError(
            f"the arena of rank {ranks} is {other.arena}, that of rank 0 is {first.arena}",
            hint="give all ranks the same URL, run name and HOLDFAST_ARENA_DIR",
        )
    raise UsageError(
        f"rank {ranks} runs on another node or in another container ({other.host}) than rank 0 ({first.host})",
        hint="several nodes are not supported yet; containers of one node have to share HOLDFAST_ARENA_DIR",
    )


def check_tiers(settings: Settings) -> tuple[str, list[str]]:
    """Open every tier once, so that a wrong URL is an error here and now; a launch id, and doubts to warn of.

    Raises: ConfigError, TierError.
    """
    doubts = []
    for rule in settings.tiers:
        if rule.is_memory:
            continue
        if rule.url.startswith("file:") and settings.arena in (p := Path(path_of_url(rule.url)), *p.parents):
            raise ConfigError(
                f"{p} lies in the arena directory, which is removed at the end",
                hint="name a directory on a disk",
                tier=rule.name,
            )
        open_tier(rule.url, name=rule.name, scope=rule.scope, owner=f"probe.{uuid.uuid4().hex[:12]}").close()
        if weakness := weakness_of(rule.url):
            doubts.append(f"tier {rule.name}: {weakness}\n  hint: name a directory on a disk or a shared file system")
    return uuid.uuid4().hex, doubts


def attach_all(talk: Talk, settings: Settings, launch: str) -> Session:
    """Attach every rank; an error on one is raised on all, and those that attached let go."""
    made: list[Session] = []
    try:
        talk.each(lambda: made.append(Session(settings, launch=launch, rank=talk.rank, world_size=talk.size)))
    except Exception:
        for session in made:
            session.detach()
        raise
    return made[0]
