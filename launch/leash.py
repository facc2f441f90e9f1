"""The leash of a launcher that was started over ssh: its standard input, held by `ssh.py`.

Lines come down it: TERM, USR1 or INT ask for a stop, an empty one says that the holder lives. The
end of the file, and silence, mean that the holder or the network is gone, and count as TERM: sshd
itself ends nothing when a connection breaks, and may not notice for a quarter of an hour.
"""

from __future__ import annotations

import os
import select
import signal

from .follow import Lines

BEAT = b"\n"
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0
WORDS = {word: signal.Signals[f"SIG{word}"] for word in ("INT", "TERM", "USR1")}
CHUNK_BYTES = 1 << 16


def word(number: signal.Signals) -> bytes:
    """Write down a stop request.

    >>> word(signal.SIGINT), word(signal.SIGHUP)
    (b'INT\\n', b'TERM\\n')
    """
    name = number.name.removeprefix("SIG")
    return f"{name if name in WORDS else 'TERM'}\n".encode()


class Leash:
    """The end on the remote host. Select on it while it is `held`; then call `requests`, always.

    Its descriptor stays blocking: sshd gives a command one socket as input and output, and what
    prints must not meet BlockingIOError.
    """

    def __init__(self, fd: int, now: float) -> None:
        self.held = True
        self._fd = fd
        self._heard_at = now
        self._lines = Lines()

    def fileno(self) -> int:
        return self._fd

    def requests(self, now: float) -> list[signal.Signals]:
        """Return the stop requests that came since the call before; the last one is a TERM."""
        found: list[signal.Signals] = []
        while self.held and select.select([self._fd], [], [], 0)[0]:
            piece = _read(self._fd)
            self.held, self._heard_at = piece != b"", now
            found += [WORDS[line] for line in self._lines.feed(piece) if line in WORDS]
            if not self.held:
                found.append(signal.SIGTERM)
        if self.held and now > self._heard_at + SILENCE_SECONDS:
            self.held = False
            found.append(signal.SIGTERM)
        return found


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, CHUNK_BYTES)
    except OSError:  # reset: the holder is gone
        return b""
