"""Reads `holdfast.toml`: known keys only, each with the line it stands on."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.config.tiers import TierConfig
from holdfast.config.urls import has_scheme
from holdfast.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 1 << 20
_TIERS_HINT = 'write each tier as [[tiers]], with url = "file:///data/run7" below it'
_TABLE = re.compile(r"\s*\[(\[?)\s*([^\[\]#]*?)\s*\]")
_KEY = re.compile(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=")


@dataclass(frozen=True, slots=True)
class Origin:
    """A value as a file has it, and where."""

    value: Any
    where: str


@dataclass(frozen=True, slots=True)
class FileConfig:
    """What a file says. `origins` are by name of the setting, and by `tiers.0.every_steps`."""

    tiers: tuple[TierConfig, ...]
    settings: Mapping[str, Any]
    origins: Mapping[str, Origin]


def read_file(path: str | os.PathLike[str], *, settings: Collection[str]) -> FileConfig:
    """What the file says; types are checked where values are decided.

    Raises: ConfigError when it cannot be read, is no TOML, or says what is not known.
    """
    file = _File(Path(path))
    tiers = file.content.pop("tiers", None)
    if not isinstance(tiers, list) or not tiers or not all(isinstance(t, dict) for t in tiers):
        raise ConfigError(f"{file.where('tiers')} names no tiers", hint=_TIERS_HINT)
    found = FileConfig(
        tiers=tuple([file.tier(n, of_tier) for n, of_tier in enumerate(tiers)]),
        settings=file.known(file.content, settings, "", "a setting"),
        origins=file.origins,
    )
    if "arena_dir" in found.settings:
        file.keep("arena_dir", file.beside(found.settings["arena_dir"]))
    return dataclasses.replace(found, settings={k: file.origins[k].value for k in found.settings})


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path
        text = _text(path)
        try:
            self.content: dict[str, Any] = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as e:
            raise ConfigError(f"{path} is not TOML: {e}", hint="a key stands once in its table, text in quotes") from e
        self._lines = _lines_of(text)
        self.origins: dict[str, Origin] = {}

    def where(self, key: str) -> str:
        """The file, and the line if it is known."""
        line = self._lines.get(key)
        return str(self.path) if line is None else f"{self.path}:{line}"

    def keep(self, key: str, value: Any) -> None:
        self.origins[key] = Origin(value, self.where(key))

    def known(self, table: Mapping[str, Any], names: Collection[str], prefix: str, what: str) -> dict[str, Any]:
        """The table, if all its keys mean something here."""
        for key, value in table.items():
            if key not in names:
                near = difflib.get_close_matches(key, names, 1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(names))}"
                raise ConfigError(f"{self.where(prefix + key)}: {key!r} is no name of {what}", hint=hint)
            self.keep(prefix + key, value)
        return dict(table)

    def tier(self, index: int, table: Mapping[str, Any]) -> TierConfig:
        prefix = f"tiers.{index}."
        names = {f.name for f in dataclasses.fields(TierConfig)}
        values = self.known(table, names, prefix, "a setting of a tier")
        if "url" not in values:
            raise ConfigError(f"{self.where(f'tiers.{index}')}: tier {index + 1} has no url", hint=_TIERS_HINT)
        values["url"] = self.beside(values["url"])
        self.keep(prefix + "url", values["url"])
        return TierConfig(**values)

    def beside(self, path: Any) -> Any:
        """A plain path that is relative is meant from where the file stands, wherever the job was started."""
        if not isinstance(path, str) or not path or has_scheme(path):
            return path
        return os.path.join(self.path.resolve().parent, os.path.expanduser(path))


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path} has {len(data)} bytes", hint="that is no configuration; check the path")
        return data.decode()
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}", hint="check the path of the configuration") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path} is not UTF-8 text: byte {e.start}", hint="save it as UTF-8") from e


def _lines_of(text: str) -> dict[str, int]:
    """On which line each key stands, as far as its line alone tells: for messages, so a doubt does no harm."""
    lines: dict[str, int] = {}
    prefix, tiers = "", -1
    for number, line in enumerate(text.splitlines(), 1):
        table, key = _TABLE.match(line), _KEY.match(line)
        if table is not None:
            tiers += table[1] == "[" and table[2] == "tiers"
            prefix = f"tiers.{tiers}" if table[2] == "tiers" else table[2]
            lines.setdefault(prefix, number)
            prefix += "."
        elif key is not None:
            lines.setdefault(prefix + key[1], number)
    return lines
