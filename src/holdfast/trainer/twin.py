"""Which state an optimizer's first step will create, found out on a twin: the live one is never stepped.

The twin has the live optimizer's class and settings and one meta parameter for each distinct (group, shape, dtype).
Where a twin might reach anything live (attributes we do not know, a failing step of an unknown class) there is no
forecast, and the state is sized at its first save.
"""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import LBFGS, SGD, Optimizer, SparseAdam

from holdfast.trainer import dtensor

Entries = dict[str, Any]
"""Per key of a parameter's state: a plain value, or a tensor (on meta where it would be on the parameter's device)."""

_PLAIN = (type(None), bool, int, float, str)
_STANDARD = frozenset(
    {
        "_need_device_dtype_check_for_fused",
        "_opt_called",
        "_step_count",
        "_warned_capturable_if_run_uncaptured",
        "_zero_grad_profile_name",
        "defaults",
        "param_groups",
        "state",
        "step",
        "zero_grad",
    }
)


def forecast(optimizer: Optimizer) -> dict[torch.Tensor, Entries] | None:
    """The state entries of every trainable parameter that has none yet, after its first step.

    None when this optimizer cannot be foretold.
    """
    try:
        twin, likeness = _twin(optimizer)
    except _CannotTwin:
        return None
    if likeness and not _step(twin):
        return None
    found: dict[torch.Tensor, Entries] = {}
    for parameter, stand_in in likeness.items():
        entries = twin.state.get(stand_in, {})
        found[parameter] = {key: _laid_out(key, value, parameter) for key, value in entries.items()}
    return found


def _laid_out(key: str, value: Any, parameter: torch.Tensor) -> Any:
    """An entry of a plain stand-in of the parameter's global shape, as it will be for a parameter that is a DTensor."""
    if not dtensor.is_dtensor(parameter) or not isinstance(value, torch.Tensor):
        return value
    if dtensor.beside(key, value.shape, parameter):
        return value
    return dtensor.entry_like(parameter, value.shape, value.dtype, value.device)


class _CannotTwin(Exception):
    pass


def _twin(optimizer: Optimizer) -> tuple[Optimizer, dict[torch.Tensor, torch.Tensor]]:
    """The twin, and for each parameter without state its stand-in there."""
    kind = type(optimizer)
    # LBFGS keeps its parameters in an attribute and lays the state out over all of them at once.
    if kind is LBFGS or not _only_known_attributes(optimizer):
        raise _CannotTwin
    twin = kind.__new__(kind)
    twin.__dict__.update({k: v for k, v in optimizer.__dict__.items() if isinstance(v, _PLAIN)})
    twin.__dict__.update(defaults=dict(optimizer.defaults), state=defaultdict(dict), param_groups=[])
    likeness: dict[torch.Tensor, torch.Tensor] = {}
    for group in optimizer.param_groups:
        twin.param_groups.append(_group(kind, optimizer, group, likeness))
    return twin, likeness


def _only_known_attributes(optimizer: Optimizer) -> bool:
    """Whether a step of the class can reach nothing but groups, state and settings."""
    return all(
        name in _STANDARD or "hook" in name or isinstance(value, _PLAIN) for name, value in optimizer.__dict__.items()
    )


def _group(
    kind: type[Optimizer], optimizer: Optimizer, group: dict[str, Any], likeness: dict[torch.Tensor, torch.Tensor]
) -> dict[str, Any]:
    try:
        twin = copy.deepcopy({k: v for k, v in group.items() if k not in ("params", "param_names")})
    except Exception as e:  # whatever a setting is made of
        raise _CannotTwin from e
    if "foreach" in twin:
        twin["foreach"] = False
    if twin.get("fused"):
        # There is no fused kernel for meta. The difference that is left: step counts stand beside the parameter, as
        # with `capturable`.
        twin["fused"] = False
        if "capturable" in twin:
            twin["capturable"] = True
    stand_ins: dict[Any, torch.Tensor] = {}
    for parameter in group["params"]:
        if parameter.requires_grad and not optimizer.state.get(parameter):
            key = (parameter.shape, parameter.dtype)
            if key not in stand_ins:
                stand_ins[key] = _stand_in(parameter, sparse=kind is SparseAdam)
            likeness[parameter] = stand_ins[key]
    twin["params"] = list(stand_ins.values())
    return twin


def _stand_in(parameter: torch.Tensor, *, sparse: bool) -> torch.Tensor:
    made = torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
    made.grad = torch.empty_like(made)
    if sparse:
        indices = torch.empty((1, 0), dtype=torch.int64, device="meta")
        values = torch.empty((0, *parameter.shape[1:]), dtype=parameter.dtype, device="meta")
        made.grad = torch.sparse_coo_tensor(indices, values, parameter.shape, check_invariants=False)
    return made


def _step(twin: Optimizer) -> bool:
    """Step it once, outside every hook. False: what it left in `state` may not be all."""
    step: Any = type(twin).step
    while hasattr(step, "__wrapped__"):  # hooks, global ones too, are called by a wrapper around the class's step
        step = step.__wrapped__
    groups = twin.param_groups
    dice, torch_dice = random.getstate(), torch.get_rng_state()
    try:
        # One by one: torch's own make all state of a group before they compute; some then read a value, which meta
        # does not have, and fail.
        return all([_step_group(twin, group, step) for group in groups])
    finally:
        random.setstate(dice)
        torch.set_rng_state(torch_dice)


def _step_group(twin: Optimizer, group: dict[str, Any], step: Callable[[Optimizer], object]) -> bool:
    twin.param_groups = [group]
    try:
        with torch.no_grad():
            step(twin)
    except Exception:  # a custom step may fail in any way on meta tensors
        return type(twin).__module__.split(".")[:2] == ["torch", "optim"] and type(twin) is not SGD
    return True
