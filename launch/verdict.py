"""How a job ended: what its hosts tell -> one exit status, and what a person needs to read.

The contract: 0 done; 2 a mistake in the input; 75 stopped on request with everything saved; 130
Ctrl-C; otherwise the first failing worker's own status, 128+n for signal n; 1 for a lost host and
for a hang. Pure. What is told here travels between hosts as JSON (`link.py`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .follow import input_error, tail
from .plan import Plan

OK = 0
FAILED = 1
BAD_INPUT = 2
STOPPED = 75
INTERRUPTED = 130
TAIL_LINES = 20
MSRUN, SCHEDULER, HOST = "msrun", "msrun's scheduler", "the host"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first thing that went wrong.

    who: a worker's rank, or MSRUN, SCHEDULER or HOST (the launcher there was lost).
    host: its node rank. why: what we know of it. log, words: the name of its log ("" if it has
    none) and its last lines. hung: nothing moves, and every worker is to write its stacks down
    first.
    """

    who: int | str
    host: int
    status: int
    why: str = ""
    log: str = ""
    words: tuple[str, ...] = ()
    hung: bool = False

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "words": list(self.words)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Failure:
        return cls(**{**told, "words": tuple(told["words"])})

    def fits(self, *, hosts: int, workers: int) -> bool:
        """Whether it can be of a job with so many hosts and workers."""
        if isinstance(self.who, int) and self.who not in range(workers):
            return False
        return self.host in range(hosts)

    @property
    def is_bad_input(self) -> bool:
        return (
            self.status == BAD_INPUT and len(self.words) == 1 and bool(input_error(self.words[0]))
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended, on one host or on all.

    statuses: by rank. stop: the signal that asked for a stop, if one did. before_start: the stop
    met workers that had nothing to save. resumable: there is a checkpoint of this job.
    """

    statuses: Mapping[int, int] = field(default_factory=dict)
    failure: Failure | None = None
    stop: int | None = None
    before_start: bool = False
    resumable: bool = False

    def as_json(self) -> dict[str, Any]:
        failure = self.failure.as_json() if self.failure else None
        return {**vars(self), "statuses": list(self.statuses.items()), "failure": failure}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Outcome:
        failure = Failure.from_json(told["failure"]) if told["failure"] else None
        return cls(**{**told, "statuses": dict(told["statuses"]), "failure": failure})

    @property
    def status(self) -> int:
        """The status of every launcher of the job."""
        statuses = set(self.statuses.values())
        if self.stop == signal.SIGINT:
            return INTERRUPTED
        if self.failure is not None:
            return self.failure.status
        if self.before_start or statuses == {STOPPED}:
            return STOPPED
        return OK if statuses == {OK} else FAILED

    @property
    def may_restart(self) -> bool:
        """Whether another attempt could end better: not after a stop, a mistake or a lost host."""
        failure = self.failure
        if failure is None or self.stop is not None:
            return False
        return failure.who != HOST and not failure.is_bad_input


def together(outcomes: Sequence[Outcome], first: Failure | None) -> Outcome:
    """Join what the hosts told; `first` is the failure that host 0 heard of before all others."""
    told = [outcome.failure for outcome in outcomes if outcome.failure]
    stops = [outcome.stop for outcome in outcomes if outcome.stop is not None]
    return Outcome(
        statuses={rank: s for outcome in outcomes for rank, s in outcome.statuses.items()},
        failure=first or next(iter(told), None),
        stop=next(iter(stops), None),
        before_start=any(outcome.before_start for outcome in outcomes),
        resumable=any(outcome.resumable for outcome in outcomes),
    )


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


def last_words(log: str, status: int) -> tuple[str, ...]:
    """Choose what of a log tells the cause: its one-line error, or its last lines."""
    line = input_error(log)
    if line is not None and status == BAD_INPUT:
        return (line,)
    return tuple(tail(log, TAIL_LINES))


def describe(failure: Failure, plan: Plan) -> list[str]:
    """Say who failed, where, how, with which last words; one line for a mistake in the input."""
    if failure.is_bad_input:
        return list(failure.words)
    lines = [f"mindbooth: {_who(failure, plan)} {_how(failure)}"]
    if failure.who != HOST:
        source = f"log {failure.log}" if failure.log else "its output"
        lines.append(f"mindbooth: {source}, {'last lines:' if failure.words else 'empty'}")
    return lines + [f"  | {text}" for text in failure.words]


def farewell(outcome: Outcome) -> list[str]:
    """Say what an end other than a failure means."""
    if outcome.status == INTERRUPTED:
        saved = set(outcome.statuses.values()) == {STOPPED} and outcome.resumable
        return [f"mindbooth: interrupted{', everything saved' * saved}"]
    if outcome.failure is not None:
        return []
    if outcome.status == STOPPED and outcome.resumable:
        return ["mindbooth: stopped on request, everything saved"]
    if outcome.status == STOPPED:
        return ["mindbooth: stopped before training began; the cache keeps what was encoded"]
    if outcome.status == FAILED:
        listed = ", ".join(f"rank {rank}: {status}" for rank, status in outcome.statuses.items())
        return [f"mindbooth: the workers did not leave alike ({listed})"]
    return []


def _who(failure: Failure, plan: Plan) -> str:
    host = plan.cluster.hosts[failure.host].name
    if isinstance(failure.who, str):
        return f"host {host}" if failure.who == HOST else f"{failure.who} (host {host})"
    slot = "CPU worker" if plan.device_target == "CPU" else "device"
    device = plan.workers[failure.who].device.physical_id
    return f"rank {failure.who} (host {host}, {slot} {device})"


def _how(failure: Failure) -> str:
    if failure.who == HOST:
        return failure.why
    if failure.hung:
        return f"seems to hang: {failure.why}"
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
