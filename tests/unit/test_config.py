"""Configuration: what a URL means, precedence with provenance, and every refusal."""

from __future__ import annotations

import os

import pytest

from holdfast.config import Config, TierConfig, arena_directory, normalise_url
from holdfast.errors import ConfigError
from holdfast.model.place import Scope


def test_a_bare_url_means_memory_newest_two_and_that_url() -> None:
    settings = Config.from_url("file:///data/run7", every_steps=100, keep_last=3).resolve({})
    memory, posix = settings.tiers
    assert (memory.name, memory.every_steps, memory.keep_last, memory.scope) == ("memory", 100, 2, Scope.NODE)
    assert (posix.name, posix.every_steps, posix.keep_last, posix.scope) == ("posix", 100, 3, Scope.SHARED)
    assert settings.run == "run7"
    assert settings.home == "file:///data/run7"
    assert settings.slots_per_rank == 4


def test_argument_goes_before_environment_before_default_and_each_says_so() -> None:
    environ = {"HOLDFAST_SLOT_WAIT_S": "250 ms", "HOLDFAST_ARENA_BUDGET_BYTES": "4 GiB"}
    config = Config(tiers=(TierConfig("/data/r"),), slot_wait_s=7)
    settings = config.resolve(environ)
    assert (settings.slot_wait_s, settings.sources["slot_wait_s"]) == (7.0, "argument")
    assert settings.arena_budget_bytes == 4 << 30
    assert settings.sources["arena_budget_bytes"] == "environment HOLDFAST_ARENA_BUDGET_BYTES"
    assert settings.sources["idle_s"] == "default"


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("/data/run 7", "file:///data/run%207"),
        ("file:///data/läuft", "file:///data/l%C3%A4uft"),
        ("file:///data/run%207/", "file:///data/run%207"),
        ("memory:", "memory:"),
        ("s3://bucket/run/", "s3://bucket/run"),
    ],
)
def test_urls_are_normalised(url: str, normal: str) -> None:
    assert normalise_url(url) == normal


def test_a_relative_path_is_made_absolute() -> None:
    assert normalise_url("runs/a") == "file://" + os.path.abspath("runs/a")


@pytest.mark.parametrize("url", ["gopher://x/y", "htp://a"])
def test_an_unknown_scheme_is_refused_with_what_works(url: str) -> None:
    with pytest.raises(ConfigError, match="file:///path or a plain path") as caught:
        normalise_url(url)
    assert "s3:" not in caught.value.hint


def test_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="the URL is empty"):
        normalise_url("")


@pytest.mark.parametrize(
    "url", ["file://data/run7", "file:/data/run7", "file:data/run7", "FILE:/data/run7", "file://", "file:", "file://h"]
)
def test_a_file_url_without_three_slashes_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="write three slashes: file:///data/run7"):
        normalise_url(url)


@pytest.mark.parametrize("url", ["file://localhost/data/run7", "FILE:///data/run7"])
def test_a_file_url_may_name_this_host(url: str) -> None:
    assert normalise_url(url) == "file:///data/run7"


def test_what_looks_like_a_query_is_part_of_the_path() -> None:
    assert normalise_url("file:///data/run?7#b") == "file:///data/run%3F7%23b"


@pytest.mark.parametrize(
    ("tiers", "what"),
    [
        ((TierConfig("memory:"),), "outlives the node"),
        ((TierConfig("/a", every_steps=0),), "every_steps=0"),
        ((TierConfig("/a", keep_last=0),), "keep_last=0"),
        ((TierConfig("/a", keep_every_steps=-5),), "keep_every_steps=-5"),
        ((TierConfig("/a", scope="planet"),), "planet"),
        ((TierConfig("/a", name="durable"),), "a meaning of its own"),
        ((TierConfig("/a/holdfast.toml"),), "a configuration"),
        ((TierConfig("/a", name="x"), TierConfig("/b", name="x")), "is taken"),
        ((TierConfig("memory:"), TierConfig("memory:"), TierConfig("/a")), "two memory tiers"),
    ],
)
def test_contradictions_are_refused(tiers: tuple[TierConfig, ...], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Config(tiers=tiers).resolve({})


def test_two_tiers_of_one_kind_get_names_of_their_own() -> None:
    settings = Config(tiers=(TierConfig("/a"), TierConfig("/b"))).resolve({})
    assert [t.name for t in settings.tiers] == ["posix", "posix-2"]


def test_a_bad_value_says_where_it_came_from() -> None:
    with pytest.raises(ConfigError, match="idle_s='soon' from environment HOLDFAST_IDLE_S"):
        Config(tiers=(TierConfig("/a"),)).resolve({"HOLDFAST_IDLE_S": "soon"})


def test_a_setting_that_is_no_whole_number_says_so() -> None:
    with pytest.raises(ConfigError, match="HOLDFAST_AGENT_NICE: 'abc' is not a whole number") as caught:
        Config(tiers=(TierConfig("/a"),)).resolve({"HOLDFAST_AGENT_NICE": "abc"})
    assert caught.value.hint


def test_the_home_is_the_first_shared_tier(tmp_path):
    tiers = (
        TierConfig("memory:"),
        TierConfig("/mnt/fast/a", scope="node"),
        TierConfig("/data/run7"),
        TierConfig("/far/b"),
    )
    assert Config(tiers=tiers).resolve({}).home == "file:///data/run7"
    assert Config(tiers=tiers).resolve({}).run == "run7"
    assert Config(tiers=tiers[:2]).resolve({}).home == "file:///mnt/fast/a", "one node alone has no other"


def test_the_arena_is_one_directory_per_user_run_and_home() -> None:
    a = arena_directory("/dev/shm", "run7", "file:///x/run7")
    assert a == arena_directory("/dev/shm", "run7", "file:///x/run7")
    assert a != arena_directory("/dev/shm", "run7", "file:///y/run7")
    assert a.parent.name == f"holdfast-{os.getuid()}"
    assert "/" not in arena_directory("/dev/shm", "a/b c", "file:///x").name


def test_an_arena_directory_may_be_relative_or_in_the_home_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    settings = Config.from_url("/data/run7").resolve({"HOLDFAST_ARENA_DIR": "shm"})
    monkeypatch.chdir("/")
    assert settings.arena.parent.parent == tmp_path / "shm", "the agent works in another directory"
    assert arena_directory("~/shm", "run7", "file:///x").parent.parent == tmp_path / "me/shm"
