"""FSDP2, HSDP, tensor parallelism: killed, started again, losses bit for bit; each byte once in the images."""

import itertools
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch.distributed.fsdp", reason="torch has no fully_shard").fully_shard  # noqa: B018

from tests.integration import processes, sharded_jobs  # noqa: E402
from tests.integration.test_ranks import written  # noqa: E402

import holdfast  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.timeout(200)]


def killed_and_resumed(place, forker, world_size, build, *, whole):
    """What tensors below `whole` were at the end, put together; all that is to be equal has been compared."""
    first = processes.start(forker, world_size, sharded_jobs.interrupted, place.url, build, save_at=1, steps=3)
    told = [first.hear(rank, within_s=80) for rank in range(world_size)]
    for rank in range(world_size):
        first.signal(rank, signal.SIGKILL)
    first.results()
    second = processes.start(forker, world_size, sharded_jobs.resumed, place.url, build, steps=3, whole=whole).values(
        within_s=80
    )
    for (start, lost, saved, end), (start_2, found, loaded, end_2, _) in zip(told, second, strict=True):
        assert (start, start_2) == (None, 1)
        assert [name for name in saved if saved[name] != loaded[name]] == []
        assert found == lost
        assert [name for name in end if end[name] != end_2[name]] == []
    return second[0][4]


def each_byte_once(place, world_size):
    images = place.images(2, 2)
    assert len(images) == world_size
    for name, grid in written(images).items():
        assert (grid == 1).all(), name
    return images


def test_fsdp2_killed_and_resumed(place, forker):
    together = killed_and_resumed(place, forker, 2, sharded_jobs.on_two, whole="kept")
    images = each_byte_once(place, 2)
    names = set(written(images))
    assert {"kept.embedding.weight", "compiled_optim.state.embedding.weight.exp_avg_sq"} <= names
    assert {"kept.blocks.0.up.weight", "wrapped.blocks.1.up.weight", "offloaded.0.bias", "loose.none"} <= names
    assert not any("_orig_mod" in n or "_checkpoint" in n for n in names)
    assert "kept.head.weight" not in names, "tied tensors stand once"
    sizes = [path.stat().st_size for path in images]
    assert max(sizes) - min(sizes) <= 0.2 * min(sizes), sizes

    # What was saved by two ranks as shards, one process without any mesh takes as whole tensors.
    is_what_torch_puts_together(place, "kept", sharded_jobs.Tied(), together)


def test_hsdp_and_tensor_parallelism_killed_and_resumed(place, forker):
    together = killed_and_resumed(place, forker, 4, sharded_jobs.on_four, whole="both")
    sizes = [path.stat().st_size for path in each_byte_once(place, 4)]
    assert max(sizes) - min(sizes) <= 0.2 * min(sizes), sizes
    for found in processes.start(forker, 2, sharded_jobs.on_another_mesh, place.url).values(80):
        assert found.keys() | {"loose.both", "loose.same"} == together.keys()
        assert [name for name in found if not np.array_equal(found[name], together[name])] == []
    is_what_torch_puts_together(place, "both", sharded_jobs.Feed(10), together)


def test_a_structure_that_changes_is_saved_whole(place, forker):
    for start, before, after in processes.start(forker, 2, sharded_jobs.changing, place.url).values(80):
        assert start == 2
        assert before == after
    assert {(grid == 1).all() for grid in written(place.images(1, 1)).values()} == {True}
    assert {(grid >= 1).all() for grid in written(place.images(1, 2)).values()} == {True}


def test_frozen_shards_stand_in_an_image_that_steps_share(place, forker):
    for start, before, after in processes.start(forker, 2, sharded_jobs.with_frozen_shards, place.url).values(80):
        assert start == 3
        assert before == after
    assert [len(place.images(1, step)) for step in range(4)] == [4, 2, 4, 2]


def is_what_torch_puts_together(place, name, model, together):
    """Load into a plain model, optimizer and tensors, in one process without any mesh; and read one without a state."""
    state = sharded_jobs.with_optimizers({"kept" if name == "kept" else "hsdp": model, name: model})
    state = {key: x for key, x in state.items() if key.startswith(name)}
    state["loose"] = {n.removeprefix("loose."): torch.zeros(t.shape) for n, t in together.items() if "loose." in n}
    with holdfast.Checkpointer(place.url) as ckpt, pytest.warns(RuntimeWarning, match="only in the checkpoint"):
        assert ckpt.load(state, strict=False) == 2
    found = sharded_jobs.together(state, name)
    assert found.keys() == together.keys()
    for key, tensor in found.items():
        assert np.array_equal(tensor, together[key]), key
    one = next(key for key in together if key.endswith("up.weight"))
    assert np.array_equal(holdfast.read(place.url, one).numpy(), together[one])


REFUSED = [
    ("partial", "unsupported-value", ["'net.w'", "Partial", "redistribute"]),
    ("own", "unsupported-value", ["'mine.w'", "per_rank", "to_local"]),
    ("uneven", "unsupported-value", ["'w'", "local shard of shape", "distribute_tensor"]),
    ("shape", "replica-mismatch", ["'w'", "[4] on rank 0", "[6] on rank 1"]),
    ("fsdp1", "unsupported-value", ["'model'", "FullyShardedDataParallel", "fully_shard"]),
    ("bytes", "replica-mismatch", ["'net.w'"]),
    ("group", "replica-mismatch", ["'w'", "no rank holds element", "group="]),
]


def test_what_is_no_sharded_tensor_is_refused_by_name(place, forker):
    refusals = processes.start(forker, 2, sharded_jobs.refused, place.url).values()
    assert [set(of_rank) for of_rank in refusals] == [{case[0] for case in REFUSED}] * 2
    for of_rank, (state, kind, words) in itertools.product(refusals, REFUSED):
        found_kind, message, hint = of_rank[state]
        assert found_kind == kind, message
        assert [word for word in words if word not in message + hint] == [], message + hint
