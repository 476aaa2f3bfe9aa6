"""The table of benchmarks: how samples become numbers, what is selected, how a record grows, how it is shown."""

import io
import json
import shutil
import subprocess

import pytest
from rich.console import Console

pytest.importorskip("torch")

from benchmarks import record as records
from benchmarks.files import Places
from benchmarks.stats import estimate
from benchmarks.table import memory, page, show, summary
from benchmarks.table.bench import Cell, Taken, reason, rotated
from benchmarks.table.book import Book, BookError
from benchmarks.table.columns import AFTER_STEPS, LOADING, SAVING, figures
from benchmarks.table.pieces import pieces
from benchmarks.table.roster import ENTRIES, OURS, WAYS

pytestmark = pytest.mark.torch
MEMINFO = """MemTotal: 1000 kB
MemFree: 300 kB
Buffers: 10 kB
Cached: 200 kB
Shmem: 50 kB
SReclaimable: 20 kB
"""


def saved(**changed):
    return {
        "stall_s": 0.2, "durable_s": 1.0, "step_mean": 1.1, "step_worst_s": 0.1, "lost_s": 0.3,
        "memory_bytes": 2**30, "disk_bytes": 2**30,
    } | changed  # fmt: skip


def loaded(**changed):
    return {"first_s": 0.2, "death_s": 0.3, "warm_s": 0.5, "cold_s": 1.0} | changed


def book(tmp_path, *, quick=False, command="c"):
    return Book(tmp_path / "table.json", tmp_path, command=command, quick=quick)


def recorded(tmp_path, *cells, quick=False):
    made = book(tmp_path, quick=quick)
    made.add(list(cells), piece="a piece", took_s=1.0)
    return json.loads((tmp_path / "table.json").read_text())


def test_lost_is_the_stall_and_what_steps_took_longer():
    steps_s = [0.15, 0.10] + [0.10] * AFTER_STEPS
    first = {"quiet_s": [0.1, 0.1, 0.5], "stall_s": 0.2, "durable_s": 0.5, "steps_s": steps_s, "bytes": 7}
    other = first | {"stall_s": 0.3, "durable_s": 0.6, "steps_s": [9.0]}
    found = figures([first, other], 11)
    assert found["lost_s"] == pytest.approx(0.25)
    assert found["stall_s"] == 0.3
    assert found["durable_s"] == 0.6
    assert found["step_mean"] == pytest.approx(1.25)
    assert found["step_worst_s"] == 0.15
    assert (found["memory_bytes"], found["disk_bytes"]) == (11, 7)


def test_a_save_that_ends_before_a_step_has_the_steps_after_it():
    first = {"quiet_s": [0.1], "stall_s": 2.0, "durable_s": 2.0, "steps_s": [0.1] * AFTER_STEPS, "bytes": 7}
    assert figures([first], 0)["step_mean"] == pytest.approx(1.0)


def test_used_memory_has_shared_memory_and_not_the_page_cache():
    assert memory.used_bytes(MEMINFO) == 1024 * (1000 - 300 - 10 - 200 - 20 + 50)


def test_an_account_adds_up_what_a_variant_holds(monkeypatch):
    used = iter([100, 180, 180, 250, 250, 300])
    monkeypatch.setattr(memory, "used_bytes", lambda: next(used))
    monkeypatch.setattr(memory, "_EVERY_S", 60.0)
    account = memory.Account()
    with account.active():
        pass
    assert account.peak_bytes == 80
    with account.active():
        pass
    assert account.peak_bytes == 150
    with account.active():
        pass
    assert account.peak_bytes == 200


def test_every_way_of_every_state_is_in_one_piece_once():
    found = [piece.cell(key) for piece in pieces([], [], quick=False) for key in piece.keys]
    assert len(found) == len(set(found))
    expected = sum(len(e.saves) + len(e.loads) for e in ENTRIES.values())
    assert len(found) == expected


@pytest.mark.parametrize(
    ("only", "cells"),
    [
        (["death_s/dcp-best"], {"transformer/load/dcp-best"}),
        (["lost_s/orbax"], {"transformer/save/1/orbax"}),
        (["tc-best"], {"transformer/save/1/tc-best", "transformer/save/2/tc-best", "transformer/load/tc-best"}),
        (["load/orbax-best", "save/tc"], {"transformer/load/orbax-best", "transformer/save/1/tc"}),
    ],
)
def test_only_takes_columns_and_peers(only, cells):
    assert {p.cell(k) for p in pieces(["transformer"], only, quick=False) for k in p.keys} == cells


def test_a_quick_run_takes_every_way_once_and_every_state():
    found = list(pieces([], [], quick=True))
    assert {p.state for p in found} == set(ENTRIES)
    ways = {key for p in found if p.state == "transformer" for key in p.keys}
    assert ways == set(WAYS)


def test_another_way_is_first_in_every_round():
    ways = [OURS, *list(WAYS.values())[:2]]
    assert {rotated(ways, i)[0].key for i in range(3)} == {w.key for w in ways}
    assert sorted(w.key for w in rotated(ways, 7)) == sorted(w.key for w in ways)


def test_a_failed_way_keeps_its_rounds_and_the_others_go_on():
    ways = [OURS, WAYS["dcp"], WAYS["tc"]]
    rounds = [{"holdfast": saved(), "dcp": saved(), "tc": saved()}, {"holdfast": saved(), "dcp": saved()}]
    taken = Taken(ways, rounds, {"tc": "boom"})
    dcp, tc = taken.cells("transformer/save/1", 1)
    assert (dcp.key, dcp.failed, len(dcp.rounds), len(dcp.warm_up)) == ("transformer/save/1/dcp", "", 1, 1)
    assert (tc.failed, tc.rounds[0][1]) == ("boom", None)
    assert [w.key for w in taken.alive()] == ["holdfast", "dcp"]


def test_the_reason_is_the_error_and_not_its_traceback_or_hint(tmp_path):
    places = Places(tmp_path / "disk", tmp_path / "memory")
    text = "ours failed at 'prepare':\nTraceback\n  File x\nUnsupportedValueError: a DTensor\n  hint: later\n"
    assert reason(RuntimeError(text), places) == "UnsupportedValueError: a DTensor"
    lost = FileNotFoundError(2, "No such file", f"{places.disk}/dcp/peer/000001")
    assert reason(lost, places) == "[Errno 2] No such file: 'dcp/peer/000001'", "no path of the machine in a record"


def test_a_record_grows_and_says_which_run_made_what(tmp_path):
    recorded(tmp_path, Cell("transformer/save/1/dcp", [(saved(), saved())], []))
    second = book(tmp_path, command="another")
    assert second.has("transformer/save/1/dcp")
    assert not second.has("transformer/save/1/tc")
    second.add([Cell("transformer/save/1/tc", [], [], failed="boom")], piece="p", took_s=2.0)
    assert not second.has("transformer/save/1/tc")
    data = json.loads((tmp_path / "table.json").read_text())
    assert [r["command"] for r in data["runs"]] == ["c", "another"]
    assert {k: c["run"] for k, c in data["cells"].items()} == {"transformer/save/1/dcp": 1, "transformer/save/1/tc": 2}


def test_numbers_of_two_machines_or_of_a_quick_run_are_not_mixed(tmp_path):
    recorded(tmp_path)
    with pytest.raises(BookError, match="another kind"):
        book(tmp_path, quick=True)
    data = json.loads((tmp_path / "table.json").read_text())
    data["machine"]["cores"] = 4096
    (tmp_path / "table.json").write_text(json.dumps(data))
    with pytest.raises(BookError, match="another cores"):
        book(tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_says_whether_the_code_differs_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    assert records.commit(tmp_path) == "unknown"

    def git(*arguments):
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *name, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    for path in ("src/a.py", "benchmarks/results/a.json", "docs/a.md"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("1")
    git("init", "-q")
    assert records.commit(tmp_path) == "unknown"  # nothing is committed
    git("add", ".")
    git("commit", "-q", "-m", "a")
    head = git("rev-parse", "HEAD").stdout.strip()
    for path in ("benchmarks/results/a.json", "docs/a.md"):
        (tmp_path / path).write_text("2")
    assert records.commit(tmp_path) == head  # nothing that is measured
    assert records.commit(tmp_path / "src") == "unknown"
    (tmp_path / "src" / "b.py").write_text("new")
    assert records.commit(tmp_path) == f"{head}+"


def test_a_record_says_which_run_is_of_which_commit(tmp_path, monkeypatch):
    found = iter(["a" * 40, "a" * 40, "b" * 40 + "+", "unknown"])
    monkeypatch.setattr(records, "commit", lambda: next(found))
    recorded(tmp_path, Cell("transformer/save/1/dcp", [(saved(), saved())], []))
    data = json.loads((tmp_path / "table.json").read_text())
    del data["runs"][0]["commit"]  # of a record from before it was kept
    (tmp_path / "table.json").write_text(json.dumps(data))
    for _ in range(3):
        made = recorded(tmp_path)
    assert [r.get("commit") for r in made["runs"]] == [None, "a" * 40, "b" * 40 + "+", "unknown"]
    note = (
        f"commit of Holdfast: not noted (run 1), {'a' * 12} (run 2), {'b' * 12}+ (run 3), unknown (run 4)"
        "; +: with changes that no commit has"
    )
    assert list(show.markdown(made))[-1] == note
    out = io.StringIO()
    show.show(Console(file=out, width=200), made)
    assert note in out.getvalue()
    assert f"<td>{'b' * 12}+</td>" in page.render(made)
    assert summary.commits({"runs": [{"run": n, "commit": "c"} for n in (1, 2)]}) == "commit of Holdfast: c (runs 1, 2)"


def sample_record(tmp_path, *, quick=False):
    return recorded(
        tmp_path,
        Cell("transformer/save/1/dcp", [(saved(lost_s=0.2), saved(lost_s=1.0))] * 3, []),
        Cell("transformer/save/1/tc", [(saved(lost_s=0.2), saved(lost_s=0.5))] * 3, []),
        Cell("transformer/save/1/tc-plain", [(saved(), None)], [], failed="OSError: <EINVAL>"),
        Cell("tensors/save/1/dcp-best", [(saved(copy_s=0.15, over_copy_s=0.05), saved())] * 3, []),
        Cell("fsdp2/load/dcp-best", [(None, loaded())] * 3, [], ours_failed="UnsupportedValueError: a DTensor"),
        quick=quick,
    )


def test_ours_is_judged_against_the_best_peer_of_a_column(tmp_path):
    record = sample_record(tmp_path)
    found = {(v.section, v.column.key): v for v in summary.verdicts(summary.sections(record))}
    title = "a transformer, 2.06 GB in 592 tensors, one process: saving, a core left free"
    lost = found[title, "lost_s"]
    assert (lost.peer, lost.reached) == (WAYS["tc"].label, True)
    assert lost.ratio.median == pytest.approx(0.4)
    assert found[title, "step_worst_s"].reached is False  # level is not half
    assert found[title, "stall_s"].reached is True
    assert not [key for key in found if "FSDP2" in key[0]]  # ours has no numbers there


def test_the_save_beyond_the_copy_is_a_difference_within_a_round(tmp_path):
    found = summary.over_copy(sample_record(tmp_path))
    assert found is not None
    assert found.median == pytest.approx(0.05)


def test_the_terminal_names_failures_and_a_quick_run_judges_nothing(tmp_path):
    def shown(record):
        out = io.StringIO()
        show.show(Console(file=out, width=200), record)
        return out.getvalue()

    text = shown(sample_record(tmp_path))
    assert "OSError: <EINVAL>" in text
    assert "UnsupportedValueError: a DTensor" in text
    assert "not reached" in text
    (tmp_path / "table.json").unlink()
    quick = shown(sample_record(tmp_path, quick=True))
    assert "measures nothing" in quick
    assert "reached" not in quick


def test_markdown_has_a_row_per_way_with_its_run(tmp_path):
    lines = list(show.markdown(sample_record(tmp_path)))
    row = next(line for line in lines if line.startswith(f"| {WAYS['tc'].label} |"))
    assert row.endswith("| 1 |")
    assert "0.500" in row


def test_the_page_has_a_chart_per_column_and_nothing_from_elsewhere(tmp_path):
    html = page.render(sample_record(tmp_path))
    assert html.count("<svg") == 2 * len(SAVING) + len(LOADING)
    assert "&lt;EINVAL&gt;" in html
    assert "<EINVAL>" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_an_interval_of_one_value_is_that_value():
    assert estimate([2.0]).low == estimate([2.0]).high == 2.0
