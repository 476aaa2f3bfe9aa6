"""Foreign checkpoints small enough to make by the dozen, and their bytes as an import reads them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.format.dtypes import SAFETENSORS
from holdfast.model.identity import CheckpointId
from holdfast.model.manifest import Manifest
from holdfast.store.importing import Asked, Source, read_source
from holdfast.store.importing.copying import claim_step, copy_source
from holdfast.store.importing.files import open_files
from holdfast.store.importing.images import plan_images
from holdfast.store.importing.reading import SourceBytes
from holdfast.store.tensors import Images, stored_tensor
from holdfast.tiers.contract import Tier


def write_safetensors(path: Path, tensors: Mapping[str, Any], **metadata: Any) -> Path:
    """A file in safetensors' format; metadata that are no text are written as JSON."""
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    entries: dict[str, Any] = {"__metadata__": texts} if texts else {}
    at = 0
    for name, array in tensors.items():
        dtype = SAFETENSORS[str(array.dtype)][0]
        entries[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    header = json.dumps(entries).encode()
    data = b"".join(array.tobytes() for array in tensors.values())
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def write_index(folder: Path, weight_map: dict[str, str]) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def source_of(path: Path, *, under: str | None = None, without: tuple[str, ...] = ()) -> Source:
    return read_source(path, Asked(under, without))


def bytes_of(source: Source) -> dict[tuple[str, tuple[int, ...]], bytes]:
    """The bytes of every rectangle, read as an import reads them."""
    found = {}
    with open_files() as files:
        reader = SourceBytes(files)
        for stored in source.stored:
            buffer = memoryview(bytearray(stored.piece.nbytes))
            for at in range(0, len(buffer), 1000):
                reader.read_into(stored, at, buffer[at : at + 1000])
            found[stored.piece.fqn, stored.piece.offsets] = bytes(buffer)
        reader.finish()
    return found


def copy(tier: Tier, source: Source, step: int, **limits: int) -> Manifest:
    """Import a source as a step of the run on a tier."""
    plans = plan_images(source, run="run7", **limits)
    attempt = claim_step(tier, run="run7", step=step)
    return copy_source(tier, source, plans, CheckpointId(attempt.attempt, step), saved_at_s=1767225600)


def stored_bytes(tier: Tier, manifest: Manifest) -> dict[str, bytes]:
    """The bytes of every tensor of a checkpoint whose pieces are in row order."""
    images = Images(tier)
    return {
        t.fqn: b"".join(part.tobytes() for part in stored_tensor(images, manifest, t).parts()) for t in manifest.tensors
    }
