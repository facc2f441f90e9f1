"""How a job ended: statuses of its parts -> one exit status, and what a person needs to read.

The contract: 0 done; 2 a mistake in the input; 75 stopped on request with everything saved; 130
Ctrl-C; otherwise the first failing worker's own status, 128+n for signal n. Pure.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .follow import input_error, tail
from .plan import Plan
from .processes import Member

OK = 0
FAILED = 1
BAD_INPUT = 2
STOPPED = 75
INTERRUPTED = 130
TAIL_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first thing that went wrong. `who` is None for msrun; `why` is what we know of it."""

    who: Member | None
    status: int
    why: str = ""


def exit_status(wait_status: int) -> int:
    """Turn what waitpid tells into what a shell would say.

    >>> exit_status(3 << 8), exit_status(9)
    (3, 137)
    """
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def status_unseen(log: str) -> int:
    """Judge by its log a worker whose status msrun took: it left while msrun was starting."""
    return BAD_INPUT if input_error(log) else FAILED


def job_status(
    *,
    failure: Failure | None,
    stop: signal.Signals | None,
    ended: Mapping[Member, int],
    before_start: bool,
) -> int:
    """Decide the launcher's status. `before_start`: a stop met workers that had nothing to save."""
    workers = [status for who, status in ended.items() if who.rank is not None]
    if stop is signal.SIGINT:
        return INTERRUPTED
    if failure is not None:
        return failure.status
    if before_start:
        return STOPPED
    if set(workers) == {STOPPED}:
        return STOPPED
    return OK if set(workers) == {OK} else FAILED


def describe(failure: Failure, plan: Plan, *, log: str, path: Path | None) -> list[str]:
    """Say who failed, where, how, with which last words; one line for a mistake in the input."""
    line = input_error(log)
    if line is not None and failure.status == BAD_INPUT:
        return [line]
    words = tail(log, TAIL_LINES)
    source = "its output" if path is None else f"log {path}"
    return [
        f"mindbooth: {_who(failure, plan)} {_how(failure)}",
        f"mindbooth: {source}, last lines:" if words else f"mindbooth: {source}, empty",
        *(f"  | {text}" for text in words),
    ]


def farewell(status: int, *, ended: Mapping[Member, int], before_start: bool) -> list[str]:
    """Say what an end other than a failure means."""
    if status == STOPPED and before_start:
        return ["mindbooth: stopped before training began, so there was nothing to save"]
    if status == STOPPED:
        return ["mindbooth: stopped on request, everything saved"]
    if status == INTERRUPTED:
        return ["mindbooth: interrupted"]
    if OK in ended.values() and STOPPED in ended.values():
        listed = ", ".join(f"{who}: {code}" for who, code in ended.items())
        return [f"mindbooth: the workers did not leave alike ({listed})"]
    return []


def _who(failure: Failure, plan: Plan) -> str:
    who = failure.who
    if who is None:
        return "msrun"
    if who.rank is None:
        return f"msrun's scheduler (host {plan.cluster.hosts[0].name})"
    worker = plan.workers[who.rank]
    slot = "CPU worker" if plan.device_target == "CPU" else "device"
    return f"rank {worker.rank} (host {worker.host}, {slot} {worker.device.physical_id})"


def _how(failure: Failure) -> str:
    status = failure.status
    if status <= 128:
        how = f"ended with status {status}"
    else:
        number = status - 128
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        how = f"was ended by {name} (status {status})"
    why = failure.why
    if not why and status == 128 + signal.SIGKILL:
        why = "often the out-of-memory killer"
    return f"{how}: {why}" if why else how
