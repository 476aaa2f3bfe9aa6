"""Bytes <-> model: image header, manifest codec, plain values, checksums, every key and path name."""
