"""Ranks wait for one another, exchange bytes and tell when they give up, over TCP.

For all that is no gradient: a collective ends by itself (MindSpore's on CPU after 30 s, HCCL's
after half an hour), and a wait here lasts as long as the slowest rank's graph takes to compile.
Rank 0 is in the middle (`chair.py`). While it compiles, its thread may not run for minutes, and the
others wait: nobody is taken for dead because nothing is heard, but only when the line has ended.
"""

from __future__ import annotations

import ipaddress
import resource
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import ClassVar

from .chair import BYE, FAILED, MEET, MET, RANK, Chair, gone
from .errors import DataError, RankFailed, RankStopped
from .lines import Line, Lines, Message, pack

JOIN_SECONDS = 300.0
CONNECT_SECONDS = 120.0
GOODBYE_SECONDS = 5.0
GAVE_UP = {error.__name__: error for error in (DataError, RankFailed, RankStopped)}

_TOKEN_BYTES = 16
_OTHER_FILES = 512  # that a process may have open beside a line to each rank


class Meeting:
    """The ranks of one run. Any thread may call.

    invitation: on rank 0, what the others join with: `INVITATION` numbers below 2**16.
    """

    INVITATION: ClassVar[int] = 1 + (16 + _TOKEN_BYTES) // 2  # port; address and token

    def __init__(self, size: int) -> None:
        self.invitation: list[int] = []
        self._size = size
        self._side: Chair | _Guest | None = None
        self._waiting: dict[bytes, SimpleQueue[Message | None]] = {}
        self._told: tuple[type[Exception], str] | None = None
        self._has_ended = False  # rank 0 has left: no failure, but there are no more meetings
        self._leaves_at: float | None = None

    @classmethod
    def alone(cls) -> Meeting:
        """Of a run with one rank."""
        return cls(1)

    @classmethod
    def host(cls, size: int, *, scheduler: str | None = None,
             seconds: float = JOIN_SECONDS) -> Meeting:  # fmt: skip
        """Rank 0's. Returns at once; a rank that has not joined within `seconds` has failed.

        scheduler: MS_SCHED_HOST, which shows the address of this host that the others reach; None
        where all ranks are on this host.
        """
        _allow_files(size)
        address = _own_address(scheduler)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, 0), family=family, backlog=size)
        token = secrets.token_bytes(_TOKEN_BYTES)
        meeting = cls(size)
        meeting.invitation = invitation(address, listener.getsockname()[1], token)
        meeting._side = Chair(size, token, listener, seconds=seconds, hear=meeting._hear)
        return meeting

    @classmethod
    def join(cls, invitation: Sequence[int], rank: int, size: int) -> Meeting:
        """Any other rank's. Raises RankFailed if rank 0 is not to be reached."""
        address, port, token = invited(invitation)
        try:
            connection = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
            connection.sendall(pack((token, RANK.pack(rank))))
        except OSError as err:
            raise RankFailed(
                f"rank {rank} does not reach rank 0 at {address}, port {port} ({err}): it has "
                "ended, or the network keeps them apart; hosts must reach any port of one another"
            ) from err
        meeting = cls(size)
        meeting._side = _Guest(connection, meeting._hear)
        return meeting

    def at(self, name: str) -> None:
        """Returns when all ranks have come to the point of this name. It may come again.

        Raises as `check` as soon as a failure is told, and RankFailed if a rank has left.
        """
        self.exchange(name, b"")

    def exchange(self, name: str, content: bytes) -> list[bytes]:
        """What each rank brings to the meeting of this name, by rank. Waits and raises as `at`."""
        if self._size == 1:
            return [content]
        assert self._side is not None, "closed"
        key = name.encode()
        answer = self._waiting[key] = SimpleQueue()
        # It is checked after this one is listed among those that wait, so that nothing is missed.
        self._raise_if_over()
        self._side.say((MEET, key, content))
        contents = answer.get()
        if contents is None:
            self._raise_if_over()
        return list(contents or ()) or [b""] * self._size

    def fail(self, message: str, error: type[Exception]) -> None:
        """Tells all that this rank gives up, and why; the first one counts. Never raises.

        error: what all raise then, one of GAVE_UP. When it returns, after GOODBYE_SECONDS at the
        latest, the process may end.
        """
        if self._side is not None:
            words = message or "its own log says why"
            self._side.say((FAILED, error.__name__.encode(), words.encode(errors="replace")))
            self._deliver(self._side)

    def check(self) -> None:
        """Raises what a rank told that gave up, if one did. Costs nothing."""
        if self._told is not None:
            error, words = self._told
            raise error(words)

    def close(self) -> None:
        """Leaves, after the last meeting or a failure; that is no failure. May be called again."""
        if self._side is not None:
            self._side.say((BYE,))
            self._deliver(self._side)
            self._side.stop()
            self._side = None

    def _raise_if_over(self) -> None:
        self.check()
        if self._has_ended:
            raise RankFailed("rank 0 has left, so that there are no more meetings")

    def _deliver(self, side: Chair | _Guest) -> None:
        """Waits until the hosts of the others have what was said; nobody needs to read it yet."""
        if self._leaves_at is None:  # a failure and the leaving after it wait once
            self._leaves_at = time.monotonic() + GOODBYE_SECONDS
        while side.owes() and time.monotonic() < self._leaves_at:
            time.sleep(0.002)

    def _hear(self, message: Message | None) -> None:
        """Takes what rank 0 says; None when it is lost. In the thread of the lines."""
        kind, *what = message or (FAILED, RankFailed.__name__.encode(), gone(0).encode())
        if kind == MET:
            name, *contents = what
            if name in self._waiting:
                self._waiting.pop(name).put(tuple(contents))
            return
        if kind == BYE:
            self._has_ended = True
        elif self._told is None and not self._has_ended:
            error, words = what
            self._told = GAVE_UP.get(error.decode(), RankFailed), words.decode()
        for answer in list(self._waiting.values()):
            answer.put(None)


class _Guest:
    """The side of a rank other than 0: one line, and a thread that reads it."""

    def __init__(self, connection: socket.socket, hear: Callable[[Message | None], None]) -> None:
        self._line = Line(connection)
        self._lines = Lines(lambda line, message: hear(message))
        self._lines.add(self._line)
        self._lines.start()

    def say(self, message: Message) -> None:
        self._lines.do(partial(self._lines.send, self._line, pack(message)))

    def owes(self) -> bool:
        return self._lines.owes()

    def stop(self) -> None:
        self._lines.stop()


def invitation(address: str, port: int, token: bytes) -> list[int]:
    """Numbers below 2**16, which fp32 holds exactly: port; IPv6 address and token."""
    at = ipaddress.ip_address(address)
    at = ipaddress.IPv6Address(f"::ffff:{at}") if at.version == 4 else at
    packed = at.packed + token
    return [port, *struct.unpack(f"!{len(packed) // 2}H", packed)]


def invited(invitation: Sequence[int]) -> tuple[str, int, bytes]:
    """The address, port and token of an invitation."""
    port, *numbers = invitation
    packed = struct.pack(f"!{len(numbers)}H", *numbers)
    at = ipaddress.IPv6Address(packed[:16])
    return str(at.ipv4_mapped or at), port, packed[16:]


def _own_address(scheduler: str | None) -> str:
    if scheduler is None:
        return "127.0.0.1"
    family, kind, _, _, there = socket.getaddrinfo(scheduler, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(there)  # finds the way, and sends nothing
        return str(probe.getsockname()[0])


def _allow_files(size: int) -> None:
    needed = size + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DataError(
            f"{size} ranks need {needed} open files in rank 0, but its host allows {hard} a "
            "process: raise that hard limit (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
