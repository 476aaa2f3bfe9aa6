"""What the live agent of a run says of itself, as findings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from holdfast.cli.health.finding import Finding, bad, ok, warn
from holdfast.cli.output import counted
from holdfast.errors import HoldfastError
from holdfast.wire.client import AgentClient
from holdfast.wire.spawn import LOG, SOCKET, answers

_CALL_S = 10.0


def agent_findings(arena: Path) -> Iterator[Finding]:
    """Whether one runs for the arena, owns the run, and how its tiers stand."""
    if not answers(arena):
        yield ok("agent", f"none runs for this run on this node ({arena})")
        return
    try:
        status: dict[str, Any] = AgentClient(arena / SOCKET).get("/status", dict, timeout_s=_CALL_S)
    except HoldfastError as e:
        yield bad("agent", e.message, e.hint)
        return
    trainers = sum(bool(t.get("alive")) for t in status.get("trainers", ()))
    yield ok(
        "agent",
        f"process {status.get('pid')} serves {arena}, {counted(trainers, 'trainer')}, attempt {status.get('attempt')}",
    )
    if status.get("superseded_by"):
        yield warn(
            "superseded",
            f"attempt {status['superseded_by']} took the run over: this one commits nothing any more",
            "end this job",
        )
    for tier in status.get("tiers", ()):
        yield from _tier(tier)
    if status.get("errors"):
        todo = f"`holdfast agent --arena {arena} --status` and {arena / LOG} have them"
        yield warn("agent-errors", f"{counted(status['errors'], 'error')} since the agent started", todo)


def _tier(tier: dict[str, Any]) -> Iterator[Finding]:
    if tier.get("degraded"):
        error = tier["degraded"]
        yield warn("tier-degraded", f"{tier['name']}: {error.get('message')}", error.get("hint") or "look at the tier")
    if tier.get("lagging"):
        yield warn(
            "tier-lagging",
            f"{tier['name']} cannot keep up: {tier.get('waiting')} flushes wait",
            "raise every_steps of this tier, or use a quicker one",
        )
