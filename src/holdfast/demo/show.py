"""The whole demo: both runs, the comparison, the page."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console

import holdfast
from holdfast.demo import page
from holdfast.demo.events import Event
from holdfast.demo.read import read
from holdfast.demo.screen import Screen, print_summary
from holdfast.demo.script import Script
from holdfast.demo.story import train_and_be_killed, train_undisturbed
from holdfast.demo.summary import Summary

PAGE = "holdfast-demo.html"


@dataclass(frozen=True, slots=True)
class Shown:
    """What a demo leaves: the numbers, the page and, if asked for, the working files."""

    summary: Summary
    page: Path
    kept: Path | None


def show(script: Script, out: Path, *, console: Console, keep: bool = False) -> Shown:
    """Run everything and write the page into `out`. No process and no memory is left, however it ends.

    Raises: HoldfastError when a job does not end as it should; its working files are then kept.
    """
    out = out.absolute()  # the processes get it as a URL
    out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="run-", dir=out))
    try:
        events = _both_runs(script, work, console)
    except KeyboardInterrupt:
        shutil.rmtree(work, ignore_errors=True)
        raise
    summary = Summary(script, read(events["undisturbed"]), read(events["killed"]))
    text = page.render(summary, events, command=_command(), machine=_machine())
    (out / PAGE).write_text(text, encoding="utf-8")
    if not keep:
        shutil.rmtree(work)
    print_summary(console, summary)
    return Shown(summary, out / PAGE, work if keep else None)


def _both_runs(script: Script, work: Path, console: Console) -> dict[str, list[Event]]:
    with Screen(console, script) as screen:
        screen.act("An undisturbed run", f"{script.steps} steps, never interrupted, without Holdfast")
        undisturbed = train_undisturbed(work / "undisturbed", script, screen.tell)
        screen.act("The same run, killed", f"memory every {script.memory_every} steps, disk every {script.disk_every}")
        killed = train_and_be_killed(work / "killed", script, screen.tell)
    return {"undisturbed": undisturbed, "killed": killed}


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _machine() -> Sequence[tuple[str, str]]:
    return (
        ("holdfast", holdfast.__version__),
        ("torch", metadata.version("torch")),
        ("Python", platform.python_version()),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("processors", str(len(os.sched_getaffinity(0)))),
    )
