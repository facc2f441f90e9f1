"""Follow log files that others write, line by line, and choose what the terminal shows of them.

The files always hold everything. The terminal does not show MindSpore's own information and warning
lines, nor the stacks that a worker was asked for, nor a one-line input error (all ranks say the
same; the launcher says it once at the end). A traceback is held back for a moment: if its worker is
dying, the report at the end shows it. Where somebody may be watching, a bar in the last line takes
the place of rank 0's progress lines.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

from . import bar
from .heartbeats import Beat

INPUT_ERROR = "mindbooth: error: "
TRACEBACK = "Traceback (most recent call last):"
MINDSPORE_CHATTER = re.compile(r"\[(TRACE|DEBUG|INFO|WARNING)\] [A-Z_]+\(\d+[,:]")
PROGRESS = re.compile(r"\[0\] INFO .+ \d+/\d+(, .+)?, [\d.]+ \S+/s, (\?|[\d:]+) left")
STACK = re.compile(r"(Stack|(Current thread|Thread) 0x[0-9a-f]+.*) \(most recent call first\):")
HOLD_SECONDS = 5.0
USUAL_COLUMNS = 80
CHUNK_BYTES = 1 << 16
TAIL_BYTES = 1 << 16


@dataclass
class Lines:
    """Bytes in pieces -> whole lines; of a line rewritten with carriage returns, the last state."""

    rest: bytes = b""

    def feed(self, piece: bytes) -> list[str]:
        *whole, self.rest = (self.rest + piece).split(b"\n")
        return [_decode(line) for line in whole]

    def flush(self) -> list[str]:
        """End the stream: what is left is a line too."""
        last, self.rest = self.rest, b""
        return [_decode(last)] if last else []


def _decode(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")


@dataclass
class Screen:
    """Lines of one worker -> lines for the terminal. `now` is an argument, in seconds."""

    held: list[str] = field(default_factory=list)
    held_since: float | None = None
    in_stack: bool = False

    def show(self, lines: list[str], now: float) -> list[str]:
        shown: list[str] = []
        for line in lines:
            if is_chatter(line) or line.startswith(INPUT_ERROR) or self._is_stack(line):
                continue
            if line == TRACEBACK and self.held_since is None:
                self.held_since = now
            (shown if self.held_since is None else self.held).append(line)
        if self.held_since is not None and now - self.held_since > HOLD_SECONDS:
            shown += self.release()
        return shown

    def release(self) -> list[str]:
        """Give out what was held back."""
        held, self.held, self.held_since = self.held, [], None
        return held

    def _is_stack(self, line: str) -> bool:
        """Is this a line of what faulthandler writes, one stack a thread?"""
        goes_on = self.in_stack and (not line or line.startswith("  "))
        self.in_stack = goes_on or STACK.match(line) is not None
        return self.in_stack


@dataclass
class Follower:
    """One log file, from its beginning; it may appear later."""

    path: Path
    lines: Lines = field(default_factory=Lines)
    screen: Screen = field(default_factory=Screen)
    file: BinaryIO | None = None

    def poll(self, now: float, last: bool = False, release: bool = False) -> list[str]:
        """Return what the terminal should show since the call before; after the `last`, no more."""
        if self.file is None:
            try:
                self.file = self.path.open("rb")
            except FileNotFoundError:
                return []
        whole = [line for piece in _pieces(self.file) for line in self.lines.feed(piece)]
        if last:
            whole += self.lines.flush()
            self.file.close()
        return self.screen.show(whole, now) + (self.screen.release() if release else [])


@dataclass
class Terminal:
    """Where a person may be reading: what happens goes to `out`, how it ended to `err`.

    A terminal that goes away (a closed pipe, a lost connection) does not end the training.
    """

    out: TextIO
    err: TextIO
    foot: str = ""  # the bar that stands in the last line, below all that was written

    def show(self, line: str) -> None:
        if not (self.foot and PROGRESS.fullmatch(line)):
            self._write(self.out, line)

    def say(self, line: str) -> None:
        self._write(self.err, line)

    def progress(self, beat: Beat | None, now: float) -> None:
        """Keep a bar of rank 0's progress in the last line; nothing where `out` is no terminal."""
        if beat is not None and self.out.isatty():
            self._draw(bar.line(beat, now, _columns(self.out) - 1))

    def close(self) -> None:
        """Leave the bar as it is; what comes from now on stands below it."""
        if self.foot:
            _put(self.out, "\n")
            self.foot = ""

    def _write(self, stream: TextIO, line: str) -> None:
        foot = self.foot
        self._draw("")
        _put(stream, line + "\n")
        self._draw(foot)

    def _draw(self, text: str) -> None:
        """Write over the bar; nothing moves where it stays as it is."""
        if text != self.foot:
            _put(self.out, "\r" + text.ljust(len(self.foot)) + "\r" * (not text))
            self.foot = text


def _put(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BlockingIOError:
        pass  # somebody else made the terminal so; what is lost here stands in the logs
    except OSError:
        # Nobody reads any more. What is left in the stream would fail once more when Python ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _columns(terminal: TextIO) -> int:
    try:
        return os.get_terminal_size(terminal.fileno()).columns or USUAL_COLUMNS
    except OSError:
        return USUAL_COLUMNS


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(CHUNK_BYTES):
        yield piece


def is_chatter(line: str) -> bool:
    """Is this a line by which MindSpore reports, below an error?

    >>> is_chatter("[WARNING] DISTRIBUTED(58,7f8da39efb80,python):2026-01-01 [a.cc:1] x] y")
    True
    """
    return MINDSPORE_CHATTER.match(line) is not None


def tail(text: str, count: int) -> list[str]:
    """Return the last lines, MindSpore's chatter left out unless there is nothing else."""
    lines = text.splitlines()
    return ([line for line in lines if line and not is_chatter(line)] or lines)[-count:]


def input_error(text: str) -> str | None:
    """Return the one-line error that a log ends with, if it does; chatter after it aside."""
    last = tail(text, 1)
    return last[0] if last and last[0].startswith(INPUT_ERROR) else None


def read_tail(path: Path) -> str:
    """Read the end of a log; empty if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
