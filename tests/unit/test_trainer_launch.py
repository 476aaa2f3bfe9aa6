"""What is looked at before a launch begins."""

import dataclasses

import pytest

pytest.importorskip("torch")

from holdfast.config import Config
from holdfast.errors import ConfigError, UsageError
from holdfast.trainer.launch import Node, check_one_node, check_tiers, this_node

HERE = Node("one", "b1", "/dev/shm/holdfast-0/run", 7)


def test_one_node_is_fine():
    check_one_node([HERE])
    check_one_node([HERE] * 8)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"host": "two", "boot_id": "b2"}, "another node or in another container (two)"),
        ({"device": 8}, "another container"),
        ({"arena": "/scratch/run"}, "/scratch/run"),
    ],
)
def test_ranks_elsewhere_are_named(other, says):
    there = dataclasses.replace(HERE, **other)
    with pytest.raises(UsageError) as caught:
        check_one_node([HERE, HERE, there, there])
    assert "rank 2, 3" in caught.value.message
    assert says in caught.value.message
    assert caught.value.hint


def test_a_node_is_known_before_its_arena_is_made(tmp_path):
    config = Config.from_url(str(tmp_path / "run")).resolve({"HOLDFAST_ARENA_DIR": str(tmp_path / "not" / "there")})
    assert this_node(config).device == tmp_path.stat().st_dev


def test_a_tier_in_the_arena_is_refused(tmp_path):
    settings = Config.from_url(str(tmp_path / "run")).resolve({"HOLDFAST_ARENA_DIR": str(tmp_path)})
    inside = dataclasses.replace(settings.tiers[1], url=f"file://{settings.arena}/run")
    with pytest.raises(ConfigError, match="arena"):
        check_tiers(dataclasses.replace(settings, tiers=(settings.tiers[0], inside)))
