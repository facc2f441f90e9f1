"""Signals as values: a launcher waits for the next one, or for time to pass, in one place."""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Protocol

from .leash import Leash

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Inbox:
    """While open, signals that ask for a stop, and SIGCHLD, arrive here and do nothing else."""

    def __init__(self, leash: Leash | None = None) -> None:
        self._leash = leash

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

    def wait(self, seconds: float, others: Sequence[HasFileno] = ()) -> list[signal.Signals]:
        """Sleep until a signal comes, or something to read on one of `others`; at most so long.

        Returns the stop requests that came.
        """
        leash = self._leash
        poll = select.poll()  # select() knows no descriptor above 1023
        held = [leash] if leash is not None and leash.held else []
        sources: list[HasFileno] = [self._ours, *held, *others]
        for source in sources:
            poll.register(source, select.POLLIN)
        poll.poll(seconds * 1000)
        came = leash.requests(time.monotonic()) if leash is not None else []
        with suppress(BlockingIOError):
            came += [signal.Signals(n) for n in self._ours.recv(4096) if n in STOPS]
        return came


def _is_nohup(number: signal.Signals) -> bool:
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: Python has written the number to the wake-up socket already."""
