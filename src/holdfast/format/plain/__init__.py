"""Plain values as tagged JSON, exactly: what goes in comes out, type by type and bit by bit. No pickle, no exceptions.

JSON's own null, booleans, numbers, strings and arrays are None, bool, int (within 2**53), finite float, str and list. A
JSON object is a dict with string keys; one whose single key begins with "!" is anything else, by its tag:
`{"!tuple":[1,2]}`. A dict with other keys, or with a key that begins with "!", is `{"!dict":[[key,value],…]}`.
"""

from __future__ import annotations

from holdfast.format.plain.reading import decode
from holdfast.format.plain.values import (
    MAX_DEPTH,
    MAX_PLAIN_BYTES,
    TORCH_TAGS,
    Encoder,
    Opaque,
    TensorRef,
)
from holdfast.format.plain.writing import encode

__all__ = ["MAX_DEPTH", "MAX_PLAIN_BYTES", "TORCH_TAGS", "Encoder", "Opaque", "TensorRef", "decode", "encode"]
