"""One typed configuration. `Config` is what a user gives, `Settings` is everything decided, each value with its source.

Precedence: argument, environment (`HOLDFAST_<NAME>`), file, default. Only `Config.resolve`, called by the composition
roots (Checkpointer, agent, CLI), reads the environment; only `Config.from_file` reads a file.
"""

from __future__ import annotations

from holdfast.config.config import Config
from holdfast.config.settings import Settings, arena_directory
from holdfast.config.tiers import RESERVED_TIER_NAMES, TierConfig
from holdfast.config.urls import normalise_url

__all__ = ["RESERVED_TIER_NAMES", "Config", "Settings", "TierConfig", "arena_directory", "normalise_url"]
