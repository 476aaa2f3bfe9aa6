"""Writes the golden files of format version 0: `python tests/golden/make_v0.py`, from the repository's root.

Once version 1 stands, these files are never written again; what reads them must go on doing so.
"""

import struct
from pathlib import Path

from holdfast.format import attempt, image, manifest, plain
from holdfast.model.identity import Attempt, CheckpointId, ImageId
from holdfast.model.image import ImageRecord, Piece

FOLDER = Path(__file__).parent / "v0"

CLAIM = Attempt("golden", 3, CheckpointId(2, 50), "host.example:4711")
CHECKPOINT = CheckpointId(3, 100)
PIECES = (
    Piece("model.weight", (0, 0), (2, 3), (4, 3), "float32", 4),
    Piece("model.weight", (2, 0), (2, 3), (4, 3), "float32", 4),
    Piece("model.bias", (0,), (3,), (3,), "bfloat16", 2),
    Piece("model.steps", (), (), (), "int64", 8),
    Piece("model.empty", (0, 0), (0, 4), (0, 4), "float8_e4m3fn", 1),
    Piece("model.wave", (0,), (2,), (2,), "complex128", 16),
    Piece("rng", (0,), (5,), (5,), "uint8", 1, 0),
)
CONTENT = {
    "model.weight[0:2,0:3]": struct.pack("<6f", 0, 1, 2, 3, 4, 5),
    "model.weight[2:4,0:3]": struct.pack("<6f", 6, 7, 8, 9, 10, 11),
    "model.bias": bytes.fromhex("80bf0000803f"),
    "model.steps": struct.pack("<q", 100),
    "model.empty": b"",
    "model.wave": struct.pack("<4d", 1, -1, 0.5, -0.0),
    "rng": b"\x01\x02\x03\x04\x05",
}
ALIASES = (("model.tied", "model.weight"),)
VALUE = {
    "optim": {"lr": 0.1, "betas": (0.9, 0.999), 0: [None, True, float("inf"), -0.0, 2**70]},
    "names": {"b", "a"},
    "bytes": b"\x00\xff",
    "rng": plain.TensorRef("rng"),
}


def make() -> dict[str, bytes]:
    """File names and their bytes."""
    payload = plain.encode(VALUE)
    template = image.lay_out(
        PIECES, ALIASES, run="golden", rank=0, world_size=1, structure="00ff", plain_bytes=len(payload)
    )
    where = template.layout
    buffer = bytearray(where.size_bytes)
    template.stamp(buffer, CHECKPOINT.attempt, CHECKPOINT.step)
    for entry in where.entries:
        buffer[entry.start : entry.stop] = CONTENT[entry.name]
    image.write_plain(buffer, where, payload)
    record = ImageRecord(ImageId(3, 100, 0, 0), where.size_bytes, image.seal(buffer, where))
    built = manifest.build([image.parse_header(buffer, len(buffer))], [record], payload)
    return {
        "attempt": attempt.encode(CLAIM),
        "image.safetensors": bytes(buffer),
        "manifest": manifest.encode(built),
        "tombstone": attempt.encode_tombstone(CHECKPOINT),
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, data in make().items():
        (FOLDER / name).write_bytes(data)
        print(f"{len(data):8} {name}")
