"""A bad copy on one tier is found, another one used, and the bad one re-made: by a load, a flush, or a person."""

import pytest

torch = pytest.importorskip("torch")

from tests.fault.inject.faults import AGENT, Fault  # noqa: E402
from tests.integration import processes  # noqa: E402
from tests.integration.place import Place, due, until  # noqa: E402

import holdfast  # noqa: E402
from holdfast.errors import HoldfastError, TierUnavailableError  # noqa: E402
from holdfast.trainer import direct  # noqa: E402

pytestmark = pytest.mark.torch

N = 200_000


def filled(value):
    return {"x": torch.full((N,), float(value)), "step": value}


@pytest.fixture
def far(place):
    return Place(place.home.parent / "far", place.arena_dir)


@pytest.fixture
def config(place, far):
    """Memory, the home near by, and a second copy of every step."""
    return holdfast.Config(
        tiers=(
            holdfast.TierConfig("memory:", keep_last=2),
            holdfast.TierConfig(place.url, name="near"),
            holdfast.TierConfig(far.url, name="far"),
        )
    )


def save_steps(config, *steps):
    with holdfast.Checkpointer(config) as ckpt:
        ckpt.load(filled(0))
        for step in steps:
            saved = due(ckpt.save(step, filled(step)))
            for tier in ("near", "far"):
                saved.wait(tier, timeout_s=30)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def repaired(place):
    return {t["name"]: t["repaired"] for t in place.status()["tiers"]}


def test_a_load_takes_the_other_copy_and_the_bad_one_is_re_made(place, far, config):
    save_steps(config, 1, 2)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    [image], [good] = place.images(1, 2), far.images(1, 2)
    flip(image)
    state = filled(-1)
    with holdfast.Checkpointer(config) as ckpt:
        assert ckpt.load(state) == 2
        assert (state["x"] == 2).all()
        until(lambda: repaired(place) == {"near": 1, "far": 0}, "the bad copy is re-made")
        assert image.read_bytes() == good.read_bytes()
        assert not list((place.home / "quarantine").rglob("*.safetensors"))
        with pytest.warns(RuntimeWarning, match="near"):  # that it was bad is told
            due(ckpt.save(3, filled(3))).wait("near", timeout_s=30)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(state, step=2) == 2


def test_missing_images_and_bad_manifests_are_re_made_too(place, far, config):
    save_steps(config, 1, 2)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    [image] = place.images(1, 2)
    for path, good in ((image, far.images(1, 2)[0]), (place.manifest(1, 2), far.manifest(1, 2))):
        path.unlink() if path is image else path.write_bytes(b"noise")
        with holdfast.Checkpointer(config) as ckpt:
            assert ckpt.load(filled(-1)) == 2
            until(lambda: repaired(place)["near"] == 1, "it is re-made")
        assert path.read_bytes() == good.read_bytes()
        until(lambda: not processes.agents(place.arena_dir), "memory is freed")


def test_a_repair_that_fails_is_reported_and_training_goes_on(place, far, config, mounts):
    small = Place(mounts.tmpfs("8m") / "run", place.arena_dir)
    config = holdfast.Config(
        tiers=(config.tiers[0], holdfast.TierConfig(small.url, name="near"), holdfast.TierConfig(far.url, name="far"))
    )
    save_steps(config, 1, 2)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    [image] = small.images(1, 2)
    flip(image)
    with holdfast.Checkpointer(config) as ckpt:
        filler = mounts.fill(small.home.parent)
        state = filled(-1)
        assert ckpt.load(state) == 2
        agent = Place(small.home, place.arena_dir)
        until(lambda: any(e["kind"] == "tier-full" for e in agent.status()["last_errors"]), "the repair has failed")
        assert repaired(agent)["near"] == 0
        filler.unlink()
        assert ckpt.load(state) == 2
        with pytest.warns(RuntimeWarning):
            due(ckpt.save(3, filled(3))).wait("near", timeout_s=30)
    with pytest.raises(HoldfastError), holdfast.Checkpointer(small.url) as alone:
        alone.load(state, step=2)


def test_a_disk_that_cannot_be_read_is_no_bad_copy(place, config, inject, monkeypatch):
    """EIO says nothing of the bytes: the other copy is used, and nothing is written over."""

    def unreadable(url, **options):
        raise TierUnavailableError("Input/output error", tier=options["name"])

    monkeypatch.setattr(direct, "open_tier", unreadable)  # for this process; the agent gets real errors
    save_steps(config, 1, 2)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    fault = Fault(AGENT, "os:preadv", do="fail", arg="EIO", below=str(place.home / "images"))
    fired = inject(fault)
    state = filled(-1)
    with holdfast.Checkpointer(config) as ckpt:
        assert ckpt.load(state) == 2
        assert (state["x"] == 2).all()
        assert str(fault) in fired()
        assert [e["kind"] for e in place.status()["last_errors"]] == ["tier-unavailable"]
        assert repaired(place) == {"near": 0, "far": 0}
    assert not (place.home / "quarantine").exists()


def test_a_person_has_it_re_made_from_memory(place, config, run):
    """Through the live agent: its memory has the step, no other tier is asked."""
    home_only = holdfast.Config(tiers=config.tiers[:2])
    with holdfast.Checkpointer(home_only) as ckpt:
        ckpt.load(filled(0))
        due(ckpt.save(1, filled(1))).wait("near", timeout_s=30)
        [image] = place.images(1, 1)
        good = image.read_bytes()
        flip(image)
        code, document = run("verify", place.url, "--repair")
        assert (code, document["ok"], document["dry_run"]) == (40, False, True)
        assert "live agent" in document["repairs"][0]["from"]
        assert image.read_bytes() != good
        code, document = run("verify", place.url, "--repair", "--yes")
        assert (code, document["ok"]) == (0, True)
        assert [(r["step"], r["rank"], r["from"], r["done"]) for r in document["repairs"]] == [(1, 0, "memory", True)]
        assert image.read_bytes() == good
        assert repaired(place) == {"near": 1}


def test_a_person_has_it_re_made_without_an_agent(place, far, config, run):
    save_steps(config, 1, 2)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    [image] = place.images(1, 2)
    good, manifest = image.read_bytes(), place.manifest(1, 2).read_bytes()
    flip(image)
    code, document = run("verify", place.url, "--repair", "--yes")
    assert (code, document["repairs"][0]["error"]["kind"]) == (40, "corrupt"), "nobody said where else to look"
    assert "--from" in document["repairs"][0]["error"]["hint"]
    code, document = run("verify", place.url, "--repair", "--from", far.url)
    assert (code, document["repairs"][0]["done"]) == (40, False)
    place.manifest(1, 2).write_bytes(b"noise")
    code, document = run("verify", place.url, "--all", "--repair", "--from", far.url, "--yes")
    assert (code, document["ok"]) == (0, True)
    assert [r["image"] for r in document["repairs"]] == [None, 0], "the manifest told of the image"
    assert (image.read_bytes(), place.manifest(1, 2).read_bytes()) == (good, manifest)
    assert run("verify", place.url)[0] == 0
    assert run("verify", place.url, "--from", far.url)[0] == 2
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(filled(-1)) == 2


def test_a_flush_over_a_damaged_copy_re_makes_it(place, config, far):
    """The step is in memory and not due again; the end promotes the newest one, whose copy there is bad by then."""
    home_only = holdfast.Config(tiers=(config.tiers[0], holdfast.TierConfig(place.url, name="near", every_steps=10)))
    with holdfast.Checkpointer(home_only) as ckpt:
        ckpt.load(filled(0))
        due(ckpt.save(11, filled(11))).wait("memory", timeout_s=30)
        [planted] = [place.home / "images/00000001/000000000011"]
        planted.mkdir(parents=True)
        (planted / "00000-0.safetensors").write_bytes(b"what a sick disk left")
    state = filled(-1)
    until(lambda: not processes.agents(place.arena_dir), "memory is freed")
    with holdfast.Checkpointer(home_only) as ckpt:
        assert ckpt.load(state) == 11
    assert (state["x"] == 11).all()
