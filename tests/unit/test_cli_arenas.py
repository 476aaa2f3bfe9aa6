"""Arena directories seen from outside: what is a leftover, what it alone holds, what may be removed."""

import fcntl
import os
from pathlib import Path

import pytest

from holdfast.cli import arenas, main
from holdfast.config import Config, Settings
from holdfast.errors import RunBusyError
from holdfast.model.identity import CheckpointId
from holdfast.wire.mapped import MappedFile
from holdfast.wire.pages import PAGE_BYTES, SlotPage, SlotState, TrainerPage
from holdfast.wire.processes import process_start
from holdfast.wire.spawn import write_config


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Config.from_url(f"{tmp_path}/home").resolve({"HOLDFAST_ARENA_DIR": f"{tmp_path}/shm"})
    settings.arena.mkdir(parents=True)
    write_config(settings.arena, settings)
    return settings


def slot(arena: Path, number: int, *, step: int, rank: int = 0, world: int = 1, committed: int = 0, attempt: int = 1):
    file = MappedFile(arena / f"slot-{number:05d}", 2 * PAGE_BYTES)
    page = SlotPage(file.buffer)
    page.initialise()
    page.attempt, page.step, page.rank, page.image = attempt, step, rank, 0
    page.world_size, page.image_count, page.image_bytes = world, 1, PAGE_BYTES
    page.committed_mask, page.state = committed, SlotState.HELD
    page.release()
    file.close()


def trainer(arena: Path, pid: int) -> None:
    file = MappedFile(arena / "trainer-00000.page", PAGE_BYTES)
    page = TrainerPage(file.buffer)
    page.initialise()
    page.pid, page.start = pid, process_start(pid)
    page.release()
    file.close()


def test_an_arena_without_anybody_is_left_over(settings):
    assert arenas.look(settings.arena).left_over


def test_an_arena_with_a_living_trainer_is_not(settings):
    trainer(settings.arena, os.getpid())
    assert arenas.look(settings.arena).trainers == (os.getpid(),)
    assert not arenas.look(settings.arena).left_over


def test_an_arena_whose_lock_is_held_is_not(settings):
    with (settings.arena / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert arenas.look(settings.arena).alive
    assert not arenas.look(settings.arena).alive


def test_a_whole_step_that_no_tier_has_is_only_here(settings):
    slot(settings.arena, 0, step=10, committed=2)
    slot(settings.arena, 1, step=20)
    slot(settings.arena, 2, step=30, rank=0, world=2)  # rank 1 is missing: not whole
    assert arenas.look(settings.arena).only_here() == [CheckpointId(1, 20)]


def test_files_that_are_no_slots_hold_nothing(settings):
    (settings.arena / "slot-00000").write_bytes(b"short")
    (settings.arena / "slot-00001").write_bytes(bytes(2 * PAGE_BYTES))
    assert arenas.look(settings.arena).images == ()


def test_all_arenas_of_the_user_are_found(settings):
    assert [a.path for a in arenas.arenas(settings.arena_dir)] == [settings.arena]
    assert arenas.arenas("/nowhere") == []


def test_a_run_is_found_by_any_of_its_tiers(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", settings.arena_dir)
    monkeypatch.setenv("HOLDFAST_RUN", "another-name")
    assert arenas.arena_of(f"file://{tmp_path}/home") == settings.arena
    assert arenas.settings_of(f"file://{tmp_path}/home").run == "home"
    assert arenas.arena_of(f"file://{tmp_path}/elsewhere") != settings.arena


def test_no_live_agent_is_none(settings, monkeypatch):
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", settings.arena_dir)
    assert arenas.live_agent(settings.home) is None


def test_a_leftover_arena_is_removed_whole(settings):
    arenas.remove(arenas.look(settings.arena))
    assert not settings.arena.exists()
    assert settings.arena.parent.exists()


def test_nothing_is_removed_under_an_agent_that_just_started(settings):
    found = arenas.look(settings.arena)
    with (settings.arena / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunBusyError):
            arenas.remove(found)
    assert settings.arena.exists()


def test_nothing_is_removed_under_a_trainer_that_just_started(settings):
    found = arenas.look(settings.arena)
    trainer(settings.arena, os.getpid())
    with pytest.raises(RunBusyError):
        arenas.remove(found)
    assert settings.arena.exists()


def test_ls_tells_what_is_left_in_memory_without_an_agent(settings, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", settings.arena_dir)
    (tmp_path / "home").mkdir()
    slot(settings.arena, 0, step=20)
    assert main(["ls", f"{tmp_path}/home"]) == 0
    assert "alone holds step 20 (attempt 1)" in capsys.readouterr().err
