"""Writes a torch.save file that `torch.load(weights_only=True)` reads."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from holdfast.format.pickled.meanings import STORAGES, StorageRef, TensorView
from holdfast.format.pickled.writing import write
from holdfast.store.blocks import Progress, no_progress
from holdfast.store.exporting.chosen import Chosen, item_bytes
from holdfast.store.exporting.places import new_file
from holdfast.store.exporting.rows import in_rows
from holdfast.store.tensors import StoredTensor

_FOLDER = "archive"
_ALIGNED_BYTES = 64
_PADDING = 0x4246
"""As torch marks what it fills up with in front of a storage, so that this can be mapped."""
_HEADER_BYTES = 30
_ZIP64_BYTES = 20
_EPOCH = (1980, 1, 1, 0, 0, 0)


def export_torch(chosen: Chosen, path: Path, *, progress: Progress = no_progress) -> list[Path]:
    """Write the file, one storage after the other. Returns what was written.

    Raises: UnsupportedValueError naming what torch.load would not read; UsageError when something is there;
        CorruptError, TierError: nothing is there then.
    """
    storages = {fqn: str(n) for n, fqn in enumerate(f for f in chosen.tensors if f not in chosen.aliases)}
    views = {fqn: _view(tensor, storages[chosen.aliases.get(fqn, fqn)]) for fqn, tensor in chosen.tensors.items()}
    pickle = write(chosen.tree, views)
    with new_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_info("data.pkl"), pickle)
        archive.writestr(_info("byteorder"), b"little")
        for fqn, key in storages.items():
            _write_storage(archive, file, key, chosen.tensors[fqn], progress)
        archive.writestr(_info("version"), b"3\n")
    return [path]


def _view(tensor: StoredTensor, key: str) -> TensorView:
    record, size = tensor.record, item_bytes(tensor)
    n = math.prod(record.shape)
    typed = record.dtype in STORAGES
    storage = StorageRef(key, record.dtype if typed else None, n if typed else n * size)
    strides = tuple([math.prod(record.shape[dim + 1 :]) for dim in range(len(record.shape))])
    return TensorView(storage, record.dtype, 0, record.shape, strides)


def _write_storage(
    archive: zipfile.ZipFile, file: BinaryIO, key: str, tensor: StoredTensor, progress: Progress
) -> None:
    info = _info(f"data/{key}")
    begin = file.tell() + _HEADER_BYTES + len(info.filename) + _ZIP64_BYTES + 4
    filler = -begin % _ALIGNED_BYTES
    info.extra = struct.pack("<2H", _PADDING, filler) + b"Z" * filler
    with archive.open(info, "w", force_zip64=True) as record:
        for part in in_rows(tensor):
            record.write(part.data)
            progress(part.nbytes)


def _info(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(f"{_FOLDER}/{name}", _EPOCH)
