"""SHA-256 of picture files and of model weights: what cache keys are made from.

Weights are gigabytes, so their digests are remembered beside the cache, for as long as the file's
(size, mtime, ctime, inode) stay the same. A file younger than two seconds is never remembered: it
could be written to once more within one tick of its file system's clock.
"""

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from .atomic import replace_file
from .errors import DataError

MEMORY_NAME = "weights.json"
_SETTLED_NS = 2_000_000_000
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


def image_digest(path: Path) -> str:
    """SHA-256 of the file's bytes: the same picture anywhere, under any name."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would keep us waiting
            raise DataError(f"the picture {path} is no file: remove it")
        return _sha256(path)
    except OSError as err:
        raise DataError(f"the picture {path} cannot be read: {err.strerror}") from err


class WeightDigests:
    """Digests of weight files and folders, remembered in `<root>/weights.json`.

    The memory only saves time: if it is lost, damaged or cannot be written, files are read again,
    but by one object only once. Its first line seals the rest: a flipped bit would be a wrong key.
    writer: as of `replace_file`.
    """

    def __init__(
        self, root: Path, *, writer: str = "", now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._memory = root / MEMORY_NAME
        self._writer = writer
        self._now_ns = now_ns
        self._own: dict[str, list[int | str]] = {}  # what this object has read

    def digest(self, *paths: Path) -> str:
        """One digest for these files and folders: of the names below each path and of the contents.

        It does not depend on where they lie or what a folder is called. Hidden files do not count.
        """
        files = sorted((name, file) for path in paths for name, file in _files(path))
        if not files:
            raise DataError(f"no file in {', '.join(map(str, paths))}: is the model complete?")
        known = {**self._recall(), **self._own}
        fresh: dict[str, list[int | str]] = {}
        whole = hashlib.sha256()
        for name, file in files:
            content = self._of_file(file, known, fresh)
            whole.update(f"{content} {name}\n".encode())
        if fresh:
            self._own |= fresh
            self._remember(fresh)
        return whole.hexdigest()

    def _of_file(
        self, file: Path, known: dict[str, list[int | str]], fresh: dict[str, list[int | str]]
    ) -> str:
        try:
            real = os.path.realpath(file)
            state = _state(real)
            before = known.get(real)
            if before is not None and before[:-1] == state:
                return str(before[-1])
            # Asked before reading: only from a settled state does every later change show.
            settled = self._is_settled(real)
            content = _sha256(Path(real))
            if settled and _state(real) == state:
                fresh[real] = [*state, content]
        except OSError as err:
            raise DataError(f"the weight file {file} cannot be read: {err.strerror}") from err
        return content

    def _is_settled(self, file: str) -> bool:
        about = os.stat(file)
        return self._now_ns() - max(about.st_mtime_ns, about.st_ctime_ns) > _SETTLED_NS

    def _recall(self) -> dict[str, list[int | str]]:
        try:
            seal, _, text = self._memory.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as err:
            _log.info("%s cannot be read (%s): weights are digested again", self._memory, err)
            return {}
        if seal != _seal(text):
            _log.info("%s is damaged: weights are digested again", self._memory)
            return {}
        entries: dict[str, list[int | str]] = json.loads(text)
        return entries

    def _remember(self, fresh: dict[str, list[int | str]]) -> None:
        # What another process remembered meanwhile is kept; losing a race costs one more reading.
        text = json.dumps({**self._recall(), **fresh}, indent=0, sort_keys=True).encode()
        try:
            replace_file(self._memory, _seal(text) + b"\n" + text, writer=self._writer)
        except OSError as err:
            _log.info("%s cannot be written (%s): digests are not remembered", self._memory, err)


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _files(path: Path) -> Iterable[tuple[str, Path]]:
    if not path.is_dir():
        return [(path.name, path)]
    found = ((file.relative_to(path), file) for file in path.rglob("*") if not file.is_dir())
    return [
        (name.as_posix(), file)
        for name, file in found
        if not any(part.startswith(".") for part in name.parts)
    ]


def _state(file: str) -> list[int | str]:
    about = os.stat(file)
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
