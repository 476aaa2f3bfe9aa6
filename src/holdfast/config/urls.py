"""What a URL means: its scheme, and one spelling for each place."""

from __future__ import annotations

import os
from urllib.parse import quote, unquote, urlsplit

from holdfast.errors import ConfigError
from holdfast.tiers import SUPPORTED_URLS

SCHEME_NAMES = {"memory": "memory", "file": "posix", "s3": "s3"}
"""How a tier of each scheme is called unless its user names it."""


def has_scheme(url: str) -> bool:
    """Whether this is more than a plain path."""
    return "://" in url or url.startswith("memory:") or url[:5].lower() == "file:"


def normalise_url(url: str) -> str:
    """A URL with its scheme: a bare path becomes an absolute `file://` URL.

    Raises: ConfigError for an empty URL, an unknown scheme, and a file: URL that does not say an absolute path.
    """
    if not url:
        raise ConfigError("the URL is empty", hint="name a directory: file:///data/run7, or a plain path")
    scheme = urlsplit(url).scheme if "://" in url or url.startswith("memory:") else ""
    if scheme == "memory":
        return "memory:"
    if scheme and scheme not in SCHEME_NAMES:
        raise ConfigError(f"{url!r} has no known scheme", hint=SUPPORTED_URLS)
    if url[:5].lower() == "file:":
        return "file://" + quote(os.path.abspath(_path_in(url)))
    return url.rstrip("/") if scheme else "file://" + quote(os.path.abspath(url))


def refuse_file(url: str) -> None:
    """A configuration is no place for checkpoints. Raises: ConfigError."""
    if url.endswith(".toml"):
        raise ConfigError(
            f"{url!r} is the name of a configuration, not of a place for checkpoints",
            hint="in Python holdfast.Config.from_file(PATH) reads it; on the command line check that the file is there",
        )


def _path_in(url: str) -> str:
    """The path a file: URL says. One with fewer than three slashes would quietly become another path."""
    hint = "write three slashes: file:///data/run7"
    if not url[5:].startswith("//"):
        raise ConfigError(f"{url!r} is not a file URL", hint=hint)
    host = urlsplit(url).netloc
    if host not in ("", "localhost"):
        raise ConfigError(f"{url!r} names a host, not a path", hint=hint)
    path = unquote(url[len("file://") + len(host) :])
    if not path:
        raise ConfigError(f"{url!r} names no directory", hint=hint)
    return path
