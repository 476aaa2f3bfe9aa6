"""What runs here: versions, read from package metadata so that nothing heavy is imported."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from holdfast import __version__
from holdfast.cli.health.finding import Finding, bad, ok, warn

_PACKAGES = ("torch", "awscrt", "msgspec", "aiohttp")
_POPULATE_WRITE_SINCE = (5, 14)
_TESTED_MACHINES = ("x86_64", "aarch64")


def versions() -> list[Finding]:
    """Packages, kernel, processor."""
    here = [f"{name} {_version(name)}" for name in _PACKAGES]
    found = [ok("versions", f"holdfast {__version__}, Python {platform.python_version()}, {', '.join(here)}")]
    if platform.machine() not in _TESTED_MACHINES:
        found.append(
            bad("machine", f"{platform.machine()}: pages rely on single 8-byte stores", "use x86_64 or aarch64")
        )
    return [*found, _kernel()]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _kernel() -> Finding:
    release = os.uname().release
    numbers = tuple(int(p) for p in release.split("-")[0].split(".")[:2] if p.isdigit())
    text = f"Linux {release} on {platform.machine()}, {os.cpu_count()} processors"
    if numbers < _POPULATE_WRITE_SINCE:
        return warn(
            "kernel", f"{text}: has no MADV_POPULATE_WRITE", "starts are slower; a kernel from 5.14 on is quicker"
        )
    return ok("kernel", text)
