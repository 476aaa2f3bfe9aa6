"""A holdfast.toml where a command takes a URL, and `doctor --settings`."""

import json

import pytest

from holdfast.cli import main

TOML = """
run = "seven"
idle_s = "20 min"
[[tiers]]
url = "runs/x"
name = "disk"
every_steps = 100
"""


@pytest.fixture
def toml(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", str(tmp_path / "shm"))
    path = tmp_path / "holdfast.toml"
    path.write_text(TOML)
    return path


def test_every_setting_is_shown_with_its_source(toml, capsys):
    assert main(["doctor", str(toml), "--settings", "--json"]) == 0
    rows = {r["name"]: (r["value"], r["source"]) for r in json.loads(capsys.readouterr().out)["settings"]}
    assert rows["run"] == ("seven", f"{toml}:2")
    assert rows["idle_s"] == (1200, f"{toml}:3")
    assert rows["arena_dir"] == (str(toml.parent / "shm"), "environment HOLDFAST_ARENA_DIR")
    assert rows["grace_s"] == (25, "default")
    assert rows["tiers.disk.every_steps"] == (100, f"{toml}:7")
    assert rows["tiers.disk.url"] == (f"file://{toml.parent}/runs/x", f"{toml}:5")
    assert main(["doctor", str(toml), "--settings"]) == 0
    assert "tiers.disk.keep_last" in capsys.readouterr().out


def test_without_a_run_only_settings_of_no_run_are_shown(capsys):
    assert main(["doctor", "--settings", "--json"]) == 0
    names = [r["name"] for r in json.loads(capsys.readouterr().out)["settings"]]
    assert "idle_s" in names
    assert not [n for n in names if n == "run" or n.startswith("tiers.")]


def test_a_file_stands_for_the_home_it_names(toml, capsys):
    assert main(["ls", str(toml)]) == 31
    assert f"nothing is at file://{toml.parent}/runs/x" in capsys.readouterr().err
    (toml.parent / "runs" / "x").mkdir(parents=True)
    assert main(["ls", str(toml), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["url"] == f"file://{toml.parent}/runs/x"


def test_what_is_wrong_in_a_file_is_said_by_line(toml, capsys):
    toml.write_text(TOML + "keep_lst = 3")
    assert main(["ls", str(toml)]) == 3
    assert f"{toml}:8: 'keep_lst' is no name" in capsys.readouterr().err
