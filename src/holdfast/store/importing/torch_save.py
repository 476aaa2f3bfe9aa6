"""Files of torch.save: a zip with a pickle and a record per storage. The pickle is read by a machine that runs nothing.

What is older (a tar, a bare pickle) and TorchScript is refused.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import CorruptError, HoldfastError, UnsupportedValueError, UsageError
from holdfast.format.nested import DICTS
from holdfast.format.pickled.archive import ZipRecord, read_directory
from holdfast.format.pickled.machine import MAX_PICKLE_BYTES, read
from holdfast.format.pickled.meanings import TORCH_SAVE, TensorView
from holdfast.model.image import Piece
from holdfast.store.importing.files import Files, SourceFile
from holdfast.store.importing.source import Asked, Gathering, Source, Stored, Summed, is_run, located, piece_of
from holdfast.store.importing.values import Values

KIND = "torch"
_LONGEST_WORD = 16


@dataclass(frozen=True, slots=True)
class TorchFile:
    """One torch.save file, which may be a part of another file: `base` is where it begins there."""

    file: SourceFile
    base: int
    prefix: str
    records: dict[str, ZipRecord]
    value: Any

    def stored(self, view: TensorView, piece: Piece) -> Stored:
        """Where the bytes of a tensor of it lie. Raises: CorruptError: not in its storage, or that is cut off."""
        name = f"{self.prefix}data/{view.storage.key}"
        record = self.records.get(name)
        if record is None:
            raise CorruptError(f"the storage {name[:80]!r} is not there")
        last = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True))
        reached = 0 if 0 in view.shape else (last + 1) * view.item_bytes
        if max(reached, view.storage.size_bytes) > record.size_bytes:
            raise CorruptError(f"the storage {name[:80]!r} has {record.size_bytes} bytes, a tensor needs more")
        # torch can leave checksums out, which are 0 then.
        start = self.base + record.start
        summed = Summed(self.file.path, start, record.size_bytes, record.crc32) if record.crc32 else None
        strides = None if is_run(view.shape, view.strides) else view.strides
        return Stored(piece, self.file.path, start + view.offset * view.item_bytes, strides, summed)


def open_torch_file(file: SourceFile, base: int = 0, size_bytes: int | None = None) -> TorchFile:
    """Read directory and pickle of a torch.save file.

    Raises: CorruptError, UnsupportedValueError; TierError.
    """
    size = file.size_bytes - base if size_bytes is None else size_bytes

    def read_within(offset: int, n_bytes: int) -> bytes:
        if offset < 0 or offset + n_bytes > size:
            raise CorruptError(f"it ends at byte {size}, before byte {offset + n_bytes}")
        return file.read(base + offset, n_bytes)

    records = read_directory(read_within, size)
    prefix = _prefix(records)
    order = records.get(f"{prefix}byteorder")
    if order is not None:
        word = read_within(order.start, min(order.size_bytes, _LONGEST_WORD))
        if word != b"little":
            raise UnsupportedValueError(
                f"its numbers are {word.decode(errors='replace')}-endian, only little-endian ones are read",
                hint="load it with torch and save it anew on a machine of today",
            )
    data = records[f"{prefix}data.pkl"]
    if data.size_bytes > MAX_PICKLE_BYTES:
        raise CorruptError(f"its pickle has {data.size_bytes} bytes, {MAX_PICKLE_BYTES} is the most")
    pickle = read_within(data.start, data.size_bytes)
    if data.crc32 and zlib.crc32(pickle) != data.crc32:
        raise CorruptError("its pickle does not match its checksum")
    return TorchFile(file, base, prefix, records, read(pickle, TORCH_SAVE))


def _prefix(records: dict[str, ZipRecord]) -> str:
    """What the names of all records begin with."""
    found = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise UnsupportedValueError(
            "this zip is none of torch.save: it has no data.pkl", hint="save it anew with torch"
        )
    prefix = found[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in records:
        raise UnsupportedValueError(
            "this is TorchScript, a program with its weights", hint="torch.save(torch.jit.load(FILE).state_dict(), ...)"
        )
    return prefix


def read_torch_save(path: Path, asked: Asked, files: Files) -> Source:
    """A torch.save file of a dict, or of one tensor that is put below a key.

    Raises: UsageError, UnsupportedValueError, CorruptError; TierError.
    """
    file = files.get(path)
    try:
        opened = open_torch_file(file)
        gathering = Gathering(asked)
        value = _below(asked, opened.value, path)
        gathering.begin(value)
        values = Values(gathering, lambda name, view: _place(gathering, opened, name, view)).items("", value)
        return gathering.finish(KIND, path, dict(values), files_bytes=file.size_bytes)
    except HoldfastError as e:
        raise located(path, e) from None


def _below(asked: Asked, value: Any, path: Path) -> dict[Any, Any]:
    if type(value) in DICTS:
        found: dict[Any, Any] = value
        return found
    if asked.under is None:
        what = "a tensor" if type(value) is TensorView else f"a {type(value).__name__}"
        raise UsageError(f"{path} is {what}, and a state is a dict", hint="name the key for it: --under KEY")
    return {asked.under: value}


def _place(gathering: Gathering, opened: TorchFile, name: str, view: TensorView) -> None:
    piece = piece_of(gathering.full(name), view.shape, view.dtype, view.item_bytes)
    gathering.add_once(name, opened.stored(view, piece))
