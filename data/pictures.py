"""Digest and size of every picture of a run: looked at once, by all ranks together, and remembered.

Called on every rank with the same pictures in the same order. Each rank answers for every N-th of
them: from the memory in the cache folder as long as the file's (size, mtime, ctime, inode) stay
the same, else by reading the file. Then the ranks exchange their answers: a file is asked for by
one rank only, and all go on with the same answers, whatever each could read of the memory.

An answer is a line, `digest height width`; behind it, in the memory, stands the file's state:
`size mtime ctime inode`. A file younger than two seconds is not remembered: it could be written to
once more within one tick of its file system's clock.
"""

import hashlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from . import images
from .atomic import replace_file
from .digests import image_digest
from .errors import DataError
from .framing import Size

MEMORY_FOLDER = "pictures"
_SETTLED_NS = 2_000_000_000
_THREADS = 8  # for disks and file systems that answer several at once
_AT_ONCE = 16  # pictures a task, which has a cost of its own
_log = logging.getLogger(__name__)


class Picture(NamedTuple):
    """digest: SHA-256 of the file. size: (height, width) of the upright picture."""

    digest: str
    size: Size


def look_at(
    files: Sequence[str],
    root: Path,
    *,
    rank: int = 0,
    size: int = 1,
    writes: bool = True,
    writer: str = "",
    exchange: Callable[[bytes], list[bytes]] = lambda content: [content],
    on_progress: Callable[[int], None] = lambda done: None,
    now_ns: Callable[[], int] = time.time_ns,
) -> dict[str, Picture]:
    """Digest and size of each of these pictures; a DataError names the one that has none.

    root: of the cache; a memory there that is lost, damaged or cannot be written only costs time.
    size: the number of ranks. writes: whether this one writes the memory. writer: as of
    `replace_file`. exchange: gives back what all ranks gave, by rank. on_progress: is told how many
    pictures are done, over all ranks, as far as one of them can tell.
    """
    assert len(set(files)) == len(files)
    memory = _Memory(root, writer)
    share = {file: memory.recall(file) for file in files[rank::size]}
    unknown = [file for file, answer in share.items() if answer is None]
    done = len(share) - len(unknown)
    for file, answer in _looked_at(unknown, now_ns):
        share[file] = answer
        done += 1
        on_progress(min(done * size, len(files)))
    answers = _of_all(files, "\n".join(map(str, share.values())), exchange)
    on_progress(len(files))
    if writes:
        memory.keep(files, answers)
    return {file: _picture(answer) for file, answer in zip(files, answers, strict=True)}


def _picture(answer: str) -> Picture:
    digest, height, width, *_ = answer.split(" ", 3)
    return Picture(digest, _size(height, width))


@lru_cache(maxsize=4096)
def _size(height: str, width: str) -> Size:
    """Few sizes differ, and each is kept once."""
    return int(height), int(width)


def _state(file: str) -> str:
    """What changes with a file, as it stands behind an answer; empty if it cannot be asked for."""
    try:
        about = os.stat(file)
    except OSError:
        return ""  # reading it tells why
    return f" {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino}"


def _is_settled(state: str, now_ns: int) -> bool:
    _, mtime, ctime, _ = state.split()
    return now_ns - max(int(mtime), int(ctime)) > _SETTLED_NS


def _looked_at(files: Sequence[str], now_ns: Callable[[], int]) -> Iterator[tuple[str, str]]:
    """Each file with its answer, and its state too if that is to be remembered."""

    def look(some: Sequence[str]) -> list[tuple[str, str]]:
        return [(file, _look(file, now_ns)) for file in some]

    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="pictures")
    tasks = (files[first : first + _AT_ONCE] for first in range(0, len(files), _AT_ONCE))
    try:
        for answers in pool.map(look, tasks):
            yield from answers
    finally:
        pool.shutdown(cancel_futures=True)


def _look(file: str, now_ns: Callable[[], int]) -> str:
    # Asked before reading: from a settled state, every later change shows.
    state = _state(file)
    settled = state and _is_settled(state, now_ns())
    path = Path(file)
    digest = image_digest(path)
    height, width = images.probe(path)
    answer = f"{digest} {height} {width}"
    return answer + state if settled else answer


def _of_all(
    files: Sequence[str], answers: str, exchange: Callable[[bytes], list[bytes]]
) -> list[str]:
    """The answers of all ranks, in the order of the files."""
    names = "\0".join(file.rpartition("/")[2] for file in files)
    mine = f"{len(files)} {hashlib.sha256(os.fsencode(names)).hexdigest()}"
    contents = [content.decode().split("\n") for content in exchange(f"{mine}\n{answers}".encode())]
    together = [""] * len(files)
    for rank, (listed, *found) in enumerate(contents):
        if listed != contents[0][0]:
            raise DataError(
                f"rank {rank} lists {listed.split()[0]} pictures and rank 0 "
                f"{contents[0][0].split()[0]}, and they are not the same ones: every host needs "
                "the same files under the same names"
            )
        together[rank :: len(contents)] = filter(None, found)
    return together


class _Memory:
    """What is remembered of pictures, a file for each folder that holds some.

    Its first line seals the rest and names the decoder: an answer with a flipped bit would be a
    wrong key, and another decoder may see another size.
    """

    def __init__(self, root: Path, writer: str) -> None:
        self._root = root
        self._writer = writer
        self._of = cache(self._load)

    def recall(self, file: str) -> str | None:
        """The answer for a file that is as it was."""
        folder, _, name = file.rpartition("/")
        known = self._of(folder).get(name)
        if known is None:
            return None
        state = _state(file)
        return known[: -len(state)] if state and known.endswith(state) else None

    def keep(self, files: Sequence[str], answers: Sequence[str]) -> None:
        """Remember the answers that come with a state, and forget files that are gone."""
        fresh: dict[str, dict[str, str]] = defaultdict(dict)
        for file, answer in zip(files, answers, strict=True):
            if answer.count(" ") > 2:
                folder, _, name = file.rpartition("/")
                fresh[folder][name] = answer
        for folder, found in fresh.items():
            text = json.dumps({**self._of_present(folder), **found}, indent=0).encode()
            try:
                replace_file(self._path(folder), _seal(text) + b"\n" + text, writer=self._writer)
            except OSError as err:
                _log.info("%s cannot be written (%s): pictures are not remembered", self._root, err)
                return

    def _of_present(self, folder: str) -> dict[str, str]:
        """What is remembered of the files that the folder still holds."""
        try:
            present = set(os.listdir(folder or "."))
        except OSError:
            return self._of(folder)  # it cannot be told
        return {name: known for name, known in self._of(folder).items() if name in present}

    def _load(self, folder: str) -> dict[str, str]:
        path = self._path(folder)
        try:
            seal, _, text = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as err:
            _log.info("%s cannot be read (%s): pictures are looked at again", path, err)
            return {}
        if seal != _seal(text):
            _log.info("%s is damaged, or of another version: pictures are looked at again", path)
            return {}
        known: dict[str, str] = json.loads(text)
        return known

    def _path(self, folder: str) -> Path:
        real = os.path.realpath(folder)
        return self._root / MEMORY_FOLDER / f"{hashlib.sha256(os.fsencode(real)).hexdigest()}.json"


def _seal(text: bytes) -> bytes:
    return hashlib.sha256(b"%d\n%b" % (images.DECODER, text)).hexdigest().encode()
