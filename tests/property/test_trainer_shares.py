"""Who stages what: every byte of every tensor exactly once, in equal parts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ReplicaMismatchError
from holdfast.trainer.shares import WHOLE_BELOW_BYTES, assign, unsplit
from holdfast.trainer.structure import Structure, TensorSpec

DTYPES = {"float32": 4, "bfloat16": 2, "int8": 1, "complex128": 16}
KINDS = ["parameter", "buffer", "optimizer", "other"]

specs = st.builds(
    lambda shape, dtype, kind: TensorSpec(tuple(shape), dtype, DTYPES[dtype], kind),
    st.one_of(st.lists(st.integers(0, 6), max_size=3), st.lists(st.integers(1, 2000), min_size=1, max_size=2)),
    st.sampled_from(list(DTYPES)),
    st.sampled_from(KINDS),
)


@st.composite
def worlds(draw):
    """Structures of several ranks: which of the tensors each has, and some of its own."""
    tensors = {f"t{i}": spec for i, spec in enumerate(draw(st.lists(specs, max_size=12)))}
    subsets = draw(st.lists(st.sets(st.sampled_from(sorted(tensors))), min_size=1, max_size=3)) if tensors else [set()]
    tables = [
        Structure({n: s for n, s in tensors.items() if n in subset}, {"own": TensorSpec((3,), "int8", 1, "other")}, {})
        for subset in subsets
    ]
    return draw(st.lists(st.sampled_from(tables), min_size=1, max_size=9))


def covered(structures, shares):
    """How often each row of each shared tensor is staged; a tensor without rows counts as one."""
    specs = {n: s for structure in structures for n, s in structure.shared.items()}
    rows = {n: [0] * (s.shape[0] if s.shape and s.nbytes else 1) for n, s in specs.items()}
    for rank in range(len(structures)):
        for piece in shares.pieces(rank):
            if piece.owner_rank is None:
                assert piece.fqn in structures[rank].shared, "a rank stages only what it holds"
                assert (piece.shape, piece.dtype) == (specs[piece.fqn].shape, specs[piece.fqn].dtype)
                assert piece.offsets[1:] == (0,) * len(piece.shape[1:])
                assert piece.lengths[1:] == piece.shape[1:]
                start = piece.offsets[0] if piece.shape and piece.nbytes else 0
                count = piece.lengths[0] if piece.shape and piece.nbytes else 1
                for row in range(start, start + count):
                    rows[piece.fqn][row] += 1
    return rows


@given(worlds())
def test_every_byte_is_staged_exactly_once(structures):
    shares = assign(structures)
    assert all(set(counts) == {1} for counts in covered(structures, shares).values())
    for rank in range(len(structures)):
        pieces = shares.pieces(rank)
        assert [p.fqn for p in pieces if p.owner_rank is not None] == ["own"]
        assert all(p.owner_rank in (None, rank) for p in pieces)
        assert all(p.nbytes or p.is_whole for p in pieces), "no empty piece of a tensor that has bytes"


@given(worlds())
def test_small_and_unsplittable_tensors_are_never_cut(structures):
    shares = assign(structures)
    for rank, structure in enumerate(structures):
        for piece in shares.pieces(rank):
            spec = structure.own.get(piece.fqn) or structure.shared[piece.fqn]
            if spec.nbytes < WHOLE_BELOW_BYTES or not spec.splittable:
                assert piece.is_whole


@given(worlds())
def test_equal_tables_as_other_objects_give_the_same_shares(structures):
    copies = [Structure(dict(s.shared), dict(s.own), dict(s.aliases)) for s in structures]
    for rank in range(len(structures)):
        assert assign(structures).pieces(rank) == assign(copies).pieces(rank)
    assert [a.digest for a in structures] == [b.digest for b in copies]


@given(st.integers(1, 16), st.lists(st.integers(1, 60), min_size=40, max_size=80))
def test_shares_are_equal_within_five_percent(ranks, sizes):
    """A model of many matrices: 40 to 80 of up to 60 MiB."""
    shared = {f"w{i}": TensorSpec((1024, size * 256), "float32", 4, "parameter") for i, size in enumerate(sizes)}
    shares = assign([Structure(shared, {}, {})] * ranks)
    staged = [sum(p.nbytes for p in shares.pieces(rank)) for rank in range(ranks)]
    mean = sum(s.nbytes for s in shared.values()) / ranks
    assert all(abs(n - mean) <= 0.05 * mean for n in staged)


def one(**shared):
    return Structure(shared, {}, {})


WEIGHT = TensorSpec((4, 4), "float32", 4, "parameter")


@pytest.mark.parametrize(
    "other",
    [
        TensorSpec((4, 5), "float32", 4, "parameter"),
        TensorSpec((4, 4), "bfloat16", 2, "parameter"),
        TensorSpec((4, 4), "float32", 4, "buffer"),
    ],
)
def test_ranks_that_differ_are_refused_by_name(other):
    with pytest.raises(ReplicaMismatchError, match=r"'w' is parameter float32 \[4, 4\] on rank 0 and .* on rank 2"):
        assign([one(w=WEIGHT), one(v=WEIGHT), one(w=other)])


def test_ties_that_differ_are_refused():
    tied = Structure({"a": WEIGHT}, {}, {"b": "a"})
    with pytest.raises(ReplicaMismatchError, match=r"'b' shares memory .* rank 1"):
        assign([tied, one(a=WEIGHT, b=WEIGHT)])
    with pytest.raises(ReplicaMismatchError, match="'b'"):
        assign([tied, Structure({"c": WEIGHT}, {}, {"b": "c"})])


def test_aliases_stand_with_the_pieces_of_their_tensor():
    large = TensorSpec((1024, 1024), "float32", 4, "parameter")
    small = TensorSpec((2,), "float32", 4, "buffer")
    structure = Structure({"a": large, "s": small}, {}, {"b": "a", "t": "s"})
    shares = assign([structure] * 2)
    assert shares.aliases(0) == (("b", "a"), ("t", "s"))
    assert shares.aliases(1) == (("b", "a"),)


def test_a_changed_structure_is_staged_whole_by_the_rank_that_sees_it():
    structure = Structure({"a": WEIGHT}, {"rng": WEIGHT}, {"b": "a"})
    pieces, aliases = unsplit(structure, 0)
    assert [(p.fqn, p.owner_rank, p.is_whole) for p in pieces] == [("a", None, True), ("rng", 0, True)]
    assert aliases == (("b", "a"),)
    assert [(p.fqn, p.owner_rank) for p in unsplit(structure, 3)[0]] == [("a", None), ("rng", 3)]
