"""Real images of a state in plain memory, and back: what a save and a load do, without agent and files."""

from collections.abc import Sequence
from typing import Any

from holdfast.format.header import parse_header
from holdfast.format.image import check, lay_out, seal
from holdfast.trainer.apply import plan_load
from holdfast.trainer.capture import Capture
from holdfast.trainer.saved import Source
from holdfast.trainer.shares import assign
from holdfast.trainer.stage import Stager


def images_of(*states: dict[str, Any], step: int = 7) -> list[Source]:
    """The sealed images of one checkpoint: `states[rank]` is the state of each rank."""
    captured = [Capture().refresh(state) for state in states]
    shares = assign([c.structure for c in captured])
    sources = []
    for rank, one in enumerate(captured):
        payload = one.payload(rank)
        template = lay_out(
            shares.pieces(rank),
            shares.aliases(rank),
            run="run7",
            rank=rank,
            world_size=len(states),
            structure=one.structure.digest,
            plain_bytes=len(payload),
        )
        buffer = memoryview(bytearray(b"\xa5" * template.layout.size_bytes))
        Stager(template).stage(buffer, one, payload, attempt=1, step=step)
        seal(buffer, template.layout)
        sources.append(read(bytes(buffer)))
    return sources


def read(image: bytes) -> Source:
    """An image as a load sees it: verified, read-only."""
    header = parse_header(image, len(image))
    check(image, header.layout)
    return Source(header, memoryview(image))


def fill(state: dict[str, Any], sources: Sequence[Source], **options: Any) -> dict[str, Any]:
    """Load the images into a state, as rank 0 of 1 unless said otherwise."""
    options = {"rank": 0, "world_size": 1, **options}
    plan = plan_load(state, sources, **options)
    plan.filling.fill()
    plan.finish()
    return state
