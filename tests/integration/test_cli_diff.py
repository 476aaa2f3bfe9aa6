"""`diff` and `show --tensor` on real runs, made through the store."""

from pathlib import Path

import numpy as np
import pytest
from tests.unit.tensor_fixtures import rows, save

from holdfast.cli import main
from holdfast.errors import NotFoundError
from holdfast.format import names
from holdfast.model.identity import ImageId
from holdfast.store.attempts import claim
from holdfast.tiers import open_tier

W = np.linspace(-1, 1, 64 * 8, dtype=np.float32).reshape(64, 8)
ONES = np.ones((8,), np.float32)
ALL = [((0,), (8,))]


def held(w: np.ndarray, ranks: int, **others: np.ndarray) -> list[dict]:
    parts = [{"model.w": (w, rects)} for rects in rows(w, ranks)]
    parts[0].update({name: (value, [((0,), value.shape)]) for name, value in others.items()})
    return parts


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    """Step 10 by two ranks, 20 by four: one element differs by 3, a tensor came, one went, one grew."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", f"{tmp_path}/shm")
    home = tmp_path / "run7"
    moved = W.copy()
    moved[40, 3] += 3
    tier = open_tier(f"file://{home}", name="posix", owner="1.test")
    claim(tier, run="run7", parent=None, coordinator="")
    first = held(W, 2, **{"model.b": ONES, "gone": ONES, "grown": ONES})
    second = held(moved, 4, **{"model.b": ONES, "new": ONES, "grown": np.ones((9,), np.float32)})
    plain = [{"epoch": 1, "lr": [0.1, 0.2], "nan": float("nan")}, {"at": 5}]
    save(tier, 10, first, plain=plain)
    save(tier, 20, second, plain=[{"epoch": 2, "lr": [0.1, 0.3], "nan": float("nan"), "more": ()}, {"at": 6}, {}, {}])
    tier.close()
    return home


def test_diff_tells_structure_values_and_the_change_of_each_tensor(home, run):
    code, document = run("diff", home)
    assert code == 0
    assert [document[side]["step"] for side in ("first", "second")] == [10, 20]
    assert not document["same_structure"]
    assert [t["name"] for t in document["only_first"]] == ["gone"]
    assert [t["name"] for t in document["only_second"]] == ["new"]
    assert document["shapes"] == [{"name": "grown", "owner_rank": None, "first": [8], "second": [9]}]
    assert [(p["path"], p["rank"], p["first"], p["second"]) for p in document["plain"]] == [
        ("epoch", 0, "1", "2"),
        ("lr[1]", 0, "0.2", "0.3"),
        ("more", 0, None, "()"),
        ("at", 1, "5", "6"),
    ]
    largest, other = document["tensors"]
    assert (largest["name"], largest["changed"], largest["count"]) == ("model.w", 1, 512)
    assert largest["l2"] == largest["max_abs"] == pytest.approx(3)
    assert largest["relative"] == pytest.approx(3 / np.linalg.norm(W.astype(np.float64)))
    assert (other["name"], other["changed"], other["relative"]) == ("model.b", 0, 0.0)


@pytest.mark.parametrize(("prefix", "known"), [("nothing", False), ("gro", True), ("epo", True), ("lr[", True)])
def test_diff_of_a_name_that_nothing_has_is_an_error(home, capsys, prefix, known):
    code = main(["diff", str(home), "--step", "10", "--step", "10", "--only", prefix])
    assert code == (0 if known else NotFoundError.exit_code)
    if not known:
        assert "no name in either checkpoint begins with 'nothing'" in (err := capsys.readouterr().err)
        assert "tensors begin with gone, grown, model" in err


def test_diff_only_what_was_asked(home, run):
    document = run("diff", home, "--step", 10, "--step", 20, "--only", "model.b")[1]
    assert [t["name"] for t in document["tensors"]] == ["model.b"]
    assert (document["plain"], document["same_structure"]) == ([], True)
    document = run("diff", home, "--structure")[1]
    assert document["tensors"] is None
    assert [t["name"] for t in document["only_first"]] == ["gone"]


def test_diff_of_a_step_and_the_newest_and_of_two_runs(home, run, tmp_path):
    assert [run("diff", home, "--step", 10)[1][side]["step"] for side in ("first", "second")] == [10, 20]
    other = open_tier(f"file://{tmp_path}/other", name="posix", owner="1.test")
    claim(other, run="other", parent=None, coordinator="")
    save(other, 3, held(W, 1))
    other.close()
    code, document = run("diff", home, "--step", 10, tmp_path / "other", "--step", 3)
    assert (code, document["second"]["url"]) == (0, f"file://{tmp_path}/other")
    assert [(t["name"], t["changed"]) for t in document["tensors"]] == [("model.w", 0)]
    assert run("diff", tmp_path / "other")[1]["kind"] == "not-found"


@pytest.mark.parametrize("args", [["--step", 1, "--step", 2, "--step", 3], ["x", "y"]])
def test_diff_of_three_is_a_usage_error(home, run, args):
    assert run("diff", home, *args)[0] == 2


def test_a_tier_beside_the_home_has_no_claims_and_compares_all_the_same(home, run):
    (home / "attempts/00000001").unlink()
    assert run("diff", home)[0] == 0


def test_diff_in_a_pipe(home, capsys):
    assert main(["diff", str(home)]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "r, step 10 (attempt 1) -> r, step 20 (attempt 1)"
    assert "other shape grown 8 9" in lines
    assert "at (rank 1) 5 6" in lines
    assert any(line.startswith("model.w float32 1 of 512 0.2") for line in lines)
    assert lines[-1] == "1 tensor is the same, bit for bit (--all lists them)"


def spoil(home: Path, step: int, rank: int, at: int = 4100) -> str:
    key = names.image_key(ImageId(1, step, rank))
    data = bytearray((home / key).read_bytes())
    data[at] ^= 1
    (home / key).write_bytes(data)
    return key


def test_diff_names_what_is_damaged_compares_the_rest_and_exits_with_its_code(home, run, capsys):
    key = spoil(home, 20, 2)
    code, document = run("diff", home)
    assert code == 40
    changes = {t["name"]: t for t in document["tensors"]}
    assert changes["model.w"]["error"]["key"] == key
    assert changes["model.w"]["l2"] is None
    assert changes["model.b"]["changed"] == 0
    assert main(["diff", str(home)]) == 40
    captured = capsys.readouterr()
    assert "not compared: bytes 0 to" in captured.out
    assert key in captured.err


def test_diff_of_an_image_that_is_gone(home, run):
    (home / names.image_key(ImageId(1, 10, 1))).unlink()
    code, document = run("diff", home)
    assert code == 31
    assert {t["name"]: t["error"] is None for t in document["tensors"]} == {"model.w": False, "model.b": True}
    assert document["unread"][0]["kind"] == "not-found"


# show --tensor -------------------------------------------------------------------------------------------------------
def test_show_tensor_tells_where_it_stands_and_its_numbers(home, run):
    code, document = run("show", home, "--step", 10, "--tensor", "model.w")
    assert code == 0
    [tensor] = document["tensors"]
    assert [c["offsets"] for c in tensor["chunks"]] == [[0, 0], [32, 0]]
    for chunk, part in zip(tensor["chunks"], (W[:32], W[32:]), strict=True):
        raw = (home / chunk["image"]).read_bytes()[chunk["start"] : chunk["start"] + chunk["size_bytes"]]
        assert raw == part.tobytes()
    found = tensor["statistics"]
    assert (found["count"], found["min"], found["max"], found["nan"]) == (512, -1.0, 1.0, 0)
    assert found["mean"] == pytest.approx(0, abs=1e-7)
    assert found["std"] == pytest.approx(W.astype(np.float64).std())
    assert sum(found["histogram"]["counts"]) == 512
    assert len(found["histogram"]["edges"]) == len(found["histogram"]["counts"]) + 1


def test_show_tensor_draws_a_histogram(home, capsys):
    assert main(["show", str(home), "--step", "10", "--tensor", "model.w"]) == 0
    out = capsys.readouterr().out
    assert "512 elements; none is zero, nan or inf" in out
    bars = [line for line in out.splitlines() if set("█#") & set(line)]
    assert len(bars) == 16
    assert main(["show", str(home), "--tensor", "model.b"]) == 0
    assert "all of them 1" in capsys.readouterr().out


def test_show_tensor_computes_nothing_from_damaged_bytes(home, run):
    key = spoil(home, 20, 0)
    code, document = run("show", home, "--tensor", "model.w")
    assert (code, document["kind"], document["key"]) == (40, "corrupt", key)


def test_show_plain_computes_nothing_from_damaged_bytes(home, run):
    spoil(home, 10, 1)
    code, document = run("show", home, "--step", 10, "--plain", "--rank", 1)
    assert (code, document["kind"]) == (40, "corrupt")
