"""Forms and parts written by an enemy: an error of ours or of torch, never a crash, never a read beyond a tensor."""

import contextlib
import json

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptError, StructureError
from holdfast.trainer.forms import parse
from holdfast.trainer.parts import can_make, make

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*[Qq]uantiz"),
    pytest.mark.filterwarnings("ignore:Sparse [CB]"),
]

KINDS = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": ("crow_indices", "col_indices", "values"),
    "sparse_bsc": ("ccol_indices", "row_indices", "values"),
    "quantized": ("int_repr", "scales", "zero_points"),
    "flatten": ("a",),
    "user": ("a",),
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**53)
    | st.text(max_size=4)
    | st.sampled_from([*KINDS, "axis", "!int"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=12,
)
CONTEXTS = JSON | st.fixed_dictionaries(
    {},
    optional={
        "axis": st.integers(-2, 4),
        "scale": st.floats(0.1, 2),
        "zero_point": st.integers(-5, 5),
        "coalesced": JSON,
    },
)
SIZES = st.lists(st.integers(0, 3), max_size=3)
TENSORS = st.builds(
    lambda shape, dtype, fill: torch.full(shape, fill).to(dtype),
    SIZES,
    st.sampled_from([torch.int64, torch.int32, torch.int8, torch.uint8, torch.float32, torch.float64]),
    st.integers(-1, 3),
)


@given(JSON)
def test_any_text_is_a_form_or_corrupt(tree):
    with contextlib.suppress(CorruptError, StructureError):
        parse(json.dumps(tree, separators=(",", ":"), ensure_ascii=False))


@given(st.data(), st.sampled_from(sorted(KINDS)), SIZES, CONTEXTS)
def test_any_parts_make_a_tensor_or_an_error(data, kind, shape, context):
    row = [kind, "x", [[name, None] for name in KINDS[kind]], shape, [], context]
    tensors = {name: data.draw(TENSORS) for name in KINDS[kind]}
    try:
        form = parse(json.dumps(row, separators=(",", ":"), ensure_ascii=False))
        assert can_make(form, None) == (kind not in ("flatten", "user"))
        made = make(form, tensors)
    except Exception:  # `give` names it; what counts is that the process lives
        return
    assert tuple(made.shape) == tuple(shape)
    made.dequantize() if made.is_quantized else made.to_dense()
