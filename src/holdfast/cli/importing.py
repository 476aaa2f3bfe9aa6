"""`holdfast import`: bring in a checkpoint of torch DCP, torch.save or safetensors."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.arenas import arena_of, arenas, look, settings_of
from holdfast.cli.arguments import json_option, step_option, url_argument
from holdfast.cli.output import counted, progress, write, write_json
from holdfast.cli.runs import name_of, open_run
from holdfast.config import Settings
from holdfast.errors import NotFoundError, RunBusyError, UsageError
from holdfast.format.names import trailing_number
from holdfast.tiers import open_tier, same_place
from holdfast.tiers.contract import Tier
from holdfast.tiers.wrappers import Retry
from holdfast.units import format_bytes

if TYPE_CHECKING:
    from holdfast.model.identity import Attempt
    from holdfast.model.manifest import Manifest
    from holdfast.store.importing import Source


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@url_argument()
@step_option("The step it becomes. [default: the number at the end of the source's name, else 0]")
@click.option("--under", metavar="KEY", help="Put everything below this key of the state, unless the source has it.")
@click.option("--without", multiple=True, metavar="NAME", help="Leave out what has this name, or stands below it.")
@json_option()
def importing(
    source: Path, url: str, step: int | None, under: str | None, without: tuple[str, ...], as_json: bool
) -> None:
    """Bring in a checkpoint of torch DCP, torch.save or safetensors.

    SOURCE is a folder of torch DCP, a file of torch.save, or a file or folder in safetensors' format. It becomes a
    checkpoint of the run at URL, which is made if need be, on top of its newest one. Nothing in SOURCE is ever run:
    pickles are read by a machine that knows plain values and tensors. All of it is checked before anything is written.

    \b
    Examples:
      holdfast import /old/step_100 /data/run7
      holdfast import model.pt /data/run7 --step 100 --without args
      holdfast import Llama-3/ file:///data/llama --under model
      holdfast import model.safetensors /data/run7 --step 5 --under model --json
    """
    from holdfast.store.importing import Asked, read_source

    if under == "":
        raise UsageError("--under names no key", hint="say for example --under model")
    chosen = _step_of(source) if step is None else step
    found = read_source(source, Asked(under, without))
    settings = settings_of(url)
    if not same_place(url, settings.home):
        raise UsageError(f"attempts of this run are claimed at {settings.home}", hint="give that for the URL")
    _refuse_busy(url, settings)
    with _opened(url, settings) as tier:
        attempt, manifest = _copy(tier, settings.run, found, chosen, quiet=as_json)
    if as_json:
        write_json(_document(url, found, attempt, manifest))
    else:
        _conclude(url, found, attempt, manifest)


def _step_of(source: Path) -> int:
    """From `step_100/`, `model-100.pt`."""
    path = source.resolve() if source.name in ("", ".", "..") else source
    name = path.name if path.is_dir() else path.stem
    return trailing_number(name) or 0


def _refuse_busy(url: str, settings: Settings) -> None:
    """A job that lives would be superseded. One of another node is not seen from here.

    Raises: RunBusyError.
    """
    own = [a for a in arenas(settings.arena_dir) if a.serves(url)]
    place = arena_of(url)
    if place.is_dir() and place not in (a.path for a in own):
        own.append(look(place))
    busy = [str(pid) for a in own for pid in a.trainers]
    if busy:
        raise RunBusyError(f"a job of this run lives on this node (process {', '.join(busy)})", hint="end it first")
    alive = any(a.alive for a in own)
    with contextlib.suppress(NotFoundError), open_run(url) as run:
        alive = alive or run.agent is not None
    if alive:
        raise RunBusyError(
            "an agent of this run still serves on this node, and may hold what is not durable yet",
            hint=f"wait until it ends, or end it: holdfast agent {url} --stop",
        )


@contextlib.contextmanager
def _opened(url: str, settings: Settings) -> Iterator[Tier]:
    from holdfast.store.importing.copying import UPLOADER

    rule = settings.home_tier
    tier = open_tier(url, name=rule.name, owner=f"{UPLOADER}{os.getpid()}", scope=rule.scope)
    try:
        yield Retry(tier)
    finally:
        tier.close()


def _copy(tier: Tier, run: str, source: Source, step: int, *, quiet: bool) -> tuple[Attempt, Manifest]:
    from holdfast.model.identity import CheckpointId
    from holdfast.store.importing.copying import claim_step, copy_source
    from holdfast.store.importing.images import plan_images

    plans = plan_images(source, run=run)
    attempt = claim_step(tier, run=run, step=step)
    checkpoint = CheckpointId(attempt.attempt, step)
    with progress("importing", sum(plan.size_bytes for plan in plans), quiet=quiet) as bar:
        now_s = int(time.time())
        return attempt, copy_source(tier, source, plans, checkpoint, saved_at_s=now_s, progress=bar.advance)


def _conclude(url: str, source: Source, attempt: Attempt, manifest: Manifest) -> None:
    on = f", standing on {attempt.parent}" if attempt.parent is not None else ""
    what = f"{counted(source.n_tensors, 'tensor')}, {counted(len(manifest.images), 'image')}"
    write(f"{manifest.id} of {manifest.run}{on}: {what}, {format_bytes(manifest.size_bytes)}", style="bold")
    if source.left_out:
        write(f"left out: {', '.join(source.left_out)}")
    write(f"  `holdfast show {url}` shows what is in it")


def _document(url: str, source: Source, attempt: Attempt, manifest: Manifest) -> dict[str, object]:
    return {
        "url": url,
        "run": manifest.run,
        "attempt": manifest.id.attempt,
        "step": manifest.id.step,
        "parent": name_of(attempt.parent),
        "source": str(source.path),
        "kind": source.kind,
        "tensors": source.n_tensors,
        "images": len(manifest.images),
        "size_bytes": manifest.size_bytes,
        "left_out": source.left_out,
    }
