"""The launchers of a job find one another before anything is started: host 0 waits, others call.

    host i -> host 0   hello: who I am, what I was asked to do, my devices as a rank table
    host 0 -> host i   welcome: what all hosts told, the job's token, the attempt; or refused
    host i -> host 0   ready: the digest of the rank table that I made of it; or refused
    host 0 -> host i   go

Host 0 compares: one version, one kind of work, one set of training flags, one target, as many
devices everywhere, each host once. What differs is told on all hosts, with what each one has. The
connections live on as the lines of `link.py`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from signal import Signals
from typing import NamedTuple

from mindbooth.ranktable.topology import RankTableError

from .link import TICK_SECONDS, Line, Message, Wait, encode
from .options import LaunchError
from .preflight import clock_remark

KNOCK_SECONDS = 2.0
REMIND_SECONDS = 30.0
READY_SECONDS = 60.0
MOST_STRANGERS = 2048


class AbsentError(LaunchError):
    """A host did not come: nobody's mistake that this host could see."""

    status = 1


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """A stop was asked for while nothing was running yet."""

    def __init__(self, number: Signals) -> None:
        super().__init__(number.name)
        self.number = number


@dataclass(frozen=True, kw_only=True)
class Hello:
    """What a launcher tells of itself.

    key: what all launchers of a job, and no others, have in common. flags: a digest of the
    training flags, which may hold a token. table: its devices, as a rank table of one server.
    attempt: the first number that is free in its log folder. clock: seconds since 1970.
    """

    key: str
    work: str
    version: str
    nnodes: int
    node_rank: int
    name: str
    address: str
    target: str
    devices: int
    flags: str
    table: str
    attempt: int
    clock: float


class Party(NamedTuple):
    """All hosts of a job, in the order of their node ranks, and the lines to those we talk to."""

    hellos: tuple[Hello, ...]
    job: str
    attempt: int
    lines: dict[int, Line]


def objection(hello: Hello, mine: Hello, others: Sequence[Hello]) -> str | None:
    """Why a host can't take part; `mine` is host 0's, `others` are those already here."""
    both = f"{hello.name} (node rank {hello.node_rank}) {{}}, {mine.name} (node rank 0) {{}}"
    for what, theirs, ours in (
        ("runs mindbooth", hello.version, mine.version),
        ("was told --nnodes", hello.nnodes, mine.nnodes),
        ("was told --job", hello.work, mine.work),
        ("trains on", hello.target, mine.target),
        ("has devices:", hello.devices, mine.devices),
    ):
        if theirs != ours:
            said = both.format(f"{what} {theirs}", ours)
            return f"host {said}. All hosts of a job must be alike."
    if hello.flags != mine.flags:
        return (
            f"host {hello.name} was given other training flags than {mine.name}. "
            "Give every host the same."
        )
    if not 0 < hello.node_rank < mine.nnodes:
        return f"host {hello.name} came as node rank {hello.node_rank} of {mine.nnodes}."
    for other in (mine, *others):
        if hello.node_rank == other.node_rank:
            return (
                f"hosts {other.name} and {hello.name} both came as node rank {hello.node_rank}. "
                "Give each its own --node_rank."
            )
        if hello.address == other.address:
            return (
                f"hosts {other.name} and {hello.name} both have the address {hello.address}. "
                "msrun takes one launcher a host: start one, with all devices."
            )
    return None


class Reception:
    """Host 0's door: open from the first moment, so that a taken port is seen at once.

    Raises OSError where the port is taken.
    """

    def __init__(self, address: str, port: int) -> None:
        self._door = socket.create_server((address, port), backlog=4096)
        self._door.setblocking(False)
        self._waiting: list[Line] = []

    def fileno(self) -> int:
        return self._door.fileno()

    def close(self) -> None:
        self._door.close()
        for line in self._waiting:
            line.hang_up()

    def gather(
        self,
        mine: Hello,
        *,
        names: Sequence[str],
        seconds: float,
        wait: Wait,
        tell: Callable[[str], None],
        command_of: Callable[[int], str],
    ) -> tuple[tuple[Hello, ...], dict[int, Line]]:
        """Wait until all hosts are here. `names` of the hosts, as far as they are known."""
        hellos: dict[int, Hello] = {0: mine}
        lines: dict[int, Line] = {}
        limit, reminded = time.monotonic() + seconds, time.monotonic()
        with refusing(lines.values()):
            while len(hellos) < mine.nnodes:
                _pause(wait, [self, *self._waiting, *lines.values()])
                self._admit()
                for rank, line in list(lines.items()):
                    message = line.take()
                    if message is not None:
                        _heed(message, "nothing")
                    elif line.closed:
                        tell(f"host {hellos.pop(rank).name} went away again")
                        del lines[rank]
                for line, hello in self._heard(mine.key):
                    reason = objection(hello, mine, list(hellos.values())[1:])
                    if reason:
                        _refuse(line, LaunchError(reason))
                        raise LaunchError(reason)
                    lines[hello.node_rank] = line
                    hellos[hello.node_rank] = hello
                    tell(f"host {hello.name} is here, {len(hellos)} of {mine.nnodes}")
                    remark = clock_remark(hello.name, hello.clock - time.time())
                    if remark:
                        tell(remark)
                now = time.monotonic()
                absent = [rank for rank in range(mine.nnodes) if rank not in hellos]
                if now > limit:
                    raise AbsentError(_absent(absent, names, seconds, command_of))
                if absent and now > reminded + REMIND_SECONDS:
                    reminded = now
                    tell(f"waiting for {_listed(absent, names)}")
        return tuple(hellos[rank] for rank in sorted(hellos)), lines

    def _admit(self) -> None:
        with suppress(OSError):  # nobody is there any more
            while len(self._waiting) < MOST_STRANGERS:
                self._waiting.append(Line(self._door.accept()[0]))

    def _heard(self, key: str) -> Iterator[tuple[Line, Hello]]:
        """Who has said hello. Who belongs to another job, or says something else, is sent away."""
        for line in list(self._waiting):
            message = line.take()
            if message is None and not line.closed:
                continue
            self._waiting.remove(line)
            hello = _hello(message)
            if hello is None:
                line.hang_up()
            elif hello.key != key:
                reason = f"the launcher on this port belongs to another job ({key})"
                _refuse(line, LaunchError(f"{reason}. Give one of them another --master_port."))
            else:
                yield line, hello


def welcome(hellos: tuple[Hello, ...], lines: dict[int, Line], *, job: str, attempt: int) -> Party:
    """Tell all hosts what all have told."""
    told = [asdict(hello) for hello in hellos]
    data = encode("welcome", hellos=told, job=job, attempt=attempt)
    for line in lines.values():
        line.send_encoded(data)
    return Party(hellos=hellos, job=job, attempt=attempt, lines=lines)


def start_together(party: Party, digest: str, wait: Wait) -> tuple[int, ...]:
    """On host 0: wait until every host is ready, with the same rank table, and let them go.

    Returns the node ranks that do not see host 0's log folder.
    """
    blind = []
    waiting = dict(party.lines)
    limit = time.monotonic() + READY_SECONDS
    with refusing(party.lines.values()):
        while waiting:
            _pause(wait, list(waiting.values()))
            for rank, line in list(waiting.items()):
                name = party.hellos[rank].name
                message = line.take()
                if message is None:
                    _check(line, limit, who=f"host {name}", seconds=READY_SECONDS)
                    continue
                answer = _heed(message, "ready")
                if answer["digest"] != digest:
                    raise LaunchError(
                        f"host {name} made another rank table than {party.hellos[0].name}: "
                        f"{answer['digest'][:12]}, not {digest[:12]}. "
                        "Do both have the same version and options?"
                    )
                if not answer["shared"]:
                    blind.append(rank)
                del waiting[rank]
        for line in party.lines.values():
            line.send("go")
    return tuple(sorted(blind))


def call(
    address: str,
    port: int,
    hello_from: Callable[[str], Hello],
    *,
    seconds: float,
    wait: Wait,
    tell: Callable[[str], None],
) -> Party:
    """On the other hosts: reach host 0, say hello, and learn who takes part.

    `hello_from` gets our own address, as the connection to host 0 has it.
    """
    limit = time.monotonic() + seconds
    line, hello = _reach(address, port, hello_from, limit, wait, tell)
    with refusing([line]):
        line.send("hello", **asdict(hello))
        # Host 0 may have come later than we did, and waits as long for the last one.
        patience = 2 * seconds + READY_SECONDS
        message = _await(line, "welcome", patience, wait, who=f"host 0 ({address})")
    hellos = tuple(Hello(**told) for told in message["hellos"])
    return Party(hellos=hellos, job=message["job"], attempt=message["attempt"], lines={0: line})


def ready(party: Party, *, digest: str, shared: bool, wait: Wait) -> None:
    """On the other hosts: tell host 0 that we could start, and wait for its word."""
    line = party.lines[0]
    with refusing([line]):
        line.send("ready", digest=digest, shared=shared)
        _await(line, "go", 2 * READY_SECONDS, wait, who=f"host {party.hellos[0].name}")


def _reach(
    address: str,
    port: int,
    hello_from: Callable[[str], Hello],
    limit: float,
    wait: Wait,
    tell: Callable[[str], None],
) -> tuple[Line, Hello]:
    told = False
    while True:
        try:
            connection = socket.create_connection((address, port), timeout=KNOCK_SECONDS)
        except OSError as err:
            if time.monotonic() > limit:
                raise AbsentError(
                    f"host 0 did not answer at {address}, port {port} ({err.strerror or err}). "
                    "Is its launcher running, with the same --master_addr and --master_port, and "
                    "does no firewall stand between?"
                ) from err
            if not told:
                tell(f"waiting for host 0 at {address}, port {port}")
                told = True
            _pause(wait, [])
        else:
            return Line(connection), hello_from(connection.getsockname()[0])


def _await(line: Line, kind: str, seconds: float, wait: Wait, *, who: str) -> Message:
    """The next message, which is to be of a kind; a refusal is the error that it tells."""
    limit = time.monotonic() + seconds
    while True:
        message = line.take()
        if message is not None:
            return _heed(message, kind)
        _check(line, limit, who=who, seconds=seconds)
        _pause(wait, [line])


def _check(line: Line, limit: float, *, who: str, seconds: float) -> None:
    if line.closed:
        raise AbsentError(f"{who} ended while this host waited for it. See what it says.")
    if time.monotonic() > limit:
        raise AbsentError(f"{who} said nothing for {seconds:g} s.")


def _pause(wait: Wait, listening: Sequence[Line | Reception]) -> None:
    for number in wait(TICK_SECONDS, listening):
        raise Interrupted(number)


@contextmanager
def refusing(lines: Iterable[Line]) -> Iterator[None]:
    """What ends the rendezvous inside is told to those at the other ends, as their error too."""
    try:
        yield
    except (LaunchError, RankTableError, Interrupted) as err:
        for line in lines:
            _refuse(line, err)
        raise


def _refuse(line: Line, err: Exception) -> None:
    number = int(err.number) if isinstance(err, Interrupted) else None
    absent = isinstance(err, AbsentError)
    line.send("refused", reason=str(err), absent=absent, signal=number)
    line.end()


def _heed(message: Message, kind: str) -> Message:
    """Return a message that is of the expected kind; raise what a refusal tells."""
    if message["kind"] == kind:
        return message
    if message["kind"] != "refused":
        raise LaunchError(f"{kind} was expected of another host, {message['kind']} came.")
    if message["signal"] is not None:
        raise Interrupted(Signals(message["signal"]))
    raise (AbsentError if message["absent"] else LaunchError)(message["reason"])


def _hello(message: Message | None) -> Hello | None:
    if message is None or message["kind"] != "hello":
        return None
    told = {name: value for name, value in message.items() if name != "kind"}
    try:
        hello = Hello(**told)
    except TypeError:  # another version, or somebody else
        return None
    kinds = {"str": str, "int": int, "float": float}
    right = (isinstance(getattr(hello, f.name), kinds[str(f.type)]) for f in fields(hello))
    return hello if all(right) and hello.name.isprintable() else None


def _absent(
    absent: Sequence[int], names: Sequence[str], seconds: float, command_of: Callable[[int], str]
) -> str:
    verb = "has" if len(absent) == 1 else "have"
    return (
        f"{_listed(absent, names)} {verb} not come within {seconds:g} s "
        f"(--rendezvous_seconds). It should have run: {command_of(absent[0])}"
    )


def _listed(ranks: Sequence[int], names: Sequence[str]) -> str:
    shown = [
        f"host {names[rank]} (node rank {rank})" if rank < len(names) else f"node rank {rank}"
        for rank in ranks[:8]
    ]
    return ", ".join(shown) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
