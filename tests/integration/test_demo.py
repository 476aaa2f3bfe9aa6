"""The main job on real processes, shortened: train, kill, come back, compare."""

import json
from pathlib import Path

import pytest

from holdfast.cli import main
from holdfast.demo.script import LEAST_STEPS

pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.mark.timeout(300)
def test_a_killed_run_has_the_losses_of_an_undisturbed_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    code = main(["demo", "--json", f"--steps={LEAST_STEPS}", "--out=here"])  # relative, as a person says it
    told = json.loads(capsys.readouterr().out)
    assert (code, told["surprises"]) == (0, [])
    assert told["equal"]
    assert told["weights_equal"]
    assert told["compared"] >= 2 * LEAST_STEPS
    kills = {kill["scene"]: kill for kill in told["kills"]}
    assert [kill["source"] for kill in kills.values()] == ["memory", "memory", "disk"]
    assert kills["mid flush"]["unfinished_on_disk"]
    assert kills["node lost"]["lost_steps"] > 0
    assert all(kill["loaded_bytes"] > 2**20 for kill in kills.values())
    assert told["stall_s"]["count"] > 0
    assert Path(told["page"]).read_text().startswith("<!doctype html>")
    assert [path.name for path in Path("here").iterdir()] == ["holdfast-demo.html"]
    assert not list(temporary.glob("torchelastic_*"))
