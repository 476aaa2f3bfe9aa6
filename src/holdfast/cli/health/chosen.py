"""What the user chose that changes nothing: variables that no setting has, cores that this machine lacks."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping

from holdfast.cli.health.finding import Finding, warn
from holdfast.cli.output import counted
from holdfast.config import Settings
from holdfast.config.values import parse_cores

_PREFIX = "HOLDFAST_"
_OF_TESTS = "HOLDFAST_TEST_"
_NO_VARIABLE = ("tiers", "sources")


def chosen_in_vain(settings: Settings, environ: Mapping[str, str], *, cores: int) -> Iterator[Finding]:
    """A misspelt variable, and `agent_cores` beyond the machine: the run goes on without what was meant.

    Args:
        cores: how many the machine has, numbered from 0.
    """
    known = [_PREFIX + f.name.upper() for f in dataclasses.fields(Settings) if f.name not in _NO_VARIABLE]
    for name in sorted(environ):
        if name.startswith(_PREFIX) and not name.startswith(_OF_TESTS) and name not in known:
            yield warn("environment", f"{name} is set, and no setting is called so", _meant(name, known))
    if settings.agent_cores not in ("outside", "all"):
        beyond = parse_cores(settings.agent_cores) - frozenset(range(cores))
        if beyond:
            yield warn(
                "agent-cores",
                f"agent_cores={settings.agent_cores!r} lists {counted(len(beyond), 'core')} that this machine lacks: "
                f"its cores are 0 to {cores - 1}",
                "the agent runs on those that are there, on all of them if none is: correct the list",
            )


def _meant(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.0)
    return f"{near[0]} is the nearest; `holdfast doctor --settings` lists what is set and from where"
