"""What ends together with this process: container, Slurm step, login session. Arena or agent end with it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast.cli.health.finding import Finding, ok, warn
from holdfast.tiers.posix.mounts import Mount, mount_of

_FIRST_SYSTEM_USERS = 1000
_CONTAINER = re.compile(r"docker|containerd|crio|libpod|kubepods|lxc|garden|apptainer")
_SLURM = re.compile(r"/slurm|step_\d+|job_\d+")
_REMOVE_IPC = re.compile(r"^\s*RemoveIPC\s*=\s*(\w+)", re.MULTILINE)
_INIT = frozenset({"systemd", "init", "runit", "openrc-init"})
_DURABLE = "what must outlive it has to be durable on a file tier: keep every_steps of that tier small enough"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The hints, as read from this machine; a test makes its own."""

    environ: Mapping[str, str]
    cgroup: str
    first_process: str
    marker_files: tuple[str, ...]
    logind: str | None
    """Text of logind's configuration; None where no systemd runs."""
    lingers: bool
    uid: int
    shm: Mount


def read_surroundings(arena_dir: Path) -> Surroundings:
    """Those of this process."""
    uid = os.getuid()
    name = os.environ.get("USER", "")
    return Surroundings(
        environ=os.environ,
        cgroup=_read("/proc/self/cgroup"),
        first_process=_read("/proc/1/comm").strip(),
        marker_files=tuple(p for p in ("/.dockerenv", "/run/.containerenv", "/.singularity.d") if Path(p).exists()),
        logind=_logind(),
        lingers=bool(name) and Path("/var/lib/systemd/linger", name).exists(),
        uid=uid,
        shm=mount_of(arena_dir),
    )


def what_ends_with_us(around: Surroundings) -> list[Finding]:
    """One finding per thing whose end takes agent or arena along; one saying that nothing was seen otherwise."""
    found = [*_container(around), *_slurm(around), *_login(around)]
    return found or [ok("lifetime", "no container, Slurm step or login clean-up seen: the arena survives until reboot")]


def _container(around: Surroundings) -> Iterator[Finding]:
    signs = list(around.marker_files)
    if "KUBERNETES_SERVICE_HOST" in around.environ:
        signs.append("KUBERNETES_SERVICE_HOST")
    if _CONTAINER.search(around.cgroup):
        signs.append("the name of the cgroup")
    if around.first_process and around.first_process not in _INIT:
        signs.append(f"process 1 is {around.first_process}")
    if signs:
        yield warn(
            "container",
            f"this is a container ({', '.join(signs)}): its end takes agent and arena along; the death of a trainer "
            "inside does not",
            f"restart the trainer inside the container (torchrun --max-restarts); {_DURABLE}",
        )


def _slurm(around: Surroundings) -> Iterator[Finding]:
    job, step = around.environ.get("SLURM_JOB_ID"), around.environ.get("SLURM_STEP_ID")
    if not job:
        return
    where = f"Slurm job {job}" + (f", step {step}" if step else "")
    if around.shm.root != "/":
        yield warn(
            "slurm", f"{where} has a {around.shm.point} of its own: the job's end takes the arena along", _DURABLE
        )
    elif _SLURM.search(around.cgroup):
        yield warn(
            "slurm",
            f"{where}: the end of the step kills the agent, too (cgroup); the arena stays on the node for the next",
            f"restart inside the step (torchrun --max-restarts); {_DURABLE}",
        )
    else:
        yield ok("slurm", f"{where}: no cgroup of it seen, so agent and arena outlive the step")


def _login(around: Surroundings) -> Iterator[Finding]:
    """systemd-logind's RemoveIPC, on by default, deletes an ordinary user's files in /dev/shm at the last logout."""
    if around.logind is None or around.uid < _FIRST_SYSTEM_USERS or around.lingers:
        return
    said = _REMOVE_IPC.findall(around.logind)
    if not said or said[-1].lower() in ("yes", "true", "on", "1"):
        yield warn(
            "login",
            "systemd-logind removes this user's files from /dev/shm at the last logout (RemoveIPC)",
            "run `loginctl enable-linger`, or set RemoveIPC=no in logind.conf",
        )


def _logind() -> str | None:
    if not Path("/run/systemd/system").is_dir():
        return None
    files = [Path("/etc/systemd/logind.conf"), *sorted(Path("/etc/systemd/logind.conf.d").glob("*.conf"))]
    return "\n".join(_read(str(f)) for f in files)


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""
