"""Doctors on several hosts meet in a shared folder: who is there, what differs, whose clock is off.

`mindbooth doctor --folder DIR` on each host, at about the same time. Each keeps a file of its own
there and rewrites it a few times a second; all is learnt from the others' files:

    alive    its file names the word that I made up for this meeting; an old file can't
    clocks   I read its file after it was written, and it read mine: so the difference of the two
             clocks lies between two bounds, which come closer with each reading
    reached  its file names a port on which it listens until all have knocked

A host leaves when every file says that its host has learnt everything; the last one clears up.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

FOLDER = ".mindbooth-doctor"
LOOK_SECONDS = 0.2
LOOK_SECONDS_A_HOST = 0.01  # a shared file system serves them all
KNOCK_SECONDS = 3.0
KNOCKS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a host tells of itself. `facts` must be equal on all hosts of a job."""

    name: str
    address: str | None
    facts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Token:
    """A host's file. `heard`: by node rank, the word it read there, and how late at the soonest.

    state: "" while it learns, "knows" when it has learnt all, "leaves" when it needs nobody.
    """

    word: str
    card: Card
    port: int
    sent: float
    heard: Mapping[str, tuple[str, float]]
    state: str


@dataclass(frozen=True, kw_only=True)
class Peer:
    """What was learnt of another host. `ahead` is its clock minus ours, give or take `within`."""

    card: Card
    ahead: float
    within: float
    reached: bool


@dataclass(kw_only=True)
class Meeting:
    """Who was there, by node rank. `double`: the other host that took this host's node rank."""

    peers: dict[int, Peer] = field(default_factory=dict)
    double: str | None = None


def meet(
    folder: Path,
    card: Card,
    *,
    nnodes: int,
    node_rank: int,
    wait_seconds: float,
    clock: Callable[[], float] = time.time,
) -> Meeting:
    """Tell the others about this host, hear about them; OSError where the folder takes no files."""
    deadline = time.monotonic() + wait_seconds
    pause = max(LOOK_SECONDS, LOOK_SECONDS_A_HOST * nnodes)
    with (
        socket.create_server(("", 0), backlog=nnodes) as door,
        ThreadPoolExecutor(KNOCKS_AT_ONCE) as pool,
    ):
        here = _Here(
            place=folder / FOLDER,
            card=card,
            node_rank=node_rank,
            others=[rank for rank in range(nnodes) if rank != node_rank],
            port=int(door.getsockname()[1]),
            pool=pool,
            clock=clock,
            word=secrets.token_hex(8),
        )
        try:
            while not here.look() and time.monotonic() < deadline:
                time.sleep(pause)
        finally:
            here.leave()
        return here.meeting()


@dataclass(kw_only=True)
class _Here:
    """This host at a meeting. `alive`: the last file of each host that has read ours."""

    place: Path
    card: Card
    node_rank: int
    others: list[int]
    port: int
    pool: ThreadPoolExecutor
    clock: Callable[[], float]
    word: str
    heard: dict[str, tuple[str, float]] = field(default_factory=dict)
    alive: dict[int, Token] = field(default_factory=dict)
    knocks: dict[int, Future[bool]] = field(default_factory=dict)
    double: str | None = None
    state: str | None = None  # as in our file; None before there is one

    def look(self) -> bool:
        """Read what others wrote, write what is known now; whether nobody here is needed more."""
        # Listed, as a network file system may remember for a minute that a name did not exist.
        present = os.listdir(self.place) if self.place.is_dir() else []
        for rank in self.others:
            token = self._read(rank) if _file(rank) in present else None
            if token is not None:
                self._hear(rank, token)
        mine = None if self.state is None else self._read(self.node_rank)
        if mine is not None and mine.word != self.word:
            self.double = mine.card.name
        knows = len(self.alive) == len(self.others) and all(
            knock.done() for knock in self.knocks.values()
        )
        done = knows and all(token.state for token in self.alive.values())
        self._tell("leaves" if done else "knows" if knows else "")
        return done or self.double is not None

    def leave(self) -> None:
        """Clear up: all files if every host leaves, else what nobody will read any more."""
        gone = [self.place / _file(rank) for rank in self.others if self._left(rank)]
        if self.state != "leaves" or len(gone) == len(self.others):
            for path in (*gone, self.place / _file(self.node_rank)):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # others are still here
                self.place.rmdir()

    def meeting(self) -> Meeting:
        peers = {}
        for rank, token in sorted(self.alive.items()):
            latest = token.heard[str(self.node_rank)][1]
            earliest = -self.heard[str(rank)][1]
            peers[rank] = Peer(
                card=token.card,
                ahead=(latest + earliest) / 2,
                within=(latest - earliest) / 2,
                reached=self.knocks[rank].result(),
            )
        return Meeting(peers=peers, double=self.double)

    def _hear(self, rank: int, token: Token) -> None:
        late = self.clock() - token.sent
        word, before = self.heard.get(str(rank), (token.word, late))
        soonest = min(late, before) if word == token.word else late
        self.heard[str(rank)] = (token.word, soonest)
        if token.heard.get(str(self.node_rank), ("", 0.0))[0] == self.word:
            self.alive[rank] = token
            if rank not in self.knocks:
                self.knocks[rank] = self.pool.submit(_knock, token.card.address, token.port)

    def _left(self, rank: int) -> bool:
        token = self._read(rank)
        if token is None:
            return not (self.place / _file(rank)).exists()
        return token.state == "leaves"

    def _read(self, rank: int) -> Token | None:
        """Read a host's file; None where it is not there, or in the middle of being replaced."""
        try:
            content = json.loads((self.place / _file(rank)).read_text(encoding="utf-8"))
            return Token(**content | {"card": Card(**content["card"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _tell(self, state: str) -> None:
        self.state = state
        token = Token(
            word=self.word,
            card=self.card,
            port=self.port,
            sent=self.clock(),
            heard=self.heard,
            state=state,
        )
        self.place.mkdir(mode=0o700, exist_ok=True)
        aside = self.place / f".{self.node_rank}-{self.word}"
        aside.write_text(json.dumps(asdict(token)), encoding="utf-8")
        os.replace(aside, self.place / _file(self.node_rank))


def _file(rank: int) -> str:
    return f"host-{rank}.json"


def _knock(address: str | None, port: int) -> bool:
    if address is None:
        return False
    try:
        socket.create_connection((address, port), timeout=KNOCK_SECONDS).close()
    except OSError:
        return False
    return True
