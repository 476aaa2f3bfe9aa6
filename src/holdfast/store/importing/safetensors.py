"""Files in safetensors' format, alone or with Hugging Face's index; also those that torch DCP cut into parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from holdfast.errors import CorruptError, HoldfastError, UsageError
from holdfast.format.dtypes import TORCH
from holdfast.format.limits import MAX_BYTES, MAX_DIMS
from holdfast.format.nested import Mark
from holdfast.format.plain import TensorRef
from holdfast.format.records import Size
from holdfast.model.image import Piece
from holdfast.store.importing.files import Files, SourceFile, names_in
from holdfast.store.importing.source import Asked, Gathering, Source, Stored, located

KIND = "safetensors"
SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""As the library has it."""
_MAX_INDEX_BYTES = 256 * 2**20
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_SHARDING = "DCP_SHARDING_INFO"
_IMAGE = "holdfast.format"


class _Entry(msgspec.Struct, gc=False):
    dtype: str
    shape: tuple[Size, ...]
    data_offsets: tuple[Size, Size]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _Saved(msgspec.Struct):
    saved_offsets: tuple[Size, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """One entry of a file: a rectangle of a tensor, `offsets` of it where the file says so."""

    file: Path
    entry: _Entry
    start: int
    offsets: tuple[int, ...]


def read_safetensors(path: Path, asked: Asked, files: Files) -> Source:
    """A file, an index, or a folder with an index or with one file.

    Raises: UsageError, UnsupportedValueError; CorruptError when a file is missing, too short, or not as it says;
        TierError.
    """
    index, paths = _files_of(path)
    parts: dict[str, list[_Part]] = {}
    for file_path in paths:
        try:
            for name, part in _parts_in(files.get(file_path), alone=index is not None or len(paths) == 1):
                parts.setdefault(name, []).append(part)
        except HoldfastError as e:
            raise located(file_path, e) from None
    if index is not None:
        _compare(index, parts)
    gathering = Gathering(asked)
    gathering.begin(parts)
    values: dict[str, Any] = {}
    for name, found in parts.items():
        if gathering.takes(name):
            _gather(gathering, name, found)
            values[name] = TensorRef(gathering.full(name))
    total = sum(files.get(p).size_bytes for p in paths)
    return gathering.finish(KIND, path, values, files_bytes=total, mark=Mark(flat=((),)))


def _files_of(path: Path) -> tuple[dict[str, Path] | None, list[Path]]:
    """Which file the index says each name is in (None: there is none), and the files."""
    if not path.is_dir():
        return _indexed(path) if path.name.endswith(INDEX) else (None, [path])
    names = names_in(path)
    indices = [name for name in names if name.endswith(INDEX)]
    if len(indices) > 1:
        raise UsageError(f"{path} has {len(indices)} indices", hint=f"name one: {path / indices[0]}")
    if indices:
        return _indexed(path / indices[0])
    found = [path / name for name in names if name.endswith(SUFFIX)]
    if not found:
        raise UsageError(f"{path} has no file in safetensors' format")
    return None, found


def _indexed(path: Path) -> tuple[dict[str, Path], list[Path]]:
    file = SourceFile(path)
    try:
        if file.size_bytes > _MAX_INDEX_BYTES:
            raise CorruptError(f"{path} has {file.size_bytes} bytes, {_MAX_INDEX_BYTES} is the most")
        index = msgspec.json.decode(file.read(0, file.size_bytes), type=_Index)
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise CorruptError(f"{path} is no index: {str(e)[:200]}") from None
    finally:
        file.close()
    for name in set(index.weight_map.values()):
        if name != Path(name).name or not name.endswith(SUFFIX):
            raise CorruptError(f"{path} names {name[:80]!r}, which is no file beside it")
    found = {fqn: path.parent / name for fqn, name in index.weight_map.items()}
    return found, sorted(set(found.values()))


def _compare(index: dict[str, Path], parts: dict[str, list[_Part]]) -> None:
    """Every name of the index in its file, and no other. Raises: CorruptError."""
    for name, found in parts.items():
        if [part.file for part in found] != [index.get(name)]:
            where = ", ".join(part.file.name for part in found)
            raise CorruptError(f"{name[:200]!r} is in {where}, and the index says {index.get(name, Path('none')).name}")
    missing = next((name for name in index if name not in parts), None)
    if missing is not None:
        raise CorruptError(f"{missing[:200]!r} is not in {index[missing]}, where the index says it is")


def _gather(gathering: Gathering, name: str, parts: list[_Part]) -> None:
    """All parts of one tensor. Its shape is what they span: a last part that is missing cannot be missed."""
    first = parts[0].entry
    known = TORCH.get(first.dtype)
    if known is None:
        gathering.problem(name, f"its dtype {first.dtype[:20]!r} is not known")
        return
    if len({(len(p.entry.shape), len(p.offsets), p.entry.dtype) for p in parts}) != 1:
        raise CorruptError(f"parts of {name[:200]!r} are of different tensors")
    shape = tuple([max(p.offsets[d] + p.entry.shape[d] for p in parts) for d in range(len(first.shape))])
    for part in parts:
        piece = Piece(gathering.full(name), part.offsets, part.entry.shape, shape, *known)
        gathering.add(name, Stored(piece, part.file, part.start))


def _parts_in(file: SourceFile, *, alone: bool) -> Iterator[tuple[str, _Part]]:
    """What a file has, checked: entries cover all of it, none overlap. One of several has to say where they belong.

    Raises: CorruptError, UsageError.
    """
    length = int.from_bytes(file.read(0, _LENGTH_BYTES), "little")
    if length > min(MAX_HEADER_BYTES, file.size_bytes - _LENGTH_BYTES):
        raise CorruptError(f"a header of {length} bytes does not fit in {file.size_bytes}")
    entries, metadata = _header(file.read(_LENGTH_BYTES, length))
    if _IMAGE in metadata:
        raise UsageError("this is an image of a Holdfast checkpoint", hint="name its run where a URL is asked for")
    if not alone and _SHARDING not in metadata:
        raise UsageError("it is one of several files, and no index says what belongs together", hint="name one file")
    offsets = _offsets(metadata, entries)
    data, cursor = _LENGTH_BYTES + length, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, stop = entry.data_offsets
        known = TORCH.get(entry.dtype)
        if start != cursor or stop < start or len(entry.shape) > MAX_DIMS:
            raise CorruptError(f"{name[:200]!r} says bytes {start} to {stop}, expected from {cursor}")
        n_bytes = known[1] * math.prod(entry.shape) if known else stop - start
        if n_bytes > MAX_BYTES or stop - start != n_bytes:
            raise CorruptError(f"{name[:200]!r} has {stop - start} bytes, which does not fit its shape")
        cursor = stop
        yield name, _Part(file.path, entry, data + start, offsets.get(name, (0,) * len(entry.shape)))
    if data + cursor != file.size_bytes:
        raise CorruptError(f"its tensors end at byte {data + cursor}, it has {file.size_bytes}")


def _header(raw: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    try:
        found = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(found.pop(_METADATA, msgspec.Raw(b"{}")), type=dict[str, str])
        return {name: msgspec.json.decode(entry, type=_Entry) for name, entry in found.items()}, metadata
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise CorruptError(f"its header cannot be read: {str(e)[:200]}") from None


def _offsets(metadata: dict[str, str], entries: dict[str, _Entry]) -> dict[str, tuple[int, ...]]:
    """Where in its tensor each entry begins, if torch DCP wrote the file."""
    if _SHARDING not in metadata:
        return {}
    try:
        found = msgspec.json.decode(metadata[_SHARDING].encode(), type=dict[str, _Saved])
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise CorruptError(f"its {_SHARDING} cannot be read: {str(e)[:200]}") from None
    offsets = {name: saved.saved_offsets for name, saved in found.items()}
    odd = next((n for n, e in entries.items() if len(offsets.get(n, ())) != len(e.shape)), None)
    if odd is not None:
        raise CorruptError(f"its {_SHARDING} says nothing of {odd[:200]!r}, or not where that begins")
    return offsets
