"""Homes, settings and jobs that cannot be: a clear error in time, and nothing saved before is lost."""

import signal

import pytest

from holdfast.errors import (
    ConfigError,
    HoldfastError,
    RunBusyError,
)

torch = pytest.importorskip("torch")

from tests.integration import jobs, processes  # noqa: E402
from tests.integration.refusals import refused  # noqa: E402

import holdfast  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("url", ["ftp://host/run", "fiel:///data/run", "https://x/y"])
def test_an_unknown_scheme(url):
    with refused(ConfigError, url.split(":", maxsplit=1)[0], within_s=20):
        holdfast.Checkpointer(url)


@pytest.mark.parametrize("url", ["file://data/run7", "file:/data/run7"])
def test_a_file_url_without_three_slashes(url):
    with refused(ConfigError, url, within_s=20) as caught:
        holdfast.Checkpointer(url)
    assert "file:///data/run7" in caught.value.hint


def test_no_url_at_all():
    with refused(ConfigError, "empty", within_s=20):
        holdfast.Checkpointer("")


def test_memory_alone():
    with refused(ConfigError, "memory", within_s=20):
        holdfast.Checkpointer("memory:")


def test_a_parent_directory_that_is_missing(place):
    with refused(ConfigError, place.home / "deeper", within_s=20):
        holdfast.Checkpointer(f"file://{place.home}/deeper/run")
    assert not place.home.exists()


def test_a_home_that_is_a_file(place):
    place.home.write_text("not a directory")
    with refused(HoldfastError, place.home, within_s=20):
        holdfast.Checkpointer(place.url)
    assert place.home.read_text() == "not a directory"


@pytest.mark.parametrize(
    ("name", "value"), [("SLOT_WAIT_S", "soon"), ("ARENA_BUDGET_BYTES", "much"), ("AGENT_NICE", "abc")]
)
def test_a_setting_that_means_nothing(place, monkeypatch, name, value):
    monkeypatch.setenv(f"HOLDFAST_{name}", value)
    with refused(ConfigError, f"HOLDFAST_{name}", value, within_s=20):
        holdfast.Checkpointer(place.url)


def test_a_cadence_that_means_nothing(place):
    with refused(ConfigError, "every_steps"):
        holdfast.Checkpointer(place.url, every_steps=0)


def test_a_second_job_is_refused_while_the_first_lives_and_welcome_after(place, forker, monkeypatch):
    monkeypatch.setenv("HOLDFAST_BUSY_WAIT_S", "0.3")
    job = processes.start(forker, 1, jobs.hold, place.url, step=3)
    assert job.hear(0) is None
    with refused(RunBusyError, job.pid(0), within_s=20):
        holdfast.Checkpointer(place.url)
    job.signal(0, signal.SIGKILL)
    assert job.results()[0].exit_code == -signal.SIGKILL
    monkeypatch.setenv("HOLDFAST_BUSY_WAIT_S", "15")
    state = {"x": torch.zeros(1000), "step": 0}
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(state) == 3
    assert (state["x"] == 3).all()
