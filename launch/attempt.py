"""One attempt on one host: start msrun, know its workers, act by the rules until all have ended.

    launcher (child subreaper)
        +-- msrun --join=False         leaves after seconds; its children become the launcher's
              +-- scheduler, workers   statuses by waitpid, ranks by /proc/PID/environ

The rules. The first failure, on any host, decides; the other workers are told TERM, and killed
after a short grace, or at once where they do not listen yet. INT, TERM, USR1 and HUP to any
launcher of the job are a stop request: workers are told TERM once, as soon as they listen, and
killed when `grace_seconds` are over; a Ctrl-C after that kills at once. Workers that all still
ignore TERM, as they do until they have joined the group, have nothing to save. A worker that leaves
ignores it too, for its last second.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from . import folders, keeper, processes
from .follow import Follower, Terminal, read_tail
from .heartbeats import Stall, Watch
from .link import Link, is_second
from .plan import Plan
from .processes import Member
from .verdict import (
    FAILED,
    MSRUN,
    OK,
    SCHEDULER,
    STOPPED,
    Failure,
    Outcome,
    exit_status,
    last_words,
    status_unseen,
)

TICK_SECONDS = 0.2
ROLL_CALL_SECONDS = 0.01
FAILURE_GRACE_SECONDS = 5.0
SCHEDULER_PATIENCE_SECONDS = 3.0  # a worker's own failure may follow the scheduler's, and decides
SCHEDULER_LEAVES_SECONDS = 2.0  # measured: 0.9 s after the last worker
UNKILLABLE_SECONDS = 10.0
LOOK_SECONDS = 1.0  # between two looks at the heartbeats
STACKS_SECONDS = 1.5  # for the workers to write their stacks down


def start_msrun(
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


class Attempt:
    """What is known of this host's part of a running attempt.

    `step` brings it up to date and does what the rules ask.
    """

    def __init__(
        self,
        plan: Plan,
        link: Link,
        msrun: subprocess.Popen[bytes],
        output: IO[bytes],
        terminal: Terminal,
    ) -> None:
        self.plan = plan
        self.alone = len(plan.cluster.hosts) == 1
        self.link = link
        self.msrun = msrun
        self.output = output
        self.terminal = terminal
        self.logs = {worker.rank: Follower(worker.log) for worker in plan.here}
        self.strangers = processes.pids() - {msrun.pid}
        self.met: dict[int, Member] = {}  # by pid
        self.roll_closed = False
        self.ended: dict[Member, int] = {}  # exit statuses, in the order in which they came
        self.scheduler_ended_at: float | None = None
        self.workers_ended_at: float | None = None
        self.failure: Failure | None = None
        self.stop: signal.Signals | None = None
        self.stopped_at = 0.0
        self.before_start = False
        self.told: set[int] = set()
        self.deadline: float | None = None
        self.out_of_time: set[Member] = set()
        self.watch = Watch(folder=plan.attempt_dir, ranks=tuple(self.logs))
        self.looked_at = 0.0
        self.began = False
        self.stall: Stall | None = None
        self.dumped_at: float | None = None

    # What is known.

    def alive(self) -> dict[int, Member]:
        """The workers that were met and have not ended, by pid."""
        return {
            pid: who
            for pid, who in self.met.items()
            if who != processes.SCHEDULER and who not in self.ended
        }

    def everyone_met(self) -> bool:
        return len(self.met) == len(self.logs) + self.plan.has_scheduler

    def workers_ended(self) -> bool:
        return len(self.ended.keys() - {processes.SCHEDULER}) == len(self.logs)

    def anyone_joined(self) -> bool:
        """Whether a worker has joined the group: it was told, has a heartbeat, or has ended."""
        beats = any(self.watch.beats.values())
        return bool(self.told or beats or self.ended.keys() - {processes.SCHEDULER})

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
        if not self.link.others_ended():
            return False  # without the scheduler, which is here, their workers can't leave in peace
        scheduler_left = processes.SCHEDULER in self.ended or not self.plan.has_scheduler
        return scheduler_left or now > self.workers_ended_at + SCHEDULER_LEAVES_SECONDS

    def patience(self) -> float:
        """How long to sleep: very short while processes appear, which may die at once."""
        return TICK_SECONDS if self.roll_closed else ROLL_CALL_SECONDS

    def outcome(self) -> Outcome:
        """How it ended here."""
        ended = self.ended.items()
        return Outcome(
            statuses={who.rank: status for who, status in ended if who.rank is not None},
            failure=self.failure,
            stop=self.stop,
            before_start=self.before_start,
            resumable=self.began and folders.has_checkpoint(self.plan.output_dir),
        )

    # What happens.

    def ask_to_stop(self, number: signal.Signals, now: float) -> None:
        if self.stop is None:
            self.stop, self.stopped_at = number, now
            grace = self.plan.grace_seconds
            self.deadline = min(self.deadline or now + grace, now + grace)
            self.terminal.say(
                f"mindbooth: {number.name}: the workers have {grace:g} s to save and leave"
            )
        elif is_second(number, self.stopped_at, now) or (number is signal.SIGINT and self.alone):
            self.deadline = now

    def step(self, now: float) -> None:
        for heard in self.link.hear():
            if isinstance(heard, Failure):
                self._take(heard, now)
            else:
                self.ask_to_stop(heard, now)
        self._reap(now)
        if not self.roll_closed and self._msrun_has_begun():
            self._roll_call()
            self.roll_closed = self.everyone_met() or self.msrun_ended()
        if self.msrun_ended():
            self._miss(now)
        self.follow(now)
        self._blame_scheduler(now)
        if now >= self.looked_at + LOOK_SECONDS:
            self.looked_at = now
            self.look(now)
            self._judge_silence(now)
        self._act(now)

    def look(self, now: float) -> None:
        """Bring the heartbeats up to date, and the bar that shows rank 0's."""
        self.watch.look(now)
        if 0 in self.logs:
            first = self.watch.beats[0]
            self.began = self.began or (first is not None and first.began)
            self.terminal.progress(first, now)

    def follow(self, now: float, last: bool = False) -> None:
        """Show what the workers wrote; a traceback that was held back only if all went well."""
        for rank, log in self.logs.items():
            for line in log.poll(now, last=last, release=last and self.failure is None):
                self.terminal.show(f"[{rank}] {line}")

    def _msrun_has_begun(self) -> bool:
        logs = [log.path for log in self.logs.values()]
        return any(path.exists() for path in (self.plan.scheduler_log, *logs[:1]))

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
                    self.output.seek(0)
                    log = self.output.read().decode(errors="replace")
                    self._fail(MSRUN, status, now, log=log)
            elif pid in self.met:
                self._end(self.met[pid], status, now)

    def _roll_call(self) -> None:
        """Find out which new processes are which part of the job."""
        present = processes.pids()
        self.strangers &= present
        parents = {self.msrun.pid, os.getpid()}
        for pid in sorted(present - self.strangers - self.met.keys()):
            who = processes.member(processes.environ(pid), self.plan.token)
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
        if who.rank is None:
            self.scheduler_ended_at = now
        elif status == STOPPED or (who in self.out_of_time and self._has_nothing_to_save()):
            self.ended[who] = STOPPED
            self.deadline = self.deadline or now + self.plan.grace_seconds
        elif status != OK and self.stall is not None:  # perhaps of showing its stacks
            self._fail_hung(self.stall, now)
        elif status != OK:
            if who in self.out_of_time:
                why = f"not done {self.plan.grace_seconds:g} s after the stop request"
            self._fail(who.rank, status, now, why=why)

    def _has_nothing_to_save(self) -> bool:
        """Whether a stop came before all workers here began to train: they load or compile, and
        heed nothing for as long as that takes."""
        beats = self.watch.beats.values()
        return self.failure is None and all(beat and not beat.began for beat in beats)

    def _blame_scheduler(self, now: float) -> None:
        """Fail if the scheduler ended badly and no worker explains it: it can take no port, say."""
        status, since = self.ended.get(processes.SCHEDULER, OK), self.scheduler_ended_at
        if status == OK or since is None or self.workers_ended():
            return
        if now > since + SCHEDULER_PATIENCE_SECONDS:
            self._fail(SCHEDULER, status, now)

    def _judge_silence(self, now: float) -> None:
        """Find a hang: the stacks come first, and then the failure that ends the job."""
        if self.failure is not None or self.stop is not None:
            return
        if self.stall is None:
            alive = self.alive().items()
            stopped = [who.rank for pid, who in alive if processes.is_stopped(pid)]
            self.stall = self.watch.stall(
                [rank for rank in stopped if rank is not None], self.plan.hang_seconds
            )
            if self.stall is not None:
                self._dump_stacks(now)
        elif self.dumped_at is not None and now > self.dumped_at + STACKS_SECONDS:
            self._fail_hung(self.stall, now)

    def _fail_hung(self, stall: Stall, now: float) -> None:
        why = f"{stall.why}; --hang_seconds is {self.plan.hang_seconds:g} s"
        self._fail(stall.rank, FAILED, now, why=why, hung=True)

    def _dump_stacks(self, now: float) -> None:
        """Have every worker write its Python stacks into its log, one that is stopped as well."""
        self.dumped_at = now
        for pid in self.alive():
            processes.send(pid, signal.SIGUSR2)
            processes.send(pid, signal.SIGCONT)

    def _fail(
        self,
        who: int | str,
        status: int,
        now: float,
        *,
        why: str = "",
        log: str | None = None,
        hung: bool = False,
    ) -> None:
        """Note the first failure here, with its last words, and tell the other hosts."""
        if self.failure is not None:
            return
        path: Path | None = None
        if log is None:
            path = self.logs[who].path if isinstance(who, int) else self.plan.scheduler_log
            log = read_tail(path)
        failure = Failure(
            who=who,
            host=self.plan.node_rank,
            status=status,
            why=why,
            log=str(path or ""),
            words=last_words(log, status),
            hung=hung,
        )
        self.link.failed(failure)
        self._take(failure, now)

    def _take(self, failure: Failure, now: float) -> None:
        """Act on the first failure of the job, wherever it was."""
        self.failure = failure
        if failure.hung and self.dumped_at is None:
            self._dump_stacks(now)
        limit = now + FAILURE_GRACE_SECONDS
        self.deadline = min(self.deadline or limit, limit)

    def _act(self, now: float) -> None:
        """Tell TERM to who listens; kill who is out of time, or will never listen."""
        if self.dumped_at is not None and now < self.dumped_at + STACKS_SECONDS:
            return
        if self.stop is not None or self.failure is not None:
            for pid in self.alive().keys() - self.told:
                if not processes.ignores_term(pid):
                    processes.send(pid, signal.SIGTERM)
                    self.told.add(pid)
                elif self.failure is not None:
                    processes.send(pid, signal.SIGKILL)
            self.before_start = self.failure is None and not self.anyone_joined()
        if self.deadline is not None and now >= self.deadline:
            for pid, who in self.alive().items():
                self.out_of_time.add(who)
                processes.send(pid, signal.SIGKILL)
