"""How the command line starts, fails and explains itself."""

import contextlib
import json
import os
import pty
import shlex
import subprocess
import sys
from types import ModuleType

import click
import pytest

from holdfast import errors
from holdfast.cli import BROKEN_PIPE, INTERRUPTED, main
from holdfast.cli.group import COMMANDS, holdfast

THERE = list(COMMANDS)
EXAMPLES_BEGIN = "Examples:\n"


@pytest.fixture
def raising(monkeypatch):
    """A command `boom` that raises what it is given."""

    def install(error: BaseException) -> None:
        @click.command()
        @click.option("--json", is_flag=True)
        def boom(json: bool) -> None:
            raise error

        module = ModuleType("holdfast.cli.boom")
        module.boom = boom  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "holdfast.cli.boom", module)
        monkeypatch.setitem(COMMANDS, "boom", "Raise.")

    return install


@pytest.mark.parametrize("kind", sorted(errors.BY_KIND))
def test_the_exit_code_is_that_of_the_kind(kind, raising, capsys):
    error = errors.BY_KIND[kind]("it broke", hint="mend it")
    raising(error)
    assert main(["boom"]) == error.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "holdfast: it broke\n  hint: mend it\n"


def test_with_json_the_error_is_a_document_on_stdout_and_text_on_stderr(raising, capsys):
    raising(errors.CorruptError("flipped", key="images/x", step=3))
    assert main(["boom", "--json"]) == 40
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "kind": "corrupt", "message": "flipped", "hint": "", "tier": None, "key": "images/x", "step": 3,
    }  # fmt: skip
    assert "flipped" in captured.err


def test_an_interrupt_is_130_and_quiet(raising, capsys):
    raising(KeyboardInterrupt())
    assert main(["boom"]) == INTERRUPTED
    assert capsys.readouterr() == ("", "")


def test_a_bug_is_not_hidden(raising):
    raising(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        main(["boom"])


@pytest.mark.parametrize("args", [["lss"], ["ls", "--nonsense"], ["agent", "--status", "--stop", "x"]])
def test_what_cannot_be_parsed_is_a_usage_error(args, capsys):
    assert main(args) == errors.UsageError.exit_code
    assert "--help" in capsys.readouterr().err


def test_an_unknown_scheme_is_a_config_error(capsys):
    assert main(["doctor", "ftp://x/y", "--json"]) == errors.ConfigError.exit_code
    assert json.loads(capsys.readouterr().out)["kind"] == "config"


def test_no_arguments_show_the_commands(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)


def test_version(capsys):
    from holdfast import __version__

    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(("args", "said"), [(["--help"], b""), (["doctor", "ftp://x/y", "--json"], b"no known scheme")])
def test_a_reader_that_has_gone_is_answered_quietly(args, said):
    program = f"import sys; from holdfast.cli import main; sys.exit(main({args!r}))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert process.returncode == BROKEN_PIPE, err
    assert said in err
    assert err.count(b"\n") == (2 if said else 0), "a message and its hint, no traceback"


def test_help_imports_nothing_heavy():
    heavy = "torch", "numpy", "aiohttp", "awscrt", "rich", "prometheus_client"
    program = (
        "import sys; from holdfast.cli import main; main([]);"
        f"sys.exit(' '.join(sys.modules.keys() & {set(heavy)}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("name", THERE)
def test_the_line_in_the_table_is_the_command_s_own(name):
    command = holdfast.get_command(click.Context(holdfast), name)
    assert command is not None
    assert (command.help or "").split("\n\n")[0].replace("\n", " ") == COMMANDS[name]


def _examples() -> list[str]:
    found = []
    for name in THERE:
        command = holdfast.get_command(click.Context(holdfast), name)
        help_text = (command.help if command else "") or ""
        lines = help_text.partition(EXAMPLES_BEGIN)[2].splitlines()
        found += [line.strip().removesuffix("\\") for line in lines if line.strip().startswith("holdfast ")]
    return found


@pytest.mark.parametrize("name", THERE)
def test_every_command_has_examples(name):
    assert any(line.split()[1] == name for line in _examples())


@pytest.mark.parametrize("line", _examples())
def test_every_example_parses(line):
    _, name, *args = shlex.split(line.partition(" | ")[0], comments=True)
    command = holdfast.get_command(click.Context(holdfast), name)
    assert command is not None
    command.make_context(name, args).close()


@pytest.mark.parametrize("rows", [3, 300])
def test_long_output_on_a_terminal_goes_through_the_pager(rows, tmp_path):
    """In a terminal of 24 lines, with a pager that writes down what it was given."""
    kept = tmp_path / "kept"
    pager = tmp_path / "pager"
    pager.write_text(f"#!/bin/sh\nexec cat > {kept}\n")
    pager.chmod(0o755)
    program = (
        "from holdfast.cli.output import Column, Grid, paged, write, write_grid\n"
        "grid = Grid([Column('N')])\n"
        f"for n in range({rows}): grid.add(str(n))\n"
        "with paged(): write('title', style='bold'); write_grid(grid)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PAGER": str(pager), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the other end closed
            while part := os.read(ours, 65536):
                said += part
        assert process.wait(30) == 0
    os.close(ours)
    shown = kept.read_bytes() if rows > 24 else said
    assert kept.exists() == (rows > 24)
    assert b"title" in shown
    assert f"{rows - 1}".encode() in shown


def test_python_dash_m_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "nonsense"], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_a_url_that_bench_cannot_open_is_told_without_a_tier_called_tier(capsys):
    assert main(["bench", "s3://bucket/run7"]) == 3
    assert "tier tier" not in capsys.readouterr().err
