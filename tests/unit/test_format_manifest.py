"""Manifests: what is refused when building one, and when reading one."""

import itertools
import json
import random
from dataclasses import replace

import pytest

from holdfast.errors import CorruptError, FormatVersionError, UsageError
from holdfast.format import image, manifest
from holdfast.format.checksum import crc64nvme
from holdfast.format.manifest.coverage import Work, first_hole, first_overlap
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageRecord, Piece
from holdfast.model.manifest import Chunk, TensorRecord


def whole(fqn, shape=(4, 4), dtype="float32", itemsize=4, owner_rank=None):
    return Piece(fqn, (0,) * len(shape), shape, shape, dtype, itemsize, owner_rank)


def rows(fqn, begin, n, shape=(4, 4)):
    return Piece(fqn, (begin, *[0] * (len(shape) - 1)), (n, *shape[1:]), shape, "float32", 4)


def member(pieces=(), aliases=(), *, rank=0, attempt=1, step=10, world_size=2, run="r", **identity):
    """A header and the record of its image."""
    template = image.lay_out(pieces, aliases, run=run, rank=rank, world_size=world_size, **identity)
    buffer = bytearray(template.header)
    template = replace(template, pads=())
    template.stamp(buffer, attempt, step)
    header = image.parse_header(buffer, template.layout.size_bytes)
    return header, ImageRecord(header.id, header.size_bytes, 1000 + rank)


def build(*members, plain=b"{}"):
    return manifest.build([h for h, _ in members], [r for _, r in members], plain)


def two_ranks():
    return [
        member([rows("w", 0, 2), whole("b", (3,)), whole("rng", (5,), "uint8", 1, 0)], [("tied", "w")], rank=0),
        member([rows("w", 2, 2), whole("rng", (5,), "uint8", 1, 1)], [("tied", "w")], rank=1),
    ]


def test_what_it_says():
    built = build(*two_ranks())
    assert (built.run, built.id, built.world_size, built.plain) == ("r", CheckpointId(1, 10), 2, b"{}")
    assert [i.id for i in built.images] == [ImageId(1, 10, 0), ImageId(1, 10, 1)]
    assert built.tensors == (
        TensorRecord("b", (3,), "float32", (Chunk(0, (0,), (3,)),)),
        TensorRecord("rng", (5,), "uint8", (Chunk(0, (0,), (5,)),), owner_rank=0),
        TensorRecord("rng", (5,), "uint8", (Chunk(1, (0,), (5,)),), owner_rank=1),
        TensorRecord("tied", (4, 4), "float32", (), alias_of="w"),
        TensorRecord("w", (4, 4), "float32", (Chunk(0, (0, 0), (2, 4)), Chunk(1, (2, 0), (2, 4)))),
    )
    assert built.size_bytes == sum(h.size_bytes for h, _ in two_ranks())


def test_the_order_of_what_it_is_given_has_no_influence():
    members = [
        member([rows("w", 2 * r + i, 1, (8, 2)) for i in order], rank=r, world_size=4)
        for r in range(4)
        for order in ((0, 1),)
    ]
    expected = manifest.encode(build(*members))
    for shuffled in itertools.permutations(members):
        records = [r for _, r in members]
        random.Random(1).shuffle(records)
        assert manifest.encode(manifest.build([h for h, _ in shuffled], records, b"{}")) == expected


def test_its_bytes():
    data = manifest.encode(build(*two_ranks()))
    line, body = data.split(b"\n", 1)
    assert line == b"holdfast-manifest 0 %016x %d" % (crc64nvme(body), len(body))
    columns = json.loads(body)
    assert columns["tensors"]["fqn"] == ["b", "rng", "rng", "tied", "w"]
    assert columns["tensors"]["chunks"] == [[0], [0], [1], [], [[0, [0, 0], [2, 4]], [1, [2, 0], [2, 4]]]]
    assert columns["tensors"]["owner_rank"] == {"1": 0, "2": 1}
    assert columns["tensors"]["alias_of"] == {"3": "w"}
    assert columns["images"]["crc64nvme"] == ["00000000000003e8", "00000000000003e9"]
    assert columns["plain"] == "e30="
    assert manifest.decode(data) == build(*two_ranks())


def test_large_plain_values_stay_in_their_image():
    assert build(*two_ranks(), plain=bytes(64 * 1024)).plain == bytes(64 * 1024)
    assert build(*two_ranks(), plain=bytes(64 * 1024 + 1)).plain is None
    assert build(*two_ranks(), plain=None).plain is None


def test_replicas_saved_unsplit_may_overlap():
    built = build(member([whole("w")], rank=0), member([whole("w")], rank=1))
    assert [c.image for c in built.tensors[0].chunks] == [0, 1]
    assert manifest.decode(manifest.encode(built)) == built


def test_a_tensor_may_be_empty_or_have_no_dimension():
    built = build(member([whole("e", (0, 3)), whole("s", ())], rank=0), member([whole("s", ())], rank=1))
    assert manifest.decode(manifest.encode(built)) == built


def test_an_older_image_may_be_shared():
    old = member([whole("frozen")], rank=0, step=5, image=1, image_count=2)
    relying = member([whole("w")], rank=0, image=0, image_count=2, relies_on=[ImageId(1, 5, 0, 1)])
    other = member(rank=1)
    built = build(relying, old, other)
    assert [i.id for i in built.images] == [ImageId(1, 10, 0, 0), ImageId(1, 5, 0, 1), ImageId(1, 10, 1, 0)]
    assert manifest.decode(manifest.encode(built)) == built
    for missing in ((relying, other), (member([], rank=0, image_count=2), old, other)):
        with pytest.raises(CorruptError):
            build(*missing)


SPLIT = [rows("w", 0, 2)], [rows("w", 2, 2)]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([], "without images"),
        ([member([whole("w")], rank=0)], "rank 1"),
        ([member([whole("w")], rank=0), member(rank=1, step=11)], "no part of"),
        ([member([whole("w")], rank=0), member(rank=1, attempt=2)], "no part of"),
        ([member([whole("w")], rank=0), member(rank=1, world_size=3)], "one run and world"),
        ([member([whole("w")], rank=0), member(rank=1, run="other")], "one run and world"),
        ([member([whole("w")], rank=0), member(rank=1), member(rank=1)], "rank 1"),
        ([member([whole("w")], rank=0), member(rank=1, image_count=2)], "rank 1"),
        ([member([whole("w")], rank=0), member(rank=1, image_count=2, image=1)], "rank 1"),
        ([member(SPLIT[0], rank=0), member(rank=1)], r"element \(2, 0\) of 'w'"),
        ([member([rows("w", 0, 1)], rank=0), member(SPLIT[1], rank=1)], r"element \(1, 0\) of 'w'"),
        ([member(SPLIT[0], rank=0), member([rows("w", 2, 2, (4, 5))], rank=1)], "'w' is float32"),
        ([member([whole("w")], rank=0), member([whole("w", dtype="int32")], rank=1)], "'w' is int32"),
        ([member([rows("w", 0, 3), rows("w", 2, 2)], rank=0), member(rank=1)], "overlapping pieces of 'w'"),
        ([member([whole("w")], [("t", "w")], rank=0), member([whole("v")], [("t", "v")], rank=1)], "'t' is an alias"),
        ([member([whole("w")], [("t", "w")], rank=0), member([whole("t")], rank=1)], "'t' is a tensor of its own"),
        ([member([], [("t", "w")], rank=0), member(rank=1)], "alias of nothing"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_is_no_checkpoint_is_refused(members, says):
    with pytest.raises(CorruptError, match=says):
        build(*members)


def test_records_must_be_those_of_the_images():
    headers, records = zip(*two_ranks(), strict=True)
    for wrong in (
        records[:1],
        [records[0], replace(records[1], size_bytes=1)],
        [*records, replace(records[0], id=ImageId(1, 10, 5))],
    ):
        with pytest.raises(CorruptError):
            manifest.build(headers, wrong, None)


# Coverage ------------------------------------------------------------------------------------------------------------
def test_a_grid_is_covered_and_a_missing_cell_is_found():
    cells = [((2 * i, 3 * j, k), (2, 3, 1)) for i in range(3) for j in range(4) for k in range(5)]
    assert first_hole(cells, (6, 12, 5), Work(60)) is None
    for missing in cells:
        rest = [c for c in cells if c != missing]
        assert first_hole(rest, (6, 12, 5), Work(60)) == missing[0]


def test_coverage_against_counting_every_element():
    rng = random.Random(4)
    for _ in range(400):
        shape = tuple(rng.randint(0, 4) for _ in range(rng.randint(0, 3)))
        rects = []
        for _ in range(rng.randint(0, 6)):
            begins = [rng.randint(0, n) for n in shape]
            rects.append((tuple(begins), tuple(rng.randint(0, n - b) for n, b in zip(shape, begins, strict=True))))
        held = {r: set(itertools.product(*(range(o, o + n) for o, n in zip(*r, strict=True)))) for r in rects}
        everything = itertools.product(*map(range, shape))
        expected = next((e for e in everything if not any(e in h for h in held.values())), None)
        assert first_hole(rects, shape, Work(6)) == expected
        overlapping = any(held[a] & held[b] for a, b in itertools.combinations(rects, 2))
        assert (first_overlap(rects, Work(6)) is not None) == overlapping


def test_many_even_pieces_cost_little():
    n, work = 20_000, Work(0)
    assert first_hole([((2 * i, 0), (2, 8)) for i in range(n)], (2 * n, 8), work) is None
    assert work.left > 900_000


def test_pieces_strewn_to_cost_time_are_refused():
    """Every column is cut in another row, so that no two slabs have the same rectangles."""
    n = 2000
    rects = [((0, i), (i, 1)) for i in range(n)] + [((i, i), (n - i, 1)) for i in range(n)]
    with pytest.raises(CorruptError, match="irregular"):
        first_hole(rects, (n, n), Work(n))
    with pytest.raises(CorruptError, match="irregular"):
        first_overlap(rects, Work(n))


# Reading -------------------------------------------------------------------------------------------------------------
DATA = manifest.encode(build(*two_ranks()))


def sealed(body, version=0):
    return b"holdfast-manifest %d %016x %d\n" % (version, crc64nvme(body), len(body)) + body


def altered(alter):
    body = json.loads(DATA.split(b"\n", 1)[1])
    alter(body)
    return sealed(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode())


def test_every_bit_matters():
    for bit in range(len(DATA) * 8):
        flipped = bytearray(DATA)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptError, FormatVersionError)):
            manifest.decode(flipped)


def test_every_length_matters():
    for cut in range(len(DATA)):
        with pytest.raises(CorruptError):
            manifest.decode(DATA[:cut])
    for more in (b"\n", b" ", b"\0", DATA):
        with pytest.raises(CorruptError):
            manifest.decode(DATA + more)


def test_a_newer_version_is_told_apart():
    with pytest.raises(FormatVersionError):
        manifest.decode(b"holdfast-manifest 1 whatever comes then".replace(b"whatever", b"0" * 16 + b" 7\n"))


def at(column, n, value, where="tensors"):
    def alter(body):
        body[where][column][n] = value

    return alter


ALTERED = {
    "attempt": lambda b: b.update(attempt=10**9),
    "step": lambda b: b.update(step=-1),
    "older step": lambda b: b.update(step=9),
    "no image of this step": lambda b: b.update(step=11),
    "world": lambda b: b.update(world_size=3),
    "no world": lambda b: b.update(world_size=0),
    "run": lambda b: b.update(run=""),
    "structure": lambda b: b.update(structure="!"),
    "field too many": lambda b: b.update(color="red"),
    "field too few": lambda b: b.pop("plain"),
    "plain no base64": lambda b: b.update(plain="e30"),
    "plain noncanonical base64": lambda b: b.update(plain="e31="),
    "plain too long": lambda b: b.update(plain="AAAA" * 22_000),
    "no images": lambda b: [c.clear() for c in b["images"].values()],
    "image column short": lambda b: b["images"]["step"].pop(),
    "image twice": at("rank", 1, 0, "images"),
    "image rank": at("rank", 1, 2, "images"),
    "image number": at("image", 1, 1000, "images"),
    "image size": at("size_bytes", 0, 0, "images"),
    "image crc": at("crc64nvme", 0, "0", "images"),
    "image crc in capitals": at("crc64nvme", 0, "00000000000003E8", "images"),
    "tensor column short": lambda b: b["tensors"]["dtype"].pop(),
    "fqn twice": at("fqn", 2, "b"),
    "fqn of all and of one": at("fqn", 1, "b"),
    "fqn reserved": at("fqn", 0, "__holdfast__.plain"),
    "dtype": at("dtype", 0, "no dtype"),
    "shape grows": at("shape", 4, [4, 5]),
    "shape negative": at("shape", 4, [-4, 4]),
    "65 dimensions": at("shape", 0, [1] * 64 + [3]),
    "chunk in no image": at("chunks", 0, [2]),
    "chunk in negative image": at("chunks", 0, [-1]),
    "chunk nowhere": at("chunks", 0, []),
    "chunk spelt out": at("chunks", 0, [[0, [0], [3]]]),
    "chunk outside": at("chunks", 0, [[0, [1], [3]]]),
    "chunk of other dimensions": at("chunks", 0, [[0, [0, 0], [3, 1]]]),
    "chunk with a part too few": at("chunks", 0, [[0, [0]]]),
    "chunk is text": at("chunks", 0, ["0"]),
    "chunks out of order": at("chunks", 4, [[1, [2, 0], [2, 4]], [0, [0, 0], [2, 4]]]),
    "chunks with a hole": at("chunks", 4, [[0, [0, 0], [2, 4]], [1, [3, 0], [1, 4]]]),
    "chunks overlap in one image": at("chunks", 4, [[0, [0, 0], [3, 4]], [0, [2, 0], [2, 4]]]),
    "owner outside": lambda b: b["tensors"]["owner_rank"].update({"1": 2}),
    "owner of nothing": lambda b: b["tensors"]["owner_rank"].update({"7": 0}),
    "alias of nothing": lambda b: b["tensors"]["alias_of"].update({"3": "x"}),
    "alias of an alias": lambda b: b["tensors"]["alias_of"].update({"3": "tied"}),
    "alias of another shape": at("shape", 3, [4]),
    "alias with chunks": at("chunks", 3, [0]),
    "alias of an owner's": lambda b: b["tensors"]["alias_of"].update({"3": "rng"}),
}


def is_corrupt(data):
    try:
        manifest.decode(data)
    except CorruptError:
        return True
    return False


def test_a_right_checksum_excuses_nothing():
    assert altered(lambda b: None) == DATA
    assert [name for name, alter in ALTERED.items() if not is_corrupt(altered(alter))] == []


OTHER = [
    b"",
    b"{}",
    b"holdfast-manifest",
    b"holdfast-manifest 0 0 0\n",
    b"holdfast-manifest 0 " + b"0" * 16 + b" 99999999999999999999\n",
    sealed(b""),
    sealed(b"{}"),
    sealed(b"[" * 100_000),
    sealed(b'{"run":' + b"[" * 100_000),
    sealed(DATA.split(b"\n", 1)[1] + b" "),
    sealed(DATA.split(b"\n", 1)[1].replace(b'"run":"r"', b'"run":"r","run":"r"')),
    sealed(DATA.split(b"\n", 1)[1].replace(b'"run":"r"', b'"run":"\xff"')),
    sealed(DATA.split(b"\n", 1)[1].replace(b'"attempt":1', b'"attempt":1e0')),
    sealed(DATA.split(b"\n", 1)[1].replace(b'"attempt":1', b'"attempt":' + b"1" * 10_000)),
]


def test_other_bytes_are_corrupt():
    assert [data[:60] for data in OTHER if not is_corrupt(data)] == []


def test_too_large_a_manifest_is_neither_read_nor_written(monkeypatch):
    from holdfast.format.manifest import coding

    monkeypatch.setattr(coding, "MAX_MANIFEST_BYTES", 400)
    with pytest.raises(CorruptError):
        manifest.decode(DATA)
    with pytest.raises(UsageError):
        manifest.encode(build(*two_ranks()))


def test_a_name_that_is_no_text_is_refused():
    built = build(*two_ranks())
    with pytest.raises(UsageError):
        manifest.encode(replace(built, run="\ud800"))
