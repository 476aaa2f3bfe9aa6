"""Any state comes back exactly, from any number of ranks; an unchanged capture and a fresh one agree."""

from collections import Counter, OrderedDict
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.images import fill, images_of

import holdfast
from holdfast.trainer.capture import Capture

pytestmark = pytest.mark.torch

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex128, torch.float8_e5m2]
keys = st.one_of(st.sampled_from("abcd"), st.integers(0, 3), st.sampled_from(["!x", "é", "a b"]))
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.sampled_from([torch.Size([1, 2]), torch.bfloat16, torch.device("cpu"), frozenset({1}), {2, 3}]),
)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    made = torch.full(shape, draw(st.integers(0, 3)), dtype=torch.float32).to(dtype)
    if draw(st.booleans()):
        made = made.transpose(0, -1) if made.dim() else made
    return torch.nn.Parameter(made) if dtype.is_floating_point and draw(st.booleans()) else made


def containers(inner):
    return st.one_of(
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.dictionaries(keys, st.integers(1, 5), max_size=3).map(Counter),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
    )


values = st.recursive(st.one_of(plain, tensors()), containers, max_leaves=12)
states = st.dictionaries(st.sampled_from(["model", "x", "y", "rng"]), values, min_size=1)


def colliding(state: Any) -> bool:
    """Whether two tensors get one name: keys 1 and "1" side by side."""
    try:
        Capture().refresh(state)
    except holdfast.HoldfastError:
        return True
    return False


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bits(a) == bits(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)) and not isinstance(a, torch.Size):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def blank(x: Any) -> Any:
    """The same structure as another process has it before a load: other numbers, other plain values."""
    if isinstance(x, torch.Tensor):
        made = torch.zeros_like(x)
        return torch.nn.Parameter(made) if isinstance(x, torch.nn.Parameter) else made
    if isinstance(x, Counter):
        return Counter(z=9)
    if isinstance(x, dict):
        return type(x)((k, blank(v)) for k, v in x.items())
    if isinstance(x, (list, tuple)) and not isinstance(x, torch.Size):
        return type(x)(blank(v) for v in x)
    return None


@given(states, st.integers(1, 3))
@settings(max_examples=60)
def test_a_state_comes_back_exactly(state, ranks):
    if colliding(state):
        return
    live = fill(blank(state), images_of(*[state] * ranks), rank=ranks - 1, world_size=ranks)
    assert same(live, state)


@given(states)
@settings(max_examples=40)
def test_what_is_missing_is_made(state):
    """An empty container takes everything; only the keys of the state itself must be there."""
    if colliding(state):
        return
    live = fill({"all": {}}, images_of({"all": state}))
    assert same(live["all"], state)


@given(st.lists(states, min_size=2, max_size=4), st.lists(st.integers(0, 3), max_size=6))
@settings(max_examples=40)
def test_a_capture_used_again_sees_what_a_fresh_one_sees(choices, order):
    again = Capture()
    for pick in order:
        state = choices[pick % len(choices)]
        if not colliding(state):
            used, fresh = again.refresh(state), Capture().refresh(state)
            assert used.structure == fresh.structure
            assert used.tensors.keys() == fresh.tensors.keys()
            assert all(used.tensors[name] is fresh.tensors[name] for name in fresh.tensors)
            assert same(dict(used.tree), dict(fresh.tree))
