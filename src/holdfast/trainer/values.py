"""How torch's own plain values are written: sizes, dtypes, devices, generators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from holdfast.errors import CorruptError, LoadError
from holdfast.format import plain
from holdfast.format.checksum import Buffer


@dataclass(frozen=True, slots=True)
class GeneratorState:
    """A random generator's state, read back: set into the live generator, or into a new one."""

    device: str
    state: bytes

    def restore(self, live: torch.Generator | None = None) -> torch.Generator:
        """The generator, in this state.

        Raises: CorruptError when torch does not take it; LoadError when there is no such device here for a new one.
        """
        try:
            generator = torch.Generator(self.device) if live is None else live
        except (RuntimeError, TypeError) as e:
            raise LoadError(
                f"no generator of {self.device!r} can be made here: {e}",
                hint="put a generator of a device that is here in its place in the state",
            ) from e
        try:
            generator.set_state(torch.frombuffer(bytearray(self.state), dtype=torch.uint8))
        except (RuntimeError, TypeError) as e:
            raise CorruptError(f"a generator state of {len(self.state)} bytes is none of {generator.device}") from e
        return generator


def dtype_of(name: str) -> torch.dtype:
    """torch's dtype of that name. Raises: CorruptError when this torch has none."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CorruptError(f"torch {torch.__version__} has no dtype {name[:80]!r}")
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """The name without the prefix: "float32"."""
    return str(dtype).removeprefix("torch.")


UNCOPIED = frozenset(
    dtype for n in range(1, 8) for kind in ("int", "uint") if (dtype := getattr(torch, f"{kind}{n}", None))
)
"""Dtypes of one byte that torch stores but does not copy: they are copied as bytes."""


def copyable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, seen as bytes where torch copies it only so."""
    return tensor.view(torch.uint8) if tensor.dtype in UNCOPIED else tensor


ENCODERS: tuple[plain.Encoder, ...] = (
    plain.Encoder(torch.Size, "torch.Size", list, torch.Size),
    plain.Encoder(torch.dtype, "torch.dtype", dtype_name, dtype_of),
    plain.Encoder(torch.device, "torch.device", str, torch.device),
    plain.Encoder(
        torch.Generator,
        "torch.Generator",
        lambda g: [str(g.device), g.get_state().numpy().tobytes()],
        lambda body: GeneratorState(*body),
    ),
)


def encode(tree: object) -> bytes:
    """Plain values as tagged JSON. Raises: UnsupportedValueError with the path of what cannot be expressed."""
    return plain.encode(tree, encoders=ENCODERS)


def decode(data: Buffer) -> Any:
    """What `encode` was given; generators as `GeneratorState`, values of registered types as `Opaque`.

    Raises: CorruptError.
    """
    return plain.decode(data, decoders=ENCODERS, keep_unknown=True)


def form_of(x: Any) -> str:
    """What something is, in words."""
    if isinstance(x, torch.Tensor):
        return f"{dtype_name(x.dtype)} {list(x.shape)}"
    return "a tensor" if isinstance(x, plain.TensorRef) else type(x).__name__
