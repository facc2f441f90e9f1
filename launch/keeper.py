"""A small process that outlives the launcher, to end the job when the launcher cannot.

`python -m mindbooth.launch.keeper TOKEN`, with this process's search path, and a pipe from the
launcher as standard input. The pipe closes when the launcher is gone, for whatever reason, kill -9
included; then the keeper kills what carries the launcher's token, and leaves. After a tidy launch
it finds nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from .processes import sweep

DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def start(token: str) -> subprocess.Popen[bytes]:
    """Start a keeper; closing its `stdin` tells it to sweep and leave."""
    return subprocess.Popen(
        [sys.executable, "-m", "mindbooth.launch.keeper", token],
        cwd="/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=turn_deaf,
    )


def turn_deaf() -> None:
    """Ignore what is sent to a whole tree; what we exec into inherits it."""
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_IGN)


def main(token: str) -> int:
    while os.read(0, 64):
        pass
    return 1 if sweep(token) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
