"""What the shell offers after TAB: steps and names of tensors of the run on the line. Never an error, never slow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from holdfast.config import normalise_url

_MOST = 200


def complete_url(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Paths: a home is a directory, a holdfast.toml a file."""
    return [CompletionItem(incomplete, type="file")]


def complete_step(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Committed steps of the home, the newest first: one listing, no manifest is read."""
    steps: list[int] = []
    with contextlib.suppress(Exception):  # a line being typed is no place for errors
        steps = sorted(_steps(_url(context)), reverse=True)
    return _offered(map(str, dict.fromkeys(steps)), incomplete)


def complete_tensor(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names in the manifest of the step on the line, or of the newest."""
    found: list[str] = []
    with contextlib.suppress(Exception):
        from holdfast.cli.runs import open_run

        with open_run(_url(context)) as run:
            found = [t.fqn for t in run.manifest(context.params.get("step")).tensors]
    return _offered(dict.fromkeys(found), incomplete)


def _offered(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(w) for w in words if w.startswith(incomplete)][:_MOST]


def _url(context: click.Context) -> str:
    """The last URL on the line: steps after a second one are steps of it.

    Raises: IndexError where none is. Behind an option that lacks its value, click leaves arguments as they were typed.
    """
    urls = context.params.get("urls") or [u for u in (context.params.get("url"),) if u]
    return str([*urls, *map(normalise_url, (a for a in context.args if not a.startswith("-")))][-1])


def _steps(url: str) -> Iterable[int]:
    from holdfast.cli.runs import open_run
    from holdfast.format import names

    with open_run(url) as run:
        keys = [names.parse_manifest_key(info.key) for info in run.home.list(names.MANIFESTS)]
    return [c.step for c in keys if c is not None]
