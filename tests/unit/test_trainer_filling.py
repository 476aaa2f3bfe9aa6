"""Images filled from lists of tensors, whoever found these."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")

from holdfast.format.layout import lay_out  # noqa: E402
from holdfast.model.image import Piece  # noqa: E402
from holdfast.trainer.filling import ImageFiller, views_of  # noqa: E402

pytestmark = pytest.mark.torch

SHAPES = {"small": (3,), "large": (600, 600), "turned": (600, 500)}


@pytest.fixture
def template():
    pieces = [Piece(name, (0,) * len(s), s, s, "float32", 4) for name, s in SHAPES.items()]
    return lay_out(pieces, run="r", rank=0, world_size=1, plain_bytes=2)


def tensors(seed):
    """Of each kind one: copied by torch, moved as one run of bytes, and large without being one."""
    made = torch.Generator().manual_seed(seed)
    small, large, turned = (torch.randn(shape, generator=made) for shape in SHAPES.values())
    return [small, large, turned.t().contiguous().t()]


def filled(filler, template, buffer, sources, step):
    filler.fill(buffer, sources, b"{}", attempt=1, step=step)
    return views_of(buffer, template.layout.entries)


def test_each_list_is_copied_into_each_buffer(template):
    filler = ImageFiller(template)
    buffers = [memoryview(bytearray(template.layout.size_bytes)) for _ in range(2)]
    for step in range(6):
        sources = tensors(step)
        if step % 3 == 2:
            sources[1], sources[2] = sources[1].t(), sources[2].contiguous()  # others are moved this time
        for there, source in zip(filled(filler, template, buffers[step % 2], sources, step), sources, strict=True):
            assert torch.equal(there, source), step


def test_the_tensors_of_the_last_list_are_let_go_of(template):
    filler, buffer = ImageFiller(template), memoryview(bytearray(template.layout.size_bytes))
    sources = tensors(0)
    seen = [weakref.ref(tensor) for tensor in sources]
    filler.fill(buffer, sources, b"{}", attempt=1, step=1)
    del sources
    filler.forget_sources()
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3
    again = tensors(1)
    assert torch.equal(filled(filler, template, buffer, again, 2)[2], again[2])
