"""The command of the table, really run: two ways beside each other, with training, on the smallest state."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
PIECE = ("--quick", "--state", "tensors", "--only", "save/dcp-thread-best")


def run(record: Path, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), *arguments, "--json", str(record)]
    done = subprocess.run(
        [*command, "--on", str(record.parent)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_a_piece_is_measured_once_and_shown_from_its_record(tmp_path, place):
    record = tmp_path / "table.json"
    assert "Holdfast" in run(record, *PIECE)
    cell = json.loads(record.read_text())["cells"]["tensors/save/1/dcp-thread-best"]
    assert (cell["failed"], cell["ours_failed"]) == ("", "")
    ours, peer = cell["rounds_ours_peer"][0]
    assert ours["disk_bytes"] > ours["stall_s"] > 0
    assert peer["durable_s"] > 0
    assert "over_copy_s" in ours
    assert "in the record already" in run(record, *PIECE)
    assert run(record, "--show", "--markdown").count("\n| ") >= 2
    assert not list(place.arena_dir.iterdir())
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".html", ".json", ".log"]


def test_a_way_that_no_state_asked_for_is_measured_with_is_said_to_be_none(tmp_path):
    record = tmp_path / "table.json"
    assert "no state is measured with" in run(record, "--quick", "--state", "fsdp2", "--only", "orbax", code=2)
    assert not record.exists()
