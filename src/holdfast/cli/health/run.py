"""What stands damaged in a run, as far as listing it and reading claims and manifests tells."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.cli.health.finding import Finding, warn
from holdfast.cli.runs import Run
from holdfast.errors import HoldfastError


def run_findings(run: Run) -> Iterator[Finding]:
    """Claims and manifests that cannot be read, and tiers that could not be looked at. Images are not read."""
    damaged: list[HoldfastError] = [*run.attempts.problems]
    damaged += [entry.problem for entry in run.catalog if entry.problem is not None]
    for problem in damaged:
        where = f" ({problem.key})" if problem.key else ""
        yield warn("run", f"{problem.message}{where}", f"`holdfast verify {run.url} --all` shows what else is damaged")
    for text in run.problems:
        yield warn("run", text, "look at that tier: what it holds is not seen now")
