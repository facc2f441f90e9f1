"""Which ranks share a cache folder: found by looking, because an equal path proves nothing.

Each rank writes its number into a folder that is named by a token of this run, and looks for those
of the others. Only what is seen says something: a network file system may show a new file late, or
to some ranks only. So whoever sees a rank shares the folder with it, and with all that it sees.
"""

from __future__ import annotations

import os
import secrets
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from .errors import DataError
from .meeting import Meeting

FOLDER = "scope"
SHOWN_SECONDS = 30.0  # as long as Linux' NFS may take a folder for unchanged
_LOOK_SECONDS = 0.5
_NAMED = 4


def find(root: Path, meeting: Meeting, *, rank: int, size: int, host: str,
         scope: Literal["auto", "shared", "host"],
         shown_seconds: float = SHOWN_SECONDS) -> tuple[int, ...]:  # fmt: skip
    """The ranks that share the cache folder `root` with this one, which is among them; sorted.

    All ranks call it. auto: by looking, for up to `shown_seconds` where some do not see others. A
    rank that can't write is alone. shared: DataError on all ranks unless all share it. host: the
    ranks of one host name, without looking.
    """
    if size == 1:
        return (rank,)
    draw = secrets.token_hex(8)
    told = [brought.decode().split(" ", 1) for brought in
            meeting.exchange("scope: hosts", f"{draw} {host}".encode())]  # fmt: skip
    hosts = [name for _, name in told]
    if scope == "host":
        return tuple(other for other in range(size) if hosts[other] == host)
    seen = _look(root / FOLDER / told[0][0], meeting, rank, shown_seconds)
    found = groups(seen)
    if scope == "shared" and len(found) > 1:
        barred = {other for other in range(size) if not seen[other]}
        raise DataError(_not_shared(root, hosts, found, barred))
    return next(group for group in found if rank in group)


def groups(seen: Sequence[Collection[int]]) -> tuple[tuple[int, ...], ...]:
    """The ranks that share a folder, by what each rank saw: sorted, and by their first rank.

    >>> groups([{0}, {0, 1}, {2}, set()])
    ((0, 1), (2,), (3,))
    """
    found: list[frozenset[int]] = []
    for group in {frozenset((rank, *others)) for rank, others in enumerate(seen)}:
        touched = [other for other in found if not group.isdisjoint(other)]
        found = [other for other in found if other not in touched]
        found.append(group.union(*touched))
    return tuple(sorted(tuple(sorted(group)) for group in found))


def _look(folder: Path, meeting: Meeting, rank: int, seconds: float) -> list[set[int]]:
    """What each rank sees in the folder: itself and others, or nothing if it can't write."""
    mark = folder / str(rank)
    try:
        writes = _write(mark)
        wrote = meeting.exchange("scope: written", b"1" if writes else b"")
        writers = {other for other, word in enumerate(wrote) if word}
        sees = _seen(folder, writers, seconds, meeting.check) if writes else set()
        packed = meeting.exchange("scope: seen", _pack(sees))
        unpacked = {some: _unpack(some) for some in set(packed)}
        return [unpacked[some] for some in packed]
    finally:
        with suppress(OSError):
            mark.unlink()
        with suppress(OSError):  # the last rank in it removes it
            folder.rmdir()


def _write(mark: Path) -> bool:
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        return False
    return True


def _seen(folder: Path, writers: set[int], seconds: float,
          check: Callable[[], None]) -> set[int]:  # fmt: skip
    limit = time.monotonic() + seconds
    while True:
        seen = _listed(folder)
        left = limit - time.monotonic()
        if seen >= writers or left <= 0:
            return seen
        check()
        time.sleep(min(_LOOK_SECONDS, left))


def _listed(folder: Path) -> set[int]:
    probe = folder / f"new-{secrets.token_hex(8)}"
    with suppress(OSError):
        # A change by this host makes a network file system list the folder anew.
        probe.mkdir()
        probe.rmdir()
    with suppress(OSError):
        return {int(name) for name in os.listdir(folder) if name.isdecimal()}
    return set()  # somebody has removed it


def _pack(ranks: Iterable[int]) -> bytes:
    """Few bytes even of thousands of ranks, because each rank is sent those of all."""
    bits = sum(1 << rank for rank in ranks)
    return zlib.compress(bits.to_bytes(bits.bit_length() // 8 + 1, "little"))


def _unpack(packed: bytes) -> set[int]:
    bits = int.from_bytes(zlib.decompress(packed), "little")
    return {rank for rank in range(bits.bit_length()) if bits >> rank & 1}


def _not_shared(
    root: Path, hosts: Sequence[str], found: Sequence[Sequence[int]], barred: set[int]
) -> str:
    """barred: the ranks that can't write."""
    kinds = [_named(hosts, group) for group in found if not barred.issuperset(group)]
    parts = [f"different ones are on {_some(kinds, ' | ')}"] if len(kinds) > 1 else []
    if barred:
        parts.append(f"it can't be written to on {_named(hosts, sorted(barred))}")
    return (
        f"--cache_scope shared, but the ranks do not share one folder {root}: {'; '.join(parts)}. "
        "Give one on a disk that all hosts share with --latent_cache_dir, or --cache_scope auto"
    )


def _named(hosts: Sequence[str], ranks: Sequence[int]) -> str:
    return _some(list(dict.fromkeys(hosts[rank] for rank in ranks)), ", ")


def _some(words: Sequence[str], between: str) -> str:
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return between.join(words[:_NAMED]) + more
