"""A worker's heartbeat: a small file in which it keeps how far it is, for its launcher to read.

`heartbeat_R` in the folder that MINDBOOTH_HEARTBEATS names is one line of JSON, written over in
place at each phase, update, picture, denoising step and entry; launch/heartbeats.py is its reader.
To a launcher, a record that no longer changes is a hang: so one that cannot be written is emptied.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

FOLDER = "MINDBOOTH_HEARTBEATS"
UPDATE = "update"  # what the training itself counts
SIZE = 512  # longer than a record, and within one page: a reader sees a whole one


class Count(NamedTuple):
    """Something that is being counted. first: where, and since: when the counting began."""

    what: str = ""
    unit: str = ""
    first: int = 0
    done: int = 0
    total: int = 0
    since: float = 0.0
    figures: Mapping[str, str] = {}


class Heart:
    """How far this worker is. Without a path nobody is told; with one, at every change."""

    def __init__(self, path: Path | None = None) -> None:
        self._file: int | None = None
        self._phase, self._phases = "", 0
        self._updates: int | None = None
        self._began = False
        self._count = Count()
        self._around: list[Count] = []  # what goes on when the present count is over
        self._complained = False
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            except OSError as err:
                self._complain(err)

    @classmethod
    def of(cls, environ: Mapping[str, str], rank: int) -> Heart:
        """A rank's heart, told where the environment names a folder. Use as a context manager."""
        folder = environ.get(FOLDER)
        return cls(Path(folder) / f"heartbeat_{rank}" if folder else None)

    def phase(self, name: str) -> None:
        """A phase begins. All ranks go through the same: their number tells who is behind."""
        self._phase = name
        self._phases += 1
        self.beat()

    def begin(self) -> None:
        """All ranks know: the checkpoints in the output folder are this run's own from now on."""
        self._began = True
        self.beat()

    def count(self, what: str, unit: str, done: int, total: int) -> None:
        """From now on `reach` counts this, until it is `counted`."""
        self._around.append(self._count)
        self._count = Count(what, unit, done, done, total, time.monotonic())
        self.beat()

    def reach(self, done: int, figures: Mapping[str, str]) -> None:
        """So many are done. Who waits and gets no further shows no sign of life by that."""
        if done == self._count.done:
            return
        self._count = self._count._replace(done=done, figures=figures)
        if self._count.what == UPDATE:
            self._updates = self._count.done
        self.beat()

    def counted(self) -> None:
        """Back to the count around this one; the outermost stays known."""
        around = self._around.pop()
        if self._around:
            self._count = around
        self.beat()

    def beat(self) -> None:
        """Shows that this worker is alive."""
        if self._file is None:
            return
        record = {
            "phase": self._phase,
            "phases": self._phases,
            **self._count._asdict(),
            "updates": self._updates,
            "began": self._began,
            "time": time.monotonic(),
        }
        line = json.dumps(record).encode()
        try:
            os.pwrite(self._file, line.ljust(SIZE - 1) + b"\n", 0)
        except OSError as err:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
            self._complain(err)

    def __enter__(self) -> Heart:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _complain(self, err: OSError) -> None:
        if not self._complained:
            log.warning("The heartbeat can't be written (%s): training goes on, but the launcher "
                        "does not see how far it is.", err)  # fmt: skip
        self._complained = True
