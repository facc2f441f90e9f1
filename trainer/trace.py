"""Spans on a rank's threads, which --profile records.

    phases, step, prefetch -> Trace.span() -> a table, OUTPUT/profile/trace-rank-R.json

`Trace` itself records nothing, and has no clock; a `Recording` does. A span is the host's time:
where the device computes on its own, that of launching, but for the span that waits for it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, current_thread, get_native_id, main_thread
from time import perf_counter_ns
from typing import Any, NamedTuple, TypeVar

from mindbooth.data.atomic import replace_file

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST = 200_000  # spans that are kept, in some 35 MB
WAIT = "wait for the batch"
UPDATES = "updates"  # the phase: with WAIT, what shares are shares of


class Span(NamedTuple):
    """began, ended: of perf_counter_ns(). thread: its number in the kernel. update: from 0."""

    name: str
    thread: int
    began: int
    ended: int
    update: int | None


@dataclass
class Total:
    """Of all spans of a name. thread, began, in_updates: those of the first one."""

    thread: str
    began: int
    in_updates: bool
    times: int = 0
    nanoseconds: int = 0


class Trace:
    """Nobody watches: the calls of a Recording, without a clock."""

    def span(self, name: str, update: int | None = None) -> AbstractContextManager[None]:
        """Records what is inside the `with`. update: its number, from 0, where it is part of one.

        On one thread spans lie within each other or apart, as `with` has them.
        """
        return _NOTHING

    def calls(self, name: str, function: Callable[[int], T]) -> Callable[[int], T]:
        """`function` of an update's number, with a span around each call."""
        return function

    def waits(self, items: Iterable[T], first: int = 0) -> Iterable[T]:
        """The items of the updates from `first` on, with a span around the wait for each."""
        return items

    def table(self) -> str:
        """A line for each name of the spans in updates; "" if there are none."""
        return ""

    def write(self, folder: Path) -> None:
        """Leaves the spans in `folder`, for a viewer; a warning where that fails."""


_NOTHING = contextlib.nullcontext()


class Recording(Trace):
    """The spans of one rank, from any of its threads.

    asynchronous: the device computes on its own. most: so many spans are kept; later ones only
    count in the table's times, totals and means.
    """

    def __init__(self, rank: int, *, asynchronous: bool = False, most: int = MOST) -> None:
        self.spans: list[Span] = []
        self._rank = rank
        self._asynchronous = asynchronous
        self._most = most
        self._totals: dict[str, Total] = {}
        self._threads: dict[int, str] = {}
        self._lock = Lock()
        # From there to the wall clock, which ranks share. Once: that one may be set meanwhile.
        self._shift = time.time_ns() - perf_counter_ns()

    def span(self, name: str, update: int | None = None) -> AbstractContextManager[None]:
        return _Open(self, name, update)

    def calls(self, name: str, function: Callable[[int], T]) -> Callable[[int], T]:
        def timed(update: int) -> T:
            with _Open(self, name, update):
                return function(update)

        return timed

    def waits(self, items: Iterable[T], first: int = 0) -> Iterator[T]:
        source = iter(items)
        for update in itertools.count(first):
            began = perf_counter_ns()
            try:
                item = next(source)
            except StopIteration:
                return
            self.add(WAIT, began, update)
            yield item

    def add(self, name: str, began: int, update: int | None) -> None:
        """A span of the calling thread, which ends now."""
        ended, thread = perf_counter_ns(), get_native_id()
        with self._lock:
            if thread not in self._threads:
                self._threads[thread] = current_thread().name
            total = self._totals.get(name)
            if total is None:
                total = Total(self._threads[thread], began, update is not None)
                self._totals[name] = total
            total.times += 1
            total.nanoseconds += ended - began
            if len(self.spans) < self._most:
                self.spans.append(Span(name, thread, began, ended, update))

    def table(self) -> str:
        rows = {
            name: total
            for name, total in sorted(self._totals.items(), key=lambda item: item[1].began)
            if total.in_updates or name == UPDATES
        }
        if not any(total.in_updates for total in rows.values()):
            return ""
        whole = sum(rows[name].nanoseconds for name in (WAIT, UPDATES) if name in rows)
        lines = [f"{'in updates':<30}{'times':>7}{'total s':>10}{'mean ms':>10}{'median ms':>11}"
                 f"{'share':>8}"]  # fmt: skip
        for name, total in rows.items():
            each = [span.ended - span.began for span in self.spans if span.name == name]
            median = f"{statistics.median(each) / 1e6:.3f}" if each else "-"
            share = f"{total.nanoseconds / whole:.1%}" if whole else "-"
            lines.append(
                f"{_shown(name, total):<30}{total.times:>7}{total.nanoseconds / 1e9:>10.2f}"
                f"{total.nanoseconds / total.times / 1e6:>10.3f}{median:>11}{share:>8}"
            )
        return "\n".join((*lines, f"Shares are of {whole / 1e9:.2f} s: the updates, and the waits "
                          "for their batches.", *self._notes()))  # fmt: skip

    def write(self, folder: Path) -> None:
        path = folder / f"trace-rank-{self._rank}.json"
        try:
            replace_file(path, self._document())
        except OSError as err:
            log.warning("The trace can't be written to %s: %s.", path, err.strerror or err)
            return
        if self._rank == 0:
            log.info(
                "Traces, one of each rank, for https://ui.perfetto.dev or chrome://tracing: %s",
                folder / "trace-rank-*.json",
            )

    def _notes(self) -> list[str]:
        """What has to be known to read the figures."""
        notes = []
        if self._asynchronous:
            notes.append(
                "The device computes on its own: these are the times that the host takes to launch "
                "its work, but for the optimizer, in which the host waits for all of it."
            )
        unkept = sum(total.times for total in self._totals.values()) - len(self.spans)
        if unkept:
            notes.append(
                f"The trace and the medians have the first {len(self.spans)} spans only; {unkept} "
                "later ones are but counted."
            )
        return notes

    def _document(self) -> bytes:
        """The Trace Event Format's JSON object, an event a line, with microseconds since 1970."""
        about = json.dumps({"rank": self._rank, "notes": self._notes()})
        # Viewers take what begins in the same microsecond in the file's order: parents come first.
        spans = sorted(self.spans, key=lambda span: (span.began, -span.ended))
        made = io.BytesIO()
        made.write(f'{{"displayTimeUnit": "ms", "otherData": {about}, "traceEvents": ['.encode())
        for number, event in enumerate(itertools.chain(self._names(), map(self._event, spans))):
            made.write((",\n" if number else "\n").encode() + json.dumps(event).encode())
        made.write(b"\n]}\n")
        return made.getvalue()

    def _names(self) -> Iterator[dict[str, Any]]:
        process = f"rank {self._rank} on {socket.gethostname()}, pid {os.getpid()}"
        common = {"ph": "M", "pid": self._rank}
        yield {**common, "name": "process_name", "args": {"name": process}}
        yield {**common, "name": "process_sort_index", "args": {"sort_index": self._rank}}
        for thread, name in self._threads.items():
            yield {**common, "tid": thread, "name": "thread_name", "args": {"name": name}}

    def _event(self, span: Span) -> dict[str, Any]:
        # Both ends are rounded down: so what lies within another span still does.
        began, ended = ((at + self._shift) // 1000 for at in (span.began, span.ended))
        # As in the log and in metrics.jsonl, updates are numbered from 1.
        args = {} if span.update is None else {"update": span.update + 1}
        return {"name": span.name, "ph": "X", "pid": self._rank, "tid": span.thread,
                "ts": began, "dur": ended - began, "args": args}  # fmt: skip


class _Open:
    """A span that goes on."""

    __slots__ = ("_began", "_name", "_recording", "_update")

    def __init__(self, recording: Recording, name: str, update: int | None) -> None:
        self._recording = recording
        self._name = name
        self._update = update

    def __enter__(self) -> None:
        self._began = perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self._recording.add(self._name, self._began, self._update)


def _shown(name: str, total: Total) -> str:
    """A name in the table. Spans of other threads go on beside those of the main one."""
    if name == UPDATES:
        return "each update"
    return name if total.thread == main_thread().name else f"{name} (thread {total.thread})"
