"""Checkpoints of others, copied onto a tier: what a source has is known and checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from holdfast.errors import CorruptError, UnsupportedValueError, UsageError
from holdfast.format.names import MANIFESTS
from holdfast.store.importing import dcp, safetensors, torch_save
from holdfast.store.importing.files import Files, SourceFile, names_in, open_files
from holdfast.store.importing.source import Asked, Source

__all__ = ["Asked", "Source", "read_source"]

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_TAR_AT, _TAR = 257, b"ustar"
_HEAD_BYTES = 512
_SAVE_ANEW = "load it with torch, weights_only=True, and save it anew"

_Reader = Callable[[Path, Asked, Files], Source]


def read_source(path: Path, asked: Asked | None = None) -> Source:
    """What stands at a path: a folder of torch DCP, a file of torch.save, files in safetensors' format.

    Nothing of it is ever run. Raises: UsageError, UnsupportedValueError; CorruptError when it is not whole, or
        contradicts itself; NotFoundError, TierError.
    """
    reader, follow = _reader(path)
    with open_files(follow=follow) as files:
        return reader(path, asked or Asked(), files)


def _reader(path: Path) -> tuple[_Reader, bool]:
    """Who reads it, and whether its files may be links."""
    if path.is_dir():
        return _reader_of_folder(path)
    if path.name.endswith((safetensors.SUFFIX, safetensors.INDEX)):
        return safetensors.read_safetensors, True
    file = SourceFile(path)
    try:
        head = file.read(0, min(_HEAD_BYTES, file.size_bytes))
    finally:
        file.close()
    if head.startswith(_ZIP):
        return torch_save.read_torch_save, True
    if head.startswith(_PICKLE) or head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        raise UnsupportedValueError(f"{path} has a form that torch.save wrote before 1.6", hint=_SAVE_ANEW)
    raise UsageError(
        f"{path} is no checkpoint that is known",
        hint="name a folder of torch DCP, a file of torch.save, a file or folder in safetensors' format",
    )


def _reader_of_folder(path: Path) -> tuple[_Reader, bool]:
    names = names_in(path)
    if dcp.METADATA_FILE in names:
        return dcp.read_dcp, False
    if any(name.endswith((safetensors.SUFFIX, safetensors.INDEX)) for name in names):
        return safetensors.read_safetensors, True
    if any(name.endswith(".distcp") for name in names):
        raise CorruptError(f"{path} has no {dcp.METADATA_FILE}", hint="its save did not come to an end")
    if MANIFESTS.rstrip("/") in names:
        raise UsageError(f"{path} is a run of Holdfast", hint="it needs no import: give its URL")
    raise UsageError(f"{path} has nothing that is known", hint="name a folder of torch DCP, or of safetensors files")
