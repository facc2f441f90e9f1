"""The launchers of a job talk while it runs: JSON lines over TCP, host 0 in the middle.

    host i -> host 0   beat, failed, stop, outcome
    host 0 -> host i   beat, failed (the first one, for all), stop, end

So every host tells the true cause, notices a host that is lost, and leaves with the same status.
A launcher alone has a `Link` without lines: the same calls, and nobody to talk to. How the lines
come about: `rendezvous.py`. Nothing that arrives is executed, and a line without sense is closed.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from .inbox import HasFileno
from .verdict import FAILED, HOST, Failure, Outcome, together

BEAT_SECONDS = 2.0
LOST_SECONDS = 12.0
TICK_SECONDS = 0.2
GOODBYE_SECONDS = 5.0
LONGEST_LINE = 1 << 24
READS_AT_A_TIME = 64
MANY_HOSTS = 64
if sys.platform == "linux":
    # Seconds of silence before the first probe, and between probes; how many fail.
    KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
ECHO_SECONDS = 2.0  # a Ctrl-C may come to each host by itself, and through the others

Message = dict[str, Any]
Wait = Callable[[float, Sequence[HasFileno]], list[signal.Signals]]  # Inbox.wait


def encode(kind: str, **what: object) -> bytes:
    return json.dumps({"kind": kind, **what}).encode() + b"\n"


def is_second(number: signal.Signals, first_at: float, now: float) -> bool:
    """Whether a stop request is a second Ctrl-C, and not the first one by another way."""
    return number is signal.SIGINT and now > first_at + ECHO_SECONDS


class Line:
    """One connection. Nothing here waits, but `end()`; two threads may send."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Before there are beats, it is this that tells of a host that lost its power.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            for option, value in KEEPALIVE.items():
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self._connection = connection
        self._lock = threading.Lock()
        self._rest = b""
        self._arrived: deque[Message] = deque()
        self._unsent: deque[memoryview] = deque()
        self.heard_at = time.monotonic()
        self.closed = False

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, kind: str, **what: object) -> None:
        self.send_encoded(encode(kind, **what))

    def send_encoded(self, data: bytes) -> None:
        with self._lock:
            self._unsent.append(memoryview(data))
        self._send()

    def take(self) -> Message | None:
        """The next message that has come, if one has."""
        if not self._arrived:
            self._send()
            self._read()
        return self._arrived.popleft() if self._arrived else None

    def hang_up(self) -> None:
        """Close without a word."""
        self.closed = True
        self._connection.close()

    def end(self, seconds: float = GOODBYE_SECONDS) -> None:
        """Send what is left, wait until the other end has it, and hang up."""
        limit = time.monotonic() + seconds
        with suppress(OSError):
            self._connection.settimeout(seconds)
            self._connection.sendall(b"".join(self._unsent))
            self._connection.shutdown(socket.SHUT_WR)
            # What is left unread when we hang up would take our last words with it.
            while time.monotonic() < limit and self._connection.recv(1 << 16):
                pass
        self.hang_up()

    def _send(self) -> None:
        with self._lock:
            try:
                while self._unsent and not self.closed:
                    part = self._unsent[0]
                    self._unsent[0] = part[self._connection.send(part) :]
                    if not self._unsent[0]:
                        self._unsent.popleft()
            except BlockingIOError:
                pass
            except OSError:
                self.closed = True

    def _read(self) -> None:
        """Read what has come; what is no message of ours closes the connection."""
        try:
            for _ in range(READS_AT_A_TIME):
                if self.closed:
                    return
                piece = self._connection.recv(1 << 16)
                self.heard_at = time.monotonic()
                *whole, self._rest = (self._rest + piece).split(b"\n")
                self._arrived += [_message(line) for line in whole]
                self.closed = not piece or len(self._rest) > LONGEST_LINE
        except BlockingIOError:
            pass
        except (OSError, ValueError, RecursionError):
            self.closed = True


def _message(line: bytes) -> Message:
    message = json.loads(line)
    if not isinstance(message, dict) or "kind" not in message:
        raise ValueError("no message of a launcher")
    return message


class Link:
    """What one launcher says to those on the other hosts, and hears.

    lines: by node rank. hosts, workers: how many the job has.
    """

    def __init__(
        self,
        lines: Mapping[int, Line] | None = None,
        *,
        node_rank: int = 0,
        hosts: int = 1,
        workers: int = 1,
    ) -> None:
        self.node_rank = node_rank
        self._hosts, self._workers = hosts, workers
        self._lines = dict(lines or {})
        self._listened_at = 0.0
        self._stopped_at: float | None = None
        self._is_broken = False
        self._owed: list[Failure | signal.Signals] = []  # to the attempt that follows
        self._begin()
        self._ended = threading.Event()
        if self._lines:
            # A thread: the other one may have to wait for a terminal or a disk.
            threading.Thread(target=self._beat, daemon=True).start()

    def _begin(self) -> None:
        """Forget the attempt before."""
        self._first: Failure | None = None
        self._outcomes: dict[int, Outcome] = {}
        self._end: tuple[Outcome, int | None] | None = None

    @property
    def sources(self) -> list[Line]:
        """What to wait for beside signals; of many hosts one speaks all the time anyway."""
        return list(self._lines.values()) if len(self._lines) <= MANY_HOSTS else []

    def failed(self, failure: Failure) -> None:
        """Tell of the first failure on this host."""
        if self.node_rank == 0:
            self._judge(failure)
        else:
            self._tell("failed", failure=failure.as_json())

    def stop(self, number: signal.Signals) -> None:
        """Tell all others of a stop request."""
        if self._is_news(number):
            self._tell("stop", signal=int(number))

    def hear(self) -> list[Failure | signal.Signals]:
        """What the other hosts told, and what this one must act on. Call it often."""
        now = time.monotonic()
        if now > self._listened_at + BEAT_SECONDS:  # while we did not listen, silence says nothing
            for line in self._lines.values():
                line.heard_at = now
        self._listened_at = now
        heard, self._owed = self._owed, []
        for host, line in list(self._lines.items()):
            try:
                # What follows an end is for the next attempt.
                while self._end is None and (message := line.take()) is not None:
                    heard += self._take(host, message)
            except (KeyError, TypeError, ValueError):  # no launcher of ours speaks so
                line.closed = True
            if self._end is not None:
                break
            silent = now - line.heard_at
            if line.closed or silent > LOST_SECONDS:
                why = "its launcher ended without a word"
                if not line.closed:
                    why = f"nothing was heard from it for {silent:.0f} s"
                heard += self._lose(host, why)
        return heard

    def others_ended(self) -> bool:
        """Whether the workers of all other hosts have ended; only host 0 has to know."""
        return self.node_rank != 0 or not self._lines.keys() - self._outcomes.keys()

    def settle(
        self, mine: Outcome, wait: Wait, again: Callable[[Outcome], int | None]
    ) -> tuple[Outcome, int | None]:
        """Return how the attempt ended on all hosts, and the number of the next one, if any.

        On host 0 `again` decides about that, after all hosts have ended. A stop request that comes
        meanwhile is passed on.
        """
        owed: list[Failure | signal.Signals] = []
        self._outcomes[self.node_rank] = mine
        if self.node_rank != 0:
            self._tell("outcome", outcome=mine.as_json())
        while not self._settled():
            stops = wait(TICK_SECONDS, self.sources)
            for number in stops:
                self.stop(number)
            self.hear()
            owed += stops
        end = self._end or self._decide(again)
        self._begin()
        self._owed = owed
        return end

    def close(self) -> None:
        """Hang up, once all have heard how it ended."""
        self._ended.set()
        limit = time.monotonic() + GOODBYE_SECONDS
        for line in self._lines.values():
            line.end(max(0.1, limit - time.monotonic()))
        self._lines.clear()

    def _beat(self) -> None:
        beat = encode("beat")
        while not self._ended.wait(BEAT_SECONDS):
            for line in list(self._lines.values()):
                line.send_encoded(beat)

    def _is_news(self, number: signal.Signals) -> bool:
        """Whether to pass a stop request on: the first one, and a Ctrl-C that is no echo of it."""
        now = time.monotonic()
        first = self._stopped_at is None
        if first:
            self._stopped_at = now
        return first or is_second(number, self._stopped_at or now, now)

    def _settled(self) -> bool:
        if self._end is not None:
            return True
        if self.node_rank == 0:
            return self.others_ended()
        return not self._lines  # host 0 is lost

    def _decide(self, again: Callable[[Outcome], int | None]) -> tuple[Outcome, int | None]:
        if self.node_rank != 0:  # host 0 is lost: each host for itself
            mine = self._outcomes[self.node_rank]
            return together([mine], mine.failure or self._first), None
        outcomes = [self._outcomes[host] for host in sorted(self._outcomes)]
        whole = together(outcomes, self._first)
        over = self._stopped_at is not None or self._is_broken
        following = None if over else again(whole)
        self._tell("end", outcome=whole.as_json(), again=following)
        return whole, following

    def _tell(self, kind: str, but: int | None = None, **what: object) -> None:
        data = encode(kind, **what)
        for host, line in self._lines.items():
            if host != but:
                line.send_encoded(data)

    def _take(self, host: int, message: Message) -> list[Failure | signal.Signals]:
        kind = message["kind"]
        if kind == "failed":
            failure = Failure.from_json(message["failure"])
            if not failure.fits(hosts=self._hosts, workers=self._workers):
                raise ValueError("no host or rank of this job")
            return self._judge(failure)
        if kind == "stop" or (kind == "refused" and message["signal"] is not None):
            number = signal.Signals(message["signal"])  # a refusal: from a host that did not go
            if self._is_news(number) and self.node_rank == 0:
                self._tell("stop", but=host, signal=int(number))
            return [number]
        if kind == "outcome":
            self._outcomes[host] = Outcome.from_json(message["outcome"])
        elif kind == "end":
            self._end = Outcome.from_json(message["outcome"]), message["again"]
        return []

    def _judge(self, failure: Failure) -> list[Failure | signal.Signals]:
        """The first failure that host 0 hears of is the cause; what follows are consequences."""
        if self._first is not None:
            return []
        self._first = failure
        if self.node_rank == 0:
            self._tell("failed", failure=failure.as_json())
        return [failure]

    def _lose(self, host: int, why: str) -> list[Failure | signal.Signals]:
        self._lines.pop(host).hang_up()
        self._is_broken = True
        return self._judge(Failure(who=HOST, host=host, status=FAILED, why=f"was lost: {why}"))
