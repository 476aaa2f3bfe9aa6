"""What a user sets, in Python or in a file, and how everything is decided from it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from holdfast.config.file import Origin, read_file
from holdfast.config.settings import Settings
from holdfast.config.tiers import TierConfig, rules_of
from holdfast.config.values import convert, text
from holdfast.errors import ConfigError
from holdfast.policy.schedule import durable_order

_NOT_SETTINGS = ("run", "tiers", "sources")


@dataclass(frozen=True, slots=True)
class Config:
    """What a user sets; None means "not said here" and lets environment and default decide.

    Sizes accept "16 GiB", durations "15 min". See docs/reference.md for each setting.
    """

    tiers: tuple[TierConfig, ...]
    run: str | None = None
    arena_dir: str | None = None
    arena_budget_bytes: int | str | None = None
    on_save_error: str | int | None = None
    prepare_timeout_s: float | str | None = None
    slot_wait_s: float | str | None = None
    stop_wait_s: float | str | None = None
    agent_start_timeout_s: float | str | None = None
    call_timeout_s: float | str | None = None
    load_timeout_s: float | str | None = None
    close_timeout_s: float | str | None = None
    busy_wait_s: float | str | None = None
    idle_s: float | str | None = None
    grace_s: float | str | None = None
    retry_s: float | str | None = None
    agent_nice: int | None = None
    agent_cores: str | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict, repr=False, compare=False)
    """What a file said, and where: a value that was replaced since is an argument again."""

    @classmethod
    def from_url(cls, url: str, *, every_steps: int = 1, keep_last: int | None = None) -> Config:
        """What a bare URL means: memory (newest two) and that URL, `every_steps` for both."""
        if url.startswith("memory:"):
            raise ConfigError("memory alone survives no node loss", hint="name a directory: file:///data/run7")
        memory = TierConfig("memory:", every_steps=every_steps, keep_last=2)
        return cls(tiers=(memory, TierConfig(url, every_steps=every_steps, keep_last=keep_last)))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Config:
        """What a TOML file says: settings by their names, tiers as `[[tiers]]`. Paths in it are relative to the file.

        Raises: ConfigError naming the file, the line where that is known, and the key.
        """
        found = read_file(path, settings={f.name for f in dataclasses.fields(cls)} - {"tiers", "origins"})
        config = cls(tiers=found.tiers, origins=found.origins, **found.settings)
        config.resolve({})  # what is wrong in the file is said now
        return config

    def resolve(self, environ: Mapping[str, str] = os.environ) -> Settings:
        """Decide every value and check all of them.

        Raises: ConfigError naming the setting, where it came from and what it may be.
        """
        said = self._sources_of_tiers()
        rules = rules_of(self.tiers, said)
        sources = {
            f"tiers.{rules[int(n)].name}.{key}": source for (_, n, key), source in
            ((k.split("."), v) for k, v in said.items())
        }  # fmt: skip
        values: dict[str, Any] = {}
        for setting in dataclasses.fields(Settings):
            if setting.name not in _NOT_SETTINGS:
                values[setting.name], sources[setting.name] = self._decide(setting.name, setting.default, environ)
        home = durable_order(rules)[0].url
        run, sources["run"] = self._decide("run", unquote(home.rstrip("/").rpartition("/")[2]), environ)
        return Settings(run=run, tiers=rules, sources=sources, **values)

    def _sources_of_tiers(self) -> dict[str, str]:
        """By `tiers.0.every_steps` where each value of each tier comes from."""
        sources = {}
        for index, tier in enumerate(self.tiers):
            for of_tier in dataclasses.fields(TierConfig):
                key, value = f"tiers.{index}.{of_tier.name}", getattr(tier, of_tier.name)
                if value == of_tier.default:
                    sources[key] = "default"
                else:
                    sources[key] = self._from_file(key, value) or "argument"
        return sources

    def _from_file(self, key: str, value: Any) -> str:
        origin = self.origins.get(key)
        return origin.where if origin is not None and origin.value == value else ""

    def _decide(self, name: str, default: Any, environ: Mapping[str, str]) -> tuple[Any, str]:
        variable = f"HOLDFAST_{name.upper()}"
        given = getattr(self, name)
        in_file = self._from_file(name, given)
        if given is not None and not in_file:
            value, source = given, "argument"
        elif environ.get(variable):
            value, source = environ[variable], f"environment {variable}"
        elif given is not None:
            value, source = given, in_file
        else:
            return default, "default"
        try:
            return text(value) if name == "run" else convert(name, value), source
        except ConfigError as e:
            raise ConfigError(f"{name}={value!r} from {source}: {e.message}", hint=e.hint) from e
