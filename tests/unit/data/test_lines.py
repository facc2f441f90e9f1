"""Messages as they travel, and real connections of which the other end does as it likes."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing
from queue import SimpleQueue

import pytest

from mindbooth.data.lines import Line, Lines, Message, pack, unpack

LIMIT = 30
MESSAGES: list[Message] = [(), (b"",), (b"at", b"end"), (b"met", b"", bytes(range(256)) * 3)]
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname(), timeout=LIMIT)
        here, _ = listener.accept()
    with closing(here), closing(there):
        yield here, there


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_comes_back(message: Message) -> None:
    assert unpack(memoryview(pack(message))[8:]) == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0",
        struct.pack("!I", 1),
        struct.pack("!IQ", 1, 5) + b"four",
        struct.pack("!IQ", 1, 3) + b"four",
        b"\xff" * 64,
    ],
)
def test_nonsense_is_no_message(body: bytes) -> None:
    with pytest.raises(ValueError, match="no message"):
        unpack(memoryview(body))


def test_a_message_may_come_in_pieces(pair: Pair) -> None:
    line = Line(pair[0])
    got: list[Message] = []
    for byte in b"".join(map(pack, MESSAGES)):
        pair[1].sendall(bytes([byte]))
        pair[0].setblocking(True)  # until the byte is there
        line.read()
        while (message := line.take()) is not None:
            got.append(message)
    assert got == MESSAGES


def test_a_message_that_is_too_long_is_not_waited_for(pair: Pair) -> None:
    line = Line(pair[0], largest=64)
    pair[1].sendall(struct.pack("!Q", 1 << 50))
    pair[0].setblocking(True)
    line.read()
    with pytest.raises(ValueError, match="too long"):
        line.take()


def test_a_host_that_vanished_is_noticed_in_minutes(pair: Pair) -> None:
    Line(pair[0])
    assert pair[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, every, times = (
        pair[0].getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    assert idle + every * times == 180


def test_what_is_not_taken_is_owed_and_comes_in_the_end(pair: Pair) -> None:
    lines = Lines(lambda line, message: None)
    line = Line(pair[0])
    lines.add(line)
    lines.start()
    data = pack((bytes(50_000_000),))
    lines.do(lambda: lines.send(line, data))
    assert lines.owes()
    got = 0
    while got < len(data):
        got += len(pair[1].recv(1 << 20))
    assert got == len(data)
    owed = threading.Event()
    while lines.owes():  # until the last bytes are acknowledged
        assert not owed.wait(0.001)
    lines.stop()


def test_what_was_said_before_a_line_was_lost_is_heard(pair: Pair) -> None:
    heard: SimpleQueue[Message | None] = SimpleQueue()
    pair[1].sendall(pack((b"last words",)))
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair[1].close()  # by a reset
    lines = Lines(lambda line, message: heard.put(message))
    line = Line(pair[0])
    lines.add(line)
    lines.send(line, pack((b"nobody hears it",)))
    lines.start()
    assert [heard.get(timeout=LIMIT) for _ in range(2)] == [(b"last words",), None]
    assert not lines.owes()
    lines.stop()
