"""The processes of a job, seen through /proc: who carries the token, as which rank.

Every process that a launcher starts inherits MINDBOOTH_LAUNCHER, its token. Nothing but what
carries it is ever signalled; other launchers of the job, on this machine too, have their own.
Linux only: elsewhere there is neither /proc nor a way to inherit msrun's children.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mindbooth.ranktable.placement import Placement
from mindbooth.ranktable.topology import RankTableError

from .options import LaunchError

PROC = Path("/proc")
TOKEN = "MINDBOOTH_LAUNCHER"
PR_SET_CHILD_SUBREAPER = 36
SWEEP_SECONDS = 10.0
SPARE_FILES = 256
SWEEP_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Member:
    """A part of the job that msrun starts: a worker by its rank, or the scheduler (rank None)."""

    rank: int | None


SCHEDULER = Member(rank=None)


def become_subreaper() -> None:
    """Become the parent of what msrun leaves behind, so that waitpid tells the true statuses."""
    if sys.platform != "linux":
        raise LaunchError(
            f"mindbooth launch needs Linux, this is {sys.platform}: only there can it know the "
            "workers' true status. Use mindbooth train for one process."
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def make_room(connections: int) -> None:
    """Raise the limit of open files as far as may be, where it is too low for so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if connections + SPARE_FILES > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def parse_environ(raw: bytes) -> dict[str, str]:
    """Read the format of /proc/PID/environ.

    >>> parse_environ(b"A=1\\0B=x=y\\0")
    {'A': '1', 'B': 'x=y'}
    """
    pairs = (part.partition(b"=") for part in raw.split(b"\0") if b"=" in part)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def member(environ: dict[str, str], token: str) -> Member | None:
    """Tell which part of the job an environment makes a process; None for msrun and strangers."""
    if environ.get(TOKEN) != token or "MS_ROLE" not in environ:
        return None
    try:
        place = Placement.from_environ(environ)
    except RankTableError:
        return None
    return Member(rank=place.rank) if place.role == "worker" else SCHEDULER


def ignores(status: str, number: signal.Signals) -> bool:
    """Read from the text of /proc/PID/status whether a signal is ignored."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "SigIgn":
            return bool(int(value, 16) >> (number - 1) & 1)
    return False


def parse_parent(stat: str) -> int | None:
    """Read the parent's pid from the text of /proc/PID/stat; the name in it may hold anything.

    >>> parse_parent("7 (a) b) S 5 7 7 0")
    5
    """
    fields = stat.rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def parse_state(stat: str) -> str | None:
    """Read the state letter from the text of /proc/PID/stat; T is a process that was stopped.

    >>> parse_state("7 (a) b) T 5 7 7 0")
    'T'
    """
    fields = stat.rpartition(")")[2].split()
    return fields[0] if fields else None


def pids() -> set[int]:
    return {int(name) for name in os.listdir(PROC) if name.isdigit()}


def read(pid: int, what: str) -> bytes:
    """Read /proc/PID/what; empty for a process that is gone, a zombie, or somebody else's."""
    try:
        return (PROC / str(pid) / what).read_bytes()
    except OSError:
        return b""


def environ(pid: int) -> dict[str, str]:
    return parse_environ(read(pid, "environ"))


def parent(pid: int) -> int | None:
    return parse_parent(read(pid, "stat").decode(errors="replace"))


def ignores_term(pid: int) -> bool:
    return ignores(read(pid, "status").decode(errors="replace"), signal.SIGTERM)


def is_stopped(pid: int) -> bool:
    """Whether a signal, SIGSTOP say, has stopped a process."""
    return parse_state(read(pid, "stat").decode(errors="replace")) == "T"


def exists(pid: int | None) -> bool:
    return pid is not None and (PROC / str(pid)).exists()


def carriers(token: str) -> set[int]:
    """Find the living processes that carry the token, ourselves aside."""
    mark = f"{TOKEN}={token}".encode()
    others = pids() - {os.getpid()}
    return {pid for pid in others if mark in read(pid, "environ").split(b"\0")}


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it may leave between our look and our signal
        os.kill(pid, number)


def sweep(token: str) -> set[int]:
    """Kill what carries the token until nothing does; return what would not die."""
    limit = time.monotonic() + SWEEP_SECONDS
    while left := carriers(token):
        for pid in left:
            send(pid, signal.SIGKILL)
        if time.monotonic() > limit:
            break
        time.sleep(SWEEP_PAUSE_SECONDS)
    return left
