"""The content-addressed store that all ranks, hosts and jobs share.

`<root>/ab/abcd....safetensors` holds the entry of key abcd...: complete or absent, because entries
appear by rename. What is damaged all the same is noticed at its first read in this process, told,
set aside and reported `Missing`, so that it is encoded again.

Below the root may lie caches that are only read, such as one of a whole site below one's own: they
are looked at after it. What is damaged there is told, left there, and encoded again into the root.

Entries are read, not memory-mapped. benchmarks/reading.py measures that this is no slower, what was
verified is what is used, and a file that another host removes is an error here instead of a SIGBUS.
"""

import errno
import logging
import os
import re
import secrets
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from . import entry
from .atomic import replace_file, unfinished_name
from .buffers import Buffers
from .errors import DataError

SUFFIX = ".safetensors"
DAMAGED_SUFFIX = ".damaged"
_KEY = re.compile(r"[0-9a-f]{64}")
_OUR_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # say nothing about the file
# ESTALE: another host replaced or removed it between our opening and our reading.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_PUBLISH_ATTEMPTS = 3
_NOT_VERIFIED: tuple[int | None, entry.Layout] = (None, ())
_OTHER_FOLDER = "or choose another folder with --latent_cache_dir"
_log = logging.getLogger(__name__)


class Missing(KeyError):  # noqa: N818 - an answer to act upon rather than a failure
    """No sound entry under this key: encode it."""


def default_root(env: Mapping[str, str]) -> Path:
    """Where the cache lies unless it is told otherwise."""
    # The XDG rules: a relative path in the variable counts as unset.
    base = env.get("XDG_CACHE_HOME", "")
    home = Path(env["HOME"]) if env.get("HOME") else Path.home()
    return (Path(base) if os.path.isabs(base) else home / ".cache") / "mindbooth"


class Store:
    """root: read and written. below: only read, in this order, where root lacks an entry.
    writer: this process's id (presence.py), which what it is writing carries in its name."""

    def __init__(self, root: Path, *, below: Sequence[Path] = (), writer: str = "") -> None:
        self.root = root
        self._roots = (str(root), *map(str, below))
        self._writer = writer
        self._buffers = Buffers()
        # Which file was verified under a key, and what lies where in it: another one under the
        # same name is verified anew. Few layouts differ, and each is kept once.
        self._verified: dict[str, tuple[int, entry.Layout]] = {}
        self._layouts: dict[entry.Layout, entry.Layout] = {}
        # Damaged files that stay where they are: told once, and not used again.
        self._refused: set[str] = set()

    def path(self, key: str) -> Path:
        """Where the entry is published."""
        return Path(_file(self._roots[0], key))

    def missing(self, keys: Iterable[str], *, verify: bool = False) -> list[str]:
        """The keys without an entry, in their order, each once; `verify` reads those that exist.

        Folders are listed rather than names asked for: a network file system may remember for a
        while that a name did not exist, and a few listings are quicker than many questions.
        """
        wanted = list(dict.fromkeys(keys))
        absent = set(wanted)
        for root in self._roots:
            absent -= self._present(root, absent)
        return [key for key in wanted if key in absent or (verify and not self._is_sound(key))]

    def ensure_writable(self) -> None:
        """Fail early, before anything is encoded, where nothing could be published."""
        probe = self.root / unfinished_name("writable", writer=self._writer)
        with self._told(self.root):
            replace_file(probe, b"", writer=self._writer)
            probe.unlink()

    def publish(self, key: str, tensors: entry.Tensors, *, note: Mapping[str, str]) -> None:
        """Make an entry visible to everyone, whole; `note` says in words what it was made of."""
        path = self.path(key)
        content = entry.pack(key, tensors, note)
        with self._told(path.parent):
            self._write(path, content)
        self._refused.discard(str(path))

    def read(self, key: str) -> dict[str, NDArray[Any]]:
        """The tensors, read-only. Raises `Missing` if there are none that can be trusted."""
        for root in self._roots:
            tensors = self._read(root, key)
            if tensors is not None:
                return tensors
        raise Missing(key)

    def _present(self, root: str, keys: Iterable[str]) -> set[str]:
        folders = defaultdict(set)
        for key in keys:
            folders[key[:2]].add(key)
        present = set().union(
            *(inside & _entries(f"{root}/{name}") for name, inside in folders.items())
        )
        if self._refused:
            present = {key for key in present if _file(root, key) not in self._refused}
        return present

    def _is_sound(self, key: str) -> bool:
        try:
            self.read(key)
        except Missing:
            return False
        return True

    def _write(self, path: Path, content: bytes) -> None:
        for attempts_left in reversed(range(_PUBLISH_ATTEMPTS)):
            try:
                replace_file(path, content, writer=self._writer)
                return
            except (FileNotFoundError, IsADirectoryError):
                if not attempts_left:
                    raise
                if path.is_dir():
                    self._put_away(str(path), "it is not a file", ours=True)
                # Else someone is removing the cache at this moment.

    def _read(self, root: str, key: str) -> dict[str, NDArray[Any]] | None:
        path, ours = _file(root, key), root == self._roots[0]
        if path in self._refused:
            return None
        inode = None
        try:
            content, about = _content(path, self._buffers)
            inode = about.st_ino
            state = hash((about.st_dev, inode, about.st_size, about.st_mtime_ns))
            verified, layout = self._verified.get(key, _NOT_VERIFIED)
            if verified != state:
                layout = entry.verify(key, content)
                self._verified[key] = (state, self._layouts.setdefault(layout, layout))
        except entry.Damaged as err:
            self._put_away(path, str(err), ours=ours, inode=inode)
            return None
        except PermissionError as err:
            if ours:  # to its owner it may be sound
                raise DataError(
                    f"cache entry {path} cannot be read ({err.strerror}). Have its owner make it "
                    f"readable, {_OTHER_FOLDER}"
                ) from err
            self._put_away(path, err.strerror or str(err), ours=False)
            return None
        except OSError as err:
            if err.errno in _OUR_LIMITS:
                raise
            if err.errno not in _GONE or os.path.islink(path):
                self._put_away(path, err.strerror or str(err), ours=ours)
            return None
        return entry.views(content, layout)

    def _put_away(self, path: str, reason: str, *, ours: bool, inode: int | None = None) -> None:
        """Tell of a damaged entry, and rename it: out of the way, and still to be looked at.

        It is left where it is, and not used again, if it is not ours or cannot be renamed.
        """
        _log.warning("cache entry %s is damaged: %s; it is encoded again", path, reason)
        aside = f"{path.removesuffix(SUFFIX)}.{secrets.token_hex(4)}{DAMAGED_SUFFIX}"
        try:
            if not ours:
                self._refused.add(path)
            # Someone else may have put a sound one in its place by now.
            elif inode is None or os.stat(path).st_ino == inode:
                os.replace(path, aside)
        except FileNotFoundError:
            pass  # someone else was quicker
        except OSError:
            self._refused.add(path)  # a read-only cache keeps it; publishing will say so

    @contextmanager
    def _told(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise DataError(f"cache folder {folder}: {_remedy(err, self.root)}") from err


def _file(root: str, key: str) -> str:
    # Not a Path: to make one takes longer than to open the file.
    assert _KEY.fullmatch(key), f"not a key: {key!r}"
    return f"{root}/{key[:2]}/{key}{SUFFIX}"


def _content(path: str, buffers: Buffers) -> tuple[memoryview, os.stat_result]:
    # Without O_NONBLOCK, a named pipe in the place of an entry would keep us waiting for ever.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            raise entry.Damaged("it is not a file")
        if about.st_size > entry.LARGEST:
            raise entry.Damaged(f"it is too long ({about.st_size} bytes)")
        content = buffers.take(about.st_size)
        filled = 0
        while filled < about.st_size:
            count = os.readv(file, [content[filled:]])
            if not count:
                raise entry.Damaged(f"it is cut short ({filled} bytes)")
            filled += count
    finally:
        os.close(file)
    return content.toreadonly(), about


def _entries(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as files:
            return {
                file.name[: -len(SUFFIX)]
                for file in files
                if file.name.endswith(SUFFIX) and _is_file(file)
            }
    except OSError:
        return set()  # no such folder yet, or not one: whoever publishes there is told


def _is_file(found: "os.DirEntry[str]") -> bool:
    try:
        return found.is_file()
    except OSError:
        return False  # a link that leads in a circle, which must not hide the others


def _remedy(err: OSError, root: Path) -> str:
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{_space(err, root)} ({err.strerror}). Free some, {_OTHER_FOLDER}"
    if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"it cannot be written to ({err.strerror}). Make it writable, {_own(root)}"
    if err.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"a file is in its place ({err.strerror}). Move that away, {_OTHER_FOLDER}"
    return f"{err.strerror or err}. Check its disk, {_OTHER_FOLDER}"


def _own(root: Path) -> str:
    if not os.path.isdir(root):
        return _OTHER_FOLDER
    return (
        "or put a folder of your own above it: "
        f"--latent_cache_dir YOUR_FOLDER --latent_cache_readonly {root}"
    )


def _space(err: OSError, root: Path) -> str:
    if err.errno == errno.EDQUOT:
        return "the quota of space or files there is used up"
    try:
        about = os.statvfs(root)
    except OSError:
        return "the disk is full"
    # Some file systems do not count files, and say 0 of 0.
    if about.f_files and not about.f_favail:
        return "the disk can hold no more files"
    return f"the disk is full, {about.f_bavail * about.f_frsize // 2**20} MiB are left"
