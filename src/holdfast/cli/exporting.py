"""`holdfast export`: write a checkpoint as torch DCP, torch.save or safetensors have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.arguments import json_option, step_option, tier_option, url_argument
from holdfast.cli.output import counted, progress, write, write_json
from holdfast.cli.plain import read_plain
from holdfast.cli.runs import Run, open_run
from holdfast.errors import UsageError
from holdfast.units import format_bytes

if TYPE_CHECKING:
    from holdfast.model.manifest import Manifest
    from holdfast.store.blocks import Progress
    from holdfast.store.exporting.chosen import Chosen

    _Export = Callable[[Chosen, Path, Progress], list[Path]]

_KINDS = ("dcp", "torch", "safetensors")


@click.command("export")
@url_argument()
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--as", "kind", type=click.Choice(_KINDS), required=True, help="Whose files to write.")
@step_option("The step, on the lineage. [default: the newest]")
@click.option("--only", metavar="KEY", help="Only what stands below this key of the state, as if it were the whole.")
@click.option("--without", multiple=True, metavar="NAME", help="Leave out what has this name, or stands below it.")
@tier_option()
@json_option()
def exporting(  # noqa: PLR0913  one parameter per option
    *,
    url: str,
    dest: Path,
    kind: str,
    step: int | None,
    only: str | None,
    without: tuple[str, ...],
    tier: str | None,
    as_json: bool,
) -> None:
    """Write a checkpoint as torch DCP, torch.save or safetensors have it.

    DEST is new: a file for torch, a folder for dcp, for safetensors a folder or a file called so. Every byte is
    compared with its checksum before it is written. What the files cannot express is refused by its name, before
    anything is written; --without leaves it out. What each rank had of its own is left out, and listed.

    \b
    Examples:
      holdfast export /data/run7 model.pt --as torch --step 100
      holdfast export /data/run7 llama/ --as safetensors --only model
      holdfast export file:///data/run7 step_100 --as dcp --json
      holdfast export /data/run7 model.safetensors --as safetensors --without optim --without epoch
    """
    with open_run(url) as opened:
        run = opened.at(tier)
        manifest = run.manifest(step)
        chosen = _choose(run, manifest, only, without)
        export = _exporter(kind)
        with progress("exporting", chosen.size_bytes, quiet=as_json) as bar:
            paths = export(chosen, dest, bar.advance)
    if as_json:
        write_json(_document(url, manifest, dest, kind, chosen, paths))
    else:
        _conclude(manifest, dest, chosen, paths)


def _choose(run: Run, manifest: Manifest, only: str | None, without: tuple[str, ...]) -> Chosen:
    from holdfast.store.exporting.chosen import choose
    from holdfast.store.tensors import Images

    images = Images(run.home)
    return choose(images, manifest, read_plain(images, manifest, 0), only=only, without=without)


def _exporter(kind: str) -> _Export:
    """Raises: UsageError where torch is needed and is not there."""
    if kind == "torch":
        from holdfast.store.exporting.torch_save import export_torch

        return lambda chosen, dest, done: export_torch(chosen, dest, progress=done)
    if kind == "safetensors":
        from holdfast.store.exporting.safetensors import export_safetensors

        return lambda chosen, dest, done: export_safetensors(chosen, dest, progress=done)
    try:
        from holdfast.dcp.export import export_dcp
    except ModuleNotFoundError as e:
        raise UsageError("--as dcp needs torch, which is not installed", hint="pip install holdfast[torch]") from e
    return lambda chosen, dest, done: export_dcp(chosen, dest, progress=done)


def _size_bytes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def _conclude(manifest: Manifest, dest: Path, chosen: Chosen, paths: list[Path]) -> None:
    what = f"{counted(len(chosen.tensors), 'tensor')}, {counted(len(paths), 'file')}"
    write(f"{manifest.id} of {manifest.run} -> {dest}: {what}, {format_bytes(_size_bytes(paths))}", style="bold")
    if chosen.left_out:
        write(f"left out: {', '.join(chosen.left_out)}")


def _document(
    url: str, manifest: Manifest, dest: Path, kind: str, chosen: Chosen, paths: list[Path]
) -> dict[str, object]:
    return {
        "url": url,
        "run": manifest.run,
        "attempt": manifest.id.attempt,
        "step": manifest.id.step,
        "dest": str(dest),
        "as": kind,
        "tensors": len(chosen.tensors),
        "ties": [{"name": alias, "same_as": first} for alias, first in chosen.aliases.items()],
        "files": [{"path": str(path), "size_bytes": path.stat().st_size} for path in paths],
        "size_bytes": _size_bytes(paths),
        "left_out": chosen.left_out,
    }
