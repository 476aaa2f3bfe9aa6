"""Sources in safetensors' format, and copies of sources: whole and right, or refused before anything is written."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.import_fixtures import bytes_of, copy, source_of, stored_bytes, write_index, write_safetensors
from tests.unit.store_fixtures import keys, make_image

from holdfast.errors import (
    CorruptError,
    NotFoundError,
    StepExistsError,
    SupersededError,
    TierFullError,
    UnsupportedValueError,
    UsageError,
)
from holdfast.format import names, plain
from holdfast.format.nested import DCP_MARK
from holdfast.format.plain import TensorRef
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.store.attempts import IMPORTER, claim, read_attempts
from holdfast.store.catalog import read_catalog
from holdfast.store.commit import commit
from holdfast.store.importing import copying, source
from holdfast.store.importing.files import SourceFile, open_files
from holdfast.store.importing.images import plan_images
from holdfast.store.importing.source import is_run
from holdfast.store.verify import verify_checkpoint
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.posix import PosixTier
from holdfast.tiers.wrappers import Fault, Faults, LoseAnswer, Raise, Retry

TENSORS: dict[str, Any] = {
    "embed.weight": np.arange(24, dtype=np.float32).reshape(6, 4),
    "head.bias": np.arange(3, dtype=np.int64),
    "scale": np.array(2.5),
    "empty": np.zeros((0, 3), np.uint8),
}


@pytest.fixture
def tier(tmp_path):
    tier = PosixTier(f"{tmp_path}/run7", owner="1.test")
    yield tier
    tier.close()


@pytest.fixture
def file(tmp_path) -> Path:
    return write_safetensors(tmp_path / "model.safetensors", TENSORS, format="pt")


# safetensors ---------------------------------------------------------------------------------------------------------
def test_one_file(file):
    found = source_of(file)
    assert (found.kind, found.n_tensors, found.left_out) == ("safetensors", 4, ())
    assert {s.piece.fqn: (s.piece.shape, s.piece.dtype) for s in found.stored} == {
        name: (array.shape, str(array.dtype)) for name, array in TENSORS.items()
    }
    assert bytes_of(found) == {(name, (0,) * a.ndim): a.tobytes() for name, a in TENSORS.items()}
    assert found.tree == {DCP_MARK: {"nested": True, "flat": [[]], "state": []}}


def test_a_folder_with_one_file_and_no_index(file):
    assert source_of(file.parent).stored == source_of(file).stored


def test_a_link_is_followed_as_caches_of_models_have_them(file, tmp_path):
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/model.safetensors").symlink_to(file)
    assert bytes_of(source_of(tmp_path / "snapshot")) == bytes_of(source_of(file))


def test_everything_below_a_key(file):
    found = source_of(file, under="model")
    assert {s.piece.fqn for s in found.stored} == {f"model.{name}" for name in TENSORS}
    assert found.tree["model"]["scale"] == TensorRef("model.scale")
    assert source_of(file, under="scale").stored[0].piece.fqn == "embed.weight", "it is there already"


def test_a_key_with_many_tensors_is_a_root(tmp_path):
    path = write_safetensors(tmp_path / "m.safetensors", {f"w{n}.weight": np.zeros(2) for n in range(8)})
    found = source_of(path, under="model")
    assert found.tree == {DCP_MARK: {"nested": True, "flat": [["model"]], "state": []}}


def test_names_are_left_out(file):
    found = source_of(file, without=("embed", "scale"))
    assert {s.piece.fqn for s in found.stored} == {"head.bias", "empty"}
    assert found.left_out == ("embed.weight", "scale")
    with pytest.raises(UsageError, match=r"nothing called 'embe', 'embed\.weight\.x'"):
        source_of(file, without=("embe", "embed.weight.x", "scale"))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two files with an index."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write_safetensors(folder / FIRST, {"a": np.arange(4)})
    write_safetensors(folder / SECOND, {"b": np.arange(5), "c": np.arange(6)})
    write_index(folder, {"a": FIRST, "b": SECOND, "c": SECOND})
    return folder


def test_a_folder_with_an_index(folder):
    found = source_of(folder)
    assert bytes_of(found) == {(n, (0,)): np.arange(k).tobytes() for n, k in zip("abc", (4, 5, 6), strict=True)}
    assert source_of(folder / "model.safetensors.index.json").stored == found.stored


@pytest.mark.parametrize(
    ("weight_map", "error", "said"),
    [
        ({"a": FIRST, "b": "gone.safetensors"}, NotFoundError, "gone"),
        ({"a": FIRST, "z": FIRST}, CorruptError, "'z' is not in"),
        ({"a": FIRST, "b": SECOND}, CorruptError, "'c' is in"),
        ({"a": f"../folder/{FIRST}"}, CorruptError, "no file beside it"),
        ({"a": "/etc/passwd"}, CorruptError, "no file beside it"),
        ({"a": ".."}, CorruptError, "no file beside it"),
    ],
)
def test_an_index_that_is_not_true_is_refused(folder, weight_map, error, said):
    write_index(folder, weight_map)
    with pytest.raises(error, match=said):
        source_of(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": ' + "[" * 100_000])
def test_an_index_that_is_none_is_corrupt(folder, text):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CorruptError, match="is no index"):
        source_of(folder)


def test_several_files_without_an_index_are_refused(folder):
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UsageError, match="no index says"):
        source_of(folder)


def test_parts_that_dcp_wrote_are_one_tensor(tmp_path):
    whole = np.arange(40, dtype=np.int32).reshape(8, 5)
    for n in range(2):
        offsets = {"w": {"saved_offsets": [4 * n, 0]}}
        part = {"w": whole[4 * n : 4 * n + 4]}
        write_safetensors(tmp_path / f"shard-{n}.safetensors", part, DCP_SHARDING_INFO=offsets, DCP_VERSION="1.0")
    found = source_of(tmp_path)
    assert {s.piece.shape for s in found.stored} == {(8, 5)}
    assert bytes_of(found) == {("w", (4 * n, 0)): whole[4 * n : 4 * n + 4].tobytes() for n in range(2)}


@pytest.mark.parametrize(
    ("begin", "said"), [(5, "is nowhere"), (3, "overlap"), (0, "overlap")], ids=["hole", "overlap", "twice"]
)
def test_parts_that_are_not_the_whole_are_corrupt(tmp_path, begin, said):
    for n, offset in enumerate((0, begin)):
        info = {"w": {"saved_offsets": [offset]}}
        write_safetensors(tmp_path / f"{n}.safetensors", {"w": np.arange(4)}, DCP_SHARDING_INFO=info)
    with pytest.raises(CorruptError, match=said):
        source_of(tmp_path)


@pytest.mark.parametrize("info", ["{", {"x": {"saved_offsets": [0]}}, {"w": {"saved_offsets": [0, 0]}}, {"w": {}}])
def test_sharding_that_says_nothing_is_corrupt(tmp_path, info):
    write_safetensors(tmp_path / "a.safetensors", {"w": np.arange(4)}, DCP_SHARDING_INFO=info)
    with pytest.raises(CorruptError, match="DCP_SHARDING_INFO"):
        source_of(tmp_path)


def with_header(path: Path, change) -> None:
    """Rewrite the header of a file."""
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + n :])


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["head.bias"].update(data_offsets=[97, 121]),
        lambda h: h["head.bias"].update(data_offsets=[96, 112]),
        lambda h: h["head.bias"].update(shape=[4]),
        lambda h: h["head.bias"].update(shape=[-3]),
        lambda h: h["head.bias"].update(shape=[2**70]),
        lambda h: h["head.bias"].update(dtype=5),
        lambda h: h["embed.weight"].update(data_offsets=[0, 2**62]),
        lambda h: h.pop("scale"),
        lambda h: h.update(scale=1),
        lambda h: h.update(__metadata__={"a": 1}),
        lambda h: h.update({"": h.pop("scale")}),
        lambda h: h.update({"__holdfast__.x": h.pop("scale")}),
    ],
)
def test_a_header_that_is_not_true_is_refused(file, change):
    with_header(file, change)
    with pytest.raises((CorruptError, UsageError)):
        source_of(file)


def test_a_file_that_is_cut_off_is_corrupt_wherever_it_is_cut(file):
    data = file.read_bytes()
    for end in [*range(0, len(data) - 1, 7), len(data) - 1]:
        file.write_bytes(data[:end])
        with pytest.raises(CorruptError):
            source_of(file)
    file.write_bytes(data + b"\0")
    with pytest.raises(CorruptError):
        source_of(file)


def test_a_dtype_that_is_not_known_is_named_and_can_be_left_out(file):
    with_header(file, lambda h: h["scale"].update(dtype="F6_E2M3"))
    with pytest.raises(UnsupportedValueError, match=r"scale .*F6_E2M3"):
        source_of(file)
    assert source_of(file, without=("scale",)).n_tensors == 3


def test_what_is_no_source_is_told_so(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="nothing that is known"):
        source_of(tmp_path / "empty")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/__0_0.distcp").touch()
    with pytest.raises(CorruptError, match=r"no \.metadata"):
        source_of(tmp_path / "half")
    (tmp_path / "run/manifests").mkdir(parents=True)
    with pytest.raises(UsageError, match="is a run of Holdfast"):
        source_of(tmp_path / "run")
    with pytest.raises(NotFoundError):
        source_of(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="no checkpoint that is known"):
        source_of(tmp_path / "text")
    (tmp_path / "old.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(UnsupportedValueError, match=r"before 1\.6"):
        source_of(tmp_path / "old.pt")
    (tmp_path / "image.safetensors").write_bytes(make_image(ImageId(1, 2, 0)).data)
    with pytest.raises(UsageError, match="an image of a Holdfast"):
        source_of(tmp_path / "image.safetensors")


def test_pipes_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CorruptError, match="no regular file"):
        source_of(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CorruptError, match="no regular file"):
        SourceFile(tmp_path / "folder.safetensors")


def test_few_files_are_open_at_once(tmp_path):
    paths = [tmp_path / str(n) for n in range(100)]
    for path in paths:
        path.write_bytes(b"x")
    with open_files() as files:
        for path in [*paths, paths[0]]:
            assert files.get(path).read(0, 1) == b"x"
        assert len(files._open) == 64


@pytest.mark.parametrize(
    ("lengths", "strides", "run"),
    [
        ((), (), True),
        ((3,), (1,), True),
        ((3,), (2,), False),
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), False),
        ((1, 3), (99, 1), True),
        ((2, 1, 3), (3, 7, 1), True),
        ((4,), (0,), False),
        ((0, 3), (1, 7), True),
    ],
)
def test_what_is_a_run_of_bytes(lengths, strides, run):
    assert is_run(lengths, strides) == run


def test_few_bytes_do_not_stand_for_very_many(file, monkeypatch):
    monkeypatch.setattr(source, "_ANYWAY_BYTES", -4 * file.stat().st_size)
    with pytest.raises(CorruptError, match="do not come out of"):
        source_of(file)


# Copies --------------------------------------------------------------------------------------------------------------
def proven(tier, manifest) -> bool:
    return all(v.ok for v in verify_checkpoint(tier, manifest))


@pytest.mark.parametrize("limits", [{}, {"most_entries": 1}, {"most_bytes": 100}])
def test_a_copy_is_a_checkpoint_like_any_other(tier, file, limits):
    manifest = copy(tier, source_of(file), 100, **limits)
    assert (manifest.id, manifest.world_size, manifest.run) == (CheckpointId(1, 100), 1, "run7")
    assert proven(tier, manifest)
    assert stored_bytes(tier, manifest) == {name: a.tobytes() for name, a in TENSORS.items()}
    assert manifest.notes is not None
    assert manifest.notes.saved_at_s == 1767225600
    assert plain.decode(manifest.plain or b"") == {DCP_MARK: {"nested": True, "flat": [[]], "state": []}}
    assert [e.id for e in read_catalog(tier) if e.loadable] == [manifest.id]
    assert len(manifest.images) == (1 if not limits else 4 if "most_entries" in limits else 2)


def test_what_is_larger_than_a_part_is_copied_part_by_part(tier, tmp_path, monkeypatch):
    big = np.random.default_rng(0).integers(0, 255, 9 * 2**20, np.uint8)
    path = write_safetensors(tmp_path / "m.safetensors", {"small": np.arange(3), "big": big, "after": np.arange(5)})
    monkeypatch.setattr(copying, "PART_BYTES", 4 * 2**20)
    told: list[int] = []
    plans = plan_images(source_of(path), run="run7")
    attempt = copying.claim_step(tier, run="run7", step=5)
    manifest = copying.copy_source(
        tier, source_of(path), plans, CheckpointId(attempt.attempt, 5), saved_at_s=0, progress=told.append
    )
    assert proven(tier, manifest)
    assert stored_bytes(tier, manifest)["big"] == big.tobytes()
    assert sum(told) == manifest.size_bytes == sum(plan.size_bytes for plan in plans)


def test_it_stands_on_the_newest_checkpoint_and_is_above_it(tier, file):
    found = source_of(file)
    copy(tier, found, 100)
    with pytest.raises(StepExistsError, match="step 100 is not above"):
        copy(tier, found, 100)
    with pytest.raises(UsageError, match="say --step 101"):
        copy(tier, found, 99)
    assert copy(tier, found, 101).id == CheckpointId(2, 101)
    [first, second] = read_attempts([tier]).records
    assert (first.parent, second.parent) == (None, CheckpointId(1, 100))
    assert first.coordinator.startswith(IMPORTER)
    assert first.coordinator != second.coordinator
    with pytest.raises(UsageError):
        copy(tier, found, 10**12)


def test_a_copied_tier_without_claims_is_refused(tier, file):
    copy(tier, source_of(file), 100)
    tier.delete(names.attempt_key(1))
    with pytest.raises(UsageError, match="no claim of an attempt"):
        copy(tier, source_of(file), 101)


def test_an_import_that_was_overtaken_commits_nothing(tier, file, monkeypatch):
    def overtaken(*args, **options):
        claim(tier, run="run7", parent=None, coordinator="a job")
        return commit(*args, **options)

    monkeypatch.setattr(copying, "commit", overtaken)
    with pytest.raises(SupersededError):
        copy(tier, source_of(file), 100)
    assert not read_catalog(tier).committed


@pytest.mark.parametrize("at", ["write", "publish"])
def test_after_an_error_no_image_stays(file, at):
    inner = MemoryTier(HeapSlots(), name="home")
    faulty = Faults(inner, Fault(at, Raise(TierFullError("full")), after=1))
    with pytest.raises(TierFullError):
        copy(faulty, source_of(file), 100, most_entries=1)
    assert [k for k in keys(inner) if not k.startswith(names.ATTEMPTS)] == []


def test_a_lost_answer_to_a_publish_is_settled(file):
    inner = MemoryTier(HeapSlots(), name="home")
    lost = Fault("publish", LoseAnswer())
    assert proven(inner, copy(Retry(Faults(inner, lost)), source_of(file), 100))
    assert lost.fired == 1


def test_what_a_killed_import_was_writing_goes_with_the_next_one(tier, file, tmp_path):
    for name in ("0.import7-old", "0.import8-young", "1.job-old"):
        path = tmp_path / "run7/.tmp" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        if name.endswith("old"):
            os.utime(path, (0, 0))
    copy(tier, source_of(file), 100)
    assert {p.name for p in (tmp_path / "run7/.tmp").iterdir()} == {"0.import8-young", "1.job-old"}


def test_another_image_under_its_key_is_an_error(tier, file):
    found = source_of(file)
    attempt = copying.claim_step(tier, run="run7", step=100)
    checkpoint = CheckpointId(attempt.attempt, 100)
    tier.put(names.image_key(ImageId(checkpoint.attempt, checkpoint.step, 0)), memoryview(b"something else"))
    with pytest.raises(CorruptError):
        copying.copy_source(tier, found, plan_images(found, run="run7"), checkpoint, saved_at_s=0)
    assert not read_catalog(tier).committed


def test_a_source_that_shrinks_meanwhile_is_noticed(tier, file):
    found = source_of(file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(CorruptError):
        copy(tier, found, 100)
    assert [k for k in keys(tier) if k.startswith(names.IMAGES)] == []


def test_images_share_the_names_of_ties(tmp_path, tier, file):
    tied = replace(source_of(file), aliases=(("tied", "head.bias"),))
    manifest = copy(tier, tied, 100, most_entries=1)
    assert {t.fqn: t.alias_of for t in manifest.tensors if t.alias_of} == {"tied": "head.bias"}
    assert stored_bytes(tier, manifest)["tied"] == TENSORS["head.bias"].tobytes()
