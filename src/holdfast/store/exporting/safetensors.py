"""Writes files in safetensors' format: one, or several of 5 GB with Hugging Face's index, which is written last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from holdfast.errors import UnsupportedValueError
from holdfast.format.dtypes import SAFETENSORS
from holdfast.format.nested import flatten
from holdfast.format.plain import TensorRef
from holdfast.store.blocks import Progress, no_progress
from holdfast.store.exporting.chosen import Chosen, item_bytes, size_of
from holdfast.store.exporting.places import new_file, new_folder
from holdfast.store.exporting.rows import in_rows
from holdfast.store.tensors import StoredTensor

FILE_BYTES = 5 * 10**9
_SUFFIX = ".safetensors"
_ALONE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_METADATA = "__metadata__"
_ALIGNED_BYTES = 8
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Named:
    """A tensor under the name it gets, and further names that are tied to it."""

    name: str
    tensor: StoredTensor
    ties: tuple[str, ...]


def export_safetensors(
    chosen: Chosen, path: Path, *, file_bytes: int = FILE_BYTES, progress: Progress = no_progress
) -> list[Path]:
    """Write one file if the path is called so, else a folder. Returns what was written.

    Ties are written once; the file's metadata have the other names, as the library's `save_model` has them.

    Raises: UnsupportedValueError naming what has no place in such a file; UsageError when something is there;
        CorruptError, TierError: nothing is there then.
    """
    named = _named(chosen)
    if path.name.endswith(_SUFFIX):
        _write(path, named, progress)
        return [path]
    groups = list(_groups(named, file_bytes))
    with new_folder(path):
        if len(groups) <= 1:
            _write(path / _ALONE, named, progress)
            return [path / _ALONE]
        paths = [path / f"model-{n + 1:05d}-of-{len(groups):05d}{_SUFFIX}" for n in range(len(groups))]
        for group, file_path in zip(groups, paths, strict=True):
            _write(file_path, group, progress)
        with new_file(path / _INDEX) as file:
            file.write(_index(groups, paths))
        return [*paths, path / _INDEX]


def _named(chosen: Chosen) -> list[_Named]:
    """Names in the order of the tensors' bytes. Raises: UnsupportedValueError."""
    leaves, _ = flatten(chosen.tree)
    problems = [f"{n} (a {type(x).__name__})" for n, x in leaves.items() if type(x) is not TensorRef]
    problems += [f"{n} (a reserved name)" for n in leaves if n == _METADATA]
    by_fqn = {x.fqn: name for name, x in leaves.items() if type(x) is TensorRef}
    problems += [
        f"{name} (a tensor of {chosen.tensors[fqn].record.dtype})"
        for fqn, name in by_fqn.items()
        if chosen.tensors[fqn].record.dtype not in SAFETENSORS
    ]
    if problems:
        more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UnsupportedValueError(
            f"safetensors has no place for {', '.join(problems[:_SHOWN])}{more}",
            hint="leave them out: --without NAME, or export one key of the state: --only KEY",
        )
    ties: dict[str, list[str]] = {}
    for alias, first in chosen.aliases.items():
        ties.setdefault(first, []).append(by_fqn[alias])
    return [
        _Named(by_fqn[fqn], tensor, tuple(ties.get(fqn, ())))
        for fqn, tensor in chosen.tensors.items()
        if fqn not in chosen.aliases
    ]


def _groups(named: list[_Named], file_bytes: int) -> Iterator[list[_Named]]:
    group: list[_Named] = []
    n_bytes = 0
    for one in named:
        size = size_of(one.tensor)
        if group and n_bytes + size > file_bytes:
            yield group
            group, n_bytes = [], 0
        group.append(one)
        n_bytes += size
    if group:
        yield group


def _write(path: Path, group: list[_Named], progress: Progress) -> None:
    """Larger elements first, so that all lie at multiples of their size."""
    in_order = sorted(group, key=lambda one: -item_bytes(one.tensor))
    with new_file(path) as file:
        file.write(_header(in_order))
        for one in in_order:
            for part in in_rows(one.tensor):
                file.write(part.data)
                progress(part.nbytes)


def _header(group: list[_Named]) -> bytes:
    metadata = {"format": "pt"} | {tie: one.name for one in group for tie in one.ties if tie != "format"}
    entries: dict[str, Any] = {_METADATA: metadata}
    at = 0
    for one in group:
        record, end = one.tensor.record, at + size_of(one.tensor)
        dtype, _ = SAFETENSORS[record.dtype]
        entries[one.name] = {"dtype": dtype, "shape": record.shape, "data_offsets": [at, end]}
        at = end
    raw = msgspec.json.encode(entries)
    raw = raw.ljust(-(-len(raw) // _ALIGNED_BYTES) * _ALIGNED_BYTES)
    return len(raw).to_bytes(8, "little") + raw


def _index(groups: list[list[_Named]], paths: list[Path]) -> bytes:
    total = sum(size_of(one.tensor) for group in groups for one in group)
    where = {one.name: path.name for group, path in zip(groups, paths, strict=True) for one in group}
    body = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"
