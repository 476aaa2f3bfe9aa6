"""`import` and `export`: checkpoints of others come in and go out, through the commands."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.import_fixtures import write_safetensors

from holdfast.cli import main
from holdfast.errors import ConfigError, NotFoundError, RunBusyError, StepExistsError, UnsupportedValueError, UsageError

TENSORS = {"embed.weight": np.arange(12, dtype=np.float32).reshape(4, 3), "head.bias": np.arange(3)}
MIB = 2**20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "model-100.safetensors", TENSORS, format="pt")


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "shm").mkdir()
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", f"{tmp_path}/shm")
    return tmp_path / "run7"


def test_a_file_becomes_a_checkpoint_of_a_new_run(home, source, run):
    code, document = run("import", source, home, "--under", "model")
    assert code == 0
    assert document == {
        "url": f"file://{home}",
        "run": "run7",
        "attempt": 1,
        "step": 100,
        "parent": None,
        "source": str(source),
        "kind": "safetensors",
        "tensors": 2,
        "images": 1,
        "size_bytes": document["size_bytes"],
        "left_out": [],
    }
    assert run("verify", home)[1]["ok"]
    [step] = run("ls", home)[1]["steps"]
    assert (step["step"], step["state"], step["newest"], step["saved_at_s"] is not None) == (
        100,
        "loadable",
        True,
        True,
    )
    shown = run("show", home)[1]
    assert [t["name"] for t in shown["tensors"]] == ["model.embed.weight", "model.head.bias"]
    assert shown["size_bytes"] == document["size_bytes"]


def test_a_second_import_stands_on_the_first(home, source, run):
    assert run("import", source, home)[0] == 0
    assert run("import", source, home)[0] == StepExistsError.exit_code
    assert run("import", source, home, "--step", 99)[0] == UsageError.exit_code
    code, document = run("import", source, home, "--step", 101, "--without", "head")
    assert (code, document["attempt"], document["parent"]) == (0, 2, {"attempt": 1, "step": 100})
    assert document["left_out"] == ["head.bias"]


def test_for_a_person(home, source, capsys):
    assert main(["import", str(source), str(home), "--without", "head.bias"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith("step 100 (attempt 1) of run7: 1 tensor, 1 image, ")
    assert "left out: head.bias" in captured.out
    assert captured.err == ""
    assert main(["export", str(home), str(home.parent / "x.pt"), "--as", "torch"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"step 100 (attempt 1) of run7 -> {home.parent}/x.pt: 1 tensor, 1 file, ")


@pytest.mark.parametrize(("name", "step"), [("step_7", 7), ("ckpt-0012", 12), ("plain", 0), ("v1.5", 0)])
def test_the_step_is_the_number_at_the_end_of_the_name(home, tmp_path, run, name, step):
    folder = tmp_path / name
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", TENSORS)
    assert run("import", f"{folder}/", home)[1]["step"] == step


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["nowhere"], NotFoundError),
        (["model-100.safetensors", "--without", "nothing"], UsageError),
        (["model-100.safetensors", "--under", ""], UsageError),
        (["model-100.safetensors", "--step", "1000000000000"], UsageError),
        (["model-100.safetensors", "--under", "__holdfast__.x"], UsageError),
    ],
)
def test_what_is_refused_leaves_no_run(home, source, run, tmp_path, args, error):
    code, document = run("import", tmp_path / args[0], home, *args[1:])
    assert (code, document["kind"]) == (error.exit_code, error.kind)
    assert not (home / "images").exists()
    assert not (home / "attempts").exists()


def test_a_home_without_a_parent_is_a_config_error(home, source, run):
    assert run("import", source, home / "no/such")[0] == ConfigError.exit_code


def test_what_is_no_source_is_told_by_its_kind(home, tmp_path, run):
    (tmp_path / "x.pt").write_bytes(b"")
    assert run("import", tmp_path / "x.pt", home)[0] == UsageError.exit_code
    (tmp_path / "old.pt").write_bytes(b"\x80\x02cposix\nsystem\n.")
    assert run("import", tmp_path / "old.pt", home)[0] == UnsupportedValueError.exit_code


def test_neither_imports_torch(home, source, tmp_path):
    program = (
        "import sys; from holdfast.cli import main\n"
        f"assert main(['import', {str(source)!r}, {str(home)!r}]) == 0\n"
        f"assert main(['export', {str(home)!r}, {str(tmp_path / 'x.pt')!r}, '--as', 'torch']) == 0\n"
        f"assert main(['export', {str(home)!r}, {str(tmp_path / 'out')!r}, '--as', 'safetensors']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_memory_is_bounded(home, tmp_path):
    """A large file through both commands, by processes that say how much memory they had."""
    path = tmp_path / "big.safetensors"
    size = 384 * MIB
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    program = (
        "import sys; from holdfast.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(open('/proc/self/status').read())"
    )
    for args in (
        ["import", str(path), str(home)],
        ["export", str(home), str(tmp_path / "x.pt"), "--as", "torch"],
        ["export", str(home), str(tmp_path / "out"), "--as", "safetensors"],
    ):
        done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        [most] = re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)
        assert int(most) * 1024 < 320 * MIB


def test_exports_and_their_documents(home, source, run, tmp_path):
    run("import", source, home, "--under", "model")
    code, document = run("export", home, tmp_path / "out", "--as", "safetensors", "--only", "model")
    assert code == 0
    file = tmp_path / "out/model.safetensors"
    assert document == {
        "url": f"file://{home}",
        "run": "run7",
        "attempt": 1,
        "step": 100,
        "dest": str(tmp_path / "out"),
        "as": "safetensors",
        "tensors": 2,
        "ties": [],
        "files": [{"path": str(file), "size_bytes": file.stat().st_size}],
        "size_bytes": file.stat().st_size,
        "left_out": [],
    }
    assert run("export", home, tmp_path / "out", "--as", "safetensors")[0] == UsageError.exit_code
    assert run("export", home, tmp_path / "x", "--as", "torch", "--only", "nothing")[0] == NotFoundError.exit_code
    assert run("export", home, tmp_path / "x", "--as", "torch", "--step", 5)[0] == NotFoundError.exit_code
    assert run("export", home, tmp_path / "x", "--as", "onnx")[0] == UsageError.exit_code
    assert run("export", tmp_path / "none", tmp_path / "x", "--as", "torch")[0] == NotFoundError.exit_code
    assert not (tmp_path / "x").exists()


@pytest.mark.torch
def test_a_run_goes_on_from_what_was_imported(place, tmp_path, run):
    torch = pytest.importorskip("torch")
    import holdfast

    torch.manual_seed(0)
    weights = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)).state_dict()
    torch.save({"model": weights, "epoch": 3}, tmp_path / "step_50.pt")
    assert run("import", tmp_path / "step_50.pt", place.home)[0] == 0
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    state = {"model": model, "epoch": 0}
    with holdfast.Checkpointer(place.url) as ckpt:
        assert ckpt.load(state) == 50
        assert state["epoch"] == 3
        assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
        state["epoch"] = 4
        handed = ckpt.save(51, state)
        assert handed is not None
        handed.wait()
        code, document = run("import", tmp_path / "step_50.pt", place.home, "--step", 60)
        assert (code, document["kind"]) == (RunBusyError.exit_code, "run-busy")
    assert place.committed() == [(1, 50), (2, 51)]
    assert run("export", place.home, tmp_path / "out.pt", "--as", "torch")[0] == 0
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["epoch"] == 4
    assert all(torch.equal(t, weights[name]) for name, t in found["model"].items())


@pytest.mark.torch
def test_a_folder_of_dcp_in_and_out(home, tmp_path, run):
    torch = pytest.importorskip("torch")
    import warnings

    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    model = {f"w{n}": torch.randn(5, 4) for n in range(9)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({"model": model, "epoch": 3}, checkpoint_id=tmp_path / "step_100")
    code, document = run("import", tmp_path / "step_100", home)
    assert (code, document["kind"], document["tensors"], document["step"]) == (0, "dcp", 9, 100)
    code, document = run("export", home, tmp_path / "again", "--as", "dcp")
    assert code == 0
    assert {Path(f["path"]).name for f in document["files"]} == {".metadata", "__0_0.distcp"}
    back: dict[str, Any] = {"model": {f"w{n}": torch.zeros(5, 4) for n in range(9)}, "epoch": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(back, checkpoint_id=tmp_path / "again")
    assert back["epoch"] == 3
    assert all(torch.equal(back["model"][name], t) for name, t in model.items())


@pytest.mark.torch
def test_what_the_library_wrote_comes_in(home, tmp_path, run):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    import holdfast

    tensors = {"a": torch.randn(3, 4).to(torch.bfloat16), "b": torch.tensor([True]), "c": torch.tensor(5)}
    safetensors.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert run("import", tmp_path / "x.safetensors", home, "--under", "model")[0] == 0
    for name, tensor in tensors.items():
        assert torch.equal(holdfast.read(f"file://{home}", f"model.{name}"), tensor)
