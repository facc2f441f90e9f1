"""Which entries a run needs: `cache_keys.txt`, a key a line, in its output folder.

Written at a run's start, read by `mindbooth cache prune`. The jobs that are at work now keep such a
file in the cache, too (`presence.py`). What cannot be read in full is an error here: too few keys
would be entries lost.
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from .atomic import replace_file
from .errors import DataError

KEYS = "cache_keys.txt"
_KEY = re.compile(r"[0-9a-f]{64}")
_CURE = "Make it readable, start that run again, or remove it if that run is done with."


def write(path: Path, keys: Iterable[str], *, writer: str = "") -> None:
    """Put the file in place whole, its folder too. `writer`: as of `replace_file`."""
    text = "\n".join([*sorted(set(keys)), ""])
    replace_file(path, text.encode("ascii"), writer=writer)


def read(path: Path) -> set[str]:
    """The keys. Raises OSError, and DataError for a line that is no key."""
    *lines, end = path.read_bytes().decode("ascii", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not _KEY.fullmatch(line):
            raise DataError(f"{path}, line {number}: {line[:70]!r} is no key of the cache. {_CURE}")
    if end:
        raise DataError(f"{path}, line {len(lines) + 1}: its end is missing. {_CURE}")
    return set(lines)


def of_runs(folder: Path) -> dict[Path, set[str]]:
    """What each run needs whose output lies in `folder` or below, by the file that says so.

    Raises DataError if there is none, or if one or a folder cannot be read.
    """
    found = {path: _of_run(path) for path in _files(folder)}
    if not found:
        raise DataError(
            f"{folder} and the folders below it have no {KEYS}. Name a folder that holds the "
            "output folders of runs: each run leaves one there."
        )
    return found


def _of_run(path: Path) -> set[str]:
    try:
        return read(path)
    except OSError as err:
        raise DataError(f"{path} cannot be read ({err.strerror}). {_CURE}") from err


def _files(folder: Path) -> Iterator[Path]:
    """All KEYS below; through links, as an output folder may lie on another disk."""

    def refuse(err: OSError) -> None:
        if not isinstance(err, FileNotFoundError):  # what went meanwhile needs nothing
            raise DataError(f"{err.filename} cannot be read ({err.strerror}). {_CURE}") from err

    seen = set()  # links may lead in circles
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
        elif KEYS in names:
            yield Path(place, KEYS)
        seen.add(real)
