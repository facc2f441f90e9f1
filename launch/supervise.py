"""Plan -> exit status: start msrun, watch its workers to their end, leave nothing behind.

    launcher (child subreaper) --- keeper     kills the job if the launcher vanishes
        +-- msrun --join=False                leaves after seconds; its children become ours
              +-- scheduler, workers          statuses by waitpid, ranks by /proc/PID/environ

The rules. The first worker that fails decides the status; the others are told TERM, and killed
after a short grace, or at once where they do not listen yet. INT, TERM, USR1 and HUP to us are a
stop request: workers are told TERM once, as soon as they listen, and killed when `grace_seconds`
are over; a Ctrl-C after that kills at once. Workers that all still ignore TERM, as they do until
they have joined the group, have nothing to save. What carries the job's token in the end is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from . import keeper, processes
from .follow import Follower, Terminal, read_tail
from .inbox import Inbox
from .plan import Plan
from .processes import SCHEDULER, Member
from .verdict import (
    OK,
    STOPPED,
    Failure,
    describe,
    exit_status,
    farewell,
    job_status,
    status_unseen,
)

TICK_SECONDS = 0.2
ROLL_CALL_SECONDS = 0.01
FAILURE_GRACE_SECONDS = 5.0
SCHEDULER_PATIENCE_SECONDS = 3.0  # a worker's own failure may follow the scheduler's, and decides
SCHEDULER_LEAVES_SECONDS = 2.0  # measured: 0.9 s after the last worker
UNKILLABLE_SECONDS = 10.0


def supervise(plan: Plan, *, inherited: Mapping[str, str], terminal: Terminal) -> int:
    """Run the plan; `inherited` is the environment to start from."""
    processes.become_subreaper()
    with Inbox() as inbox, tempfile.TemporaryFile() as output:
        guard = keeper.start(plan.job)
        try:
            job = Job(plan, _start_msrun(plan, inherited, output), terminal)
            while not job.over(time.monotonic()):
                for number in inbox.wait(job.patience()):
                    job.ask_to_stop(number, time.monotonic())
                job.step(time.monotonic())
        finally:
            left = processes.sweep(plan.job)
            guard.communicate()
        job.follow(time.monotonic(), last=True)
        if left:
            terminal.say(f"mindbooth: these processes would not end: {sorted(left)}")
        output.seek(0)
        return job.report(msrun_log=output.read().decode(errors="replace"))


def _start_msrun(
    plan: Plan, inherited: Mapping[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        plan.command,
        env=plan.environ(inherited),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_before_exec,
    )


def _before_exec() -> None:
    keeper.turn_deaf()
    os.umask(os.umask(0o022) | 0o002)  # logs are not for everyone to write


class Job:
    """What is known of a running job. `step` brings it up to date and does what the rules ask."""

    def __init__(self, plan: Plan, msrun: subprocess.Popen[bytes], terminal: Terminal) -> None:
        self.plan = plan
        self.msrun = msrun
        self.terminal = terminal
        self.logs = {worker.rank: Follower(worker.log) for worker in plan.workers}
        self.strangers = processes.pids() - {msrun.pid}
        self.met: dict[int, Member] = {}  # by pid
        self.roll_closed = False
        self.ended: dict[Member, int] = {}  # exit statuses, in the order in which they came
        self.scheduler_ended_at: float | None = None
        self.workers_ended_at: float | None = None
        self.failure: Failure | None = None
        self.stop: signal.Signals | None = None
        self.before_start = False
        self.told: set[int] = set()
        self.deadline: float | None = None
        self.out_of_time: set[Member] = set()

    # What is known.

    def alive(self) -> dict[int, Member]:
        """The workers that were met and have not ended, by pid."""
        return {
            pid: who
            for pid, who in self.met.items()
            if who is not SCHEDULER and who not in self.ended
        }

    def everyone_met(self) -> bool:
        return len(self.met) == len(self.logs) + 1

    def workers_ended(self) -> bool:
        return len(self.ended.keys() - {SCHEDULER}) == len(self.logs)

    def msrun_ended(self) -> bool:
        return self.msrun.returncode is not None

    def over(self, now: float) -> bool:
        if self.before_start:
            return True
        if self.deadline is not None and now > self.deadline + UNKILLABLE_SECONDS:
            return True
        if self.failure is not None:
            return not self.alive()
        if self.workers_ended_at is None or not self.msrun_ended():
            return False
        return SCHEDULER in self.ended or now > self.workers_ended_at + SCHEDULER_LEAVES_SECONDS

    def patience(self) -> float:
        """How long to sleep: very short while processes appear, which may die at once."""
        return TICK_SECONDS if self.roll_closed else ROLL_CALL_SECONDS

    # What happens.

    def ask_to_stop(self, number: signal.Signals, now: float) -> None:
        if self.stop is None:
            self.stop = number
            grace = self.plan.grace_seconds
            self.deadline = min(self.deadline or now + grace, now + grace)
            self.terminal.say(
                f"mindbooth: {number.name}: the workers have {grace:g} s to save and leave"
            )
        elif number is signal.SIGINT:
            self.deadline = now

    def step(self, now: float) -> None:
        self._reap(now)
        if not self.roll_closed and self.plan.scheduler_log.exists():
            self._roll_call()
            self.roll_closed = self.everyone_met() or self.msrun_ended()
        if self.msrun_ended():
            self._miss(now)
        self.follow(now)
        self._blame_scheduler(now)
        self._act(now)

    def follow(self, now: float, last: bool = False) -> None:
        """Show what the workers wrote; a traceback that was held back only if all went well."""
        for rank, log in self.logs.items():
            for line in log.poll(now, last=last, release=last and self.failure is None):
                self.terminal.show(f"[{rank}] {line}")

    def report(self, msrun_log: str) -> int:
        """Say how it ended; return the status."""
        failure = self.failure
        if failure is not None:
            path = self._log(failure.who)
            log = msrun_log if path is None else read_tail(path)
            for line in describe(failure, self.plan, log=log, path=path):
                self.terminal.say(line)
        status = job_status(
            failure=failure, stop=self.stop, ended=self.ended, before_start=self.before_start
        )
        for line in farewell(status, ended=self.ended, before_start=self.before_start):
            self.terminal.say(line)
        return status

    def _log(self, who: Member | None) -> Path | None:
        if who is None:
            return None
        return self.plan.scheduler_log if who.rank is None else self.logs[who.rank].path

    def _reap(self, now: float) -> None:
        """Take the status of every child that has ended, orphans of the workers included."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            status = exit_status(wait_status)
            if pid == self.msrun.pid:
                self.msrun.returncode = status
                if status != OK:
                    self._fail(Failure(who=None, status=status), now)
            elif pid in self.met:
                self._end(self.met[pid], status, now)

    def _roll_call(self) -> None:
        """Find out which new processes are which part of the job."""
        present = processes.pids()
        self.strangers &= present
        parents = {self.msrun.pid, os.getpid()}
        for pid in sorted(present - self.strangers - self.met.keys()):
            who = processes.member(processes.environ(pid), self.plan.job)
            if (
                who is not None
                and who not in self.met.values()
                and processes.parent(pid) in parents
            ):
                self.met[pid] = who

    def _miss(self, now: float) -> None:
        """Judge by their logs the workers whose statuses msrun took: gone before msrun was."""
        pids = {who: pid for pid, who in self.met.items()}
        for rank, log in self.logs.items():
            who = Member(rank=rank)
            if who not in self.ended and not processes.exists(pids.get(who)):
                why = "it ended while msrun was starting, its status is lost"
                self._end(who, status_unseen(read_tail(log.path)), now, why=why)

    def _end(self, who: Member, status: int, now: float, why: str = "") -> None:
        self.ended[who] = status
        if self.workers_ended():
            self.workers_ended_at = now
        if who is SCHEDULER:
            self.scheduler_ended_at = now
        elif status == STOPPED:
            self.deadline = self.deadline or now + self.plan.grace_seconds
        elif status != OK:
            if who in self.out_of_time:
                why = f"not done {self.plan.grace_seconds:g} s after the stop request"
            self._fail(Failure(who=who, status=status, why=why), now)

    def _blame_scheduler(self, now: float) -> None:
        """Fail if the scheduler ended badly and no worker explains it: it can take no port, say."""
        status, since = self.ended.get(SCHEDULER, OK), self.scheduler_ended_at
        if status == OK or since is None or self.workers_ended():
            return
        if now > since + SCHEDULER_PATIENCE_SECONDS:
            self._fail(Failure(who=SCHEDULER, status=status), now)

    def _fail(self, failure: Failure, now: float) -> None:
        if self.failure is None:
            self.failure = failure
            limit = now + FAILURE_GRACE_SECONDS
            self.deadline = min(self.deadline or limit, limit)

    def _act(self, now: float) -> None:
        """Tell TERM to who listens; kill who is out of time, or will never listen."""
        if self.stop is not None or self.failure is not None:
            for pid in self.alive().keys() - self.told:
                if not processes.ignores_term(pid):
                    processes.send(pid, signal.SIGTERM)
                    self.told.add(pid)
                elif self.failure is not None:
                    processes.send(pid, signal.SIGKILL)
            begun = self.told or self.ended.keys() - {SCHEDULER}
            self.before_start = self.failure is None and not begun
        if self.deadline is not None and now >= self.deadline:
            for pid, who in self.alive().items():
                self.out_of_time.add(who)
                processes.send(pid, signal.SIGKILL)
