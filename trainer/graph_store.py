"""Folders of compiled graphs that runs leave for later ones; what lies in them is not looked into.

    <root>/<key>/manifest.json      what determined the graph, and each file's size and SHA-256
    <root>/<key>/graph_cache/...    MindSpore's files
    <root>/.<key>.<random>.part/    being written, or being removed

A folder appears whole, by rename, and is verified whenever it is used: the bytes that were verified
are the bytes that are handed out. What the disk refuses is an OSError, which the caller tells.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from mindbooth.data.atomic import is_unfinished, unfinished_name

MANIFEST = "manifest.json"
KEPT = 16
ABANDONED_SECONDS = 3600.0  # nobody is still writing what was begun so long ago
_KEY = re.compile(r"[0-9a-f]{64}")
log = logging.getLogger(__name__)

Facts = Mapping[str, Any]


class Damaged(ValueError):  # noqa: N818 - as in data/entry.py
    """What is wrong with a folder."""


def canonical(facts: Facts) -> str:
    """JSON that is equal where the facts are."""
    return json.dumps(facts, sort_keys=True, separators=(",", ":"))


def key(facts: Facts) -> str:
    """The name of the folder for graphs that these facts determine."""
    return hashlib.sha256(canonical(facts).encode()).hexdigest()


class GraphStore:
    """root: need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def take(self, facts: Facts, into: Path) -> bool:
        """Copies what is kept for these facts, once it is verified; whether there was anything.

        A folder that is damaged is told and removed.
        """
        folder = self.root / key(facts)
        try:
            files = _verified(folder, facts)
        except Damaged as err:
            self.discard(facts, str(err))
            return False
        if files is None:
            return False
        for name, content in files.items():
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        with suppress(OSError):  # it is not ours
            os.utime(folder)  # when it was last of use
        return True

    def keep(self, facts: Facts, made: Path) -> None:
        """Publishes a copy of the files below `made`, unless somebody was quicker; makes room."""
        folder = self.root / key(facts)
        self.root.mkdir(parents=True, exist_ok=True)
        aside = self.root / unfinished_name(folder.name)
        aside.mkdir()
        try:
            files = {}
            for path in sorted(path for path in made.rglob("*") if path.is_file()):
                name, content = path.relative_to(made).as_posix(), path.read_bytes()
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(content)
                files[name] = _mark(content)
            manifest = json.dumps({"facts": facts, "files": files}, indent=1, sort_keys=True)
            (aside / MANIFEST).write_text(manifest, encoding="utf-8")
            with suppress(FileExistsError):
                _rename(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._make_room()

    def discard(self, facts: Facts, reason: str) -> None:
        """Removes what is kept for these facts, and tells why."""
        folder = self.root / key(facts)
        log.warning("The compiled graph %s is of no use: %s; it is compiled again.", folder, reason)
        with suppress(OSError):  # others' folder, or somebody was quicker
            self._remove(folder)

    def _make_room(self) -> None:
        used, now = {}, time.time()
        for path in list(self.root.iterdir()):
            with suppress(OSError):  # somebody else is clearing up, too
                age = now - path.stat().st_mtime
                if _KEY.fullmatch(path.name):
                    used[path] = age
                elif is_unfinished(path.name) and age > ABANDONED_SECONDS:
                    shutil.rmtree(path)
        for path in sorted(used, key=used.__getitem__)[KEPT:]:
            with suppress(OSError):
                self._remove(path)

    def _remove(self, folder: Path) -> None:
        """Out of sight first: nobody meets half of it."""
        aside = self.root / unfinished_name(folder.name)
        os.rename(folder, aside)
        shutil.rmtree(aside)


def _rename(folder: Path, name: Path) -> None:
    """FileExistsError where there is such a folder, and it is not empty."""
    try:
        os.rename(folder, name)
    except OSError as err:
        if err.errno in (errno.ENOTEMPTY, errno.EEXIST):  # as the file system has it
            raise FileExistsError(str(name)) from err
        raise


def _mark(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _verified(folder: Path, facts: Facts) -> dict[str, bytes] | None:
    """The files by name, or None if there is no folder. Raises Damaged."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(folder):
            raise Damaged(f"it has no {MANIFEST}") from None
        return None
    except ValueError as err:
        raise Damaged(f"{MANIFEST} is no text") from err
    try:
        manifest = json.loads(text)
        if canonical(manifest["facts"]) != canonical(facts):
            raise Damaged("it is of another graph")
        files = {}
        for name, mark in manifest["files"].items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise Damaged(f"{name!r} lies elsewhere")
            files[name] = (folder / name).read_bytes()
            if _mark(files[name]) != mark:
                raise Damaged(f"{name} is not what was written")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as err:
        if not os.path.lexists(folder / MANIFEST):
            return None  # removed at this moment
        raise Damaged(f"{err.filename} is missing") from err
    except (ValueError, LookupError, TypeError, AttributeError) as err:
        raise err if isinstance(err, Damaged) else Damaged(f"{MANIFEST} is cut short") from err
    if not files:
        raise Damaged("it is empty")
    return files
