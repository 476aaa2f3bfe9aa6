"""The manifest: built from the headers of a checkpoint's images, and its bytes.

`build` is a pure function of the images, whatever the order they are given in; `encode` gives equal manifests equal
bytes. A manifest that either makes or reads covers every one of its tensors.
"""

from __future__ import annotations

from holdfast.format.manifest.building import MAX_INLINE_PLAIN_BYTES, build
from holdfast.format.manifest.coding import MAX_MANIFEST_BYTES, decode, encode

__all__ = ["MAX_INLINE_PLAIN_BYTES", "MAX_MANIFEST_BYTES", "build", "decode", "encode"]
