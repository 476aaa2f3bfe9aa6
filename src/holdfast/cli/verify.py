"""`holdfast verify`: read checkpoints and compare every byte with its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from holdfast.cli.arguments import json_option, step_option, url_argument
from holdfast.cli.output import Bar, counted, progress, write, write_json
from holdfast.cli.runs import Run, open_run
from holdfast.errors import CorruptError, HoldfastError, UsageError
from holdfast.model.identity import CheckpointId
from holdfast.store.catalog import CatalogEntry
from holdfast.store.verify import DAMAGE, ImageVerdict, verify_checkpoint
from holdfast.units import format_bytes


@dataclass(slots=True)
class Verified:
    """What reading one checkpoint said. `error` is that of its manifest."""

    id: CheckpointId
    images: list[ImageVerdict] = field(default_factory=list)
    error: HoldfastError | None = None

    @property
    def errors(self) -> list[HoldfastError]:
        return [e for e in (self.error, *(v.error for v in self.images)) if e is not None]


@click.command()
@url_argument()
@step_option("The step, on the lineage. [default: the newest]")
@click.option("--all", "everything", is_flag=True, help="Every committed checkpoint, abandoned ones too.")
@json_option()
def verify(url: str, step: int | None, everything: bool, as_json: bool) -> None:
    """Read checkpoints and compare every byte with its checksum.

    Every image is read from the tier the URL names and compared with its own block table and with the manifest. Nothing
    is changed. Exits with 40 when something is damaged or missing.

    \b
    Examples:
      holdfast verify /data/run7
      holdfast verify file:///data/run7 --step 100
      holdfast verify /data/run7 --all --json
    """
    if step is not None and everything:
        raise UsageError("--step and --all exclude each other", hint="say one of them")
    with open_run(url) as run:
        run.require_something()
        entries = run.catalog.committed if everything else [run.find(step) if step is not None else run.newest()]
        total_bytes = sum(e.size_bytes for e in entries)
        with progress("reading", total_bytes, quiet=as_json) as bar:
            results = [_verify(run, entry, bar, quiet=as_json) for entry in entries]
    if as_json:
        write_json(_document(run, results))
    else:
        _conclude(url, results)
    code = _exit_code(results)
    if code:
        raise click.exceptions.Exit(code)


def _verify(run: Run, entry: CatalogEntry, bar: Bar, *, quiet: bool) -> Verified:
    result = Verified(entry.id, error=entry.problem)
    if entry.problem is not None and not quiet:
        bar.say(f"bad   manifest of {entry.id}: {entry.problem}", style="red")
    if entry.manifest is not None:
        for verdict in verify_checkpoint(run.home, entry.manifest, progress=bar.advance):
            result.images.append(verdict)
            if not quiet:
                _say(bar, verdict)
    return result


def _say(bar: Bar, verdict: ImageVerdict) -> None:
    if verdict.error is None:
        bar.say(f"ok    {verdict.id}, {format_bytes(verdict.size_bytes)}")
    else:
        bar.say(f"bad   {verdict.id}: {verdict.error}", style="red")


def _conclude(url: str, results: list[Verified]) -> None:
    images = [v for r in results for v in r.images]
    bad = [r for r in results if r.errors]
    size = format_bytes(sum(v.size_bytes for v in images))
    what = f"{counted(len(results), 'checkpoint')}, {counted(len(images), 'image')}, {size} read"
    if not bad:
        write(f"{what}: every byte is as it was saved", style="green")
        return
    write(f"{what}; {len(bad)} damaged: {', '.join(str(r.id) for r in bad)}", style="bold red")
    write("  hint: a load takes another copy, or the next older checkpoint;")
    write(
        f"  `holdfast verify {url} --all` shows which are whole, `holdfast prune {url} --step N` deletes a damaged one"
    )


def _exit_code(results: list[Verified]) -> int:
    errors = [e for r in results for e in r.errors]
    if any(isinstance(e, DAMAGE) for e in errors):
        return CorruptError.exit_code
    return errors[0].exit_code if errors else 0


def _document(run: Run, results: list[Verified]) -> dict[str, object]:
    return {
        "url": run.url,
        "ok": not any(r.errors for r in results),
        "checkpoints": [
            {
                "attempt": r.id.attempt,
                "step": r.id.step,
                "ok": not r.errors,
                "error": r.error.to_dict() if r.error else None,
                "images": [*_image_documents(r)],
            }
            for r in results
        ],
    }


def _image_documents(result: Verified) -> Iterator[dict[str, object]]:
    for verdict in result.images:
        yield {
            "rank": verdict.id.rank,
            "image": verdict.id.image,
            "key": verdict.key,
            "size_bytes": verdict.size_bytes,
            "ok": verdict.ok,
            "error": verdict.error.to_dict() if verdict.error else None,
        }
