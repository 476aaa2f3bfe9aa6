"""Which torch dtypes safetensors has a name for. All others are stored as U8 beside their true name."""

from __future__ import annotations

SAFETENSORS: dict[str, tuple[str, int]] = {
    "bool": ("BOOL", 1),
    "uint8": ("U8", 1),
    "int8": ("I8", 1),
    "int16": ("I16", 2),
    "uint16": ("U16", 2),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "int32": ("I32", 4),
    "uint32": ("U32", 4),
    "float32": ("F32", 4),
    "int64": ("I64", 8),
    "uint64": ("U64", 8),
    "float64": ("F64", 8),
    "complex64": ("C64", 8),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e8m0fnu": ("F8_E8M0", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
}
"""torch name -> (safetensors name, bytes per element). Sub-byte types are left out: safetensors counts their elements
otherwise than torch does, so they are stored as U8."""

TORCH: dict[str, tuple[str, int]] = {theirs: (ours, size) for ours, (theirs, size) in SAFETENSORS.items()}
"""safetensors name -> (torch name, bytes per element)."""
