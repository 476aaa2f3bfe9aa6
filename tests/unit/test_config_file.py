"""holdfast.toml: what it says, where each value comes from, and every refusal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from holdfast.config import Config, TierConfig
from holdfast.errors import ConfigError

FULL = """
run = "run7"
slot_wait_s = "250 ms"     # a comment = with an equals sign
arena_budget_bytes = "16 GiB"
on_save_error = 3
agent_cores = "0-3,8"

[[tiers]]
url = "memory:"
every_steps = 10
keep_last = 2

[[tiers]]
url = "runs/run7"
name = "disk"
every_steps = 100
every_s = "15 min"
keep_last = 2
keep_for_s = "1 d"
keep_best = 3
best_metric = "val_loss"
max_bytes_per_s = "500 MB/s"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "holdfast.toml"
    path.write_text(text)
    return path


def test_every_value_knows_where_it_came_from(tmp_path):
    path = written(tmp_path, FULL)
    settings = Config.from_file(path).resolve({"HOLDFAST_GRACE_S": "5", "HOLDFAST_RUN": ""})
    assert (settings.run, settings.sources["run"]) == ("run7", f"{path}:2")
    assert (settings.slot_wait_s, settings.sources["slot_wait_s"]) == (0.25, f"{path}:3")
    assert settings.arena_budget_bytes == 16 << 30
    assert settings.saves_to_fail == 3
    assert (settings.grace_s, settings.sources["grace_s"]) == (5.0, "environment HOLDFAST_GRACE_S")
    assert settings.sources["idle_s"] == "default"
    memory, disk = settings.tiers
    assert (memory.name, memory.every_steps, memory.every_s, memory.keep_last) == ("memory", 10, None, 2)
    assert disk.url == f"file://{tmp_path}/runs/run7", "a relative path is meant from where the file stands"
    assert (disk.every_steps, disk.every_s, disk.keep_for_s) == (100, 900.0, 86400.0)
    assert (disk.keep.best, disk.keep.metric, disk.keep.mode) == (3, "val_loss", "min")
    assert disk.max_bytes_per_s == 500_000_000
    assert settings.sources["tiers.disk.every_s"] == f"{path}:17"
    assert settings.sources["tiers.disk.keep_every_steps"] == "default"
    told = {name: (value, source) for name, value, source in settings.table()}
    assert told["tiers.disk.keep_best"] == (3, f"{path}:20")
    assert told["run"] == ("run7", f"{path}:2")


def test_environment_goes_before_the_file_and_an_argument_before_both(tmp_path):
    path = written(tmp_path, FULL)
    environ = {"HOLDFAST_SLOT_WAIT_S": "9", "HOLDFAST_RUN": "run8"}
    config = Config.from_file(path)
    settings = config.resolve(environ)
    assert (settings.slot_wait_s, settings.run) == (9.0, "run8")
    settings = dataclasses.replace(config, slot_wait_s=7, run="run9").resolve(environ)
    assert (settings.slot_wait_s, settings.sources["slot_wait_s"]) == (7.0, "argument")
    assert (settings.run, settings.sources["run"]) == ("run9", "argument")


def test_a_tier_replaced_in_python_is_an_argument(tmp_path):
    config = Config.from_file(written(tmp_path, FULL))
    memory, disk = config.tiers
    changed = dataclasses.replace(config, tiers=(memory, dataclasses.replace(disk, keep_last=9)))
    sources = changed.resolve({}).sources
    assert sources["tiers.disk.keep_last"] == "argument"
    assert sources["tiers.disk.keep_best"].endswith(":20")


def test_by_time_alone_means_not_by_steps():
    settings = Config(tiers=(TierConfig("/a", every_s=60), TierConfig("/b"))).resolve({})
    assert [(r.every_steps, r.every_s) for r in settings.tiers] == [(None, 60.0), (1, None)]


TIER = '[[tiers]]\nurl = "/a"\n'


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("", "holdfast.toml names no tiers", "[[tiers]]"),
        ("tiers = 3", "names no tiers", "tiers"),
        ('[tiers]\nurl = "/a"', "names no tiers", "[[tiers]]"),
        ("[[tiers]]\nkeep_last = 3", "toml:1: tier 1 has no url", "url ="),
        (TIER + "every_step = 3", "toml:3: 'every_step' is no name of a setting of a tier", "did you mean every_steps"),
        ("slot_wait = 3\n" + TIER, "toml:1: 'slot_wait' is no name of a setting", "did you mean slot_wait_s"),
        ("sources = {}\n" + TIER, "'sources' is no name", "known are"),
        ("[agent]\nnice = 3\n" + TIER, "toml:1: 'agent' is no name of a setting", "agent_nice"),
        ("idle_s = 3\nidle_s = 4\n" + TIER, "is not TOML", "once"),
        ("idle_s = \n" + TIER, "is not TOML", "quotes"),
        ("a" * 5 + "[" * 5000 + TIER, "is not TOML", ""),
        (TIER + 'every_steps = "ten"', "every_steps='ten' of tier posix from .*toml:3", "whole number"),
        (TIER + "every_steps = 10.5", "every_steps=10.5 of tier posix from .*toml:3", "whole number"),
        (TIER + "every_steps = true", "every_steps=True", "whole number"),
        (TIER + "every_s = 0", "every_s=0 of tier posix", "15 min"),
        (TIER + "every_s = nan", "every_s=nan", "duration"),
        (TIER + 'keep_for_s = "a while"', "keep_for_s='a while'", "15 min"),
        (TIER + "name = 3", "name=3 of tier 1", "quotes"),
        (TIER + "keep_best = 3", "only one of keep_best and best_metric", "set both"),
        (TIER + 'keep_best = 3\nbest_metric = "a"\nbest_mode = "less"', "best_mode='less'", "max"),
        (TIER + "max_bytes_per_s = 0", "max_bytes_per_s=0", "500 MB/s"),
        ("idle_s = []\n" + TIER, r"idle_s=\[\] from .*toml:1", "15 min"),
        ("idle_s = -3\n" + TIER, "idle_s=-3 from .*toml:1", "not negative"),
        ("idle_s = inf\n" + TIER, "idle_s=inf", "finite"),
        (f"idle_s = {'9' * 400}\n" + TIER, "is not a duration", "finite"),
        (f"idle_s = -{'9' * 400}\n" + TIER, "is not a duration", "not negative"),
        (f"idle_s = '{'9' * 400}'\n" + TIER, "is not a duration", "write for example"),
        (f"arena_budget_bytes = {'9' * 400}\n" + TIER, "is too large", "8 EiB"),
        (f"arena_budget_bytes = '{'9' * 400} GiB'\n" + TIER, "is not a size", "write for example"),
        ("arena_budget_bytes = '8388608 TiB'\n" + TIER, "is too large", "8 EiB"),
        ("arena_budget_bytes = 1979-05-27\n" + TIER, "arena_budget_bytes=", "16 GiB"),
        ("on_save_error = 0\n" + TIER, "on_save_error=0 from .*toml:1", '"raise"'),
        ('on_save_error = "panic"\n' + TIER, "on_save_error='panic'", '"raise"'),
        ('agent_cores = "3-1"\n' + TIER, "lists no cores", "0-3,8"),
        ("agent_nice = 33\n" + TIER, "33 is no niceness", "-20"),
        ("run = 3\n" + TIER, "run=3 from .*toml:1", "quotes"),
        ("arena_dir = 3\n" + TIER, "arena_dir=3", "quotes"),
        (TIER + TIER, "two tiers have the URL", "of its own"),
        ('[[tiers]]\nurl = "memory:"\nkeep_for_s = 60\n' + TIER, "memory keeps by keep_last alone", "outlive"),
        ('[[tiers]]\nurl = "memory:"\nkeep_every_steps = 9\n' + TIER, "memory keeps by keep_last alone", "outlive"),
        ("tiers = [3]", "names no tiers", "tiers"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, text, what, hint):
    with pytest.raises(ConfigError, match=what) as caught:
        Config.from_file(written(tmp_path, text))
    assert caught.value.hint
    assert hint in caught.value.hint


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml cannot be read: No such file"):
        Config.from_file(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        Config.from_file(tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b'run = "\xff"')
    with pytest.raises(ConfigError, match="not UTF-8 text: byte 7"):
        Config.from_file(binary)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="2097152 bytes"):
        Config.from_file(large)


def test_tiers_written_inline_are_named_without_a_line(tmp_path):
    path = written(tmp_path, 'tiers = [{url = "/a", keep_last = 2}]')
    assert Config.from_file(path).resolve({}).sources["tiers.posix.keep_last"] == str(path)
