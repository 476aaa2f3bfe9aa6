"""The house as a whole: what importing it costs, and what a package must carry."""

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

TORCH_ROOMS = {"trainer", "dcp", "demo", "integrations"}


def torch_free_modules() -> list[str]:
    root = Path(str(resources.files("holdfast")))
    names = [path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py")]
    return sorted(
        ".".join(("holdfast", *parts)).removesuffix(".__init__")
        for parts in names
        if parts[0] not in TORCH_ROOMS and parts[-1] != "__main__"
    )


def test_importing_every_other_room_does_not_import_torch():
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\n"
    code += "raise SystemExit('torch was imported' if 'torch' in sys.modules else 0)"
    run = subprocess.run(
        [sys.executable, "-c", code, *torch_free_modules()], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_package_says_that_it_is_typed():
    assert resources.files("holdfast").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "misc"])
def test_no_room_for_odds_and_ends(name):
    assert not [module for module in torch_free_modules() if name in module.split(".")]
