"""What lies in a cache folder, and what kind of thing each is. `mindbooth cache` asks.

    ab/<key>.safetensors          an entry             ab/.<key>.claim   somebody encodes it
    ab/<key>.<8 hex>.damaged      set aside            ab/.*.part        half written
    present/<id>, <id>.keys       who is at work       scope/<token>/    ranks look for others
    weights.json, pictures/       remembered digests   datasets/         pictures of datasets
    anything else                 not of mindbooth

Others use the folder at the same time: what goes while one looks is passed over. Links are not
followed below the fan-out folders: what they point to does not lie in this cache.
"""

import json
import os
import re
import stat
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

from . import claims
from .atomic import is_unfinished
from .cache import DAMAGED_SUFFIX, SUFFIX
from .digests import MEMORY_NAME
from .errors import DataError
from .examples import is_folder


class Kind(Enum):
    ENTRY = "entry"
    SET_ASIDE = "set aside"
    UNFINISHED = "unfinished"
    CLAIM = "claim"
    PRESENCE = "presence"
    TOKEN = "token"  # of ranks that look whether they share the folder
    REMEMBERED = "remembered"
    DATASET = "dataset"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class Item:
    """A file, or a folder where a file belongs (`is_folder`). size: bytes. used: when it was last
    written or read, in seconds since 1970."""

    path: Path
    kind: Kind
    size: int
    modified: float
    used: float
    is_folder: bool

    @property
    def key(self) -> str:
        """The key that an entry, one set aside, or a claim belongs to."""
        return self.path.name.lstrip(".")[:64]


@dataclass(frozen=True, slots=True)
class Amount:
    count: int = 0
    bytes: int = 0

    @classmethod
    def of(cls, items: Collection[Item]) -> "Amount":
        return cls(count=len(items), bytes=sum(item.size for item in items))


@dataclass(frozen=True, slots=True)
class Maker:
    """kind: "latents", "text" or "unreadable". by: the VAE's name."""

    kind: str
    by: str = ""


UNREADABLE = Maker("unreadable")

_FAN_OUT = re.compile(r"[0-9a-f]{2}")
_ENTRY = re.compile(rf"[0-9a-f]{{64}}{re.escape(SUFFIX)}")
_SET_ASIDE = re.compile(rf"[0-9a-f]{{64}}\.[0-9a-f]{{8}}{re.escape(DAMAGED_SUFFIX)}")
# Folders of ours, and how what lies there is named; None: files of any name, at any depth.
_FOLDERS = {
    "present": (Kind.PRESENCE, re.compile(r"[0-9a-f]{16}(\.keys)?")),
    "scope": (Kind.TOKEN, re.compile(r"[0-9a-f]{16}")),
    "pictures": (Kind.REMEMBERED, None),
    "datasets": (Kind.DATASET, None),
}
_FRONT = 2048  # bytes of an entry, in which its header usually ends
_LONGEST_HEADER = 1 << 20
_THREADS = 16  # more than cores: a network file system answers many questions at once
_AT_ONCE = 32

T = TypeVar("T")
R = TypeVar("R")


def walk(root: Path) -> Iterator[Item]:
    """Everything below `root`, in no order. DataError if it or a folder of it cannot be read."""
    if not root.is_dir():
        raise DataError(f"there is no cache in {root}. Name its folder with --latent_cache_dir.")
    for file in _listing(root):
        if not is_folder(file):
            yield from _item(file, _at_the_top(file.name))
        elif _FAN_OUT.fullmatch(file.name):
            for inside in _listing(file.path):
                yield from _item(inside, _fanned_out(inside.name, file.name))
        elif file.name in _FOLDERS:
            yield from _inside(file.path, *_FOLDERS[file.name])
        else:
            yield from _item(file, Kind.FOREIGN)


def maker(entry: Item) -> Maker | None:
    """Which model made an entry, from its note; None if the entry went meanwhile.

    Only the front of the file is read, so damage further behind does not show.
    """
    try:
        file = open_unnoticed(entry.path)
        try:
            note = _note(file)
        finally:
            os.close(file)
        if "vae" in note:
            return Maker("latents", by=str(note["vae"]))
        return Maker("text") if "prompt" in note else UNREADABLE
    except FileNotFoundError:
        return UNREADABLE if entry.path.is_symlink() else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError, struct.error):
        return UNREADABLE


def open_unnoticed(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Open in a way that does not count as use, for to look is not to need; an opener of `open`.

    Only a file's owner may do that; for others it counts. A named pipe does not keep us waiting.
    """
    try:
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags | os.O_NONBLOCK)


def in_threads(work: Callable[[T], R], things: Sequence[T]) -> Iterator[R]:
    """The result for each thing, in their order."""
    parts = [things[start : start + _AT_ONCE] for start in range(0, len(things), _AT_ONCE)]
    with ThreadPoolExecutor(_THREADS) as pool:
        for results in pool.map(lambda part: [work(thing) for thing in part], parts):
            yield from results


def _listing(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as files:
            return list(files)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as err:
        raise _unreadable(folder, err) from err


def _unreadable(folder: str | Path, err: OSError) -> DataError:
    return DataError(
        f"the cache folder {folder} cannot be read ({err.strerror}). Make it readable, or ask its "
        "owner."
    )


def _at_the_top(name: str) -> Kind:
    if is_unfinished(name):
        return Kind.UNFINISHED
    return Kind.REMEMBERED if name == MEMORY_NAME else Kind.FOREIGN


def _fanned_out(name: str, folder: str) -> Kind:
    if is_unfinished(name):
        return Kind.UNFINISHED
    if claims.is_claim(name):
        return Kind.CLAIM
    if name[:2] == folder:
        if _ENTRY.fullmatch(name):
            return Kind.ENTRY
        if _SET_ASIDE.fullmatch(name):
            return Kind.SET_ASIDE
    return Kind.FOREIGN


def _inside(folder: str, kind: Kind, pattern: re.Pattern[str] | None) -> Iterator[Item]:
    for file in _listing(folder):
        if is_unfinished(file.name):
            yield from _item(file, Kind.UNFINISHED)
        elif pattern is not None:
            yield from _item(file, kind if pattern.fullmatch(file.name) else Kind.FOREIGN)
        elif file.is_dir(follow_symlinks=False):
            yield from _inside(file.path, kind, None)
        else:
            yield from _item(file, kind)


def _item(file: os.DirEntry[str], kind: Kind) -> Iterator[Item]:
    try:
        about = file.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as err:
        raise _unreadable(os.path.dirname(file.path), err) from err
    yield Item(
        path=Path(file.path),
        kind=kind,
        size=about.st_size,
        modified=about.st_mtime,
        used=max(about.st_mtime, about.st_atime),
        is_folder=stat.S_ISDIR(about.st_mode),
    )


def _note(file: int) -> Mapping[str, object]:
    """The note of an entry, from the header of its safetensors."""
    front = os.pread(file, _FRONT, 0)
    (length,) = struct.unpack_from("<Q", front)
    if length > _LONGEST_HEADER:
        raise ValueError("not a header")
    if 8 + length > len(front):
        front = os.pread(file, 8 + length, 0)
    about = json.loads(front[8 : 8 + length])["__metadata__"]["mindbooth"]
    note: Mapping[str, object] = json.loads(about)["note"]
    return note
