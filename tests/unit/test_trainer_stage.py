from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from tests.images import fill, images_of

from holdfast.format.image import lay_out
from holdfast.trainer.capture import Capture
from holdfast.trainer.compare import fingerprints, first_difference
from holdfast.trainer.filling import copy, views_of
from holdfast.trainer.shares import assign
from holdfast.trainer.stage import Stager
from holdfast.trainer.structure import Structure
from holdfast.trainer.values import copyable

pytestmark = pytest.mark.torch

NAMES = ["bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
NAMES += ["float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"]
NAMES += ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"]
NAMES += [f"{kind}{n}" for kind in ("int", "uint") for n in range(1, 8)]
NAMES += ["bits1x8", "bits2x4", "bits4x2", "bits8", "bits16"]
DTYPES = [getattr(torch, name) for name in NAMES if hasattr(torch, name)]

SMALL = getattr(torch, "uint4", torch.uint8)


def random_bits(shape, dtype, seed=0):
    """Any bits there are, signalling NaNs too."""
    count = torch.Size(shape).numel() * dtype.itemsize
    bits = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    if dtype is torch.bool:
        bits &= 1
    return bits.view(dtype).reshape(shape)


def bits(tensor):
    plain = copyable(tensor.detach().as_subclass(torch.Tensor)).resolve_conj().resolve_neg().contiguous()
    return bytes(plain.reshape(-1).view(torch.uint8).numpy())


def stored(sources, name):
    """The bytes that an image has for a tensor, read without torch."""
    for source in sources:
        for entry in source.header.layout.entries:
            if entry.piece.fqn == name:
                return bytes(source.buffer[entry.start : entry.stop])
    raise KeyError(name)


def test_every_dtype_is_stored_bit_by_bit():
    state = {"t": {str(d): random_bits((3, 5), d) for d in DTYPES}}
    images = images_of(state)
    for dtype in DTYPES:
        assert stored(images, f"t.{dtype}") == bits(state["t"][str(dtype)]), dtype
    back = {"t": {str(d): torch.zeros(15 * d.itemsize, dtype=torch.uint8).view(d).view(3, 5) for d in DTYPES}}
    fill(back, images)
    for dtype in DTYPES:
        assert bits(back["t"][str(dtype)]) == bits(state["t"][str(dtype)]), dtype


def odd_tensors():
    base = torch.randn(6, 8)
    z = torch.randn(3, 4, dtype=torch.complex64)
    return {
        "transposed": base.t(),
        "strided": base[::2, 1::3],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "empty inside": torch.empty(3, 0, 2),
        "grad": torch.randn(3, requires_grad=True),
        "result": torch.randn(3, requires_grad=True) * 2,
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "conjugate": z.conj(),
        "negative": z.conj().imag,
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "large": torch.randn(300, 1000),
        "misaligned": torch.zeros(9, dtype=torch.uint8)[1:5],
        "channels last 3d": torch.randn(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d),
        "channels last parameter": torch.nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)),
        "less than a byte, strided": random_bits((4, 6), torch.uint8).view(SMALL).t(),
        "inference": inference(torch.randn(3, 4)),
        "inference, strided": inference(torch.randn(3, 4)).t(),
        "inference, conjugate": inference(torch.randn(3, 4, dtype=torch.complex64)).conj(),
        "a subclass of no consequence": torch.randn(3, 4).t().as_subclass(Talkative),
    }


def inference(tensor):
    with torch.inference_mode():
        return tensor.clone()


class Talkative(torch.Tensor):
    """Sees every call of torch, and changes none of its bytes."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if "copy" in func.__name__:
            raise AssertionError("a copy of bytes is no business of a subclass")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_every_layout_is_stored_bit_by_bit():
    state = odd_tensors()
    images = images_of(state)
    for name, tensor in state.items():
        assert stored(images, name) == bits(tensor), name


def test_every_layout_is_filled_in_place():
    state, live = odd_tensors(), odd_tensors()
    places = {name: (tensor, tensor.data_ptr()) for name, tensor in live.items()}
    fill(live, images_of(state))
    for name, tensor in live.items():
        before, address = places[name]
        assert tensor is before, name
        assert tensor.data_ptr() == address, name
        assert tensor.stride() == state[name].stride(), name
        assert bits(tensor) == bits(state[name]), name


def test_a_stager_follows_the_live_tensors_without_a_new_layout():
    weight = torch.zeros(3)
    state: dict[str, Any] = {"w": weight, "n": 1}
    capture = Capture()
    captured = capture.refresh(state)
    shares = assign([captured.structure])
    payload = captured.payload(0)
    template = lay_out(shares.pieces(0), run="r", rank=0, world_size=1, plain_bytes=len(payload))
    slots = [memoryview(bytearray(template.layout.size_bytes)) for _ in range(2)]
    stager = Stager(template)
    found = []
    for step in range(4):
        if step == 2:
            state["w"] = torch.full((3,), 7.0)
        else:
            state["w"].fill_(step)
        captured = capture.refresh(state)
        slot = slots[step % 2]
        stager.stage(slot, captured, payload, attempt=1, step=step)
        found.append(views_of(slot, template.layout.entries)[0].tolist())
    assert found == [[0.0] * 3, [1.0] * 3, [7.0] * 3, [3.0] * 3]
    assert torch.equal(weight, torch.ones(3)), "a copy never writes what it reads"
    stager.forget()
    slots[0].release()


def turn(tensor):
    with torch.no_grad():
        tensor.t_()


def take_turned(tensor):
    tensor.data = tensor.data.t()


def take_conjugate(tensor):
    tensor.data = tensor.data.conj()


@pytest.mark.parametrize("change", [turn, take_turned, take_conjugate])
def test_a_tensor_that_sees_its_memory_otherwise_is_staged_as_it_sees_it(change):
    """Object, address and shape stay. Both are staged through a view: rows, and bytes that torch does not copy."""
    weight = torch.nn.Parameter(torch.randn(512, 512, dtype=torch.complex64))
    state = {"w": weight, "small": random_bits((4, 4), torch.uint8).view(SMALL)}
    capture = Capture()
    captured = capture.refresh(state)
    payload = captured.payload(0)
    pieces = assign([captured.structure] * 2).pieces(0)
    assert [piece.lengths for piece in pieces] == [(256, 512), (4, 4)]
    template = lay_out(pieces, run="r", rank=0, world_size=2, plain_bytes=len(payload))
    stager, slot = Stager(template), memoryview(bytearray(template.layout.size_bytes))
    for changes in range(3):
        if changes:
            address = weight.data_ptr()
            change(weight)
            state["small"].t_()
            assert weight.data_ptr() == address
        stager.stage(slot, capture.refresh(state), payload, attempt=1, step=changes)
        for entry in template.layout.entries:
            seen = state[entry.piece.fqn][: entry.piece.lengths[0]]
            assert bytes(slot[entry.start : entry.stop]) == bits(seen), (entry.piece.fqn, changes)


def test_live_tensors_are_copied_not_shared():
    state = {"w": torch.zeros(3)}
    images = images_of(state)
    state["w"].fill_(9)
    assert stored(images, "w") == bytes(12)


def test_equal_states_give_equal_bytes_in_any_slot():
    one, two = (images_of({"w": torch.arange(5.0), "e": 3, "b": torch.ones(3, dtype=torch.bool)}) for _ in range(2))
    assert bytes(one[0].buffer) == bytes(two[0].buffer)


def test_nothing_to_copy_is_no_error():
    copy([], [])
    assert images_of({"a": 1})[0].header.layout.entries == ()


def test_replicas_are_compared_by_bytes():
    def captured(value, noise):
        model = torch.nn.BatchNorm1d(2)
        with torch.no_grad():
            model.weight.fill_(value)
            model.get_buffer("running_mean").fill_(noise)
        seen = Capture().refresh({"m": model, "z": torch.zeros(1, dtype=torch.complex64).conj()})
        return fingerprints(seen, assign([seen.structure, Structure({}, {}, {}), seen.structure]).replicated(2))

    assert set(captured(1, 1)) == {"m.weight", "m.bias"}
    assert first_difference([captured(1, 1), captured(1, 2)]) is None
    assert first_difference([captured(1, 1), {}, captured(2, 1)]) == "m.weight"
    assert first_difference([captured(0.0, 1), captured(-0.0, 1)]) == "m.weight"
