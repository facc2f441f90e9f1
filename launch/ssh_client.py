"""One host at the other end of the system's ssh: told lines, read without waiting, cut off.

`ssh.py` has one for each host. A client has a session of its own, so that a Ctrl-C of the terminal
reaches the launcher alone; when the launcher is gone, kill -9 included, its input ends, and with it
the leash of what it runs (`leash.py`).
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from .follow import CHUNK_BYTES, Lines
from .options import LaunchError

# -T, as a remote terminal, which a user's configuration may ask for, mixes stdout and stderr.
CLIENT = (
    *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
SSH_FAILED = 255  # also where a signal ended what ssh ran
NOT_STARTED = (126, 127)  # from the remote shell or env: no such folder, no such Python
KEPT_LINES = 200


def client_command(host: str, command: str) -> tuple[str, ...]:
    """Write the local command that runs a line in the login shell of a host."""
    return (*CLIENT, "--", host, command)


def complaint(host: str, status: int, last_words: str) -> str | None:
    """Say why no launcher ran on a host, or that the line to it is lost; None if neither is so."""
    found = f"host {host}: {last_words or 'ended without a word'} (status {status} of ssh)."
    if status == SSH_FAILED:
        return f"{found} Try: ssh {host} true"
    if status in NOT_STARTED:
        return f"{found} Every host needs this folder and this Python, at the same paths."
    return None


@dataclass
class Stream:
    """A pipe that is read without waiting, line by line."""

    pipe: IO[bytes]
    lines: Lines = field(default_factory=Lines)

    def poll(self, last: bool) -> list[str]:
        found = []
        while piece := self.pipe.read(CHUNK_BYTES):  # None where nothing is there yet
            found += self.lines.feed(piece)
        return found + (self.lines.flush() if last else [])


class Remote:
    """One host, at the other end of an ssh client. `words`: its stderr, as far as not shown yet."""

    def __init__(self, host: str, command: str) -> None:
        self.host = host
        self.status: int | None = None
        self.words: deque[str] = deque(maxlen=KEPT_LINES)
        self.last_words = ""
        self.is_cut_off = False
        try:
            self._client = subprocess.Popen(
                client_command(host, command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except FileNotFoundError as err:
            raise LaunchError(
                "--hosts needs ssh, which is not on PATH. Install the OpenSSH client, or start "
                "mindbooth launch on every host with --nnodes and --node_rank."
            ) from err
        pipes = [self._client.stdin, self._client.stdout, self._client.stderr]
        self._in, out, told = [pipe for pipe in pipes if pipe is not None]
        for pipe in (self._in, out, told):
            os.set_blocking(pipe.fileno(), False)
        self._out, self._err = Stream(out), Stream(told)

    def tell(self, line: bytes) -> None:
        with suppress(OSError):  # the client has ended, which `poll` sees
            self._in.write(line)

    def poll(self) -> list[str]:
        """Return the new lines of stdout, put those of stderr to `words`, notice the end.

        The end is the client's, not that of its pipes: who shares a connection may hold them open.
        """
        code = self._client.poll()
        words = self._err.poll(last=code is not None)
        self.words += words
        self.last_words = next(filter(None, reversed(words)), self.last_words)
        if code is not None:
            self.status = code if code >= 0 else SSH_FAILED
        return self._out.poll(last=code is not None)

    def cut_off(self) -> None:
        """End the client; the launcher there then loses its leash."""
        self.is_cut_off = True
        self._client.kill()

    def close(self) -> None:
        self._client.kill()
        self._client.wait()
        for pipe in (self._in, self._out.pipe, self._err.pipe):
            pipe.close()
