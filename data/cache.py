"""The content-addressed store that all ranks, hosts and jobs share.

`<root>/ab/abcd....safetensors` holds the entry of key abcd...: complete or absent, because entries
appear by rename. What is damaged all the same is noticed at its first read in this process, told,
set aside and reported `Missing`, so that it is encoded again.

Entries are read, not memory-mapped: of half a megabyte that is no slower (measured), what was
verified is what is used, and a file that another host removes is an error here instead of a SIGBUS.
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from . import entry
from .atomic import replace_file
from .errors import DataError, RankFailed, RankStopped

SUFFIX = ".safetensors"
DAMAGED_SUFFIX = ".damaged"
_KEY = re.compile(r"[0-9a-f]{64}")
_OUR_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # say nothing about the file
_OTHER_FOLDER = "or choose another folder with --latent_cache_dir"
GAVE_UP = {error.__name__: error for error in (DataError, RankFailed, RankStopped)}
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
    def __init__(self, root: Path) -> None:
        self.root = root
        # Which file was verified under a key: another one under the same name is verified anew.
        self._verified: dict[str, tuple[int, int, int]] = {}

    def path(self, key: str) -> Path:
        assert _KEY.fullmatch(key), f"not a key: {key!r}"
        return self.root / key[:2] / f"{key}{SUFFIX}"

    def has(self, key: str) -> bool:
        """Whether an entry exists; damage shows only when it is read."""
        return self.path(key).is_file()

    def missing(self, keys: Iterable[str], *, verify: bool = False) -> list[str]:
        """The keys without an entry, in their order, each once; `verify` reads those that exist.

        Folders are listed rather than names asked for: a network file system may remember for a
        while that a name did not exist, and a few listings are quicker than many questions.
        """
        wanted = list(dict.fromkeys(keys))
        present = self._present(wanted)
        return [key for key in wanted if key not in present or (verify and not self._is_sound(key))]

    def ensure_writable(self) -> None:
        """Fail early, before anything is encoded, where nothing could be published."""
        probe = self.root / f"writable-{secrets.token_hex(8)}"
        with self._told(self.root):
            replace_file(probe, b"")
            probe.unlink()

    def publish(self, key: str, tensors: entry.Tensors, *, note: Mapping[str, str]) -> None:
        """Make an entry visible to everyone, whole; `note` says in words what it was made of."""
        path = self.path(key)
        content = entry.pack(key, tensors, note)
        with self._told(path.parent):
            try:
                replace_file(path, content)
            except IsADirectoryError:
                self._set_aside(path, "it is a folder")
                replace_file(path, content)

    def read(self, key: str) -> dict[str, NDArray[Any]]:
        """The tensors, read-only. Raises `Missing` if there are none that can be trusted."""
        path = self.path(key)
        try:
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                content = file.read()
        except (FileNotFoundError, NotADirectoryError) as err:
            raise Missing(key) from err
        except OSError as err:
            if err.errno in _OUR_LIMITS:
                raise
            self._set_aside(path, err.strerror or str(err))
            raise Missing(key) from err
        state = (about.st_ino, about.st_size, about.st_mtime_ns)
        try:
            tensors = entry.unpack(key, content, verify=self._verified.get(key) != state)
        except entry.Damaged as err:
            self._set_aside(path, str(err), inode=about.st_ino)
            raise Missing(key) from err
        self._verified[key] = state
        return tensors

    def mark_failed(self, run_token: str, message: str, *, error: type = DataError) -> None:
        """Tell those who wait in the same run that this rank gave up; the first one counts.

        They raise `error`, one of GAVE_UP, with the message.

        `run_token` must differ between jobs and between attempts of one job. Never raises: the
        failure that is being told is the one that matters.
        """
        marker = self._marker(run_token)
        try:
            if not marker.exists():
                replace_file(marker, f"{error.__name__}\n{message}".encode())
        except OSError as err:
            # On a full disk an empty file can often still be made, and says enough to stop waiting.
            with suppress(OSError):
                marker.touch()
            _log.warning("%s: the failure could not be told to other ranks (%s)", self.root, err)

    def check(self, run_token: str) -> None:
        """Raise what `mark_failed` told in this run, if it told anything."""
        try:
            told = self._marker(run_token).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        name, _, message = told.partition("\n")
        raise GAVE_UP.get(name, RankFailed)(message or "its own log says why")

    def wait(
        self,
        keys: Iterable[str],
        *,
        run_token: str,
        on_progress: Callable[[int, int], None] = lambda present, total: None,
        poll_seconds: float = 0.2,
    ) -> None:
        """Return when every key has an entry; raise as `check` as soon as a rank of the run failed.

        `on_progress(present, total)` is called at every look, also without progress: a caller that
        has been asked to stop raises from there.
        """
        pending = list(dict.fromkeys(keys))
        total = len(pending)
        while pending := self.missing(pending):
            on_progress(total - len(pending), total)
            self.check(run_token)
            time.sleep(poll_seconds)
        on_progress(total, total)

    def _present(self, keys: Iterable[str]) -> set[str]:
        folders = defaultdict(set)
        for key in keys:
            folders[self.path(key).parent].add(key)
        return {key for folder, inside in folders.items() for key in inside & _entries(folder)}

    def _is_sound(self, key: str) -> bool:
        try:
            self.read(key)
        except Missing:
            return False
        return True

    def _set_aside(self, path: Path, reason: str, *, inode: int | None = None) -> None:
        """Rename a damaged entry, so that it is out of the way and can still be looked at."""
        _log.warning("cache entry %s is damaged: %s; it is encoded again", path, reason)
        with suppress(OSError):  # a read-only cache keeps it; publishing will say so
            # Someone else may have put a sound one in its place by now.
            if inode is None or path.stat().st_ino == inode:
                os.replace(path, path.with_suffix(f".{secrets.token_hex(4)}{DAMAGED_SUFFIX}"))

    def _marker(self, run_token: str) -> Path:
        return self.root / "failed" / hashlib.sha256(run_token.encode()).hexdigest()[:32]

    @contextmanager
    def _told(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise DataError(f"cache folder {folder}: {_remedy(err, self.root)}") from err


def _entries(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as files:
            return {
                file.name[: -len(SUFFIX)]
                for file in files
                if file.name.endswith(SUFFIX) and file.is_file()
            }
    except OSError:
        return set()  # no such folder yet, or not one: whoever publishes there is told


def _remedy(err: OSError, root: Path) -> str:
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{_space(root)} ({err.strerror}). Free some, {_OTHER_FOLDER}"
    if err.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"it cannot be written to ({err.strerror}). Make it writable, {_OTHER_FOLDER}"
    if err.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"a file is in its place ({err.strerror}). Move that away, {_OTHER_FOLDER}"
    return f"{err.strerror or err}. Check its disk, {_OTHER_FOLDER}"


def _space(root: Path) -> str:
    try:
        return f"the disk is full, {shutil.disk_usage(root).free // 2**20} MiB are left"
    except OSError:
        return "the disk is full"
