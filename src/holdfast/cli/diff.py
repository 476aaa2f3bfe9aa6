"""`holdfast diff`: compare two checkpoints of a run, or of two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from holdfast.cli.arguments import json_option, steps_option, tier_option, urls_argument
from holdfast.cli.comparing import Report, compare
from holdfast.cli.output import paged, write_json
from holdfast.cli.runs import Run, open_run
from holdfast.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from holdfast.model.manifest import Manifest


_SHOWN = 10
"""So many beginnings of names are told."""


@click.command()
@urls_argument()
@steps_option("A step of its URL.")
@click.option("--only", multiple=True, metavar="PREFIX", help="Only what has a name that begins so.")
@click.option("--structure", is_flag=True, help="Names, shapes, dtypes, rank 0's plain values: no tensor is read.")
@click.option("--all", "everything", is_flag=True, help="Also list tensors that did not change.")
@tier_option()
@json_option()
def diff(  # noqa: PLR0913, PLR0917  (its options)
    urls: tuple[str, ...],
    steps: tuple[int, ...],
    only: tuple[str, ...],
    structure: bool,
    everything: bool,
    tier: str | None,
    as_json: bool,
) -> None:
    """Compare two checkpoints of a run, or of two.

    What is in one only, what has another shape or dtype, which plain values differ, and for every tensor the norm of
    its change, largest relative change first. Whatever the world sizes were, the tensors themselves are compared. Every
    byte is compared with its checksum before it counts; what is damaged is named, and the rest is compared.

    One URL with two steps, or two URLs with a step each, in that order. A step left out is the newest; of one URL
    without steps the newest two are compared.

    \b
    Examples:
      holdfast diff /data/run7 --step 100 --step 200
      holdfast diff /data/run7 --step 100 /data/run8 --step 100 --only model.
      holdfast diff file:///data/run7 --structure
      holdfast diff /data/run7 --tier memory
      holdfast diff /data/run7 --json
    """
    if len(steps) > 2:
        raise UsageError("two checkpoints are compared", hint="say --step at most twice")
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(open_run(url)).at(tier) for url in dict.fromkeys(urls)]
        (first, a), (second, b) = _chosen(runs[0], runs[-1], steps)
        report = Report((first, a), (second, b))
        compare(report, _wanted(only), structure_only=structure, quiet=as_json)
        if only and not report.named and not report.unread:
            raise _none_begins_so(only, report)
    if as_json:
        write_json(report.document())
    else:
        with paged():
            report.write(everything)
    if report.damage is not None:
        raise click.exceptions.Exit(report.damage.exit_code)


def _none_begins_so(only: tuple[str, ...], report: Report) -> NotFoundError:
    begins = {t.fqn.partition(".")[0] for _, manifest in (report.first, report.second) for t in manifest.tensors}
    some = f"tensors begin with {', '.join(sorted(begins)[:_SHOWN])}; " if begins else ""
    return NotFoundError(
        f"no name in either checkpoint begins with {' or '.join(map(repr, only))}",
        hint=f"{some}`holdfast show URL` lists the names",
    )


def _wanted(only: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda name: not only or name.startswith(only)


def _chosen(first: Run, second: Run, steps: tuple[int, ...]) -> list[tuple[Run, Manifest]]:
    """Which two. Raises: NotFoundError; CorruptError when a manifest is damaged."""
    if first is second and not steps:
        return [(first, first.manifest(step)) for step in _newest_two(first)]
    wanted = [*steps, None, None][:2]
    return [(run, run.manifest(step)) for run, step in zip((first, second), wanted, strict=True)]


def _newest_two(run: Run) -> Iterator[int]:
    steps = [e.id.step for e in run.catalog.committed if e.id in run.lineage]
    if len(steps) < 2:
        hint = "say which other run to compare with: holdfast diff URL1 URL2"
        raise NotFoundError(f"{len(steps) or 'no'} checkpoint is whole {run.where}, two are compared", hint=hint)
    yield from steps[-2:]
