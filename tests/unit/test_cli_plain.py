"""Plain values as a person sees them: tensors and unknown types by their names, wherever they stand."""

from collections import Counter, OrderedDict, defaultdict

import pytest

from holdfast.cli.plain import pretty, shown
from holdfast.format.plain import Opaque, TensorRef, encode

WEIGHT, DTYPE = TensorRef("a.w"), Opaque("torch.dtype", "float32")


@pytest.mark.parametrize(
    "value",
    [
        {"a": WEIGHT, DTYPE: 1},
        OrderedDict(a=WEIGHT, b=DTYPE),
        defaultdict(list, {"a": [WEIGHT], "b": (DTYPE,)}),
        [WEIGHT, {DTYPE}],
        (WEIGHT, frozenset([DTYPE]), Counter({DTYPE: 2})),
    ],
)
def test_tensors_and_unknown_types_are_named_in_every_container(value):
    for text in (shown(value), pretty(encode(value))):
        assert "<tensor a.w>" in text
        assert "torch.dtype('float32')" in text
        assert not any(name in text for name in ("TensorRef", "Opaque", "Shown"))


@pytest.mark.parametrize("value", [Counter("abb"), OrderedDict(a=1), defaultdict(int, a=1), defaultdict(None), {1, 2}])
def test_what_needs_no_name_is_shown_as_it_is(value):
    assert shown(value) == repr(value)
