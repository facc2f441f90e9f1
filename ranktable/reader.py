"""A rank table that somebody else writes, perhaps just now: wait for it, read it, convert it.

MindCluster truncates and rewrites its file in place, so a reader meets an empty file, half of one,
or `"status": "initializing"`; ModelArts starts the script before its file is completed, and gives
a folder where a file is meant. Nothing of a file is executed, and no more is read than a table can
hold.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from .check import COMPLETED
from .document import load, quoted
from .hccl import RankTable
from .older import convert
from .topology import RankTableError

NAMES = ("jobstart_hccl.json", "hccl.json")  # ModelArts, MindCluster
LARGEST_BYTES = 32 * 1024 * 1024  # 1,024 hosts x 16 devices take 3 MB
PAUSE_SECONDS = 0.5


class _NotYetError(Exception):
    """What a file says of itself while it cannot be read."""


def read(
    path: Path, *, wait_seconds: float = 0.0, pause: Callable[[float], object] = time.sleep
) -> RankTable:
    """Read a table of any known layout from a file, or from a folder that holds one.

    What can become right is waited for: a file that is missing, half written or not completed.
    What cannot (a table with faults, a file too large) is told at once. Without a wait the file is
    a person's own, and only its faults are told.
    """
    if not wait_seconds:
        found, text = look(path)
        return convert(text, str(found))
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            file = _file(path)
            return convert(_completed(_text(file)), str(file))
        except _NotYetError as not_yet:
            left = deadline - time.monotonic()
            if left <= 0:
                said = str(not_yet).rstrip(".")
                raise RankTableError(
                    f"{path}: no completed rank table after {wait_seconds:g} s of waiting; {said}. "
                    "Look at what should write it (MindCluster, ModelArts), or wait longer."
                ) from None
            pause(min(PAUSE_SECONDS, left))


def look(path: Path) -> tuple[Path, str]:
    """Return the file that `path` is or holds, and what it says now, whether completed or not."""
    try:
        file = _file(path)
        return file, _text(file)
    except _NotYetError as err:
        raise RankTableError(f"{path}: {err}. Give the path of a rank table.") from None


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in NAMES:
        if (path / name).exists():
            return path / name
    raise _NotYetError(f"the folder holds neither {' nor '.join(NAMES)}")


def _text(file: Path) -> str:
    """Return the file's text, if it stood still while it was read."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise RankTableError(f"{file}: not a file. Give the path of a rank table.")
        with file.open("rb") as stream:
            before = os.fstat(stream.fileno())
            content = stream.read(LARGEST_BYTES + 1)
            after = os.fstat(stream.fileno())
    except PermissionError as err:
        raise RankTableError(f"{file}: may not be read. Give this user the right to.") from err
    except OSError as err:
        raise _NotYetError((err.strerror or "cannot be read").lower()) from err
    if len(content) > LARGEST_BYTES:
        raise RankTableError(
            f"{file}: {after.st_size:,} bytes, a rank table has at most {LARGEST_BYTES:,}. "
            "Give the path of a rank table."
        )
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise _NotYetError("it is being written")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise _NotYetError(f"byte {err.start} is not UTF-8 text") from err


def _completed(text: str) -> str:
    """Return the text of a whole document that does not say that it will be written again."""
    if not text.strip():
        raise _NotYetError("it is empty")
    document, found = load(text)
    if document is None:
        raise _NotYetError(f"it is not whole: {found[0]}")
    status = document.get("status")
    if isinstance(status, str) and status != COMPLETED:
        raise _NotYetError(f"its status is {quoted(status)}")
    return text
