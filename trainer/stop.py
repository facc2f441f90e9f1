"""Stop requests: TERM and USR1 ask a run to save and end with status 75.

While updates run, a request is only noted: it travels in the next all-reduce, so that all ranks
stop after the same update. Before the first update there is nothing to save, and the process ends
at once.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STATUS = 75  # EX_TEMPFAIL of sysexits.h: run me again


class StopRequest:
    """Whether a stop was asked for. `install()` once the group is joined, which sets handlers."""

    def __init__(self) -> None:
        self.asked = False
        self.began = False

    def install(self) -> None:
        """Takes TERM and USR1."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """From here on requests are only noted in `asked`: 75 would promise a checkpoint."""
        self.began = True
        yield

    def leave(self) -> None:
        """The status is decided. Python takes its handlers away about a second before the process
        is gone: a request in that time would end it with 143. What is ignored stays ignored."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self.began:
            raise SystemExit(STATUS)
