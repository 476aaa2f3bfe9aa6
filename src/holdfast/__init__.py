"""Holdfast: checkpoint storage for large PyTorch training.

The names below are the public surface (docs/reference.md). They are imported on first use, so that a command or an
agent that needs no torch does not pay for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.config import Config, TierConfig
    from holdfast.errors import HoldfastError
    from holdfast.trainer.checkpointer import Checkpointer
    from holdfast.trainer.encoders import register
    from holdfast.trainer.foreign import load
    from holdfast.trainer.per_rank import per_rank
    from holdfast.trainer.read import read
    from holdfast.trainer.save import Save

__all__ = [
    "Checkpointer",
    "Config",
    "HoldfastError",
    "Save",
    "TierConfig",
    "__version__",
    "load",
    "per_rank",
    "read",
    "register",
]

__version__ = "0.1.0.dev0"

_HOMES = {
    "Checkpointer": "holdfast.trainer.checkpointer",
    "Config": "holdfast.config",
    "HoldfastError": "holdfast.errors",
    "Save": "holdfast.trainer.save",
    "TierConfig": "holdfast.config",
    "load": "holdfast.trainer.foreign",
    "per_rank": "holdfast.trainer.per_rank",
    "read": "holdfast.trainer.read",
    "register": "holdfast.trainer.encoders",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'holdfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
