"""Checks a cache and clears it up: what `mindbooth cache verify` and `prune` do. Called by cli.py.

Others may be at work in it. What verify sets aside, or prune removes although a run needs it, that
run encodes again; what is being written or encoded now is left alone.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from . import claims, entry, presence
from .atomic import writer_of
from .cache import Missing, Store
from .census import Amount, Item, Kind, in_threads, open_unnoticed

ABANDONED_SECONDS = 3600.0  # nobody is still writing what was not written to for so long

_GONE = "gone"  # while we looked
Failed = list[tuple[Path, str]]


@dataclass(kw_only=True)
class Verified:
    """damaged: entries, and what is wrong with them. failed: what could not be read, set aside or
    removed, and why."""

    sound: int = 0
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    failed: Failed = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may go: of several, what all of them say; of none, nothing.

    older_than: not used for more seconds than that. needed: all but these keys. most_bytes: those
    used longest ago, until all entries together have no more.
    """

    older_than: float | None = None
    needed: Collection[str] | None = None
    most_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """went, left: entries. in_use: how many of those left are needed or encoded at this moment.
    failed: what could not be removed, and why."""

    went: Amount
    left: Amount
    in_use: int
    set_aside: Amount
    failed: Failed


def verify(root: Path, items: Sequence[Item], on_read: Callable[[Item], object]) -> Verified:
    """Read every entry, set damaged ones aside, and remove what dead processes left.

    items: of `census.walk`. on_read: called with each entry that was read.
    """
    found = Verified()
    store = Store(root)
    entries = [item for item in items if item.kind is Kind.ENTRY]
    for item, fault in zip(entries, in_threads(_fault, entries), strict=True):
        on_read(item)
        if fault is None:
            found.sound += 1
        elif isinstance(fault, PermissionError):  # for others it may be sound
            found.failed.append((item.path, f"it cannot be read ({fault.strerror})"))
        elif fault != _GONE:
            found.damaged.append((item.path, str(fault)))
            _set_aside(store, item, found.failed)
    for item in _left_behind(root, items):
        if _is_removed(root, item, found.failed):
            found.removed.append(item.path)
    return found


def prune(root: Path, items: Sequence[Item], limits: Limits, *, dry_run: bool = False) -> Pruned:
    """Remove the entries that may go, and all that was set aside.

    items: of `census.walk`. dry_run: only tell. What is in use or being encoded now stays.
    """
    entries = [item for item in items if item.kind is Kind.ENTRY]
    in_use = presence.keys_in_use(root)
    in_use |= {
        item.key
        for item in items
        if item.kind is Kind.CLAIM and presence.is_alive(root, claims.owner(item.path) or "")
    }
    going = choose(entries, limits, in_use=in_use, now=presence.clock(root))
    set_aside = [item for item in items if item.kind is Kind.SET_ASIDE]
    failed: Failed = []
    if not dry_run:
        going = [item for item in going if _is_removed(root, item, failed)]
        set_aside = [item for item in set_aside if _is_removed(root, item, failed)]
    gone = {item.key for item in going}
    left = [item for item in entries if item.key not in gone]
    return Pruned(
        went=Amount.of(going),
        left=Amount.of(left),
        in_use=sum(item.key in in_use for item in left),
        set_aside=Amount.of(set_aside),
        failed=failed,
    )


def choose(
    entries: Sequence[Item], limits: Limits, *, in_use: Collection[str], now: float
) -> list[Item]:
    """The entries that go. Pure."""
    if limits == Limits():
        return []
    kept = {*in_use, *(limits.needed or ())}
    may_go = [
        item
        for item in entries
        if item.key not in kept
        and not item.is_folder  # which is damage: for verify
        and (limits.older_than is None or now - item.used > limits.older_than)
    ]
    if limits.most_bytes is None:
        return may_go
    going, excess = [], Amount.of(entries).bytes - limits.most_bytes
    for item in sorted(may_go, key=lambda item: item.used):
        if excess <= 0:
            break
        going.append(item)
        excess -= item.size
    return going


def _fault(item: Item) -> str | PermissionError | None:
    """What is wrong with an entry, if anything is."""
    try:
        with open(item.path, "rb", buffering=0, opener=open_unnoticed) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                return "it is not a file"
            if about.st_size > entry.LARGEST:
                return f"it is too long ({about.st_size} bytes)"
            entry.verify(item.key, file.read())
    except PermissionError as err:
        return err
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return "it is a link to nothing" if item.path.is_symlink() else _GONE
        return err.strerror or str(err)
    except entry.Damaged as err:
        return str(err)
    return None


def _set_aside(store: Store, item: Item, failed: Failed) -> None:
    with suppress(Missing):
        store.read(item.key)  # looks once more, at what lies there now
        return
    if os.path.lexists(item.path):
        failed.append((item.path, "it cannot be set aside: the folder cannot be written to"))


def _left_behind(root: Path, items: Sequence[Item]) -> Iterator[Item]:
    """What dead processes left, and all claims."""
    is_alive = cache(partial(presence.is_alive, root))
    is_deserted = not presence.living(root)
    written_last = presence.clock(root) - ABANDONED_SECONDS
    for item in items:
        name = item.path.name
        if item.kind is Kind.UNFINISHED and (writer := writer_of(name)) is not None:
            is_dead = not is_alive(writer)
        elif item.kind in (Kind.UNFINISHED, Kind.TOKEN):
            is_dead = is_deserted or item.modified < written_last
        elif item.kind is Kind.PRESENCE:
            is_dead = not is_alive(name[:16], silent_for=presence.COMPILING_SECONDS)
        else:  # of claims, `claims.remove_dead` knows
            is_dead = item.kind is Kind.CLAIM
        if is_dead:
            yield item


def _is_removed(root: Path, item: Item, failed: Failed) -> bool:
    try:
        if item.kind is Kind.CLAIM and item.path.is_symlink():
            return claims.remove_dead(item.path, root)
        if item.is_folder and item.kind in (Kind.SET_ASIDE, Kind.TOKEN):
            shutil.rmtree(item.path)
        else:
            item.path.unlink()
    except FileNotFoundError:
        return False
    except OSError as err:
        failed.append((item.path, f"it cannot be removed ({err.strerror})"))
        return False
    return True
