"""Folders of torch DCP's `FileSystemWriter`: `.metadata`, and files that hold one torch.save file per item."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import CorruptError, HoldfastError, UnsupportedValueError
from holdfast.format import nested, plain
from holdfast.format.nested import Mark
from holdfast.format.pickled.machine import MAX_PICKLE_BYTES, read
from holdfast.format.pickled.meanings import ITEM_BYTES, METADATA, Record, TensorView
from holdfast.format.plain import Opaque, TensorRef
from holdfast.model.image import Piece
from holdfast.store.importing.files import Files, names_in
from holdfast.store.importing.source import Asked, Gathering, Source, located, piece_of
from holdfast.store.importing.torch_save import TorchFile, open_torch_file
from holdfast.store.importing.values import Values

KIND = "dcp"
METADATA_FILE = ".metadata"


@dataclass(frozen=True, slots=True)
class _Item:
    """Where an item of DCP's stands."""

    file: Path
    offset: int
    length: int


class _Folder:
    """The items of a folder, opened in the order of their bytes."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path, self._files = path, files
        self._there = set(names_in(path))
        self._sizes: dict[Path, int] = {}

    def item(self, info: Any) -> _Item:
        """Raises: CorruptError: it names no file of the folder; UnsupportedValueError: it was transformed."""
        name, offset, length = _of(info, "_StorageInfo", "relative_path", "offset", "length")
        if info.fields.get("transform_descriptors"):
            raise UnsupportedValueError(
                "items that an extension transformed (compressed, encrypted) are not read", hint="save them without"
            )
        if type(name) is not str or name != Path(name).name or name in ("", ".", ".."):
            raise CorruptError(f"{str(name)[:80]!r} is no name of a file beside {METADATA_FILE}")
        if name not in self._there:
            raise CorruptError(f"{name[:80]!r} is not there", hint="the checkpoint is not whole")
        if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
            raise CorruptError(f"an item of {name[:80]!r} is nowhere")
        return _Item(self.path / name, offset, length)

    def open(self, item: _Item) -> TorchFile:
        """The torch.save file of an item. Raises: CorruptError, UnsupportedValueError; TierError."""
        file = self._files.get(item.file)
        self._sizes[item.file] = file.size_bytes
        if item.offset + item.length > file.size_bytes:
            raise CorruptError(
                f"{item.file} has {file.size_bytes} bytes, an item ends at {item.offset + item.length}",
                hint="the checkpoint is not whole",
            )
        return open_torch_file(file, item.offset, item.length)

    @property
    def size_bytes(self) -> int:
        """Of all files that were opened."""
        return sum(self._sizes.values())


def read_dcp(path: Path, asked: Asked, files: Files) -> Source:
    """A folder with `.metadata`. Its files may be no links.

    Raises: UsageError, UnsupportedValueError; CorruptError when it is not whole; TierError.
    """
    try:
        folder = _Folder(path, files)
        return _Dcp(folder, _metadata(path, files), asked).read()
    except HoldfastError as e:
        raise located(path, e) from None


def _metadata(path: Path, files: Files) -> Record:
    file = files.get(path / METADATA_FILE)
    if file.size_bytes > MAX_PICKLE_BYTES:
        raise CorruptError(f"{METADATA_FILE} has {file.size_bytes} bytes, {MAX_PICKLE_BYTES} is the most")
    found = read(file.read(0, file.size_bytes), METADATA)
    _of(found, "Metadata", "state_dict_metadata", "storage_data")
    assert isinstance(found, Record)
    return found


class _Dcp:
    """One checkpoint of torch DCP, as its metadata describe it."""

    def __init__(self, folder: _Folder, metadata: Record, asked: Asked) -> None:
        self._folder = folder
        self._gathering = Gathering(asked)
        self._entries = _a(dict, metadata.fields["state_dict_metadata"])
        self._planner_data = metadata.fields.get("planner_data")
        self._paths = _paths(self._planner_data, self._entries)
        self._items = self._located(_a(dict, metadata.fields["storage_data"]))

    def _located(self, storage: dict[Any, Any]) -> dict[tuple[str, tuple[int, ...]], Any]:
        """What says where an item stands, by name and, for a tensor, by its offset."""
        found: dict[tuple[str, tuple[int, ...]], Any] = {}
        for index, info in storage.items():
            (fqn,) = _of(index, "MetadataIndex", "fqn")
            offset = index.fields.get("offset")
            place = _a(str, fqn), () if offset is None else _size(offset)
            found[place] = info
        return found

    def read(self) -> Source:
        """Everything, in the order of the bytes: thousands of items stand in each file."""
        tops = {path[0] for path in self._paths.values()} if self._paths is not None else self._entries.keys()
        self._gathering.begin(tops)
        taken = [name for name in self._entries if self._gathering.takes(_a(str, name))]
        flat: dict[str, Any] = {name: TensorRef(self._full(name)) for name in taken}
        for name, piece, item in sorted(self._chunks(taken), key=lambda found: (found[2].file, found[2].offset)):
            if piece is None:
                flat[name] = self._value(name, item)
            else:
                self._tensor(name, piece, item)
        values, mark = self._tree(flat)
        return self._gathering.finish(KIND, self._folder.path, values, files_bytes=self._folder.size_bytes, mark=mark)

    def _full(self, name: str) -> str:
        return self._gathering.full(name)

    def _chunks(self, names: list[str]) -> Iterator[tuple[str, Piece | None, _Item]]:
        """Every item that is to be read; of a tensor with the rectangle it has."""
        for name in names:
            entry = self._entries[name]
            if type(entry) is Record and entry.kind == "BytesStorageMetadata":
                yield name, None, self._item(name, ())
                continue
            properties, size, chunks = _of(entry, "TensorStorageMetadata", "properties", "size", "chunks")
            (dtype,) = _of(properties, "TensorProperties", "dtype")
            if type(dtype) is not Opaque or dtype.value not in ITEM_BYTES:
                raise CorruptError(f"{name[:200]!r} has no dtype that is read")
            shape = _size(size)
            for chunk in _a(list, chunks):
                offsets, lengths = map(_size, _of(chunk, "ChunkStorageMetadata", "offsets", "sizes"))
                if len(offsets) != len(shape) or len(lengths) != len(shape):
                    raise CorruptError(f"a part of {name[:200]!r} has another number of dimensions")
                if 0 in lengths and 0 not in shape:
                    continue  # several may begin at one place
                piece = Piece(self._full(name), offsets, lengths, shape, dtype.value, ITEM_BYTES[dtype.value])
                yield name, piece, self._item(name, offsets)

    def _item(self, name: str, offsets: tuple[int, ...]) -> _Item:
        info = self._items.get((name, offsets))
        if info is None:
            raise CorruptError(f"nothing says where {name[:200]!r} from {list(offsets)} on stands")
        return self._folder.item(info)

    def _tensor(self, name: str, piece: Piece, item: _Item) -> None:
        opened = self._folder.open(item)
        view = opened.value
        if type(view) is not TensorView or (view.shape, view.dtype) != (piece.lengths, piece.dtype):
            found = f"{view.dtype} {list(view.shape)}" if type(view) is TensorView else f"a {type(view).__name__}"
            raise CorruptError(
                f"{name[:200]!r} is {piece.dtype} {list(piece.lengths)} by the metadata, and {found} where it stands"
            )
        self._gathering.add(name, opened.stored(view, piece))

    def _value(self, name: str, item: _Item) -> Any:
        try:
            opened = self._folder.open(item)
        except UnsupportedValueError as e:
            self._gathering.problem(name, e.message)
            return None

        def place(part: str, view: TensorView) -> None:
            piece = piece_of(self._full(part), view.shape, view.dtype, view.item_bytes)
            self._gathering.add_once(part, opened.stored(view, piece))

        return Values(self._gathering, place).value(name, opened.value)

    def _tree(self, flat: dict[str, Any]) -> tuple[dict[str, Any], Mark | None]:
        """The tree as the planner's data have it, if the same names come of it by torch's rule; else flat."""
        if self._paths is not None:
            paths = {name: self._paths[name] for name in flat}
            with contextlib.suppress(CorruptError, UnsupportedValueError):
                tree = nested.unflatten(flat, paths)
                if nested.flatten(tree)[1] == paths:
                    return tree, None
        kept = self._planner_data if self._gathering.under is None else None
        try:
            plain.encode(kept)
        except UnsupportedValueError:
            kept = None
            self._gathering.leave_out("planner_data")
        return {self._full(name): value for name, value in flat.items()}, Mark(nested=False, planner_data=kept)


def _paths(planner_data: Any, names: dict[Any, Any]) -> dict[str, nested.Path] | None:
    """Where each flat name stands, if the planner's data say that of all of them."""
    if type(planner_data) is not dict or not planner_data.keys() >= names.keys():
        return None
    good = all(
        type(path) is tuple and path and type(path[0]) is str and all(type(step) in (str, int) for step in path)
        for path in planner_data.values()
    )
    return planner_data if good else None


def _of(record: Any, kind: str, *fields: str) -> list[Any]:
    """Fields of a dataclass of that kind. Raises: CorruptError."""
    if type(record) is not Record or record.kind != kind or not record.fields.keys() >= set(fields):
        raise CorruptError(f"the metadata have no {kind} where one belongs")
    return [record.fields[name] for name in fields]


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise CorruptError(f"the metadata have a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _size(value: Any) -> tuple[int, ...]:
    if type(value) is not Opaque or value.tag != "torch.Size":
        raise CorruptError(f"the metadata have a {type(value).__name__} where a size belongs")
    return tuple(value.value)
