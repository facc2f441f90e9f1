"""Fan-out: where no scheduler started us, start a launcher on each host by ssh, and watch them.

    mindbooth launch --hosts a,b -- flags
        +-- ssh a 'cd ...; exec ... mindbooth launch --node_rank 0 ... --ssh_leash -- flags'
        +-- ssh b 'cd ...; exec ... mindbooth launch --node_rank 1 ... --ssh_leash -- flags'

The user's own ssh, with its configuration, keys and agent. The remote launchers talk to one
another, tell the same cause and end with the same status; so the first host speaks for all, and
what is judged here are hosts that could not come so far.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf

from . import leash
from .follow import Terminal
from .inbox import Inbox
from .processes import make_room
from .ssh_client import SSH_FAILED, Remote, complaint
from .verdict import FAILED, INTERRUPTED, OK, STOPPED

TICK_SECONDS = 0.1
FOLLOW_SECONDS = 10.0  # after a failure: for the others to end by themselves
LEAVE_SECONDS = 30.0  # for a launcher to end, beyond the grace of its workers
HURRY_SECONDS = 5.0  # after a second Ctrl-C


def job_status(statuses: Sequence[int], stop: signal.Signals | None) -> int:
    """Join the statuses of the hosts, given in the order in which they came.

    The first failure decides; ssh's own becomes 1. Good ends that are not alike are a failure.

    >>> job_status([75, 3, 255], None), job_status([255, 75], None), job_status([0, 75], None)
    (3, 1, 1)
    """
    if stop is signal.SIGINT:
        return INTERRUPTED
    failures = [status for status in statuses if status not in (OK, STOPPED)]
    if failures:
        return FAILED if failures[0] == SSH_FAILED else failures[0]
    return statuses[0] if len(set(statuses)) == 1 else FAILED


def fan_out(
    *, hosts: Sequence[str], commands: Sequence[str], terminal: Terminal, grace_seconds: float
) -> int:
    """Run each host's command (`remote.py` writes them) to its end; return the job's status."""
    remotes: list[Remote] = []
    make_room(3 * len(hosts))
    with Inbox() as inbox:
        try:
            for host, command in zip(hosts, commands, strict=True):
                remotes.append(Remote(host, command))
            fan = Fan(remotes, terminal, grace_seconds)
            with _beating(remotes):
                while not fan.over():
                    for number in inbox.wait(TICK_SECONDS):
                        fan.ask_to_stop(number, time.monotonic())
                    fan.step(time.monotonic())
        finally:
            for remote in remotes:
                remote.close()
        return fan.report()


@contextmanager
def _beating(remotes: Sequence[Remote]) -> Iterator[None]:
    """Tell the hosts that we live; in a thread, as a terminal on hold may block our output."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(leash.BEAT_SECONDS):
            for remote in remotes:
                remote.tell(leash.BEAT)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Fan:
    """What is known of the hosts, and what is done about it. The first host speaks for all."""

    def __init__(self, remotes: Sequence[Remote], terminal: Terminal, grace_seconds: float) -> None:
        self.remotes = remotes
        self.first = remotes[0]
        self.terminal = terminal
        self.grace_seconds = grace_seconds
        self.statuses: list[int] = []  # in the order in which they came
        self.first_has_begun = False  # until then its stderr may be ssh's, for a complaint
        self.stop: signal.Signals | None = None
        self.patience = inf  # until when the others may end by themselves
        self.deadline = inf  # until when those that were asked to stop may end

    def over(self) -> bool:
        return len(self.statuses) == len(self.remotes)

    def ask_to_stop(self, number: signal.Signals, now: float) -> None:
        if self.stop is None:
            self.stop = number
        elif number is signal.SIGINT:
            self.deadline = now + HURRY_SECONDS
        self._pass_on(number, now)

    def step(self, now: float) -> None:
        for remote in self._alive():
            self._show(remote.poll(), remote)
            if remote.status is not None:
                self._end(remote, remote.status, now)
        if self.first_has_begun or self.first.status is not None:
            self._say_words(self.first)
        if now >= self.patience and self.deadline == inf and self._alive():
            self.terminal.say("mindbooth: the other hosts are asked to stop")
            self._pass_on(signal.SIGTERM, now)
        if now >= self.deadline:
            self._cut_off()

    def report(self) -> int:
        """Say what the first host did not say; return the job's status."""
        for remote in self.remotes[1:]:
            if remote.status not in (self.first.status, STOPPED) or not self.first.last_words:
                self._say_words(remote, prefix=f"{remote.host}: ")
        if set(self.statuses) == {OK, STOPPED}:
            listed = ", ".join(f"{remote.host}: {remote.status}" for remote in self.remotes)
            self.terminal.say(f"mindbooth: the hosts did not leave alike ({listed})")
        return job_status(self.statuses, self.stop)

    def _alive(self) -> list[Remote]:
        return [remote for remote in self.remotes if remote.status is None]

    def _pass_on(self, number: signal.Signals, now: float) -> None:
        for remote in self._alive():
            remote.tell(leash.word(number))
        self.deadline = min(self.deadline, now + self.grace_seconds + LEAVE_SECONDS)

    def _show(self, lines: Sequence[str], remote: Remote) -> None:
        for line in lines:
            if remote is self.first or not _is_ours(line):
                self.terminal.show(line)
        if remote is self.first and any(map(_is_ours, [*lines, *remote.words])):
            self.first_has_begun = True

    def _say_words(self, remote: Remote, prefix: str = "") -> None:
        while remote.words:
            self.terminal.say(prefix + remote.words.popleft())

    def _end(self, remote: Remote, status: int, now: float) -> None:
        self.statuses.append(status)
        if remote.is_cut_off:
            return
        trouble = complaint(remote.host, status, remote.last_words)
        if trouble is not None:
            self.terminal.say(f"mindbooth: {trouble}")
            remote.words.clear()
        if status != OK:
            self.patience = min(self.patience, now + (0 if trouble else FOLLOW_SECONDS))

    def _cut_off(self) -> None:
        for remote in self._alive():
            if not remote.is_cut_off:
                self.terminal.say(
                    f"mindbooth: host {remote.host} has not ended since it was asked to stop; "
                    "the connection is cut, at which it stops what it can"
                )
                remote.cut_off()


def _is_ours(line: str) -> bool:
    """Is this said by a launcher? All say the same."""
    return line.startswith("mindbooth:")
