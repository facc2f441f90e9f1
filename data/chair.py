"""Rank 0's side of a meeting: it hears all ranks, and tells all what follows.

    rank i -> rank 0   first its token and rank, then: meet (name, content), failed, bye
    rank 0 -> rank i   met (name, contents of all), failed (the first one), bye

`Minutes` decides, without a socket; `Chair` lets in who brings the token, and listens until all
have come. Of what fails, only the first counts: the rest follows from it.
"""

from __future__ import annotations

import hmac
import socket
import struct
from collections.abc import Callable, Sequence

from .errors import RankFailed
from .lines import LARGEST, Line, Lines, Message, pack

MEET, MET, FAILED, BYE = b"meet", b"met", b"failed", b"bye"
RANK = struct.Struct("!I")
_LARGEST_HELLO = 128
_RANKS_NAMED = 8


class Minutes:
    """What the ranks have said, and what is to be told to all of them. Pure.

    lasting: what was told and is to be told to those who come later, too.
    """

    def __init__(self, size: int) -> None:
        self.lasting: list[Message] = []
        self._size = size
        self._brought: dict[bytes, dict[int, bytes]] = {}
        self._left: set[int] = set()

    def take(self, rank: int, message: Message) -> list[Message]:
        """What is to be told once a rank has said this."""
        kind, *what = message
        if kind == FAILED:
            error, words = what
            if error.decode() == RankFailed.__name__:
                words = b"rank %d: %b" % (rank, words)
            return self._fail(error, words)
        if kind == MEET:
            name, content = what
            self._brought.setdefault(name, {})[rank] = content
            if len(self._brought[name]) == self._size:
                return [self._met(name)]
        if kind == BYE:
            self._left.add(rank)
        follows = self._missed()
        if kind == BYE and rank == 0:
            follows.append((BYE,))
            self.lasting.append((BYE,))
        return follows

    def lose(self, rank: int) -> list[Message]:
        """What is to be told once the line to a rank has ended."""
        return [] if rank in self._left else self.fail(gone(rank))

    def fail(self, words: str) -> list[Message]:
        """What is to be told of a failure that no rank told."""
        return self._fail(RankFailed.__name__.encode(), words.encode())

    def _fail(self, error: bytes, words: bytes) -> list[Message]:
        if any(message[0] == FAILED for message in self.lasting):
            return []
        self.lasting.append((FAILED, error, words))
        return self.lasting[-1:]

    def _met(self, name: bytes) -> Message:
        brought = self._brought.pop(name)
        contents = [brought[rank] for rank in range(self._size)]
        # Of thousands of ranks that only wait, the lengths alone would be much to send.
        return (MET, name, *(contents if any(contents) else ()))

    def _missed(self) -> list[Message]:
        """A rank that has left comes to no meeting for which others wait."""
        for name, brought in self._brought.items():
            if absent := self._left - brought.keys():
                return self.fail(f"rank {min(absent)} has left before all met at {name.decode()!r}")
        return []


class Chair:
    """The minutes, the lines to all other ranks, and a thread.

    seconds: how long the others may take to come. hear: is told what all are told, in that thread.
    """

    def __init__(self, size: int, token: bytes, listener: socket.socket, *, seconds: float,
                 hear: Callable[[Message], None]) -> None:  # fmt: skip
        self._token, self._seconds, self._hear = token, seconds, hear
        self._minutes = Minutes(size)
        self._awaited = set(range(1, size))
        self._guests: dict[Line, int] = {}
        self._lines = Lines(self._heard)
        self._lines.listen(listener, largest=_LARGEST_HELLO, seconds=seconds, too_late=self._late)
        self._lines.start()

    def say(self, message: Message) -> None:
        """What rank 0 itself says."""

        self._lines.do(lambda: self._tell(self._minutes.take(0, message)))

    def owes(self) -> bool:
        """Whether there are ranks that have not been told all yet."""
        return bool(self._awaited) or self._lines.owes()

    def stop(self) -> None:
        self._lines.stop()

    def _heard(self, line: Line, message: Message | None) -> None:
        rank = self._guests.get(line)
        if rank is None:
            self._let_in(line, message or ())
        elif message is not None:
            self._tell(self._minutes.take(rank, message))
        else:
            del self._guests[line]
            self._tell(self._minutes.lose(rank))

    def _let_in(self, line: Line, hello: Message) -> None:
        rank = self._rank(hello)
        if rank is None:
            self._lines.drop(line)
            return
        line.largest = LARGEST
        self._guests[line] = rank
        for message in self._minutes.lasting:
            self._lines.send(line, pack(message))
        self._awaited.remove(rank)
        if not self._awaited:
            self._lines.listen_no_more(keep=self._guests)

    def _rank(self, hello: Message) -> int | None:
        """Whose hello it is; None if it is nobody who is awaited."""
        if len(hello) != 2 or not hmac.compare_digest(hello[0], self._token):
            return None
        (rank,) = RANK.unpack(hello[1])
        return rank if rank in self._awaited else None

    def _late(self) -> None:
        some = ", ".join(map(str, sorted(self._awaited)[:_RANKS_NAMED]))
        more = ", ..." if len(self._awaited) > _RANKS_NAMED else ""
        self._lines.listen_no_more(keep=self._guests)
        self._tell(
            self._minutes.fail(
                f"after {self._seconds:.0f} s some ranks have not joined the others: {some}{more}"
            )
        )
        self._awaited.clear()

    def _tell(self, messages: Sequence[Message]) -> None:
        for message in messages:
            data = pack(message)
            for line in self._guests:
                self._lines.send(line, data)
            self._hear(message)


def gone(rank: int) -> str:
    """How a rank is called whose line ended without a bye."""
    return f"rank {rank} is gone: its process ended, or its host or network failed"
