"""`holdfast verify`: read checkpoints and compare every byte with its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from holdfast.cli.arguments import json_option, step_option, url_argument, yes_option
from holdfast.cli.mending import Mended, mend, mending_document, open_sources, read_again
from holdfast.cli.output import Bar, counted, progress, write, write_json
from holdfast.cli.runs import Run, open_run
from holdfast.config import normalise_url
from holdfast.errors import CorruptError, HoldfastError, NotFoundError, UsageError
from holdfast.model.identity import CheckpointId
from holdfast.store.catalog import CatalogEntry, Wound, read_manifest
from holdfast.store.verify import DAMAGE, ImageVerdict, Proven, verify_checkpoint
from holdfast.tiers.contract import Tier
from holdfast.units import format_bytes


@dataclass(slots=True)
class Verified:
    """What reading one checkpoint said. `error` is that of its manifest."""

    id: CheckpointId
    images: list[ImageVerdict] = field(default_factory=list)
    error: HoldfastError | None = None

    @property
    def wounds(self) -> list[Wound]:
        """What a good copy elsewhere would mend. What a newer Holdfast wrote is no damage."""
        found = [(None, self.error), *((v.id, v.error) for v in self.images)]
        return [Wound("", image, e.message) for image, e in found if isinstance(e, CorruptError | NotFoundError)]

    @property
    def errors(self) -> list[HoldfastError]:
        return [e for e in (self.error, *(v.error for v in self.images)) if e is not None]


@click.command()
@url_argument()
@step_option("The step, on the lineage. [default: the newest]")
@click.option("--all", "everything", is_flag=True, help="Every committed checkpoint, abandoned ones too.")
@click.option("--repair", is_flag=True, help="Re-make what is bad from a good copy.")
@click.option(
    "--from",
    "from_urls",
    type=normalise_url,
    multiple=True,
    metavar="URL",
    help="Take good copies from there, too; may be repeated.",
)
@yes_option("Repair now.")
@json_option()
def verify(  # noqa: PLR0913  one parameter per option
    *,
    url: str,
    step: int | None,
    everything: bool,
    repair: bool,
    from_urls: tuple[str, ...],
    yes: bool,
    as_json: bool,
) -> None:
    """Read checkpoints and compare every byte with its checksum.

    Every image is read from the tier the URL names and compared with its own block table and with the manifest. Exits
    with 40 when something is damaged or missing. Nothing is changed without --repair --yes.

    With --repair, bad and missing images and manifests are re-made: from this node's memory or another tier through the
    live agent, else from the run's other tiers and those named with --from; a manifest also from its images. Good bytes
    are proven before they are written and read back after. Where no good copy is left, nothing is changed.

    \b
    Examples:
      holdfast verify /data/run7
      holdfast verify file:///data/run7 --step 100
      holdfast verify /data/run7 --all --json
      holdfast verify /mnt/nvme/run7 --repair --from /data/run7
    """
    if step is not None and everything:
        raise UsageError("--step and --all exclude each other", hint="say one of them")
    if (from_urls or yes) and not repair:
        raise UsageError("--from and --yes belong to --repair", hint="add --repair, or leave them out")
    with open_run(url) as run, open_sources(from_urls) as sources:
        run.require_something()
        entries = run.catalog.committed if everything else [run.find(step) if step is not None else run.newest()]
        results = _read(run, entries, quiet=as_json)
        mended = _repair(run, results, sources, yes=yes) if repair else []
        for line in () if as_json else mended:
            write(line.text, style="red" if line.error else "")
        if any(m.done for m in mended):
            results = _read(run, read_again(run, entries), quiet=True)
    if as_json:
        write_json({**_document(run, results), **(mending_document(mended, yes=yes) if repair else {})})
    else:
        _conclude(url, results, mended=mended, yes=yes)
    code = _exit_code(results)
    if code:
        raise click.exceptions.Exit(code)


def _repair(run: Run, results: list[Verified], sources: list[Tier], *, yes: bool) -> list[Mended]:
    """A manifest that is good again may tell of bad images that it did not before."""
    mended = mend(run, [(r.id, r.wounds) for r in results], sources, yes=yes)
    told = {m.id for m in mended if m.done and m.image is None}
    again = _read(run, read_again(run, [e for e in run.catalog if e.id in told]), quiet=True)
    return mended + mend(run, [(r.id, r.wounds) for r in again], sources, yes=yes)


def _read(run: Run, entries: list[CatalogEntry], *, quiet: bool) -> list[Verified]:
    proven: Proven = {}
    once = {r: r.size_bytes for e in entries if e.manifest is not None for r in e.manifest.images}
    with progress("reading", sum(once.values()), quiet=quiet) as bar:
        return [_verify(run, entry, proven, bar, quiet=quiet) for entry in entries]


def _verify(run: Run, entry: CatalogEntry, proven: Proven, bar: Bar, *, quiet: bool) -> Verified:
    result = Verified(entry.id, error=entry.problem)
    if entry.problem is not None and not quiet:
        bar.say(f"bad   manifest of {entry.id}: {entry.problem}", style="red")
    if entry.manifest is not None:
        manifest = read_manifest(run.home, entry.id)
        for verdict in verify_checkpoint(run.home, manifest, progress=bar.advance, proven=proven):
            result.images.append(verdict)
            if not quiet:
                _say(bar, verdict)
    return result


def _say(bar: Bar, verdict: ImageVerdict) -> None:
    if verdict.error is None:
        size = format_bytes(verdict.size_bytes)
        bar.say(f"ok    {verdict.id}, {'read before' if verdict.again else size}")
    else:
        bar.say(f"bad   {verdict.id}: {verdict.error}", style="red")


def _conclude(url: str, results: list[Verified], *, mended: list[Mended], yes: bool) -> None:
    images = [v for r in results for v in r.images if not v.again]
    bad = [r for r in results if r.errors]
    size = format_bytes(sum(v.size_bytes for v in images))
    what = f"{counted(len(results), 'checkpoint')}, {counted(len(images), 'image')}, {size} read"
    if not bad:
        write(f"{what}: every byte is as it was saved", style="green")
        return
    write(f"{what}; {len(bad)} damaged: {', '.join(str(r.id) for r in bad)}", style="bold red")
    write("  hint: a load takes another copy, or the next older checkpoint;")
    if not mended:
        write(f"  `holdfast verify {url} --repair` re-makes what is bad where a good copy is left;")
    elif not yes and all(m.error for m in mended):
        write("  this was a dry run, and no good copy was found: --yes would repair nothing", style="bold")
    elif not yes:
        write("  this was a dry run: nothing was repaired; add --yes to do it", style="bold")
    elif any(m.error for m in mended):
        left = sum(m.error is not None for m in mended)
        write(
            f"  {left} of {len(mended)} could not be repaired, see `left` above; --from URL names more places",
            style="bold",
        )
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
