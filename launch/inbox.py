"""Signals as values: a launcher waits for the next one, or for time to pass, in one place."""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType, TracebackType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Inbox:
    """While open, signals that ask for a stop, and SIGCHLD, arrive here and do nothing else."""

    def __enter__(self) -> Inbox:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        taken = [number for number in STOPS if not _is_nohup(number)]
        self._previous = {n: signal.signal(n, _note) for n in (*taken, signal.SIGCHLD)}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._ours.close()
        self._theirs.close()

    def wait(self, seconds: float) -> list[signal.Signals]:
        """Sleep until a signal comes, at most so long; return the stop requests that came."""
        ready, _, _ = select.select([self._ours], [], [], seconds)
        if not ready:
            return []
        return [signal.Signals(number) for number in self._ours.recv(4096) if number in STOPS]


def _is_nohup(number: signal.Signals) -> bool:
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python has written the number to the wake-up socket already."""
