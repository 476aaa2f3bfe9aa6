"""Objects that give and take their state themselves, where that has DTensors: these come back as they are laid out.

Any other tensor of theirs is made anew, without asking the object, for that can take long. A sharded one cannot be, for
only the object knows its layout. So it is asked for its state, as torch DCP does, which is filled and given back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from holdfast.format.nested import DICTS
from holdfast.format.plain import TensorRef
from holdfast.trainer import dtensor
from holdfast.trainer.picture import check_tensor
from holdfast.trainer.placing import MISSING, Build, give
from holdfast.trainer.values import form_of

if TYPE_CHECKING:
    from holdfast.trainer.match import Matcher, Scope


def match_stateful(matcher: Matcher, path: str, x: Any, scope: Scope) -> Build:
    """Match what the object saved of itself. Raises: as `sharded_in`; StructureError: only a part is asked for."""
    value = matcher.take(path, scope)
    if not matcher.selection.takes(path):
        raise matcher.selection.whole(path, f"the {type(x).__name__}")
    if value is MISSING:
        matcher.differences.note("missing", path, form_of(x))
        return lambda: x
    if scope.rank is None:
        matcher.laid_out |= sharded_in(path, x, value)
    build = matcher.new(value, scope)

    def load() -> Any:
        give(path, x.load_state_dict, build())
        return x

    return load


def sharded_in(path: str, x: Any, value: Any) -> dict[str, torch.Tensor]:
    """DTensors of the state of `x` by the names they have in a checkpoint; `value` is what was saved of it.

    Raises: LoadError: `x` cannot give its state. UnsupportedValueError: a DTensor in it could not have been saved.
    """
    if not dtensor.can_exist() or not _has_tensors(value):
        return {}
    return dict(_sharded(path, give(path, x.state_dict)))


def _has_tensors(value: Any) -> bool:
    inner = value.values() if type(value) in DICTS else value if type(value) in (list, tuple) else ()
    return isinstance(value, TensorRef) or any(map(_has_tensors, inner))


def _sharded(path: str, x: Any) -> Iterator[tuple[str, torch.Tensor]]:
    pairs = x.items() if type(x) in DICTS else enumerate(x) if type(x) in (list, tuple) else ()
    for key, item in pairs:
        yield from _sharded(f"{path}.{key}", item)
    if isinstance(x, torch.Tensor) and dtensor.is_dtensor(x):
        check_tensor(path, x)
        yield path, x
