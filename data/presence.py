"""Who is at work in a cache, so that what the dead left there can be told from the living's.

    present/<id>        one line of JSON: host, machine, pid, and when that process began
    present/<id>.keys   the entries that its run needs (needs.py), which prune keeps

claims.py and `mindbooth cache` ask. On one machine a process is alive while it exists. Of another
machine, or of a container whose processes cannot be seen from here, only the time of the last touch
is known; it is compared with the file system's own clock, because those of hosts differ.
"""

import functools
import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from . import needs

FOLDER = "present"
KEYS_SUFFIX = ".keys"
BEAT_SECONDS = 5.0
EXPIRY_SECONDS = 60.0  # a network may delay a few touches
COMPILING_SECONDS = 3600.0  # the interpreter may stand still for as long as a graph is compiled
_ID = re.compile(r"[0-9a-f]{16}")
_PROC = Path("/proc")
_log = logging.getLogger(__name__)


class Presence:
    """This process in the cache at `root`: shown while the context lasts.

    id: 16 hexadecimal digits. Where nothing can be written it is not shown, and others take it for
    dead: it can hold no claim there either. As soon as something can be, it is.
    """

    def __init__(self, root: Path, *, beat_seconds: float = BEAT_SECONDS) -> None:
        self.id = secrets.token_hex(8)
        self.root = root
        self._path = root / FOLDER / self.id
        self._keys: Iterable[str] = ()
        self._is_shown = False  # with its keys
        self._showing = threading.Lock()
        self._beat_seconds = beat_seconds
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._keep_touching, name="presence", daemon=True)

    def __enter__(self) -> "Presence":
        self._show()
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beat.join()
        for path in (self._path, self._keys_path):
            with suppress(OSError):
                path.unlink()

    def use(self, keys: Iterable[str]) -> None:
        """Say which entries this process needs, before it looks whether they exist."""
        self._keys = frozenset(keys)
        self._show()

    @property
    def _keys_path(self) -> Path:
        return self._path.with_name(self.id + KEYS_SUFFIX)

    def _show(self) -> None:
        with self._showing:
            self._is_shown = False
            try:
                # In place: until this file is there, what we write aside counts as the dead's.
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_bytes(_record(self.id))
                if self._keys:
                    needs.write(self._keys_path, self._keys, writer=self.id)
                self._is_shown = True
            except OSError as err:
                _log.debug("%s: others do not see that this process uses it (%s)", self.root, err)

    def _keep_touching(self) -> None:
        while not self._over.wait(self._beat_seconds):
            try:
                os.utime(self._path)
            except FileNotFoundError:  # the cache was deleted, or we were taken for dead
                self._is_shown = False
            except OSError as err:
                _log.debug("%s cannot be touched (%s)", self._path, err)
            if not self._is_shown:
                self._show()


def is_alive(root: Path, owner: str, *, silent_for: float = EXPIRY_SECONDS) -> bool:
    """Whether the process with this id, as far as can be known here, is still at work.

    silent_for: seconds after which one of another machine, of which nothing is seen, is not.
    """
    folder = root / FOLDER
    return _ID.fullmatch(owner) is not None and _lives(
        folder / owner, now=lambda: clock(folder), silent_for=silent_for
    )


def living(root: Path, *, silent_for: float = EXPIRY_SECONDS) -> frozenset[str]:
    """The ids of all that are at work in this cache; `silent_for` as for `is_alive`."""
    folder = root / FOLDER
    now = functools.cache(lambda: clock(folder))
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    return frozenset(
        n for n in names if _ID.fullmatch(n) and _lives(folder / n, now=now, silent_for=silent_for)
    )


def keys_in_use(root: Path) -> set[str]:
    """The entries that the living need. Raises DataError for a list that is damaged.

    A process may give no sign of life for as long as it compiles a graph.
    """
    keys: set[str] = set()
    for owner in living(root, silent_for=COMPILING_SECONDS):
        with suppress(FileNotFoundError):  # it needs none, or none yet, or has just ended
            keys |= needs.read(root / FOLDER / (owner + KEYS_SUFFIX))
    return keys


def _record(own_id: str) -> bytes:
    pid = os.getpid()
    _, began = _state(pid) or ("", 0)
    record = {
        "host": socket.gethostname(),
        "machine": _machine() or own_id,
        "pid": pid,
        "began": began,
    }
    return f"{json.dumps(record)}\n".encode()


def _lives(path: Path, *, now: Callable[[], float], silent_for: float) -> bool:
    text = b""
    try:
        # Read first: what was just opened, a network file system also tells the true time of.
        with suppress(PermissionError):  # somebody else's, who keeps files to himself
            text = path.read_bytes()
        touched = path.stat().st_mtime
    except OSError:
        return False
    try:
        record = json.loads(text)
        if record["machine"] == _machine():
            state = _state(record["pid"])
            if state is not None:
                return state[0] not in "ZX" and state[1] == record["began"]
            if not _exists(record["pid"]):
                return False
            # Somebody else's process, where /proc hides those.
    except (ValueError, KeyError, TypeError, OverflowError):
        _log.debug("%s is not a whole record", path)
    return now() - touched < silent_for


def _machine() -> str | None:
    """Where a pid means one process; None if that can't be known: not Linux, or a foreign /proc."""
    try:
        if os.readlink(_PROC / "self") != str(os.getpid()):
            return None
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _state(pid: int) -> tuple[str, int] | None:
    """A process's state letter and when it began, in clock ticks since boot."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name before the last parenthesis may hold anything.
    fields = stat.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def clock(folder: Path) -> float:
    """What time it is by the clock that touches are dated with."""
    probe = folder / f".clock.{secrets.token_hex(8)}.part"  # a name that `is_unfinished` tells
    try:
        with probe.open("xb") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()  # a cache that is only read
    finally:
        with suppress(OSError):
            probe.unlink()
