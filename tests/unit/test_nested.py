"""Flat names and trees: torch's rule, and marks by which the places of tensors follow from their names."""

from collections import Counter, OrderedDict, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format.nested import (
    DCP_MARK,
    Mark,
    Path,
    flatten,
    is_reserved,
    mark_for,
    mark_in,
    refs_in,
    unflatten,
    with_tensors,
    without_tensors,
)
from holdfast.format.plain import Opaque, TensorRef

T = TensorRef
MODEL = {f"layers.{n}.weight": T(f"model.layers.{n}.weight") for n in range(8)}
STATE = {
    "model": MODEL,
    "optim": {
        "state": {"layers.0.weight": {"exp_avg": T("optim.state.layers.0.weight.exp_avg"), "step": 3}},
        "param_groups": [{"lr": 0.1, "params": ["layers.0.weight"]}],
    },
    "epoch": 3,
    "more": {"x": T("more.x"), "y": [T("more.y.0"), {"z": 1}]},
}


def test_flattening_gives_names_and_paths():
    values, paths = flatten(STATE)
    assert values["optim.param_groups.0.lr"] == 0.1
    assert paths["optim.param_groups.0.lr"] == ("optim", "param_groups", 0, "lr")
    assert paths["model.layers.0.weight"] == ("model", "layers.0.weight")
    assert paths["more.y.0"] == ("more", "y", 0)
    assert values["optim.param_groups.0.params"] == ["layers.0.weight"]
    assert unflatten(values, paths) == STATE


def test_keys_are_text_and_empty_dicts_are_lost():
    values, paths = flatten({"a": {0: 1, None: 2}, "b": {}, "c": [], "d": ({"x": 1},), "e": [[], [{}]]})
    assert values == {"a.0": 1, "a.None": 2, "c": [], "d": ({"x": 1},), "e.0": []}
    assert paths["a.0"] == ("a", "0")
    assert unflatten(values, paths) == {"a": {"0": 1, "None": 2}, "c": [], "d": ({"x": 1},), "e": [[]]}


def test_two_things_of_one_name_are_refused():
    with pytest.raises(UnsupportedValueError, match=r"two things are called 'a\.b'"):
        flatten({"a": {"b": 1}, "a.b": 2})


LEAVES = st.none() | st.integers(0, 3) | st.builds(T, st.sampled_from("xyz"))
KEYS = st.sampled_from(["a", "b", "a.b", "0"]) | st.integers(0, 2)
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda c: st.lists(c, max_size=3) | st.lists(c, max_size=2).map(tuple) | st.dictionaries(KEYS, c, max_size=3),
        max_leaves=8,
    ),
    max_size=3,
)


@pytest.mark.torch
@given(TREES)
def test_it_is_torch_s_rule(tree):
    torch = pytest.importorskip("torch")
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    def as_torch(x):
        if isinstance(x, TensorRef):
            return torch.zeros(())
        if isinstance(x, dict):
            return {key: as_torch(item) for key, item in x.items()}
        return type(x)(map(as_torch, x)) if isinstance(x, (list, tuple)) else x

    try:
        _, paths = flatten(tree)
    except UnsupportedValueError:
        with pytest.raises(ValueError, match="duplicated"):
            flatten_state_dict(as_torch(tree))
        return
    assert flatten_state_dict(as_torch(tree))[1] == paths


def value_at(tree: Any, path: Path) -> Any:
    for step in path:
        tree = tree[step]
    return tree


@given(TREES)
def test_values_come_back_at_their_paths(tree):
    try:
        values, paths = flatten(tree)
        given_values = {name: 0 if value is None else value for name, value in values.items()}
        again = unflatten(given_values, paths)
    except (UnsupportedValueError, CorruptError):
        return  # two things of one name, perhaps only as text
    assert {name: value_at(again, path) for name, path in paths.items()} == given_values


@pytest.mark.parametrize(
    "paths",
    [
        {"a": ()},
        {"a": ("a",) * 65},
        {"a": (0, "a")},
        {"a": ("a", -1)},
        {"a": ("a", 10**9)},
        {"a": ("a", True)},
        {"a": ("a", None)},
        {"a": ("x",), "b": ("x",)},
        {"a": ("x",), "b": ("x", "y")},
        {"a": ("x", "y"), "b": ("x", 0)},
        {"a": ("x", "y"), "b": ("x",)},
    ],
)
def test_paths_that_are_none_are_refused(paths):
    with pytest.raises(CorruptError):
        unflatten(dict.fromkeys(paths, 1), paths)


def test_a_value_is_not_gone_into():
    inner = [1]
    with pytest.raises(CorruptError):
        unflatten({"a": inner, "b": 2}, {"a": ("a",), "b": ("a", 1)})
    assert inner == [1]


def test_holes_in_lists_are_few():
    paths = {str(n): (str(n), 60_000) for n in range(10)}
    with pytest.raises(CorruptError, match="nearly empty"):
        unflatten(dict.fromkeys(paths, 1), paths)
    assert unflatten({"a": 1}, {"a": ("a", 2)}) == {"a": [None, None, 1]}


# Marks ---------------------------------------------------------------------------------------------------------------
def test_the_mark_of_a_state():
    mark = mark_for(STATE)
    assert mark.to_plain() == {"nested": True, "flat": [["model"]], "state": [["optim"]]}
    left = without_tensors(STATE, mark)
    assert left == {
        "optim": {
            "state": {"layers.0.weight": {"step": 3}},
            "param_groups": [{"lr": 0.1, "params": ["layers.0.weight"]}],
        },
        "epoch": 3,
        "more": {"x": T("more.x"), "y": [T("more.y.0"), {"z": 1}]},
    }
    names = sorted(set(refs_in(STATE)))
    assert with_tensors({**left, DCP_MARK: mark.to_plain()}, mark, names) == STATE
    assert mark_in({**left, DCP_MARK: mark.to_plain()}) == mark


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("model.layers.0.weight", ("model", "layers.0.weight")),
        ("model.inner.a.b", ("model", "inner", "a.b")),
        ("optim.state.layers.0.weight.exp_avg", ("optim", "state", "layers.0.weight", "exp_avg")),
        ("optim.state.step", None),
        ("optim.other.x", None),
        ("other", None),
        ("model", None),
        ("model.", None),
        (".x", None),
    ],
)
def test_where_a_name_stands(name, path):
    mark = Mark(flat=(("model",), ("model", "inner")), state=(("optim",),))
    assert mark.path_of(name) == path


def test_a_state_that_is_flat_has_one_root():
    flat = {name: T(name) for name in (f"a.{n}" for n in range(9))}
    mark = mark_for(flat)
    assert (mark.flat, without_tensors(flat, mark)) == (((),), {})
    assert mark.path_of("a.b.c") == ("a.b.c",)
    assert with_tensors({}, mark, flat) == flat


def test_names_that_do_not_nest_are_keys():
    mark = Mark(nested=False, planner_data={"a.b": ("a", "b")})
    assert mark.to_plain() == {"nested": False, "planner_data": {"a.b": ("a", "b")}}
    assert mark.path_of("a.b") == ("a.b",)
    assert mark_in({DCP_MARK: mark.to_plain()}) == mark


def test_without_a_mark_names_are_those_of_a_checkpointer():
    tree = {"optim": {"param_groups": [{}]}, "epoch": 3, "__holdfast__.per_rank": ["rng"], "ema": {"w": T("ema.w")}}
    mark = mark_in(tree)
    names = ["model.a.b", "optim.state.a.b.exp_avg", "ema.w", "alone"]
    assert with_tensors(tree, mark, names) == {
        "model": {"a.b": T("model.a.b")},
        "optim": {"param_groups": [{}], "state": {"a.b": {"exp_avg": T("optim.state.a.b.exp_avg")}}},
        "epoch": 3,
        "ema": {"w": T("ema.w")},
        "alone": T("alone"),
    }
    assert tree["optim"] == {"param_groups": [{}]}, "what was given is as it was"


def test_a_name_in_whose_way_something_stands_is_a_key():
    mark = mark_in({})
    assert with_tensors({"a": 5}, mark, ["a.b"]) == {"a": 5, "a.b": T("a.b")}
    with pytest.raises(CorruptError, match="something else has its name"):
        with_tensors({"a": 5, "a.b": 6}, mark, ["a.b"])


@pytest.mark.parametrize("container", [OrderedDict, dict, lambda d: defaultdict(int, d), Counter])
def test_dicts_keep_their_kind(container):
    tree = {"a": container({f"k{n}": T(f"a.k{n}") for n in range(8)} | {"more": 1})}
    left = without_tensors(tree, mark_for(tree))
    assert left == {"a": {"more": 1}}
    assert type(left["a"]) is type(tree["a"])


def test_a_tensor_whose_place_does_not_follow_stays():
    tree = {"a": {f"k{n}": T(f"other.k{n}") for n in range(8)}, "b": {0: T("b.0")}}
    assert without_tensors(tree, mark_for(tree)) == tree


@pytest.mark.parametrize(
    "mark", [1, {}, {"nested": 1}, {"nested": True, "flat": 1}, {"nested": True, "flat": [["a", 1]], "state": []}]
)
def test_marks_that_are_none_are_corrupt(mark):
    with pytest.raises(CorruptError, match="the mark of"):
        mark_in({DCP_MARK: mark})


def test_reserved_keys_and_names_within_registered_types():
    assert is_reserved(DCP_MARK)
    assert not is_reserved("holdfast")
    assert list(refs_in({"a": Opaque("user:x", {"w": T("a.w")}), "b": (T("b.0"),)})) == ["a.w", "b.0"]
