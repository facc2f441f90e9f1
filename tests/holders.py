"""Processes that are at work in a cache: they hold claims on entries until they are ended."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LIMIT_SECONDS = 30
HOLDER = """
import os, signal, sys
from pathlib import Path
from mindbooth.data.claims import Claims
from mindbooth.data.presence import Presence

os.umask(0o022)
with Presence(Path(sys.argv[1])) as presence, Claims(presence) as claims:
    presence.use(["a" * 64])
    for entry in sys.argv[2:]:
        assert claims.take(Path(entry))
    print(presence.id, flush=True)
    signal.pause()
"""


@contextmanager
def holder(
    root: Path, *entries: Path, through: Sequence[str] = ()
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A process with claims on the entries, and its presence id. through: what starts it."""
    process = subprocess.Popen(
        [*through, sys.executable, "-c", HOLDER, str(root), *map(str, entries)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def dead_holder(root: Path, *entries: Path) -> Iterator[str]:
    """The presence id of a process that was killed; it is gone, what it held is not."""
    with holder(root, *entries) as (process, presence_id):
        process.send_signal(signal.SIGKILL)
        process.wait()
        yield presence_id


def until(happened: Callable[[], bool]) -> None:
    """Poll for an event elsewhere."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)
