"""The shell completes: bash for real, where it is; the scripts for the others name what they call."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.unit.tensor_fixtures import save

from holdfast.cli import main
from holdfast.cli.group import COMMANDS
from holdfast.store.attempts import claim
from holdfast.tiers import open_tier

ONES = np.ones((4,), np.float32)
ASK = """
eval "$(holdfast completion bash)"
complete -p holdfast >/dev/null || exit 1
while IFS= read -r line; do
    IFS=' ' read -ra COMP_WORDS <<< "$line"
    case "$line" in *" ") COMP_WORDS+=("") ;; esac
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _holdfast_completion holdfast
    printf '%s ' "${COMPREPLY[@]}"
    echo
done
"""


@pytest.fixture
def bash(tmp_path: Path, monkeypatch):
    """What bash offers at the end of each line, in a directory with a run of two steps, in one bash."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    monkeypatch.setenv("HOLDFAST_ARENA_DIR", str(tmp_path))
    tier = open_tier(f"file://{tmp_path}/run7", name="posix", owner="1.test")
    claim(tier, run="run7", parent=None, coordinator="")
    for step in (10, 200):
        save(tier, step, [{"model.w": (ONES, [((0,), (4,))]), "optim.w": (ONES, [((0,), (4,))])}])
    tier.close()
    program = tmp_path / "bin/holdfast"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {sys.path!r}\n"
        "from holdfast.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    def offered(*lines: str) -> list[list[str]]:
        text = "".join(f"holdfast {line}\n" for line in lines)
        command = ["bash", "--norc", "-c", ASK]
        done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=tmp_path, check=True, timeout=90)
        assert done.stderr == ""
        return [line.split() for line in done.stdout.splitlines()]

    return offered


def test_bash_offers_commands_options_steps_and_tensors(bash):
    assert bash(
        "s",
        "show run7 --st",
        "show run7 --step ",
        "diff run7 --step 10 --step 2",
        "show run7 --step 10 --tensor mo",
        "show nowhere --step ",
        "show --step ",
    ) == [["status", "show"], ["--step"], ["200", "10"], ["200"], ["model.w"], [], []]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell, capsys, monkeypatch):
    assert main(["completion", shell]) == 0
    named = capsys.readouterr().out
    assert f"_HOLDFAST_COMPLETE={shell}_complete" in named
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert main(["completion"]) == 0
    assert capsys.readouterr().out == named


def test_another_shell_is_told_which_there_are(capsys, monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert main(["completion"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err


def test_a_tab_imports_no_command():
    program = (
        "import os, sys; os.environ.update(_HOLDFAST_COMPLETE='bash_complete', COMP_WORDS='holdfast ', COMP_CWORD='1');"
        "from holdfast.cli import main; main([]);"
        "sys.exit(' '.join(m for m in sys.modules if m.split('.')[0] in ('rich', 'numpy', 'aiohttp')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == set(COMMANDS)
    assert done.stderr.strip() == ""
