"""How parts make a tensor: what the image's header says of a tensor that is stored as several.

The first of its parts carries the form, as tagged JSON (docs/format.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format import plain
from holdfast.format.limits import MAX_FORM
from holdfast.trainer import encoders

FormKind = Literal["flatten", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "quantized", "user"]


@dataclass(frozen=True, slots=True)
class Form:
    """How parts make a tensor. `name`: of the class, for people; what decides is the live tensor or a registered type.

    `parts`: by name, with its own form where the part itself is stored as several.
    """

    kind: FormKind
    name: str
    parts: Mapping[str, Form | None]
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    context: Any

    def leaves(self) -> Iterator[str]:
        """Names of the tensors stored, in order."""
        for name, inner in self.parts.items():
            yield from [name] if inner is None else (f"{name}.{leaf}" for leaf in inner.leaves())

    def in_place(self) -> bool:
        """Whether filling the parts of a live tensor fills it."""
        return self.kind == "flatten" and all(inner is None or inner.in_place() for inner in self.parts.values())

    def fits(self, saved: Form) -> bool:
        """Whether a live tensor of this form can become one of that."""
        return (
            self.kind == saved.kind
            and self.shape == saved.shape
            and list(self.parts) == list(saved.parts)
            and saved.name in (self.name, self.name.rpartition(".")[2])
            and (self.kind != "flatten" or _plain(self.context) == _plain(saved.context))
            and all(_fits(self.parts[name], saved.parts[name]) for name in self.parts)
        )

    def text(self) -> str:
        """As it stands in the header. Raises: UnsupportedValueError, without a name."""
        _plain(self.context)  # alone, so that an error says where in the context
        return _plain(self._row()).decode()

    def _row(self) -> list[Any]:
        parts = [[name, None if inner is None else inner._row()] for name, inner in self.parts.items()]
        return [self.kind, self.name, parts, list(self.shape), list(self.stride), self.context]

    def __str__(self) -> str:
        return f"{self.name or self.kind} {list(self.shape)}"


def _fits(live: Form | None, saved: Form | None) -> bool:
    return live is saved if live is None or saved is None else live.fits(saved)


def _plain(value: object) -> bytes:
    return plain.encode(value, encoders=encoders.plain_encoders(), root="its context")


def parse(text: str) -> Form:
    """The form of what a header says. Raises: CorruptError, StructureError for a registered type unknown here."""
    row = plain.decode(text.encode(), decoders=encoders.plain_encoders(), keep_unknown=True)
    try:
        return _form(row)
    except (TypeError, ValueError, AttributeError, RecursionError) as e:
        raise CorruptError(f"the form of a tensor cannot be read: {str(e)[:200]}") from None


def _form(row: Any) -> Form:
    kind, name, parts, shape, stride, context = row
    _refuse_unknown(context)
    inner = {key: None if of is None else _form(of) for key, of in parts}
    numbers = [*shape, *stride]
    if kind not in get_args(FormKind) or type(name) is not str or not inner or len(inner) != len(parts):
        raise ValueError("not a form")
    if not all(type(key) is str and key for key in inner) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("not a form")
    return Form(kind, name, inner, tuple(shape), tuple(stride), context)


def _refuse_unknown(context: Any) -> None:
    """Raises: StructureError: a value in it has a type that is not registered here."""
    if isinstance(context, plain.Opaque):
        encoders.by_tag(context)
    items = context.values() if isinstance(context, dict) else context if isinstance(context, (list, tuple)) else ()
    for item in items:
        _refuse_unknown(item)


def form_text(name: str, tensor: torch.Tensor, form: Form) -> str:
    """The form as a header has it. Raises: UnsupportedValueError: it has no plain one."""
    try:
        text = form.text()
    except UnsupportedValueError as e:
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise UnsupportedValueError(
            f"the tensor {name!r} is a {kind}, and {e.message}",
            hint="holdfast.register(THE_TYPE, name=..., encode=..., decode=...) that type, or the tensor's own",
        ) from e
    if len(text) > MAX_FORM:
        raise UnsupportedValueError(
            f"what makes the tensor {name!r} of its parts is {len(text)} characters, the limit is {MAX_FORM}",
            hint="keep large data in its tensors",
        )
    return text
