"""Tensors that are stored as several: what they consist of, and how they are made of that again.

Sparse and quantized tensors, subclasses that torch can take apart (`__tensor_flatten__`), and registered ones. The
parts of `model.w` are entries `model.w.codes`, `model.w.scale`; the first of them carries the form (`forms.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from holdfast.errors import CorruptError, StructureError, UnsupportedValueError
from holdfast.trainer import dtensor, encoders
from holdfast.trainer.forms import Form, FormKind
from holdfast.trainer.values import dtype_name

_SIMPLE = frozenset({torch.Tensor, torch.nn.Parameter})
_COMPRESSED: dict[torch.layout, tuple[FormKind, str, str]] = {
    torch.sparse_csr: ("sparse_csr", "crow_indices", "col_indices"),
    torch.sparse_csc: ("sparse_csc", "ccol_indices", "row_indices"),
    torch.sparse_bsr: ("sparse_bsr", "crow_indices", "col_indices"),
    torch.sparse_bsc: ("sparse_bsc", "ccol_indices", "row_indices"),
}
_LAYOUTS = {kind: (layout, compressed, other) for layout, (kind, compressed, other) in _COMPRESSED.items()}
_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)
_UNPACKED = frozenset({torch.qint8, torch.quint8, torch.qint32})
_REPRESENT = frozenset({torch.int8, torch.uint8, torch.int32})


@dataclass(frozen=True, slots=True)
class Parts:
    """A tensor taken apart: its form, and the tensors by the form's leaves."""

    form: Form
    tensors: Mapping[str, torch.Tensor]

    def same(self, now: Parts | None) -> bool:
        """Whether these are the same tensors still."""
        if now is None or list(now.tensors) != list(self.tensors):
            return False
        if not all(a is b for a, b in zip(self.tensors.values(), now.tensors.values(), strict=True)):
            return False
        try:
            return bool(now.form == self.form)
        except Exception:  # a context may hold anything, and compare itself in any way
            return False


def is_simple(tensor: torch.Tensor) -> bool:
    """Whether its own bytes are all there is to it."""
    return type(tensor) in _SIMPLE and tensor.layout is torch.strided and not tensor.is_quantized


def parts_of(name: str, tensor: torch.Tensor) -> Parts | None:  # noqa: PLR0911  (one per kind of tensor)
    """What a tensor consists of; None if it is stored as it is, or cannot be stored at all.

    Raises: UnsupportedValueError, with the name.
    """
    if is_simple(tensor) or tensor.is_nested or dtensor.is_dtensor(tensor):  # whose boxes are stored
        return None
    taught = encoders.of(type(tensor))
    if taught is not None and taught.encode is not None:
        return _taught(name, tensor, taught)
    if tensor.layout is torch.sparse_coo:
        context = {"coalesced": tensor.is_coalesced()}
        return _whole("sparse_coo", tensor, {"indices": tensor._indices(), "values": tensor._values()}, context)
    if tensor.layout in _COMPRESSED:
        kind, compressed, other = _COMPRESSED[tensor.layout]
        found = {key: getattr(tensor, key)() for key in (compressed, other, "values")}
        return _whole(kind, tensor, found, None)
    if tensor.is_quantized:
        return _quantized(tensor)
    if hasattr(tensor, "__tensor_flatten__"):
        return _flattened(name, tensor, taught)
    return None


def _whole(kind: FormKind, tensor: torch.Tensor, found: dict[str, torch.Tensor], context: Any, name: str = "") -> Parts:
    form = Form(kind, name, dict.fromkeys(found), tuple(tensor.shape), (), context)
    return Parts(form, {key: part.detach() for key, part in found.items()})


def _quantized(tensor: torch.Tensor) -> Parts | None:
    scheme, found, context = tensor.qscheme(), {}, {}
    if tensor.dtype not in _UNPACKED or scheme not in (*_PER_TENSOR, *_PER_CHANNEL):
        return None
    found["int_repr"] = tensor.int_repr()
    if scheme in _PER_TENSOR:
        context = {"scale": tensor.q_scale(), "zero_point": tensor.q_zero_point()}
    else:
        found |= {"scales": tensor.q_per_channel_scales(), "zero_points": tensor.q_per_channel_zero_points()}
        context = {"axis": tensor.q_per_channel_axis()}
    name = f"{dtype_name(tensor.dtype)} {str(scheme).removeprefix('torch.')}"
    return _whole("quantized", tensor, found, context, name)


def _flattened(name: str, tensor: torch.Tensor, taught: encoders.Taught | None) -> Parts | None:
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    if not all(type(n) is int for n in (*shape, *stride)):
        return None
    inner, context = _call(name, tensor, lambda: _inner(tensor))
    forms: dict[str, Form | None] = {}
    tensors: dict[str, torch.Tensor] = {}
    for key, part in inner.items():
        parts = parts_of(f"{name}.{key}", part)
        forms[key] = None if parts is None else parts.form
        tensors |= {key: part} if parts is None else {f"{key}.{leaf}": t for leaf, t in parts.tensors.items()}
    kind = type(tensor)
    return Parts(Form("flatten", taught.name if taught else kind.__qualname__, forms, shape, stride, context), tensors)


def _inner(tensor: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Inner tensors by attribute, and what else it takes to make one."""
    attributes, context = tensor.__tensor_flatten__()
    inner = {key: getattr(tensor, key) for key in attributes}
    odd = [key for key, part in inner.items() if not isinstance(part, torch.Tensor)]
    if odd or not inner:
        raise TypeError(f"{odd[0]!r} is no tensor" if odd else "it has no tensors inside")
    return inner, context


def _taught(name: str, tensor: torch.Tensor, taught: encoders.Taught) -> Parts:
    assert taught.encode is not None
    content = _call(name, tensor, lambda: taught.encode(tensor))  # type: ignore[misc]
    if type(content) is not dict or not all(type(key) is str and key and "." not in key for key in content):
        raise UnsupportedValueError(
            f"encode of {taught.name!r} gave a {type(content).__name__} for the tensor {name!r}",
            hint="give a dict of tensors and plain values, whose keys are names without a dot",
        )
    found = {key: part for key, part in content.items() if isinstance(part, torch.Tensor)}
    odd = [key for key, part in found.items() if not is_simple(part)]
    if odd or not found:
        raise UnsupportedValueError(
            f"encode of {taught.name!r} gave {'an unusual' if odd else 'no'} tensor for the tensor {name!r}",
            hint="give at least one plain tensor, and no other",
        )
    return _whole("user", tensor, found, {k: v for k, v in content.items() if k not in found}, taught.name)


def _call(name: str, tensor: torch.Tensor, method: Callable[[], Any]) -> Any:
    try:
        return method()
    except Exception as e:  # code of the user's
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise UnsupportedValueError(
            f"the tensor {name!r}, a {kind}, cannot be taken apart: {type(e).__name__}: {e}"
        ) from e


# And back ------------------------------------------------------------------------------------------------------------
def can_make(form: Form, like: torch.Tensor | None) -> bool:
    """Whether `make` knows the type: torch's own, that of `like`, or a registered one."""
    if form.kind == "user":
        return encoders.named(form.name) is not None
    if form.kind != "flatten":
        return True
    likes = {key: getattr(like, key, None) for key in form.parts}
    return _type_of(form, like) is not None and all(f is None or can_make(f, likes[k]) for k, f in form.parts.items())


def _type_of(form: Form, like: torch.Tensor | None) -> type | None:
    if like is not None:
        return type(like)
    taught = encoders.named(form.name)
    return taught.kind if taught else None


def make(form: Form, tensors: Mapping[str, torch.Tensor], like: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor of its parts, of the type of `like` where torch does not know it.

    Raises: CorruptError: it is not of the form's shape; whatever torch, or code of the user's, raises.
    """
    made = _make(form, tensors, like)
    if tuple(made.shape) != form.shape:
        raise CorruptError(f"the parts of a tensor of {list(form.shape)} make one of {list(made.shape)}")
    return made


def _make(form: Form, tensors: Mapping[str, torch.Tensor], like: torch.Tensor | None) -> torch.Tensor:
    if form.kind == "sparse_coo":
        size, coalesced = list(form.shape), bool(form.context["coalesced"])
        indices, items = tensors["indices"], tensors["values"]
        return torch.sparse_coo_tensor(indices, items, size, is_coalesced=coalesced, check_invariants=True)
    if form.kind in _LAYOUTS:
        layout, compressed, other = _LAYOUTS[form.kind]
        return torch.sparse_compressed_tensor(
            tensors[compressed],
            tensors[other],
            tensors["values"],
            size=list(form.shape),
            layout=layout,
            check_invariants=True,
        )
    if form.kind == "quantized":
        return _make_quantized(tensors, form.context)
    if form.kind == "user":
        taught = encoders.named(form.name)
        if taught is None or taught.decode is None:
            raise StructureError(f"the registered type {form.name!r} is not known here")
        return cast("torch.Tensor", taught.decode({**form.context, **tensors}))
    return _unflatten(form, tensors, like)


def _unflatten(form: Form, tensors: Mapping[str, torch.Tensor], like: torch.Tensor | None) -> torch.Tensor:
    inner: dict[str, torch.Tensor] = {}
    for key, of in form.parts.items():
        if of is None:
            inner[key] = tensors[key]
        else:
            below = {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
            inner[key] = make(of, below, getattr(like, key, None))
    kind: Any = _type_of(form, like)
    made = kind.__tensor_unflatten__(inner, form.context, torch.Size(form.shape), form.stride)
    return cast("torch.Tensor", made)


def _make_quantized(tensors: Mapping[str, torch.Tensor], context: Any) -> torch.Tensor:
    items = tensors["int_repr"]
    if items.dtype not in _REPRESENT:
        raise CorruptError(f"no quantized tensor is made of {items.dtype}")
    if "axis" not in context:
        return torch._make_per_tensor_quantized_tensor(items, context["scale"], context["zero_point"])
    scales, zero_points, axis = tensors["scales"], tensors["zero_points"], context["axis"]
    if not 0 <= axis < items.dim() or not scales.shape == zero_points.shape == items.shape[axis : axis + 1]:
        raise CorruptError("the scales of a quantized tensor do not fit its axis")
    return torch._make_per_channel_quantized_tensor(items, scales, zero_points, axis)


def become(live: torch.Tensor, made: torch.Tensor) -> None:
    """Give a live tensor, in place, what another of its form has."""
    with torch.no_grad():
        if live.layout in _COMPRESSED and live._nnz() != made._nnz():
            live.resize_as_sparse_(made)
        live.copy_(made)
