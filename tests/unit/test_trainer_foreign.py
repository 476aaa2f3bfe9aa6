"""Loads and reads without an agent, from runs that were laid down on a file tier by hand."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("torch")

import numpy
import torch
from tests.images import images_of

import holdfast
from holdfast.errors import ConfigError, LoadError, NotFoundError, StructureError, TierUnavailableError, UsageError
from holdfast.format import names
from holdfast.format.header import parse_header
from holdfast.format.image import check, lay_out, read_plain, seal
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageRecord
from holdfast.store.attempts import claim
from holdfast.store.commit import commit
from holdfast.tiers import open_tier
from holdfast.tiers.posix import PosixTier
from holdfast.tiers.wrappers.faults import Fault, Faults, FlipBit, Raise
from holdfast.trainer import archive, pour
from holdfast.trainer.capture import Capture
from holdfast.trainer.shares import assign
from holdfast.trainer.stage import Stager

pytestmark = pytest.mark.torch

MIB = 1 << 20


class Run:
    """A run on disk, written without Checkpointer or agent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = f"file://{root}"
        self.tier = PosixTier(str(root))
        claim(self.tier, run="run7", parent=None, coordinator="")

    def save(self, step: int, *states: dict[str, Any]) -> None:
        sources = images_of(*states, step=step)
        records = []
        for source in sources:
            header = source.header
            put(self.tier, header.id, source.buffer)
            records.append(ImageRecord(header.id, header.size_bytes, check(source.buffer, header.layout)))
        plain = read_plain(sources[0].buffer, sources[0].header.layout)
        commit(self.tier, self.tier, owner=1, headers=[s.header for s in sources], records=records, plain=plain)

    def image(self, step: int, rank: int = 0) -> Path:
        return self.root / names.image_key(ImageId(1, step, rank))

    def spoil(self, step: int, at: int, rank: int = 0) -> None:
        with self.image(step, rank).open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run7")


@pytest.fixture
def tier(monkeypatch):
    """The tier that loads open from now on, with its reads noted and faults to add."""
    opened: list[Faults] = []
    faults: list[Fault] = []
    real = open_tier

    class Noted(Faults):
        reads: ClassVar[list[tuple[str, int, int]]] = []

        def read_into(self, key, offset, buffer, *, cached=False):
            if key.startswith(names.IMAGES):
                self.reads.append((key, offset, len(buffer)))
            super().read_into(key, offset, buffer, cached=cached)

    def open_noted(*args, **options):
        Noted.reads = []
        opened.append(Noted(real(*args, **options), *faults))
        return opened[-1]

    monkeypatch.setattr(archive, "open_tier", open_noted)
    monkeypatch.setattr(archive, "Retry", lambda tier: tier)

    class Look:
        def add(self, fault: Fault) -> Fault:
            faults.append(fault)
            return fault

        @property
        def reads(self) -> list[tuple[str, int, int]]:
            return Noted.reads

        @property
        def calls(self) -> dict[str, int]:
            return opened[-1].calls

    return Look()


def large(fill, n=6):
    """Tensors of 5 MiB each: every one in blocks of its own but for its ends."""
    return {f"t{i}": torch.full((5 * MIB // 4,), float(fill * (i + 1))) for i in range(n)}


def listing(root):
    return sorted((str(p.relative_to(root)), p.stat().st_mtime_ns) for p in root.rglob("*"))


# load ----------------------------------------------------------------------------------------------------------------
def test_a_checkpoint_comes_in_place_and_nothing_is_written(run):
    saved = large(1) | {"n": 3, "nested": {"x": [torch.ones(3), "a"]}}
    run.save(7, saved)
    live = large(0) | {"n": 0, "nested": {"x": [torch.zeros(3), ""]}}
    kept = dict(live)
    before = listing(run.root)
    step = holdfast.load(run.url, live, only=None)
    assert step is not None
    assert (step, type(step).__mro__[1]) == (7, int)
    assert (step.checkpoint, bool(step.differences)) == (CheckpointId(1, 7), False)
    for key in (f"t{i}" for i in range(6)):
        assert live[key] is kept[key]
        assert torch.equal(live[key], saved[key])
    assert (live["n"], live["nested"]["x"][1]) == (3, "a")
    assert listing(run.root) == before
    assert step.read_bytes <= run.image(7).stat().st_size, "no byte is read twice"


def test_a_trained_model_goes_on_from_another_run(run):
    def training(seed):
        torch.manual_seed(seed)
        model = torch.nn.Linear(3, 2)
        return {"model": model, "optim": torch.optim.AdamW(model.parameters(), lr=0.1)}

    def step(state):
        state["optim"].zero_grad()
        state["model"](torch.ones(1, 3)).sum().backward()
        state["optim"].step()

    one, other = training(0), training(1)
    step(one)
    run.save(1, one)
    assert holdfast.load(run.url, other, only=None) == 1
    for state in (one, other):
        step(state)
    assert torch.equal(one["model"].weight, other["model"].weight)


def test_keys_the_state_does_not_have_are_not_asked_for_but_names_below_its_keys_are(run):
    run.save(1, {"model": torch.nn.Linear(2, 2), "optim": {"x": torch.ones(5)}, "n": 1})
    model = torch.nn.Linear(2, 2)
    assert holdfast.load(run.url, {"model": model}) == 1
    with pytest.raises(StructureError, match=r"1 is only in the checkpoint: model\.bias"):
        holdfast.load(run.url, {"model": torch.nn.Linear(2, 2, bias=False)})
    with pytest.warns(RuntimeWarning, match=r"step 1 \(attempt 1\) but for 1 difference: .* model\.bias"):
        step = holdfast.load(run.url, {"model": torch.nn.Linear(2, 2, bias=False)}, strict=False)
    assert step is not None
    assert [d.path for d in step.differences.unexpected] == ["model.bias"]


def test_only_what_is_asked_for_is_read(run, tier):
    run.save(1, large(1), large(1))  # the second image has its own copies of nothing: all is rank 0's
    live = large(0)
    step = holdfast.load(run.url, live, only=("t3",))
    assert step is not None
    assert live["t3"][0] == 4
    assert not live["t2"].any()
    read = sum(n for _, _, n in tier.reads)
    assert 5 * MIB <= read <= 5 * MIB + 4 * 4 * MIB + 8192, "the tensor, its ends, and the image's ends"
    assert step.read_bytes == read
    assert all(offset % (4 * MIB) == 0 for _, offset, n in tier.reads if n > 8192)
    assert {key for key, _, _ in tier.reads} == {names.image_key(ImageId(1, 1, 0))}


def test_an_image_that_is_not_asked_for_is_not_opened(run, tier):
    def parameters(value):
        return {f"p{i}": torch.nn.Parameter(torch.full((MIB // 4,), float(value))) for i in range(4)}

    run.save(1, parameters(1), parameters(1))
    live = parameters(0)
    holdfast.load(run.url, live, only=None)
    assert {key for key, _, _ in tier.reads} == {names.image_key(ImageId(1, 1, r)) for r in (0, 1)}
    assert all((p == 1).all() for p in live.values())
    holdfast.read(run.url, "p3")
    assert {key for key, _, _ in tier.reads} == {names.image_key(ImageId(1, 1, 1))}


def test_what_is_no_run_of_memory_is_filled_through_buffers_of_bounded_size(run, tier, monkeypatch):
    """Transposed tensors pass through memory of their own; blocks shared by two batches are read once."""
    monkeypatch.setattr(pour, "_DETOUR_BYTES", 6 * MIB)
    rows = 5 * MIB // 4 // 1024
    saved = {f"t{i}": torch.arange(i, i + rows * 1024.0).reshape(rows, 1024) for i in range(5)}
    saved |= {"z": torch.ones(10), "empty": torch.zeros(0, 3)}
    run.save(1, saved)
    live = {f"t{i}": torch.zeros(1024, rows).t() for i in range(5)} | {
        "z": torch.zeros(10),
        "empty": torch.ones(3, 0).t(),
    }
    alive: list[int] = []
    real = pour.Detour.finish

    def finish(self):
        alive.append(self.tensor.nbytes)
        real(self)
        assert "tensor" not in self.__dict__

    monkeypatch.setattr(pour.Detour, "finish", finish)
    holdfast.load(run.url, live, only=None)
    for key, tensor in saved.items():
        assert torch.equal(live[key], tensor), key
    assert sorted(alive)[-5:] == [5 * MIB] * 5
    assert sum(n for _, _, n in tier.reads) <= run.image(1).stat().st_size


def test_of_a_part_of_an_entry_only_its_blocks_are_read(run, tier):
    rows = torch.arange(5.0 * MIB).reshape(-1, 1024)  # 20 MiB
    run.save(1, {"w": rows})
    with archive.open_archive(run.url) as looked:
        got: list[torch.Tensor] = []

        def use(opened):
            (image,) = opened.images_for(lambda t: True, ())
            (entry,) = image.header.layout.entries
            before = len(tier.reads)
            start = entry.start + 3000 * 4096
            pour.pour([image], [], [pour.Detour(0, entry, start, start + 4096, got.append)])
            return tier.reads[before:]

        taken = looked.take(None, use)
    assert taken is not None
    assert [(offset, n) for _, offset, n in taken[1]] == [(8 * MIB, 4 * MIB)]
    assert torch.equal(got[0][3000], rows[3000])


@pytest.mark.gpu
def test_tensors_on_a_device_are_filled(run):
    def state(value):
        return {"model": torch.nn.Linear(2000, 1500, device="cuda"), "x": torch.full((7,), value, device="cuda")}

    saved, live = state(3.0), state(0.0)
    run.save(1, saved)
    assert holdfast.load(run.url, live, only=None) == 1
    assert torch.equal(live["model"].weight, saved["model"].weight)
    assert live["x"].tolist() == [3.0] * 7


def test_memory_is_bounded_whatever_the_image_is(run):
    """160 MiB are read through buffers of 64: the peak does not grow by the image."""
    a = torch.ones(40 * MIB)
    run.save(1, {"a": a, "b": torch.full((2,), 5.0)})
    live = {"b": torch.zeros(2)}
    step = holdfast.load(run.url, live, only=None)
    assert step is not None
    assert live["b"].tolist() == [5, 5]
    assert step.read_bytes < 13 * MIB
    a.zero_()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory_bytes("VmRSS")
    assert holdfast.load(run.url, {"a": a}, only=None) == 1
    assert (a == 1).all()
    assert memory_bytes("VmHWM") - before < 110 * MIB


def memory_bytes(what):
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what)]
    return int(line.split()[1]) * 1024


# which step ----------------------------------------------------------------------------------------------------------
def test_a_damaged_newest_step_is_named_and_the_next_older_one_taken(run, caplog):
    run.save(1, large(1))
    run.save(2, large(2))
    run.spoil(2, at=9 * MIB)
    live = large(0)
    assert holdfast.load(run.url, live, only=None) == 1
    assert torch.equal(live["t5"], large(1)["t5"])
    assert (
        "took step 1 (attempt 1); passed over: step 2 (attempt 1): bytes 8388608 to 12582912 (block 2)" in caplog.text
    )
    assert names.image_key(ImageId(1, 2, 0)) in caplog.text
    with pytest.raises(LoadError, match=r"step 2 .* cannot be loaded: .*block 2.*undefined now"):
        holdfast.load(run.url, live, step=2, only=None)
    assert holdfast.load(run.url, {"t5": live["t5"]}, only=None) == 2, "the damage is elsewhere, what is read is proven"


@pytest.mark.parametrize("damage", ["header", "table", "missing", "short", "manifest", "quarantined"])
def test_every_damage_is_passed_over(run, damage):
    run.save(1, {"x": torch.ones(4)})
    run.save(2, {"x": torch.full((4,), 2.0)})
    image = run.image(2)
    size = image.stat().st_size
    manifest = run.root / names.manifest_key(CheckpointId(1, 2))
    if damage == "header":
        run.spoil(2, at=100)
    elif damage == "table":
        run.spoil(2, at=size - 20)
    elif damage == "missing":
        image.unlink()
    elif damage == "short":
        image.write_bytes(image.read_bytes()[: size - 4096])
    elif damage == "manifest":
        manifest.write_bytes(b"noise")
    else:
        record = run.root / "quarantine" / names.image_key(ImageId(1, 2, 0))
        record.parent.mkdir(parents=True)
        record.write_bytes(b"{}")
    live = {"x": torch.zeros(4)}
    assert holdfast.load(run.url, live, only=None) == 1
    assert live["x"].tolist() == [1] * 4
    assert holdfast.read(run.url, "x").tolist() == [1] * 4


def test_a_bit_that_flips_on_the_way_is_found(run, tier):
    run.save(1, {"x": torch.ones(4)})
    fault = tier.add(Fault("read_into", FlipBit(8 * 4200), key=r"^images/", times=1))
    with pytest.raises(LoadError, match="do not match their checksum"):
        holdfast.load(run.url, {"x": torch.zeros(4)}, only=None)
    assert fault.fired == 1
    assert holdfast.load(run.url, {"x": torch.zeros(4)}, only=None) == 1


def test_a_step_that_is_pruned_meanwhile_is_passed_over(run, tier):
    run.save(1, {"x": torch.ones(4)})
    run.save(2, {"x": torch.zeros(4)})
    gone = tier.add(Fault("read_into", Raise(NotFoundError("gone")), key=r"^images/00000001/000000000002"))
    live = {"x": torch.zeros(4)}
    assert holdfast.load(run.url, live, only=None) == 1
    assert gone.fired == 1


def test_a_step_that_is_committed_while_the_tier_is_listed_is_whole(run, monkeypatch, caplog):
    run.save(1, {"x": torch.ones(4)})
    real = PosixTier.list
    begun: list[str] = []

    def late(tier, prefix):
        found = list(real(tier, prefix))
        if prefix == names.IMAGES and not begun:
            begun.append(prefix)
            run.save(2, {"x": torch.zeros(4)})
        return iter(found)

    monkeypatch.setattr(PosixTier, "list", late)
    assert holdfast.load(run.url, {"x": torch.ones(4)}, only=None) == 2
    assert begun
    assert not caplog.text


def test_a_tier_that_fails_says_nothing_of_a_step(run, tier):
    run.save(1, {"x": torch.ones(4)})
    tier.add(Fault("read_into", Raise(TierUnavailableError("away", tier="archive")), key=r"^images/"))
    with pytest.raises(TierUnavailableError):
        holdfast.load(run.url, {"x": torch.zeros(4)}, only=None)


def test_the_lineage_counts_not_the_highest_step(run):
    run.save(50, {"x": torch.full((1,), 50.0)})
    run.save(100, {"x": torch.full((1,), 100.0)})
    claim(run.tier, run="run7", parent=CheckpointId(1, 50), coordinator="")
    live = {"x": torch.zeros(1)}
    assert holdfast.load(run.url, live, only=None) == 50
    with pytest.raises(LoadError, match=r"step 100 .* the run went back before step 100 \(attempt 1\) and on"):
        holdfast.load(run.url, live, step=100, only=None)
    with pytest.raises(LoadError, match="not committed"):
        holdfast.load(run.url, live, step=7, only=None)


def test_a_copy_without_claims_gives_the_newest_it_has(run):
    run.save(5, {"x": torch.ones(1)})
    (run.root / names.attempt_key(1)).unlink()
    assert holdfast.load(str(run.root), {"x": torch.zeros(1)}, only=None) == 5


def test_where_there_is_nothing(run, tmp_path):
    with pytest.raises(LoadError, match="nothing is committed"):
        holdfast.load(run.url, {"x": torch.zeros(1)}, only=None)
    (tmp_path / "empty").mkdir()
    assert holdfast.load(str(tmp_path / "empty"), {"x": torch.zeros(1)}, only=None) is None
    with pytest.raises(NotFoundError, match="no checkpoint is at"):
        holdfast.read(str(tmp_path / "empty"), "x")
    for call in (lambda url: holdfast.load(url, {"x": torch.zeros(1)}, only=None), lambda url: holdfast.read(url, "x")):
        with pytest.raises(NotFoundError, match="nothing is at"):
            call(str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_what_cannot_be_meant_is_refused_with_a_hint(run):
    run.save(1, {"x": torch.ones(1)})
    url: Any
    for url, kind in (("memory:", UsageError), (7, UsageError), ("gopher://x", ConfigError)):
        with pytest.raises(kind) as caught:
            holdfast.load(url, {"x": torch.zeros(1)}, only=None)
        assert caught.value.hint
    state: Any
    for state in ({}, [1], torch.nn.Linear(1, 1)):
        with pytest.raises(UsageError, match="state"):
            holdfast.load(run.url, state, only=None)
    step: Any
    for step in (-1, True, "1"):
        with pytest.raises(UsageError, match="step"):
            holdfast.load(run.url, {"x": torch.zeros(1)}, step=step, only=None)


def test_an_image_that_several_steps_share_is_found_where_it_stands(run, tier):
    """Step 2 has an image of its own and relies on one of step 1."""
    frozen = ImageId(1, 1, 0, 1)
    state = {"base": torch.full((300,), 7.0), "lora": torch.ones(5), "n": 1}
    put_grouped(run, 1, state, {"lora": 0, "base": 1})
    put_grouped(run, 2, state | {"lora": torch.full((5,), 2.0), "n": 2}, {"lora": 0}, relies_on=(frozen,))
    live: dict[str, Any] = {"base": torch.zeros(300), "lora": torch.zeros(5), "n": 0}
    assert holdfast.load(run.url, live, only=None) == 2
    assert (live["base"][9].item(), live["lora"].tolist(), live["n"]) == (7, [2] * 5, 2)
    assert names.image_key(frozen) in {key for key, _, _ in tier.reads}
    holdfast.read(run.url, "base")
    assert {key for key, _, _ in tier.reads} == {names.image_key(frozen)}
    (run.root / names.image_key(frozen)).unlink()
    with pytest.raises(LoadError, match=r"step 2 .* is missing.*step 1 .* is missing"):
        holdfast.load(run.url, live, only=None)


def put_grouped(run, step, state, groups, relies_on=()):
    """One rank's images by group; of what is relied on, the headers are read from where they stand."""
    captured = Capture().refresh(state)
    pieces = assign([captured.structure]).pieces(0)
    payload = captured.payload(0)
    headers, records = [], []
    for image in sorted(set(groups.values())):
        template = lay_out(
            [p for p in pieces if groups.get(p.fqn) == image], (), run="run7", rank=0, world_size=1, image=image,
            image_count=2, structure=captured.structure.digest, plain_bytes=len(payload),
            relies_on=relies_on if image == 0 else (),
        )  # fmt: skip
        buffer = memoryview(bytearray(template.layout.size_bytes))
        Stager(template).stage(buffer, captured, payload, attempt=1, step=step)
        crc = seal(buffer, template.layout)
        header = parse_header(buffer, len(buffer))
        put(run.tier, header.id, buffer)
        headers.append(header)
        records.append(ImageRecord(header.id, len(buffer), crc))
    for older in relies_on:
        data = (run.root / names.image_key(older)).read_bytes()
        headers.append(parse_header(data, len(data)))
        records.append(ImageRecord(older, len(data), check(data, headers[-1].layout)))
    commit(run.tier, run.tier, owner=1, headers=headers, records=records, plain=payload)


def put(tier, image, buffer):
    upload = tier.upload(names.image_key(image), len(buffer))
    upload.write(0, buffer)
    upload.publish()


# read ----------------------------------------------------------------------------------------------------------------
def test_tensors_are_assembled_in_their_true_dtype(run):
    def state():
        torch.manual_seed(0)
        return {
            "w": torch.nn.Parameter(torch.randn(700, 300)),
            "half": torch.nn.Parameter(torch.randn(64, 1000).bfloat16()),
            "f8": torch.ones(5).to(torch.float8_e4m3fn),
            "complex": torch.full((2,), 1 + 2j),
            "scalar": torch.tensor(3, dtype=torch.int16),
            "empty": torch.zeros(0, 4),
        }

    run.save(1, state(), state(), state())
    for name, tensor in state().items():
        found = holdfast.read(run.url, name)
        assert (found.dtype, found.shape, found.requires_grad) == (tensor.dtype, tensor.shape, False)
        assert torch.equal(
            found.view(torch.uint8) if name == "f8" else found, tensor.view(torch.uint8) if name == "f8" else tensor
        )


def test_tied_names_plain_values_and_values_with_tensors(run):
    weight = torch.arange(4.0)
    generator = torch.Generator().manual_seed(5)
    run.save(
        3,
        {
            "a": weight,
            "b": weight,
            "g": generator,
            "big": "x" * 100_000,
            "deep": {"l": [1, {"t": weight + 1, "n": None}]},
        },
    )

    def get(name):
        return holdfast.read(run.url, name)

    assert get("b").tolist() == [0, 1, 2, 3]
    assert get("big") == "x" * 100_000, "too large to stand in the manifest"
    assert get("deep.l.0") == 1
    assert get("deep.l.1.n") is None
    assert get("deep.l.1.t").tolist() == [1, 2, 3, 4]
    whole = get("deep")
    assert whole["l"][1]["t"].tolist() == [1, 2, 3, 4]
    assert torch.equal(torch.rand(2, generator=get("g")), torch.rand(2, generator=torch.Generator().manual_seed(5)))


def test_tensors_that_are_stored_as_several_and_types_of_the_users(run):
    class Point:
        def __init__(self, x, t):
            self.x, self.t = x, t

    sparse = torch.eye(3).to_sparse_coo()
    holdfast.register(Point, name="test.point", encode=lambda p: {"x": p.x, "t": p.t}, decode=lambda d: Point(**d))
    state = {"s": sparse, "p": Point(3, torch.ones(2)), "mine": holdfast.per_rank({"s": sparse * 2})}
    run.save(1, state, state)
    assert torch.equal(holdfast.read(run.url, "s").to_dense(), torch.eye(3))
    point = holdfast.read(run.url, "p")
    assert (type(point), point.x, point.t.tolist()) == (Point, 3, [1, 1])
    assert [t.to_dense()[0, 0].item() for t in holdfast.read(run.url, "mine.s")] == [2, 2]
    live = {"s": torch.zeros(3, 3).to_sparse_coo(), "p": Point(0, torch.zeros(2))}
    assert holdfast.load(run.url, live, only=("s",)) == 1
    assert torch.equal(live["s"].to_dense(), torch.eye(3))
    assert live["p"].x == 0


def test_optimizer_state_and_settings(run):
    model = torch.nn.Linear(2, 2)
    optim = torch.optim.AdamW(model.parameters(), lr=0.25)
    model(torch.ones(1, 2)).sum().backward()
    optim.step()
    run.save(1, {"model": model, "optim": optim})
    assert torch.equal(holdfast.read(run.url, "optim.state.weight.exp_avg"), optim.state[model.weight]["exp_avg"])
    assert holdfast.read(run.url, "optim.param_groups.0.lr") == 0.25


def test_what_each_rank_has_for_itself_comes_as_a_list(run):
    def state(rank):
        return {"x": torch.ones(1), "mine": holdfast.per_rank({"n": rank, "t": torch.full((2,), float(rank))})}

    run.save(1, state(0), state(1), state(2))
    assert holdfast.read(run.url, "mine.n") == [0, 1, 2]
    assert [t.tolist() for t in holdfast.read(run.url, "mine.t")] == [[0, 0], [1, 1], [2, 2]]
    assert [v["t"].tolist() for v in holdfast.read(run.url, "mine")] == [[0, 0], [1, 1], [2, 2]]
    live: dict[str, Any] = {
        "x": torch.zeros(1),
        "mine": holdfast.per_rank({"n": 9, "t": torch.zeros(2)}, on_resize="drop"),
    }
    assert holdfast.load(run.url, live, only=None) == 1
    assert live["mine"].value["n"] == 9


def test_an_unknown_name_is_told_with_near_ones(run):
    run.save(4, {"model": torch.nn.Sequential(torch.nn.Linear(2, 2)), "step": 4})
    for name, hint in (
        ("model.0.wieght", "model.0.weight"),
        ("0.weight", "near to it: model.0.weight"),
        ("model", "2 names below it: model.0.bias, model.0.weight"),
        ("stop", "near to it: step"),
        ("quite.another", "holdfast show"),
        ("step.deep", ""),
    ):
        with pytest.raises(NotFoundError, match=r"step 4 \(attempt 1\) has nothing called") as caught:
            holdfast.read(run.url, name)
        assert hint in caught.value.hint
    wrong: Any
    for wrong in ("", 3):
        with pytest.raises(UsageError):
            holdfast.read(run.url, wrong)


def test_an_unknown_name_is_not_looked_for_in_older_steps(run):
    run.save(1, {"old": torch.ones(1)})
    run.save(2, {"new": torch.ones(1)})
    with pytest.raises(NotFoundError):
        holdfast.read(run.url, "old")
    assert holdfast.read(run.url, "old", step=1).item() == 1


def test_one_tensor_of_many_costs_its_blocks(run, tier):
    run.save(1, large(1))
    assert holdfast.read(run.url, "t2")[0] == 3
    assert sum(n for _, _, n in tier.reads) <= 5 * MIB + 3 * 4 * MIB + 8192


def test_a_configuration_stands_for_the_home_of_its_run(tmp_path):
    Run(tmp_path / "run7").save(3, {"model": {"a": torch.ones(2)}})
    file = tmp_path / "holdfast.toml"
    file.write_text('[[tiers]]\nurl = "memory:"\n[[tiers]]\nurl = "run7"\n')
    live = {"model": {"a": torch.zeros(2)}}
    assert holdfast.load(str(file), live, step=numpy.int64(3)) == 3
    assert live["model"]["a"].tolist() == [1, 1]
    assert holdfast.read(str(file), "model.a").tolist() == [1, 1]
    with pytest.raises(ConfigError, match="cannot be read"):
        holdfast.load(str(tmp_path / "other.toml"), live)
