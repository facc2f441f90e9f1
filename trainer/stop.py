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
        self._updating = False

    def install(self) -> None:
        """Takes TERM and USR1."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, requests are only noted in `asked`."""
        self.began = self._updating = True
        try:
            yield
        finally:
            self._updating = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._updating:
            raise SystemExit(STATUS)
