"""Messages over TCP: one thread reads and writes, however many connections there are.

For `meeting.py` and `chair.py`. A message is a tuple of byte strings. Nothing waits for one line:
what its other end does not take yet is kept, so that a slow reader holds up nobody. A process that
crashes or is killed ends its lines; a host that vanishes is noticed by keepalive in three minutes
(where data are under way to it, in a quarter of an hour).
"""

from __future__ import annotations

import errno
import fcntl
import selectors
import socket
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress

Message = tuple[bytes, ...]

LARGEST = 1 << 40
_LENGTH = struct.Struct("!Q")
_READ_BYTES = 1 << 18
_KEEPALIVE = {  # silent for 60 s, then asked 8 times, each 15 s
    socket.TCP_KEEPIDLE: 60,
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 8,
}
_NO_FILES_LEFT = (errno.EMFILE, errno.ENFILE)
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


def pack(message: Sequence[bytes]) -> bytes:
    """A message as it travels: the length of all that follows, how many parts, each one's length,
    the parts."""
    lengths = struct.pack(f"!I{len(message)}Q", len(message), *map(len, message))
    length = len(lengths) + sum(map(len, message))
    return b"".join([_LENGTH.pack(length), lengths, *message])


def unpack(body: memoryview) -> Message:
    """The message, from what follows its length. Raises ValueError if it is none."""
    try:
        (count,) = struct.unpack_from("!I", body)
        lengths = struct.unpack_from(f"!{count}Q", body, 4)
    except struct.error as err:
        raise ValueError("no message") from err
    start, parts = 4 + 8 * count, []
    for length in lengths:
        parts.append(bytes(body[start : start + length]))
        start += length
    if start != len(body):
        raise ValueError("no message")
    return tuple(parts)


class Line:
    """One connection, for the thread of `Lines` alone, but for `owes`.

    largest: the bytes of the longest message that is taken.
    """

    def __init__(self, connection: socket.socket, *, largest: int = LARGEST) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        self.largest = largest
        self.watched = _READ
        self._connection = connection
        self._came = bytearray()
        self._unsent: deque[memoryview] = deque()

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    @property
    def wanted(self) -> int:
        """What to watch it for."""
        return _READ | _WRITE if self._unsent else _READ

    @property
    def owes(self) -> bool:
        """Whether something has not reached the other end's host yet; for any thread."""
        with suppress(OSError, ValueError):  # closed meanwhile
            under_way = fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4))
            return bool(self._unsent) or any(under_way)
        return False

    def write(self, *data: bytes) -> None:
        """Sends as much as the other end takes now, and keeps the rest."""
        self._unsent += map(memoryview, data)
        try:
            while self._unsent:
                part = self._unsent[0]
                self._unsent[0] = part[self._connection.send(part) :]
                if not self._unsent[0]:
                    self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # what it said before it was lost can still be read

    def read(self) -> None:
        """Takes what has come. EOFError: the other end has hung up; OSError: it is lost."""
        with suppress(BlockingIOError):
            piece = self._connection.recv(_READ_BYTES)
            if not piece:
                raise EOFError
            self._came += piece

    def take(self) -> Message | None:
        """The next message, if it has come whole. ValueError: what came is no message."""
        if len(self._came) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._came)[0]
        if end > self.largest:
            raise ValueError("a message that is too long")
        if len(self._came) < end:
            return None
        with memoryview(self._came) as all_of_it, all_of_it[_LENGTH.size : end] as body:
            message = unpack(body)
        del self._came[:end]
        return message


class Lines:
    """Some connections, and the thread that reads and writes them.

    heard: called in the thread with each message, and with None when a line is lost.
    All but `do`, `owes` and `stop` is for that thread, or for the time before `start`.
    """

    def __init__(self, heard: Callable[[Line, Message | None], None]) -> None:
        self._heard = heard
        self._lines: set[Line] = set()
        self._orders: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        for end in (self._woken, self._waker):
            end.setblocking(False)
        self._selector.register(self._woken, _READ, self._be_woken)
        self._listener: socket.socket | None = None
        self._listens_until = 0.0
        self._too_late: Callable[[], None] = lambda: None
        self._runs = True
        self._thread = threading.Thread(target=self._run, name="meeting", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, line: Line) -> None:
        self._lines.add(line)
        self._selector.register(line, line.watched, lambda events: self._serve(line, events))

    def drop(self, line: Line) -> None:
        if line in self._lines:
            self._lines.remove(line)
            self._selector.unregister(line)
            line.close()

    def listen(self, listener: socket.socket, *, largest: int, seconds: float,
               too_late: Callable[[], None]) -> None:  # fmt: skip
        """Adds who connects, until `listen_no_more`; `too_late` is called if that has not come by
        then. largest: of the messages that are taken, until the line is told otherwise."""
        listener.setblocking(False)
        self._listener, self._too_late = listener, too_late
        self._listens_until = time.monotonic() + seconds
        self._selector.register(listener, _READ, lambda _: self._accept(listener, largest))

    def listen_no_more(self, *, keep: Container[Line] = ()) -> None:
        """Closes the port, and all lines but those to keep."""
        for line in [line for line in self._lines if line not in keep]:
            self.drop(line)
        if self._listener:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def send(self, line: Line, data: bytes) -> None:
        """Sends a packed message, if the line is not lost."""
        if line in self._lines:
            line.write(data)
            self._watch(line)

    def do(self, order: Callable[[], None]) -> None:
        """Has the thread do something, soon; for any thread."""
        self._orders.append(order)
        with suppress(OSError):  # it has been woken often enough, or it has stopped
            self._waker.send(b"\0")

    def owes(self) -> bool:
        """Whether it has not done yet all it was asked; for any thread."""
        return bool(self._orders) or any(line.owes for line in self._lines.copy())

    def stop(self) -> None:
        """Ends the thread and closes all; for any other thread."""

        def stop() -> None:
            self._runs = False

        self.do(stop)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._runs:
                self._turn()
        finally:  # also if the thread fails: the other ends notice
            self.listen_no_more()
            self._selector.close()
            self._woken.close()
            self._waker.close()

    def _turn(self) -> None:
        wait = max(0.0, self._listens_until - time.monotonic()) if self._listener else None
        ready = self._selector.select(wait)
        for key, events in ready:
            key.data(events)
        if not ready and wait == 0:  # whoever has come by now has been let in
            self._too_late()
        while self._orders:
            self._orders[0]()
            self._orders.popleft()  # afterwards: `owes` must not miss it

    def _be_woken(self, events: int) -> None:
        self._woken.recv(1 << 12)

    def _accept(self, listener: socket.socket, largest: int) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as err:  # it has gone again, for one
            if err.errno in _NO_FILES_LEFT:
                time.sleep(0.1)  # it would come at once again
            return
        self.add(Line(connection, largest=largest))

    def _serve(self, line: Line, events: int) -> None:
        if events & _WRITE and line in self._lines:
            line.write()
            self._watch(line)
        if events & _READ:
            for message in self._arrived(line):
                self._heard(line, message)

    def _arrived(self, line: Line) -> Iterator[Message | None]:
        try:
            if line in self._lines:
                line.read()
            while line in self._lines and (message := line.take()) is not None:
                yield message
        except (EOFError, OSError, ValueError):
            self.drop(line)
            yield None

    def _watch(self, line: Line) -> None:
        if line.watched != line.wanted:
            line.watched = line.wanted
            self._selector.modify(line, line.watched, self._selector.get_key(line).data)
