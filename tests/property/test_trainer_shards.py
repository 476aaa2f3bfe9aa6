"""Sharded tensors: what all ranks of any mesh stage is each element once, and put together it is the tensor."""

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from tests.images import read  # noqa: E402

from holdfast.errors import ReplicaMismatchError  # noqa: E402
from holdfast.format.image import lay_out, seal  # noqa: E402
from holdfast.format.plain import TensorRef  # noqa: E402
from holdfast.model.rect import Rect  # noqa: E402
from holdfast.trainer import shares  # noqa: E402
from holdfast.trainer.capture import Captured  # noqa: E402
from holdfast.trainer.dtensor import Cut, boxes  # noqa: E402
from holdfast.trainer.portions import Filling, meet  # noqa: E402
from holdfast.trainer.saved import Saved  # noqa: E402
from holdfast.trainer.shares import assign, unsplit  # noqa: E402
from holdfast.trainer.stage import Stager, rectangle  # noqa: E402
from holdfast.trainer.structure import Box, Boxes, Structure, TensorSpec, cells, whole_box  # noqa: E402

pytestmark = pytest.mark.torch


# Layouts, and what a rank has of a tensor, done with torch.chunk on the tensor itself ---------------------------------
def chunk(tensor, dim, count, index):
    """As torch cuts: the last pieces may be shorter, or not be there."""
    pieces = torch.chunk(tensor, count, dim)
    return pieces[index] if index < len(pieces) else tensor.narrow(dim, 0, 0)


def from_left_to_right(tensor, placements, mesh, coordinate):
    for axis, placement in enumerate(placements):
        if placement is None:
            continue
        dim, factor = placement
        count, index = mesh[axis], coordinate[axis]
        if factor == 1:
            tensor = chunk(tensor, dim, count, index)
        else:
            tensor = torch.cat([chunk(chunk(tensor, dim, factor, i), dim, count, index) for i in range(factor)], dim)
    return tensor


def as_fsdp_cuts(tensor, placements, mesh, coordinate):
    """Tensor parallelism first, on the axes to the right, then FSDP on the first axis."""
    for axis in (*range(1, len(mesh)), 0):
        if placements[axis] is not None:
            tensor = chunk(tensor, placements[axis][0], mesh[axis], coordinate[axis])
    return tensor


@st.composite
def layouts(draw):
    """(shape, mesh, placements, local): `local(tensor, coordinate)` is what a rank has."""
    shape = tuple(draw(st.lists(st.one_of(st.integers(0, 9), st.just(17)), max_size=3)))
    mesh = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    dims = st.sampled_from(range(len(shape))) if shape else st.nothing()
    placement = st.one_of(st.none(), st.tuples(dims, st.just(1))) if shape else st.none()
    placements = [draw(placement) for _ in mesh]
    local = from_left_to_right
    if shape and draw(st.booleans()):
        dim = draw(dims)
        right = math.prod(n for p, n in zip(placements[1:], mesh[1:], strict=True) if p is not None and p[0] == dim)
        if draw(st.booleans()) or right == 1:  # as a view of a sharded tensor has it
            factor = draw(st.integers(2, 3).filter(lambda n: n != right))
        else:
            factor, local = right, as_fsdp_cuts
        placements[0] = (dim, factor)
    return shape, mesh, placements, local


def coordinates(mesh):
    return list(itertools.product(*map(range, mesh)))


def boxes_on(shape, mesh, placements, coordinate):
    if 0 in shape:
        return None
    cuts = [Cut(p[0], mesh[a], coordinate[a], p[1]) for a, p in enumerate(placements) if p is not None]
    return boxes(shape, tuple(cuts))


def structure_on(layouts_by_name, rank_of):
    """The structure of a rank: `rank_of(name)` is its coordinate in the mesh of that tensor."""
    specs: dict[str, TensorSpec] = {}
    cuts: list[Boxes] = []
    for name, (shape, mesh, placements, _) in layouts_by_name.items():
        held = boxes_on(shape, mesh, placements, rank_of(name))
        cut = None
        if held is not None:
            cut = len(cuts)
            cuts.append(held)
        specs[name] = TensorSpec(shape, "int64", 8, "parameter" if name != "buffer" else "buffer", cut=cut)
    return Structure(specs, {}, {}, tuple(cuts))


def numbers(shape):
    return torch.arange(1, math.prod(shape) + 1).reshape(shape)


@given(layouts())
def test_boxes_say_where_the_elements_of_a_local_tensor_are(layout):
    shape, mesh, placements, local = layout
    whole = numbers(shape)
    for coordinate in coordinates(mesh):
        mine = local(whole, placements, mesh, coordinate)
        held = boxes_on(shape, mesh, placements, coordinate)
        if held is None:
            assert torch.equal(mine, whole) or 0 in shape
            continue
        assert sum(math.prod(p.lengths) for p in held) == mine.numel()
        for box in held:
            here, there = mine, whole
            for dim, (offset, length, at) in enumerate(zip(box.offsets, box.lengths, box.at, strict=True)):
                there, here = there.narrow(dim, offset, length), here.narrow(dim, at, length)
            assert torch.equal(here, there)


@given(st.lists(layouts(), min_size=1, max_size=3), st.booleans(), st.data())
def test_all_ranks_stage_each_element_once_and_the_tensor_comes_back(found, small, data):
    ranks = max(math.prod(mesh) for _, mesh, _, _ in found)
    by_name = {f"t{i}": layout for i, layout in enumerate(found)} | {"buffer": found[0]}
    # Meshes smaller than the world stand beside each other, as data parallelism does that tensors do not know of.
    of_rank = {
        name: [coordinates(mesh)[rank % math.prod(mesh)] for rank in range(ranks)]
        for name, (_, mesh, _, _) in by_name.items()
    }
    structures = [structure_on(by_name, lambda name, rank=rank: of_rank[name][rank]) for rank in range(ranks)]
    before, shares.WHOLE_BELOW_BYTES = shares.WHOLE_BELOW_BYTES, 8 if small else 1 << 20
    try:
        assigned = assign(structures)
        pieces = [assigned.pieces(rank) for rank in range(ranks)]
    finally:
        shares.WHOLE_BELOW_BYTES = before
    for name, (shape, mesh, placements, local) in by_name.items():
        whole, made, times = numbers(shape), torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
        entries = 0
        for rank, structure in enumerate(structures):
            mine = local(whole, placements, mesh, of_rank[name][rank])
            for piece in pieces[rank]:
                if piece.fqn == name:
                    entries += 1
                    at = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.lengths, strict=True))
                    made[at] = rectangle(mine, piece, structure.boxes_of(name))
                    times[at] += 1
        assert torch.equal(made, whole)
        assert (times == 1).all()
        assert entries


@given(layouts(), layouts(), st.booleans(), st.data())
def test_a_shard_of_any_mesh_is_filled_from_images_of_any_other(saved, live, small, data):
    """Real images of all ranks of one layout, and the boxes of one rank of another one with the same global shape."""
    shape, mesh, placements, local = saved
    _, mesh_2, placements_2, local_2 = live
    placements_2 = [p if p is not None and p[0] < len(shape) else None for p in placements_2]
    local_2 = from_left_to_right if any(p is not None and p[1] > 1 for p in placements_2[1:]) else local_2
    assume(placements_2 == live[2] or local_2 is from_left_to_right)
    whole = numbers(shape)
    coordinate = data.draw(st.sampled_from(coordinates(mesh_2)))
    structures = [structure_on({"t": saved}, lambda _, c=c: c) for c in coordinates(mesh)]
    locals_ = [local(whole, placements, mesh, c).contiguous() for c in coordinates(mesh)]
    before, shares.WHOLE_BELOW_BYTES = shares.WHOLE_BELOW_BYTES, 8 if small else 1 << 20
    try:
        sources = images_of_ranks(structures, locals_)
    finally:
        shares.WHOLE_BELOW_BYTES = before
    mine = local_2(whole, placements_2, mesh_2, coordinate)
    held = boxes_on(shape, mesh_2, placements_2, coordinate)
    memory = torch.zeros_like(mine)
    if data.draw(st.booleans()) and memory.ndim == 2:
        memory = torch.zeros_like(mine.t()).t()  # memory that is no run of bytes
    found = Saved(sources).shared["t"]
    portions = list(meet(memory, (whole_box(shape),) if held is None else held, found)) if mine.numel() else []
    assert sum(p.nbytes for p in portions) >= 8 * mine.numel()
    assert Filling(sources, portions).fill(prove=range(len(sources))) == {}
    assert torch.equal(memory, mine)


def images_of_ranks(structures, locals_):
    assigned, sources = assign(structures), []
    for rank, (structure, memory) in enumerate(zip(structures, locals_, strict=True)):
        seen = Captured(structure, {"t": memory}, {}, {"t": TensorRef("t")}, {}, [])
        payload = seen.payload(rank)
        template = lay_out(
            assigned.pieces(rank), run="r", rank=rank, world_size=len(structures), plain_bytes=len(payload)
        )
        buffer = memoryview(bytearray(template.layout.size_bytes))
        Stager(template).stage(buffer, seen, payload, attempt=1, step=1)
        seal(buffer, template.layout)
        sources.append(read(bytes(buffer)))
    return sources


@given(layouts(), st.integers(1, 3))
def test_ranks_that_see_a_change_alone_stage_all_they_hold(layout, times):
    shape, mesh, _, _ = layout
    ranks = [structure_on({"t": layout}, lambda _, c=c: c) for c in coordinates(mesh) * times]
    made = torch.zeros(shape, dtype=torch.bool)
    for rank, structure in enumerate(ranks):
        for piece in unsplit(structure, rank)[0]:
            at = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.lengths, strict=True))
            made[at] = True
    assert made.all()


@given(layouts())
def test_the_arithmetic_is_that_of_torch(layout):
    """Where pieces are equally long, and for shards without a factor everywhere."""
    utils = pytest.importorskip("torch.distributed.tensor._utils")
    compute = getattr(utils, "_compute_local_shape_and_global_offset", None)
    if compute is None:
        pytest.skip("this torch computes it in another place")
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    shape, mesh, placements, local = layout
    if local is as_fsdp_cuts and any(shape[p[0]] % math.prod(mesh) for p in placements if p is not None):
        return
    theirs = [
        Replicate() if p is None else Shard(p[0]) if p[1] == 1 else _StridedShard(p[0], split_factor=p[1])
        for p in placements
    ]
    for coordinate in coordinates(mesh):
        held = boxes_on(shape, mesh, placements, coordinate)
        lengths, offsets = compute(shape, mesh, list(coordinate), theirs)
        if held is None:
            assert 0 in shape or tuple(lengths) == shape
        elif held:
            assert tuple(max(p.at[d] + p.lengths[d] for p in held) for d in range(len(shape))) == tuple(lengths)
            assert held[0].offsets == tuple(offsets)
        else:
            assert 0 in lengths


# By hand -------------------------------------------------------------------------------------------------------------
def test_an_uneven_vocabulary_is_cut_as_fsdp_cuts_it():
    """Read from left to right, torch's placements would say 6281 rows of rank (3, 0)."""
    held = [boxes((50257,), (Cut(0, 4, 3, 2), Cut(0, 2, tp))) for tp in (0, 1)]
    assert [[(p.offsets[0], p.lengths[0]) for p in parts_ or ()] for parts_ in held] == [
        [(18849, 6280)],
        [(43975, 6282)],
    ]


def sharded(*by_rank, shape=(4, 6)):
    spec = TensorSpec(shape, "float32", 4, "parameter", cut=0)
    return [Structure({"w": spec}, {}, {}, (tuple(held),)) for held in by_rank]


def box(offsets, lengths):
    return Box(offsets, lengths, (0,) * len(offsets))


def test_a_part_that_no_rank_holds_is_refused_by_name():
    with pytest.raises(ReplicaMismatchError, match=r"'w' .*no rank holds element \[2, 0\]") as caught:
        assign(sharded([box((0, 0), (2, 6))], [box((2, 3), (2, 3))]))
    assert "group=" in caught.value.hint


def test_ranks_that_disagree_on_the_global_shape_are_refused_by_name():
    one, two = sharded([box((0, 0), (2, 6))]), sharded([box((2, 0), (2, 6))], shape=(5, 6))
    with pytest.raises(
        ReplicaMismatchError, match=r"'w' is parameter float32 \[4, 6\] on rank 0 and .*\[5, 6\] on rank 1"
    ):
        assign(one + two)


def test_a_plain_tensor_beside_its_shards_is_split_on_their_borders():
    whole = Structure({"w": TensorSpec((4, 6), "float32", 4, "parameter")}, {}, {})
    assigned = assign([whole, *sharded([box((0, 0), (2, 6))], [box((2, 0), (2, 6))])])
    staged = sorted(p.offsets + p.lengths for rank in range(3) for p in assigned.pieces(rank))
    assert staged == [(0, 0, 2, 6), (2, 0, 2, 6)]
    assert [len(assigned.replicated(rank)) for rank in range(3)] == [2, 1, 1]


def test_ties_do_not_show_where_a_shard_is_empty():
    spec = TensorSpec((1, 6), "float32", 4, "parameter", cut=0)
    full = Structure({"a": spec}, {}, {"b": "a"}, ((box((0, 0), (1, 6)),),))
    empty = Structure({"a": spec, "b": spec}, {}, {}, ((),))
    assigned = assign([full, empty])
    assert [p.fqn for rank in range(2) for p in assigned.pieces(rank)] == ["a"]
    assert [assigned.aliases(rank) for rank in range(2)] == [(("b", "a"),), ()]


@given(st.lists(st.tuples(*[st.tuples(st.integers(0, 5), st.integers(1, 5))] * 2), min_size=1, max_size=5))
def test_cells_part_rectangles_on_all_their_borders(made):
    rects = {Rect((a[0], b[0]), (a[1], b[1])) for a, b in made}
    for cell in cells(rects):
        assert all(cell.meet(rect) in (None, cell) for rect in rects)
