"""Claims on entries: who is encoding what, so that nobody else does. Used by filling.py.

    ab/.<key>.claim -> <id of the owner's presence>

A symbolic link, because making one is atomic, carries the owner's id, and lets a network file
system list that folder anew. A claim saves work and guards nothing: whoever publishes without one,
or beside another, does no harm.
"""

import errno
import fcntl
import logging
import os
import re
import time
from contextlib import suppress
from pathlib import Path

from .presence import Presence, is_alive

TRUSTED_SECONDS = 1.0  # an owner who was alive is not asked about for so long
_NAME = re.compile(r"\.[0-9a-f]{64}\.claim")
_log = logging.getLogger(__name__)


def is_claim(name: str) -> bool:
    """Whether a file of this name in a fan-out folder is a claim."""
    return _NAME.fullmatch(name) is not None


def owner(claim: Path) -> str | None:
    """The presence id that a claim names; None if it is gone."""
    try:
        return os.readlink(claim)
    except OSError:
        return None


def remove_dead(claim: Path, root: Path) -> bool:
    """Remove a claim whose owner is dead, or what is no claim; whether that is out of the way.

    Raises OSError for what cannot be removed.
    """
    lock = os.open(claim.parent, os.O_RDONLY)
    try:
        # Another one may have found the same claim, and put its own there meanwhile. Other hosts of
        # a network file system may not know the lock: then an entry is encoded twice at worst.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if is_alive(root, os.readlink(claim)):
                return False
        except FileNotFoundError:
            return True
        except OSError as err:
            if err.errno != errno.EINVAL:  # it is not a link
                raise
        claim.unlink(missing_ok=True)
        return True
    finally:
        os.close(lock)


class Claims:
    """The claims of this process; all that are left go with the context. See `Presence` for whom
    others take for dead."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._held: set[Path] = set()
        self._alive_until: dict[str, float] = {}
        self._complained = False

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *_: object) -> None:
        for claim in tuple(self._held):
            self._let_go(claim)

    def take(self, entry: Path) -> bool:
        """Whether the entry at this path is now this process's to encode.

        It may exist by now: look once more. True, too, where claims can't be made.
        """
        claim = _claim(entry)
        try:
            claim.parent.mkdir(parents=True, exist_ok=True)
            return self._make(claim) or (self._is_free(claim) and self._make(claim))
        except OSError as err:
            self._complain(claim.parent, err)
            return True

    def release(self, entry: Path) -> None:
        """Give up the claim, if there is one; after publishing."""
        self._let_go(_claim(entry))

    def _make(self, claim: Path) -> bool:
        try:
            os.symlink(self._presence.id, claim)
        except FileExistsError:
            # A network file system may have made it, and lost the answer.
            if owner(claim) != self._presence.id:
                return False
        self._held.add(claim)
        return True

    def _is_free(self, claim: Path) -> bool:
        """Whether the claim that was there is gone, for its owner's death or otherwise."""
        who, now = owner(claim), time.monotonic()
        if who is not None and now < self._alive_until.get(who, now):
            return False
        free = remove_dead(claim, self._presence.root)
        if not free and who is not None:
            self._alive_until[who] = now + TRUSTED_SECONDS
        return free

    def _let_go(self, claim: Path) -> None:
        self._held.discard(claim)
        if owner(claim) == self._presence.id:  # it is not if we were taken for dead
            with suppress(OSError):
                claim.unlink()

    def _complain(self, folder: Path, err: OSError) -> None:
        if not self._complained:
            _log.warning(
                "%s: no claims can be made there (%s), so several ranks may encode the same entry",
                folder,
                err.strerror,
            )
        self._complained = True


def _claim(entry: Path) -> Path:
    return entry.with_name(f".{entry.name.partition('.')[0]}.claim")
