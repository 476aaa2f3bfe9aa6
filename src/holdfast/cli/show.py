"""`holdfast show`: show what a checkpoint contains."""

from __future__ import annotations

import click
import msgspec

from holdfast.cli.arguments import json_option, step_option, tier_option, url_argument
from holdfast.cli.completing import complete_tensor
from holdfast.cli.noted import notes_document, told_notes
from holdfast.cli.output import Column, Grid, counted, paged, write, write_grid, write_json
from holdfast.cli.plain import pretty, read_plain
from holdfast.cli.runs import Run, describe_lineage, name_of, open_run
from holdfast.cli.tensor import Looked, note_of, piece_documents, records_of, shape_text, write_pieces
from holdfast.errors import UsageError
from holdfast.format import names
from holdfast.model.image import ImageRecord
from holdfast.model.manifest import Manifest, TensorRecord
from holdfast.units import format_bytes


@click.command()
@url_argument()
@step_option("The step, on the lineage. [default: the newest]")
@click.option(
    "--tensor",
    metavar="NAME",
    shell_complete=complete_tensor,
    help="Only this tensor: where it stands, and its numbers.",
)
@click.option("--plain", is_flag=True, help="Only the plain values: numbers, settings, states of generators.")
@click.option("--rank", type=click.IntRange(min=0), metavar="R", help="Whose plain values. [default: 0]")
@tier_option()
@json_option()
def show(  # noqa: PLR0913, PLR0917  (its options)
    url: str, step: int | None, tensor: str | None, plain: bool, rank: int | None, tier: str | None, as_json: bool
) -> None:
    """Show what a checkpoint contains.

    Its images, its tensors with shape and dtype, and where it stands in the run. With --tensor that tensor is read and
    compared with its checksums, and what its numbers are like is shown; nothing else is read.

    \b
    Examples:
      holdfast show /data/run7
      holdfast show /data/run7 --step 100 --tensor model.embed.weight
      holdfast show file:///data/run7 --step 100 --plain
      holdfast show /data/run7 --plain --rank 3 --json
      holdfast show /data/run7 --tier memory --tensor model.embed.weight
    """
    if tensor is not None and plain:
        raise UsageError("--tensor and --plain are two questions", hint="ask one at a time")
    if rank is not None and not plain:
        raise UsageError("--rank says whose plain values", hint="say --plain, too")
    with paged(), open_run(url) as opened:
        run = opened.at(tier)
        manifest = run.manifest(step)
        if plain:
            _plain(run, manifest, rank or 0, as_json)
        elif tensor is not None:
            _tensor(run, manifest, tensor, as_json)
        else:
            _summary(run, manifest, as_json)


def _summary(run: Run, manifest: Manifest, as_json: bool) -> None:
    if as_json:
        write_json(_document(run, manifest))
        return
    write(f"{manifest.id} of {manifest.run}", style="bold")
    write(
        f"{counted(manifest.world_size, 'rank')}, {counted(len(manifest.images), 'image')}, "
        f"{format_bytes(manifest.size_bytes)}, {counted(len(manifest.tensors), 'tensor')}; "
        f"structure {manifest.structure[:16]}, format {manifest.format_version}"
    )
    for line in told_notes(manifest.notes):
        write(line)
    write(f"the run: {describe_lineage(run.attempts)}\n")
    write_grid(_image_grid(manifest))
    write()
    write_grid(_tensor_grid(manifest))


def _image_grid(manifest: Manifest) -> Grid:
    grid = Grid(
        [Column("RANK", True), Column("IMAGE", True), Column("SIZE", True), Column("CRC64NVME"), Column("FROM")]
    )
    for record in manifest.images:
        older = "" if record.id.checkpoint == manifest.id else str(record.id.checkpoint)
        size = format_bytes(record.size_bytes)
        grid.add(str(record.id.rank), str(record.id.image), size, f"{record.crc64nvme:016x}", older)
    return grid


def _tensor_grid(manifest: Manifest) -> Grid:
    columns = Column("TENSOR", fold=True), Column("SHAPE"), Column("DTYPE"), Column("CHUNKS", True), Column("NOTE")
    grid = Grid(columns)
    for tensor in manifest.tensors:
        shape = shape_text(tensor.shape)
        chunks = "" if tensor.alias_of else str(len(tensor.chunks))
        grid.add(tensor.fqn, shape, tensor.dtype, chunks, note_of(tensor))
    return grid


def _tensor(run: Run, manifest: Manifest, fqn: str, as_json: bool) -> None:
    """Every part of it is read, and compared with its checksum first."""
    looked = [(t, Looked(run.home, manifest, t, quiet=as_json)) for t in records_of(manifest, fqn)]
    if as_json:
        documents = [
            {**_tensor_document(t), "chunks": piece_documents(one), "statistics": one.document()} for t, one in looked
        ]
        write_json({**_name(manifest), "tensors": documents})
        return
    for n, (tensor, one) in enumerate(looked):
        words = (tensor.fqn, tensor.dtype, shape_text(tensor.shape), format_bytes(one.size_bytes), note_of(tensor))
        write(("\n" if n else "") + "  ".join(w for w in words if w), style="bold")
        write_pieces(one, manifest)
        one.show()


def _plain(run: Run, manifest: Manifest, rank: int, as_json: bool) -> None:
    from holdfast.store.tensors import Images

    payload = read_plain(Images(run.home), manifest, rank)
    if as_json:
        write_json({**_name(manifest), "rank": rank, "plain": msgspec.Raw(payload)})
    else:
        write(pretty(payload))


def _name(manifest: Manifest) -> dict[str, object]:
    return {"run": manifest.run, "attempt": manifest.id.attempt, "step": manifest.id.step}


def _document(run: Run, manifest: Manifest) -> dict[str, object]:
    return {
        **_name(manifest),
        "format_version": manifest.format_version,
        **notes_document(manifest.notes),
        "world_size": manifest.world_size,
        "structure": manifest.structure,
        "size_bytes": manifest.size_bytes,
        "images": [_image_document(r) for r in manifest.images],
        "tensors": [_tensor_document(t) for t in manifest.tensors],
        "lineage": [{"attempt": a.attempt, "parent": name_of(a.parent)} for a in run.attempts.records],
    }


def _image_document(record: ImageRecord) -> dict[str, object]:
    return {
        "attempt": record.id.attempt,
        "step": record.id.step,
        "rank": record.id.rank,
        "image": record.id.image,
        "key": names.image_key(record.id),
        "size_bytes": record.size_bytes,
        "crc64nvme": f"{record.crc64nvme:016x}",
    }


def _tensor_document(tensor: TensorRecord) -> dict[str, object]:
    return {
        "name": tensor.fqn,
        "shape": tensor.shape,
        "dtype": tensor.dtype,
        "owner_rank": tensor.owner_rank,
        "alias_of": tensor.alias_of,
        "chunk_count": len(tensor.chunks),
    }
