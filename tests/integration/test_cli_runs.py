"""ls, show, verify, prune and doctor on real runs, made through the store."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.cli import main
from holdfast.config import Config, TierConfig
from holdfast.errors import NotFoundError
from holdfast.format import names, plain
from holdfast.format.image import lay_out, parse_header, seal, write_plain
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageRecord, Piece
from holdfast.store.attempts import claim
from holdfast.store.commit import commit
from holdfast.store.prune import execute_prune
from holdfast.tiers import open_tier
from holdfast.tiers.contract import Tier
from holdfast.wire.spawn import write_config

ROWS = 64
PLAIN = {"epoch": 3, "betas": (0.9, 0.95), "w": plain.TensorRef("model.weight")}


def image(attempt: int, step: int, rank: int, world: int):
    pieces = [Piece("model.weight", (rank * ROWS, 0), (ROWS, 8), (ROWS * world, 8), "float32", 4)]
    aliases = []
    if rank == 0:
        pieces.append(Piece("model.bias", (0,), (8,), (8,), "bfloat16", 2))
        aliases.append(("model.tied", "model.bias"))
    payload = plain.encode(PLAIN if rank == 0 else {"rank": rank})
    template = lay_out(
        pieces, aliases, run="run7", rank=rank, world_size=world, structure="ab" * 8, plain_bytes=len(payload)
    )
    buffer = memoryview(bytearray(template.layout.size_bytes))
    template.stamp(buffer, attempt, step)
    write_plain(buffer, template.layout, payload)
    crc = seal(buffer, template.layout)
    header = parse_header(buffer, len(buffer))
    return buffer, header, ImageRecord(header.id, len(buffer), crc), payload


def save(tier: Tier, attempt: int, step: int, *, committed: bool = True) -> None:
    images = [image(attempt, step, rank, 2) for rank in range(2)]
    for buffer, header, _, _ in images:
        upload = tier.upload(names.image_key(header.id), len(buffer))
        upload.write(0, buffer)
        upload.publish()
    if committed:
        headers, records = [i[1] for i in images], [i[2] for i in images]
        commit(tier, tier, owner=attempt, headers=headers, records=records, plain=images[0][3])


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    """Attempt 1 saved 10 to 40; attempt 2 stands on its step 20, saved 30 and 50, and died over 60."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", f"{tmp_path}/shm")
    home = tmp_path / "run7"
    tier = open_tier(f"file://{home}", name="posix", owner="1.test")
    claim(tier, run="run7", parent=None, coordinator="")
    for step in (10, 20, 30, 40):
        save(tier, 1, step)
    claim(tier, run="run7", parent=CheckpointId(1, 20), coordinator="")
    for step in (30, 50):
        save(tier, 2, step)
    save(tier, 2, 60, committed=False)
    tier.close()
    return home


def path_of(home: Path, attempt: int, step: int, rank: int = 0) -> Path:
    return home / names.image_key(ImageId(attempt, step, rank))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture
def text(capsys):
    def call(*args: object) -> tuple[int, str]:
        code = main([*map(str, args)])
        return code, capsys.readouterr().out

    return call


# ls ------------------------------------------------------------------------------------------------------------------
def test_ls_tells_lineage_and_newest(home, run):
    code, document = run("ls", home)
    assert code == 0
    steps = [(s["attempt"], s["step"], s["abandoned"], s["newest"]) for s in document["steps"]]
    assert steps == [
        (1, 10, False, False), (1, 20, False, False), (1, 30, True, False), (1, 40, True, False),
        (2, 30, False, False), (2, 50, False, True),
    ]  # fmt: skip
    assert document["parent"] == {"attempt": 1, "step": 20}
    assert (document["run"], document["attempt"], document["agent"]) == ("run7", 2, False)
    assert {tuple(s) for s in document["steps"]} == {
        ("step", "attempt", "tiers", "size_bytes", "state", "abandoned", "newest", "saved_at_s", "metrics", "problems")
    }


def test_ls_all_shows_what_was_never_committed(home, run):
    _, document = run("ls", home, "--all")
    assert [s["step"] for s in document["steps"] if s["state"] == "uncommitted"] == [60]


def test_ls_tells_damage_and_passes_it_over(home, run):
    flip(home / names.manifest_key(CheckpointId(2, 50)), 90)
    path_of(home, 2, 30).unlink()
    _, document = run("ls", home)
    problems = {s["step"]: s["problems"] for s in document["steps"] if s["state"] == "damaged"}
    assert problems.keys() == {30, 50}
    assert "missing" in problems[30][0]
    assert "manifest" in problems[50][0]
    assert [s["step"] for s in document["steps"] if s["newest"]] == [20]


def test_ls_in_a_pipe_is_plain_lines(home, text):
    code, out = text("ls", home)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["STEP", "ATTEMPT", "WHERE", "SIZE", "NOTE"]
    assert len(lines) == 7
    assert lines[-1].split()[-1] == "newest"
    assert "\x1b" not in out


def test_ls_of_an_empty_directory_is_no_error(tmp_path, run):
    (tmp_path / "new").mkdir()
    assert run("ls", tmp_path / "new")[1]["steps"] == []


def test_ls_of_nothing_is_not_found(tmp_path, run):
    code, document = run("ls", tmp_path / "nowhere")
    assert (code, document["kind"]) == (31, "not-found")


def test_ls_names_the_claim_it_cannot_read(home, run):
    (home / "attempts/00000001").write_bytes(b"noise")
    problems = run("ls", home)[1]["problems"]
    assert any("attempts/00000001" in problem for problem in problems)


def test_an_error_about_a_step_carries_it(home, run):
    assert run("show", home, "--step", 77)[1]["step"] == 77


# show ----------------------------------------------------------------------------------------------------------------
def test_show_tells_images_and_tensors(home, run):
    code, document = run("show", home)
    assert code == 0
    assert (document["attempt"], document["step"], document["world_size"]) == (2, 50, 2)
    assert [i["rank"] for i in document["images"]] == [0, 1]
    assert {t["name"]: t["shape"] for t in document["tensors"]} == {
        "model.bias": [8], "model.tied": [8], "model.weight": [2 * ROWS, 8],
    }  # fmt: skip


def test_show_step_is_the_one_on_the_lineage(home, run):
    assert run("show", home, "--step", 30)[1]["attempt"] == 2
    code, document = run("show", home, "--step", 40)
    assert (code, document["kind"]) == (31, "not-found")
    assert "abandoned" in document["message"]


def test_show_tensor_tells_its_chunks(home, run):
    _, document = run("show", home, "--tensor", "model.weight")
    assert [c["offsets"] for c in document["tensors"][0]["chunks"]] == [[0, 0], [ROWS, 0]]
    code, document = run("show", home, "--tensor", "model.wait")
    assert code == 31
    assert "model.weight" in document["hint"]


@pytest.mark.parametrize(("rank", "expected"), [(0, PLAIN), (1, {"rank": 1})])
def test_show_plain_is_exact_in_json(home, run, rank, expected):
    _, document = run("show", home, "--plain", "--rank", rank)
    assert plain.decode(json.dumps(document["plain"], separators=(",", ":")).encode()) == expected


def test_show_plain_is_readable(home, text):
    assert text("show", home, "--plain") == (
        0, "{'epoch': 3, 'betas': (0.9, 0.95), 'w': <tensor model.weight>}\n",
    )  # fmt: skip


def test_show_of_a_rank_that_is_not_there_says_which_are(home, run):
    code, document = run("show", home, "--plain", "--rank", 3)
    assert code == 31
    assert "2 ranks, none is 3" in document["message"]
    assert document["hint"] == "ranks are 0 to 1"


def test_show_rank_without_plain_is_a_usage_error(home, run):
    code, document = run("show", home, "--rank", 0)
    assert (code, document["kind"]) == (2, "usage")
    assert "--plain" in document["hint"]


def test_show_of_a_damaged_manifest_is_corrupt(home, run):
    flip(home / names.manifest_key(CheckpointId(2, 50)), 90)
    assert run("show", home, "--step", 50)[0] == 40


# verify --------------------------------------------------------------------------------------------------------------
def test_verify_reads_every_image(home, run):
    code, document = run("verify", home, "--all")
    assert code == 0
    assert document["ok"]
    assert sum(len(c["images"]) for c in document["checkpoints"]) == 12


def test_verify_finds_a_flipped_bit(home, run):
    flip(path_of(home, 2, 50, rank=1), 5000)
    code, document = run("verify", home)
    assert code == 40
    assert not document["ok"]
    bad = [i for c in document["checkpoints"] for i in c["images"] if not i["ok"]]
    assert [(i["rank"], i["error"]["kind"]) for i in bad] == [(1, "corrupt")]
    assert run("verify", home, "--step", 20)[0] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--repair"], "no good copy was found"), (["--repair", "--yes"], "1 of 1 could not be repaired")],
)
def test_verify_says_whether_it_was_a_dry_run_or_no_good_copy_is_left(options, said, home, text):
    flip(path_of(home, 2, 50), 5000)
    code, out = text("verify", home, *options)
    assert code == 40
    assert said in out
    assert ("dry run" in out) == ("--yes" not in options)
    assert "or failed" not in out


@pytest.mark.parametrize("harm", ["manifest", "missing", "short"])
def test_verify_finds(harm, home, text):
    if harm == "manifest":
        flip(home / names.manifest_key(CheckpointId(2, 50)), 90)
    elif harm == "missing":
        path_of(home, 2, 50).unlink()
    else:
        os.truncate(path_of(home, 2, 50), 4096)
    code, out = text("verify", home)
    assert code == 40
    assert out.startswith("bad ")


def test_verify_says_which_are_damaged_and_what_to_do(home, text):
    flip(path_of(home, 2, 50), 5000)
    out = text("verify", home)[1]
    assert "1 damaged: step 50 (attempt 2)" in out
    assert f"holdfast verify file://{home} --all" in out
    assert f"holdfast prune file://{home} --step N" in out


@pytest.mark.parametrize("command", [("verify", "--all"), ("verify",), ("prune", "--keep-last", 1)])
def test_a_directory_that_is_no_run_is_not_found(command, tmp_path, run):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"mine")
    name, *options = command
    code, document = run(name, tmp_path / "photos", *options)
    assert (code, document["kind"]) == (31, "not-found")
    assert "check the URL" in document["hint"]


# prune ---------------------------------------------------------------------------------------------------------------
def keys(home: Path) -> list[str]:
    return sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file())


@pytest.mark.parametrize("args", [("--step", 10), ("--keep-last", 1), ("--everything",)])
def test_prune_is_a_dry_run_until_yes(args, home, run):
    before = keys(home)
    code, document = run("prune", home, *args)
    assert code == 0
    assert document["dry_run"]
    assert document["size_bytes"] > 0
    assert keys(home) == before


def test_prune_deletes_by_retention(home, run):
    code, document = run("prune", home, "--keep-last", 1, "--keep-every", 20, "--yes")
    assert code == 0
    assert [(d["attempt"], d["step"], d["why"]) for d in document["delete"]] == [
        (1, 10, "old"), (1, 30, "abandoned"), (1, 40, "abandoned"), (2, 30, "old"),
    ]  # fmt: skip
    assert [(k["step"], k["why"]) for k in document["keep"]] == [(20, "keep_every"), (50, "newest")]
    assert [s["step"] for s in run("ls", home)[1]["steps"]] == [20, 50]


def test_prune_deletes_a_step_and_only_that(home, run):
    assert run("prune", home, "--step", 30, "--step", 10, "--yes")[0] == 0
    left = [(s["attempt"], s["step"]) for s in run("ls", home)[1]["steps"]]
    assert left == [(1, 20), (1, 30), (1, 40), (2, 50)]


def test_prune_never_deletes_the_last_that_loads(home, run):
    assert run("prune", home, "--step", 50, "--yes")[0] == 0
    before = keys(home)
    assert run("prune", home, "--step", 10, "--step", 20, "--step", 30, "--yes")[0] == 2
    assert keys(home) == before


def test_prune_keeps_the_newest_that_verifies_when_the_newest_is_damaged(home, run, text):
    flip(path_of(home, 2, 50, rank=1), 5000)
    before = keys(home)
    _, document = run("prune", home, "--keep-last", 1)
    assert document["verified"] == {"attempt": 2, "step": 30}
    assert [(d["step"], d["error"]["kind"]) for d in document["damaged"]] == [(50, "corrupt")]
    assert keys(home) == before
    code, document = run("prune", home, "--keep-last", 1, "--yes")
    assert code == 0
    assert [(k["attempt"], k["step"], k["why"]) for k in document["keep"]] == [(2, 30, "protected"), (2, 50, "newest")]
    assert [s["step"] for s in run("ls", home)[1]["steps"]] == [30, 50]
    assert run("verify", home, "--step", 30)[0] == 0
    assert not (home / "quarantine").exists()


def test_prune_says_what_is_damaged_and_what_stays(home, capsys):
    flip(path_of(home, 2, 50), 5000)
    assert main(["prune", str(home), "--keep-last", "1"]) == 0
    told = capsys.readouterr().err
    assert "step 50 (attempt 2) is damaged" in told
    assert "step 30 (attempt 2) stays" in told


def test_prune_reads_on_until_one_verifies(home, run):
    flip(path_of(home, 2, 50), 5000)
    flip(path_of(home, 2, 30, rank=1), 5000)
    assert run("prune", home, "--keep-last", 1, "--yes")[0] == 0
    assert run("verify", home, "--step", 20)[0] == 0


def test_prune_deletes_nothing_when_nothing_verifies(home, run):
    for attempt, step in ((1, 10), (1, 20), (2, 30), (2, 50)):
        flip(path_of(home, attempt, step), 5000)
    before = keys(home)
    code, document = run("prune", home, "--keep-last", 1, "--yes")
    assert (code, document["kind"]) == (2, "usage")
    assert "--everything" in document["hint"]
    assert keys(home) == before


def test_prune_of_steps_leaves_one_that_verifies(home, run):
    flip(path_of(home, 2, 50), 5000)
    before = keys(home)
    code, document = run("prune", home, "--step", 10, "--step", 20, "--step", 30, "--yes")
    assert (code, document["kind"]) == (2, "usage")
    assert "step 50" in document["message"]
    assert keys(home) == before
    assert run("prune", home, "--step", 50, "--yes")[0] == 0
    assert [s["step"] for s in run("ls", home)[1]["steps"] if s["newest"]] == [30]


def test_prune_reads_nothing_when_nothing_would_go(home, run, monkeypatch):
    monkeypatch.setattr("holdfast.cli.checking.find_damage", None)
    code, document = run("prune", home, "--keep-last", 99)
    assert (code, document["delete"], document["verified"]) == (0, [], None)


@pytest.fixture
def two_tiers(home, tmp_path):
    """The run's configuration on this node knows a second tier, `far`, which has step 10, too."""
    tiers = TierConfig("memory:"), TierConfig(f"{home}", name="near"), TierConfig(f"{tmp_path}/far", name="far")
    settings = Config(tiers=tiers, run="run7").resolve()
    settings.arena.mkdir(parents=True)
    write_config(settings.arena, settings)
    far = open_tier(f"file://{tmp_path}/far", name="far", owner="1.test")
    claim(far, run="run7", parent=None, coordinator="")
    for step in (10, 20):
        save(far, 1, step)
    far.close()
    return tmp_path / "far"


def test_a_step_goes_from_every_tier(home, two_tiers, run):
    assert {s["step"]: s["tiers"] for s in run("ls", home)[1]["steps"]}[10] == ["near", "far"]
    assert run("prune", home, "--step", 10, "--yes")[0] == 0
    assert not path_of(home, 1, 10).exists()
    assert not path_of(two_tiers, 1, 10).exists()


def test_a_step_that_another_tier_has_is_pointed_at(home, two_tiers, capsys):
    (home / names.manifest_key(CheckpointId(1, 10))).unlink()
    assert main(["show", str(home), "--step", "10"]) == NotFoundError.exit_code
    assert "tier far has it: say --tier far, or give file://" in capsys.readouterr().err
    assert main(["show", str(home), "--step", "10", "--tier", "far"]) == 0
    assert main(["show", str(home), "--step", "11"]) == NotFoundError.exit_code
    assert "--tier" not in capsys.readouterr().err


def test_retention_is_that_of_one_tier(home, two_tiers, run):
    assert run("prune", home, "--keep-last", 1, "--yes")[0] == 0
    assert not path_of(home, 1, 10).exists()
    assert path_of(two_tiers, 1, 10).exists()


def test_retention_of_one_tier_is_refused_where_the_agent_would_delete_on_all(home, two_tiers, run, monkeypatch):
    monkeypatch.setattr("holdfast.cli.runs.Run.owning_agent", object())
    code, document = run("prune", home, "--keep-last", 1)
    assert code == 2
    assert "far" in document["message"]


def test_prune_wants_one_way_of_saying_it(home, run):
    assert run("prune", home)[0] == 2
    assert run("prune", home, "--keep-every", 5)[0] == 2
    assert run("prune", home, "--everything", "--keep-last", 5)[0] == 2


def test_prune_is_refused_once_another_attempt_owns_the_run(home, run, monkeypatch):
    def claim_first(tier, plan, **how):
        claim(tier, run="run7", parent=CheckpointId(2, 50), coordinator="")
        execute_prune(tier, plan, **how)

    monkeypatch.setattr("holdfast.cli.pruning.execute_prune", claim_first)
    code, document = run("prune", home, "--step", 10, "--yes")
    assert (code, document["kind"]) == (20, "superseded")
    assert path_of(home, 1, 10).exists()


def test_prune_everything_leaves_a_fresh_home(home, run):
    (home / "notes.txt").write_text("mine")
    flip(home / names.manifest_key(CheckpointId(2, 50)), 90)
    assert run("prune", home, "--everything", "--yes")[0] == 0
    assert keys(home) == ["notes.txt"]
    _, document = run("ls", home)
    assert (document["steps"], document["attempt"]) == ([], None)


def test_prune_everything_can_be_gone_on_after_a_crash(home, run, monkeypatch):
    from holdfast.cli import clearing

    def die(tier, prefix):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(clearing, "_delete_all", die)
        assert main(["prune", str(home), "--everything", "--yes", "--json"]) == 130
    _, document = run("ls", home)
    assert (document["steps"], document["attempt"]) == ([], 2)
    assert run("prune", home, "--everything", "--yes")[0] == 0
    assert keys(home) == []


# doctor --------------------------------------------------------------------------------------------------------------
def test_doctor_answers_and_leaves_nothing(home, run):
    before = keys(home.parent)
    code, document = run("doctor", home)
    checks = {f["check"] for f in document["findings"]}
    assert {"versions", "arena-directory", "arena-room", "arena-abilities", "home", "fsync", "agent"} <= checks
    assert {f["level"] for f in document["findings"]} <= {"ok", "warn", "bad"}
    assert code == (1 if document["worst"] == "bad" else 0)
    assert keys(home.parent) == before


def test_doctor_exits_with_1_when_something_is_bad(tmp_path, run):
    code, document = run("doctor", tmp_path / "no" / "parent")
    assert code == 1
    assert [f["check"] for f in document["findings"] if f["level"] == "bad"] == ["home"]


def test_doctor_of_what_cannot_be_opened_is_bad(home, run):
    code, document = run("doctor", "s3://bucket/run")
    assert code == 1
    (found,) = [f for f in document["findings"] if f["level"] == "bad"]
    assert found["check"] == "home"
    assert "not built" in found["message"]
    assert found["todo"]


def test_doctor_tells_of_damaged_claims_and_manifests(home, run):
    (home / "attempts/00000001").write_bytes(b"noise")
    flip(home / names.manifest_key(CheckpointId(2, 50)), 90)
    code, document = run("doctor", home)
    found = [f for f in document["findings"] if f["check"] == "run"]
    assert [f["level"] for f in found] == ["warn", "warn"]
    assert "attempts/00000001" in found[0]["message"]
    assert names.manifest_key(CheckpointId(2, 50)) in found[1]["message"]
    assert all("verify" in f["todo"] for f in found)
    assert code == 0


def test_doctor_tells_whether_a_state_fits(home, run):
    assert run("doctor", home, "--state", "1 MB")[0] == 0
    code, document = run("doctor", home, "--state", "900 TB")
    assert code == 1
    assert [f["check"] for f in document["findings"] if f["level"] == "bad"] == ["arena-room"]


def test_doctor_finds_leftovers_and_removes_them_when_told_twice(home, run):
    stale = home / ".tmp" / "1.dead-0"
    stale.parent.mkdir(exist_ok=True)
    stale.write_bytes(bytes(5000))
    fresh = home / ".tmp" / "2.alive-0"
    fresh.write_bytes(bytes(5000))
    os.utime(stale, (time.time() - 7200,) * 2)
    orphan = path_of(home, 1, 15)
    orphan.parent.mkdir()
    orphan.write_bytes(bytes(8192))
    arena = Path(os.environ["HOLDFAST_ARENA_DIR"]) / f"holdfast-{os.getuid()}" / "run7-0123"
    arena.mkdir(parents=True)

    _, document = run("doctor", home, "--clean")
    assert {x["kind"] for x in document["leftovers"] if x["chosen"]} == {"arena", "temporary-files", "orphan-images"}
    assert stale.exists()
    assert orphan.exists()

    assert {"leftover-arena", "temporary-files", "orphan-images"} <= {f["check"] for f in document["findings"]}
    assert all("--clean --yes" in f["todo"] for f in document["findings"] if f["check"] == "temporary-files")

    _, document = run("doctor", home, "--clean", "--yes")
    assert len(document["leftovers"]) == 3
    assert [f["message"] for f in document["findings"] if f["check"] == "leftovers"] == ["nothing was left behind"]
    assert not {"leftover-arena", "temporary-files", "orphan-images"} & {f["check"] for f in document["findings"]}
    assert not stale.exists()
    assert not orphan.exists()
    assert not arena.exists()
    assert fresh.exists()
    assert run("ls", home)[1]["steps"][-1]["newest"]
    assert path_of(home, 2, 60).exists()  # newer than the newest: it may yet be committed


# in general ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["ls", "show", "verify", "prune", "doctor"])
def test_commands_never_import_torch(command, home):
    more = ["--keep-last", "1"] if command == "prune" else []
    program = (
        "import sys; from holdfast.cli import main; code = main(sys.argv[1:]);"
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command, str(home), *more], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
