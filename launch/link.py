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

Message = dict[str, Any]
Wait = Callable[[float, Sequence[HasFileno]], list[signal.Signals]]  # Inbox.wait


def encode(kind: str, **what: object) -> bytes:
    return json.dumps({"kind": kind, **what}).encode() + b"\n"


class Line:
    """One connection. Nothing here waits, but `close()` for a moment."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
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
        self._unsent.append(memoryview(data))
        self._move()

    def take(self) -> Message | None:
        """The next message that has come, if one has."""
        self._move()
        return self._arrived.popleft() if self._arrived else None

    def receive(self) -> list[Message]:
        """All messages that have come."""
        self._move()
        messages = list(self._arrived)
        self._arrived.clear()
        return messages

    def close(self) -> None:
        """Send what is left, if it can be sent soon, and hang up."""
        with suppress(OSError):
            self._connection.settimeout(GOODBYE_SECONDS)
            self._connection.sendall(b"".join(self._unsent))
        self._unsent.clear()
        self.closed = True
        self._connection.close()

    def _move(self) -> None:
        """Send and read what can be; what is no message of ours closes the connection."""
        if self.closed:
            return
        try:
            while self._unsent:
                part = self._unsent[0]
                self._unsent[0] = part[self._connection.send(part) :]
                if not self._unsent[0]:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        try:
            while piece := self._connection.recv(1 << 16):
                self.heard_at = time.monotonic()
                *whole, self._rest = (self._rest + piece).split(b"\n")
                self._arrived += [_message(line) for line in whole]
                if len(self._rest) > LONGEST_LINE:
                    break
            self.closed = True
        except BlockingIOError:
            pass
        except (OSError, ValueError):
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
        for line in self.lines:
            line.heard_at = time.monotonic()
        self._beat_at = 0.0
        self._stopping = False
        self._begin()

    def _begin(self) -> None:
        """Forget the attempt before."""
        self._first: Failure | None = None
        self._outcomes: dict[int, Outcome] = {}
        self._end: tuple[Outcome, int | None] | None = None

    @property
    def lines(self) -> list[Line]:
        return list(self._lines.values())

    def failed(self, failure: Failure) -> None:
        """Tell of the first failure on this host."""
        if self.node_rank == 0:
            self._judge(failure)
        else:
            self._tell("failed", failure=failure.as_json())

    def stop(self, number: signal.Signals) -> None:
        """Tell all others of a stop request."""
        self._stopping = True
        self._tell("stop", signal=int(number))

    def hear(self) -> list[Failure | signal.Signals]:
        """What the other hosts told, and what this one must act on. Call it often: it beats."""
        now = time.monotonic()
        if now > self._beat_at + BEAT_SECONDS:
            self._beat_at = now
            self._tell("beat")
        heard: list[Failure | signal.Signals] = []
        for host, line in list(self._lines.items()):
            try:
                for message in line.receive():
                    heard += self._take(host, message)
            except (KeyError, TypeError, ValueError):  # no launcher of ours speaks so
                line.closed = True
            silent = now - line.heard_at
            if line.closed or silent > LOST_SECONDS:
                why = "its launcher ended without a word"
                if not line.closed:
                    why = f"nothing was heard from it for {silent:.0f} s"
                heard += self._lose(host, why)
        return heard

    def settle(
        self, mine: Outcome, wait: Wait, again: Callable[[Outcome], int | None]
    ) -> tuple[Outcome, int | None]:
        """Return how the attempt ended on all hosts, and the number of the next one, if any.

        On host 0 `again` decides about that, after all hosts have ended. A stop request that comes
        meanwhile is passed on.
        """
        self._outcomes[self.node_rank] = mine
        if self.node_rank != 0:
            self._tell("outcome", outcome=mine.as_json())
        while not self._settled():
            for number in wait(TICK_SECONDS, self.lines):
                self.stop(number)
            self.hear()
        end = self._end or self._decide(again)
        self._begin()
        return end

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
        self._lines.clear()

    def _settled(self) -> bool:
        if self._end is not None:
            return True
        if self.node_rank == 0:
            return not self._lines.keys() - self._outcomes.keys()
        return not self._lines  # host 0 is lost

    def _decide(self, again: Callable[[Outcome], int | None]) -> tuple[Outcome, int | None]:
        if self.node_rank != 0:  # host 0 is lost: each host for itself
            mine = self._outcomes[self.node_rank]
            return together([mine], mine.failure or self._first), None
        outcomes = [self._outcomes[host] for host in sorted(self._outcomes)]
        whole = together(outcomes, self._first)
        following = None if self._stopping else again(whole)
        self._tell("end", outcome=whole.as_json(), again=following)
        return whole, following

    def _tell(self, kind: str, but: int | None = None, **what: object) -> None:
        for host, line in self._lines.items():
            if host != but:
                line.send(kind, **what)

    def _take(self, host: int, message: Message) -> list[Failure | signal.Signals]:
        kind = message["kind"]
        if kind == "failed":
            failure = Failure.from_json(message["failure"])
            if not failure.fits(hosts=self._hosts, workers=self._workers):
                raise ValueError("no host or rank of this job")
            return self._judge(failure)
        if kind == "stop":
            self._stopping = True
            if self.node_rank == 0:
                self._tell("stop", but=host, signal=message["signal"])
            return [signal.Signals(message["signal"])]
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
        self._lines.pop(host).close()
        if self._end is not None:
            return []
        return self._judge(Failure(who=HOST, host=host, status=FAILED, why=f"was lost: {why}"))
