"""`holdfast prune`: delete checkpoints by plan."""

from __future__ import annotations

import click

from holdfast.cli.arguments import json_option, steps_option, url_argument, yes_option
from holdfast.cli.clearing import ClearPlan, clear, plan_clear
from holdfast.cli.output import Column, Grid, note, progress, write, write_grid, write_json
from holdfast.cli.pruning import Intent, delete, plan_intent
from holdfast.cli.runs import Run, claimed_elsewhere, name_of, open_run
from holdfast.errors import UsageError
from holdfast.model.place import Keep
from holdfast.units import format_bytes, parse_seconds

_DRY = "this was a dry run: nothing was deleted; add --yes to do it"


@click.command()
@url_argument()
@steps_option("Delete this step of the lineage; may be repeated.")
@click.option("--keep-last", type=click.IntRange(min=1), metavar="K", help="Keep the newest K of the lineage.")
@click.option("--keep-every", type=click.IntRange(min=1), metavar="M", help="Keep multiples of M, too.")
@click.option(
    "--keep-for", metavar="TIME", help='Keep what is younger, as "7 d"; counted from checkpoint to checkpoint.'
)
@click.option("--keep-best", type=click.IntRange(min=1), metavar="B", help="Keep the best B by --metric.")
@click.option("--metric", metavar="NAME", help="The metric of save(metrics=...); the least is best, unless --greatest.")
@click.option("--greatest", is_flag=True, help="The greatest of --metric is best.")
@click.option("--everything", is_flag=True, help="Clear the run wholly, attempts and memory of this node included.")
@yes_option("Delete now.")
@json_option()
def prune(  # noqa: PLR0913  one parameter per option
    *,
    url: str,
    steps: tuple[int, ...],
    keep_last: int | None,
    keep_every: int | None,
    keep_for: str | None,
    keep_best: int | None,
    metric: str | None,
    greatest: bool,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete checkpoints by plan.

    Prints what would go, and why, and deletes it with --yes: through the live agent of the run on this node if there is
    one, else directly. Directly, it first reads the newest checkpoint that would stay and compares every byte, in a dry
    run, too: if that one is damaged, the newest whole one before it stays as well. The last checkpoint that loads is
    never deleted, except by --everything, which is for starting a run over: end the run's jobs on all nodes before.

    \b
    Examples:
      holdfast prune /data/run7 --step 100 --step 200
      holdfast prune /data/run7 --keep-last 5 --keep-every 1000
      holdfast prune /data/run7 --keep-last 2 --keep-best 3 --metric val_loss
      holdfast prune file:///data/run7 --keep-last 5 --yes
      holdfast prune /data/run7 --everything
    """
    keep = Keep(
        last=keep_last,
        every_steps=keep_every,
        for_s=None if keep_for is None else parse_seconds(keep_for),
        best=keep_best,
        metric=metric,
        mode="max" if greatest else "min",
    )
    _check(keep, greatest, ways=sum((bool(steps), keep.limits, everything)))
    with open_run(url) as run:
        if everything:
            _clear(run, plan_clear(run), yes=yes, as_json=as_json)
        else:
            run.require_something()
            intent = plan_intent(run, steps=steps, keep=keep, quiet=as_json)
            _prune(run, intent, yes=yes, as_json=as_json)


def _check(keep: Keep, greatest: bool, *, ways: int) -> None:
    """Raises: UsageError when it is not said what to delete, or in more than one way."""
    if ways != 1 or (keep.every_steps is not None and not keep.limits):
        raise UsageError(
            "say what to delete in one way",
            hint="--step N, or --everything, or what stays: --keep-last K, --keep-for TIME, --keep-best B, and "
            "--keep-every M with one of them",
        )
    if (keep.best is None) != (keep.metric is None) or (greatest and keep.metric is None):
        raise UsageError("the best are those by a metric", hint="say --keep-best B and --metric NAME")


def _prune(run: Run, intent: Intent, *, yes: bool, as_json: bool) -> None:
    if not as_json:
        _print(run, intent)
    if yes and intent.ids:
        with progress("deleting", intent.size_bytes, quiet=as_json) as bar:
            delete(run, intent, bar)
    if as_json:
        write_json(_document(run, intent, yes))
    elif intent.ids:
        write("deleted" if yes else _DRY, style="bold")


def _print(run: Run, intent: Intent) -> None:
    _warn(run)
    for checkpoint, damage in intent.checked.damaged:
        note(f"{checkpoint} is damaged: {damage}")
    if intent.checked.damaged:
        note(f"{intent.checked.verified} stays: the newest whose every byte is as it was saved")
    columns = Column(""), Column("STEP", True), Column("ATTEMPT", True), Column("SIZE", True), Column("WHERE")
    grid = Grid([*columns, Column("WHY", fold=True)])
    for gone in intent.home.deletions:
        where = ", ".join(intent.where(gone.id))
        size = format_bytes(gone.size_bytes)
        grid.add("delete", str(gone.id.step), str(gone.id.attempt), size, where, gone.reason.value, style="red")
    for checkpoint, why in intent.home.blocked:
        grid.add("blocked", str(checkpoint.step), str(checkpoint.attempt), "", "", why, style="yellow")
    for kept in intent.home.kept:
        grid.add("keep", str(kept.id.step), str(kept.id.attempt), "", "", kept.reason.value)
    if grid.rows:
        write_grid(grid)
    through = "through the live agent" if run.owning_agent is not None else "directly: no agent here owns the run"
    if intent.ids:
        write(f"{len(intent.ids)} to delete, {format_bytes(intent.size_bytes)}, {through}")
    else:
        write("nothing to delete")


def _warn(run: Run) -> None:
    for problem in run.problems:
        note(problem)
    if run.owning_agent is None and claimed_elsewhere(run.owner):
        note(f"attempt {run.attempts.highest} was claimed on another node: if its job still runs, prune there")


def _document(run: Run, intent: Intent, yes: bool) -> dict[str, object]:
    return {
        "url": run.url,
        "dry_run": not yes,
        "through": "agent" if run.owning_agent is not None else "store",
        "size_bytes": intent.size_bytes,
        "delete": [
            {
                **(name_of(d.id) or {}),
                "size_bytes": d.size_bytes,
                "tiers": intent.where(d.id),
                "why": d.reason.name.lower(),
            }
            for d in intent.home.deletions
        ],
        "blocked": [{**(name_of(c) or {}), "why": why} for c, why in intent.home.blocked],
        "verified": name_of(intent.checked.verified),
        "damaged": [{**(name_of(c) or {}), "error": e.to_dict()} for c, e in intent.checked.damaged],
        "keep": [{**(name_of(v.id) or {}), "why": v.reason.name.lower()} for v in intent.home.kept],
    }


def _clear(run: Run, plan: ClearPlan, *, yes: bool, as_json: bool) -> None:
    if not as_json:
        _warn(run)
        for line in plan.lines():
            write(line)
    if yes:
        with progress("deleting", plan.size_bytes, quiet=as_json) as bar:
            clear(run, plan, bar)
    if as_json:
        write_json({"url": run.url, "dry_run": not yes, "size_bytes": plan.size_bytes, **plan.document()})
    else:
        write("the run is cleared" if yes else _DRY, style="bold")
