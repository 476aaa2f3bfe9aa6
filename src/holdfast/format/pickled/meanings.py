"""The names that are read: in every pickle, in those of torch.save, in the `.metadata` of torch DCP.

Functions here get what stands in a file. Any exception of theirs means that the file is none; what they make is made
of nothing but their arguments.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format.dtypes import SAFETENSORS
from holdfast.format.limits import MAX_DIMS
from holdfast.format.pickled import arrays
from holdfast.format.pickled.names import SAVE_ANEW, Meaning, Meanings, Unfinished
from holdfast.format.plain import Opaque
from holdfast.format.plain.values import FACTORIES

Names = dict[tuple[str, str], Any]

ITEM_BYTES: dict[str, int] = {
    **{name: size for name, (_, size) in SAFETENSORS.items()},
    **{"complex32": 4, "complex128": 16, "float4_e2m1fn_x2": 1, "bits8": 1, "bits16": 2},
    **{"bits1x8": 1, "bits2x4": 1, "bits4x2": 1},
    **{f"{kind}{n}": 1 for kind in ("int", "uint") for n in range(1, 8)},
}
"""Bytes per element of every dtype that is no quantized one, as torch names it."""
STORAGES = {
    "float64": "DoubleStorage", "float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage",
    "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage",
    "bool": "BoolStorage", "bfloat16": "BFloat16Storage", "complex128": "ComplexDoubleStorage",
    "complex64": "ComplexFloatStorage",
}  # fmt: skip
"""Dtypes whose storages have a type of their own; torch saves all others as bytes beside their dtype."""
DEFAULT_FACTORIES: dict[str, str] = {"long": "int", "unicode": "str"}
"""Python 2's names, which protocol 2 has, of what makes a defaultdict's values."""


@dataclass(frozen=True, slots=True, eq=False)
class StorageRef:
    """A storage in a torch.save file: `key` names its record. `dtype` None: bytes."""

    key: str
    dtype: str | None
    n_elements: int

    @property
    def size_bytes(self) -> int:
        return self.n_elements * (1 if self.dtype is None else ITEM_BYTES[self.dtype])


@dataclass(frozen=True, slots=True, eq=False)
class TensorView:
    """A tensor in a torch.save file: elements of a storage. `offset` and `strides` count elements."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]


class Record(Unfinished):
    """A dataclass of torch DCP's metadata, by its name: what its fields were given."""

    __slots__ = ("fields", "kind")

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fields: dict[str, Any] = {}

    def build(self, state: Any) -> Record:
        """A dict of fields; the properties of a tensor are a tuple."""
        if self.kind == "TensorProperties" and type(state) is tuple:
            state = dict(zip(_PROPERTIES, state, strict=True))
        if type(state) is not dict or not all(type(name) is str for name in state):
            raise CorruptError(f"a {self.kind} has no fields")
        self.fields.update(state)
        return self

    def inner(self) -> Iterable[Any]:
        """What the fields have."""
        return self.fields.values()


# In every pickle -----------------------------------------------------------------------------------------------------
def _set(items: Any) -> set[Any]:
    return set(_a(list, items))


def _frozenset(items: Any) -> frozenset[Any]:
    return frozenset(_a(list, items))


def _ordered_dict() -> OrderedDict[Any, Any]:
    return OrderedDict()


def _default_dict(factory: Any = None) -> defaultdict[Any, Any]:
    made: Any = factory.value if type(factory) is Meaning else None
    if factory is not None and made not in FACTORIES:
        raise UnsupportedValueError("a defaultdict of a function has no plain form", hint=SAVE_ANEW)
    return defaultdict(None if factory is None else FACTORIES[made])


def _counter(counts: Any) -> Counter[Any]:
    return Counter(_a(dict, counts))


def _latin1(text: Any, encoding: Any) -> bytes:
    if encoding != "latin1":
        raise CorruptError("bytes are spelt in another encoding than latin1")
    return bytes(_a(str, text), "latin-1")


def _no_bytes() -> bytes:
    return b""


def _size(lengths: Any) -> Opaque:
    return Opaque("torch.Size", list(_ints(lengths)))


def _device(kind: Any, index: Any = None) -> Opaque:
    text = _a(str, kind) if index is None else f"{_a(str, kind)}:{_a(int, index)}"
    return Opaque("torch.device", text[:40])


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise CorruptError(f"a pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _ints(values: Any) -> tuple[int, ...]:
    """Sizes: a tuple of numbers from 0 to 2^62."""
    if isinstance(values, Opaque) and values.tag == "torch.Size":
        values = tuple(values.value)
    if not all(type(n) is int and 0 <= n <= 2**62 for n in _a(tuple, values)):
        raise CorruptError("a pickle has a size that is none")
    found: tuple[int, ...] = values
    return found


def _int(value: Any) -> int:
    return _ints((value,))[0]


def _builtins() -> Names:
    """By both names of their module: protocol 2 has those of Python 2."""
    meanings = {
        "set": Meaning("set", _set, members=True, value="set"),
        "frozenset": Meaning("frozenset", _frozenset, members=True),
        "bytes": Meaning("bytes", _no_bytes),
    }
    for name in ("int", "float", "str", "bool", "list", "dict", "tuple", *DEFAULT_FACTORIES):
        meanings[name] = Meaning(name, value=DEFAULT_FACTORIES.get(name, name))
    return {(module, name): m for module in ("builtins", "__builtin__") for name, m in meanings.items()}


EVERYWHERE: Names = {
    **_builtins(),
    **arrays.NAMES,
    ("collections", "OrderedDict"): Meaning("collections.OrderedDict", _ordered_dict),
    ("collections", "defaultdict"): Meaning("collections.defaultdict", _default_dict),
    ("collections", "Counter"): Meaning("collections.Counter", _counter, members=True),
    ("_codecs", "encode"): Meaning("_codecs.encode", _latin1),
    ("torch", "Size"): Meaning("torch.Size", _size),
    ("torch", "device"): Meaning("torch.device", _device),
    **{("torch", name): Opaque("torch.dtype", name) for name in ITEM_BYTES},
}
PLAIN = Meanings(EVERYWHERE)
"""Of a pickle that has no tensors."""


# In torch.save -------------------------------------------------------------------------------------------------------
def _storage(found: Any) -> StorageRef:
    """The object of a persistent id: ("storage", type, key, where it was, how many elements)."""
    word, kind, key, _, n_elements = _a(tuple, found)
    if word != "storage" or type(kind) is not Meaning or kind.name not in _STORAGE_NAMES:
        raise CorruptError("a pickle refers to something that is no storage")
    return StorageRef(_a(str, key), kind.value, _int(n_elements))


def _tensor_v2(  # noqa: PLR0913, PLR0917  (torch's own arguments)
    storage: Any, offset: Any, shape: Any, strides: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> TensorView:
    if type(storage) is not StorageRef or storage.dtype is None:
        raise CorruptError("a tensor has no storage")
    return _tensor(storage, storage.dtype, offset, shape, strides, metadata)


def _tensor_v3(  # noqa: PLR0913, PLR0917  (torch's own arguments)
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> TensorView:
    if type(storage) is not StorageRef or type(dtype) is not Opaque or dtype.tag != "torch.dtype":
        raise CorruptError("a tensor has no storage or no dtype")
    return _tensor(storage, dtype.value, offset, shape, strides, metadata)


def _tensor(storage: StorageRef, dtype: str, offset: Any, shape: Any, strides: Any, metadata: Any) -> TensorView:
    if metadata:
        raise UnsupportedValueError("a tensor is to be conjugated or negated when it is read", hint=SAVE_ANEW)
    lengths, steps = _ints(shape), _ints(strides)
    if len(lengths) != len(steps) or len(lengths) > MAX_DIMS:
        raise CorruptError("a tensor has another number of strides than of dimensions, or very many")
    return TensorView(storage, dtype, _int(offset), lengths, steps)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> TensorView:
    if type(data) is not TensorView:
        raise CorruptError("a parameter is no tensor")
    return data


_STORAGE_TYPES: Names = {
    **{("torch", name): Meaning(f"torch.{name}", value=dtype) for dtype, name in STORAGES.items()},
    ("torch.storage", "UntypedStorage"): Meaning("torch.storage.UntypedStorage"),
    ("torch", "UntypedStorage"): Meaning("torch.UntypedStorage"),
}
_STORAGE_NAMES = frozenset(m.name for m in _STORAGE_TYPES.values())
TORCH_SAVE = Meanings(
    {
        **EVERYWHERE,
        **_STORAGE_TYPES,
        ("torch._utils", "_rebuild_tensor_v2"): Meaning("torch._utils._rebuild_tensor_v2", _tensor_v2),
        ("torch._utils", "_rebuild_tensor_v3"): Meaning("torch._utils._rebuild_tensor_v3", _tensor_v3),
        ("torch._utils", "_rebuild_parameter"): Meaning("torch._utils._rebuild_parameter", _parameter),
    },
    _storage,
)
"""Of the pickle in a torch.save file: tensors come as `TensorView`."""


# In .metadata --------------------------------------------------------------------------------------------------------
_PROPERTIES = ("dtype", "layout", "requires_grad", "memory_format", "pin_memory")
_FORMATS = ("TORCH_CONTIGUOUS_FORMAT", "TORCH_CHANNELS_LAST", "TORCH_PRESERVE_FORMAT")
_DCP = "torch.distributed.checkpoint"


def _memory_format(number: Any) -> str:
    return _FORMATS[_a(int, number)]


def _member(kind: Any, name: Any) -> str:
    """How Python 3.11.0 pickled a member of an Enum: `getattr`. There is one of which there are any."""
    if type(kind) is not Meaning or kind.call is not _memory_format or name not in _FORMATS:
        raise UnsupportedValueError("builtins.getattr would be called to read it", hint=SAVE_ANEW)
    return str(name)


def _layout(name: Any) -> str:
    return str(_a(str, name))


def _path(*parts: Any) -> str:
    """A path as text: it is shown at most, never opened."""
    begin, *rest = [str(_a(str, part)) for part in parts] or ["."]
    return "/".join([begin.rstrip("/"), *rest] if rest else [begin])


def _record(kind: str) -> Meaning:
    return Meaning(f"{_DCP}.{kind}", new=lambda: Record(kind))


_KINDS = (
    "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
    "MetadataIndex", "StorageMeta",
)  # fmt: skip
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
_GETATTR = Meaning("builtins.getattr", _member)
METADATA = Meanings(
    {
        **EVERYWHERE,
        **{(f"{_DCP}.metadata", kind): _record(kind) for kind in _KINDS},
        (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): Meaning("_MEM_FORMAT_ENCODING", _memory_format),
        (f"{_DCP}.filesystem", "_StorageInfo"): _record("_StorageInfo"),
        ("torch.serialization", "_get_layout"): Meaning("torch.serialization._get_layout", _layout),
        **{(m, name): Meaning(f"{m}.{name}", _path) for m in ("pathlib", "pathlib._local") for name in _PATHS},
        ("builtins", "getattr"): _GETATTR,
        ("__builtin__", "getattr"): _GETATTR,
    }
)
"""Of the `.metadata` of torch DCP: its dataclasses come as `Record`."""
