"""What `mindbooth cache stat` tells, as figures, as a table and as JSON. Called by cli.py."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import census, needs, presence
from .census import UNREADABLE, Amount, Item, Kind, Maker
from .errors import DataError

_DAY = 86400
AGES = (
    ("today", _DAY),
    ("within 7 days", 7 * _DAY),
    ("within 30 days", 30 * _DAY),
    ("within 90 days", 90 * _DAY),
    ("longer ago", float("inf")),
)
# What is shown below the entries if there is any of it.
_OTHERS = {
    Kind.SET_ASIDE: "set aside as damaged",
    Kind.UNFINISHED: "half written",
    Kind.CLAIM: "being encoded",
    Kind.DATASET: "pictures of datasets",
    Kind.REMEMBERED: "remembered digests",
    Kind.TOKEN: "ranks that look for others",
    Kind.FOREIGN: "not of mindbooth",
}
_FOREIGN_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A process at work in the cache. needs: how many entries, if it has said so."""

    host: str
    pid: int
    needs: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """made: entries by what made them, the most bytes first. used: entries by when they were used
    last, by the words of AGES. others: what else there is. foreign: where that lies."""

    cache: Path
    made: dict[Maker, Amount]
    used: dict[str, Amount]
    others: dict[Kind, Amount]
    foreign: tuple[Path, ...]
    workers: tuple[Worker, ...]

    @property
    def entries(self) -> Amount:
        amounts = self.made.values()
        return Amount(
            count=sum(amount.count for amount in amounts),
            bytes=sum(amount.bytes for amount in amounts),
        )


def look(root: Path, *, now: float) -> Summary:
    """Count what lies in the cache, and read the front of each entry.

    Raises DataError if there is none, or it cannot be read.
    """
    kinds: dict[Kind, list[Item]] = defaultdict(list)
    for item in census.walk(root):
        kinds[item.kind].append(item)
    made: dict[Maker, list[Item]] = defaultdict(list)
    used: dict[str, list[Item]] = {words: [] for words, _ in AGES}
    entries = kinds[Kind.ENTRY]
    for item, maker in zip(entries, census.in_threads(census.maker, entries), strict=True):
        if maker is not None:
            made[maker].append(item)
            used[_age(now - item.used)].append(item)
    amounts = [(maker, Amount.of(items)) for maker, items in made.items()]
    return Summary(
        cache=root,
        made=dict(sorted(amounts, key=lambda pair: -pair[1].bytes)),
        used={words: Amount.of(items) for words, items in used.items()},
        others={kind: Amount.of(kinds[kind]) for kind in _OTHERS if kinds[kind]},
        foreign=tuple(item.path for item in kinds[Kind.FOREIGN]),
        workers=tuple(_workers(root)),
    )


def as_text(summary: Summary) -> str:
    """For people."""
    made = [(_words(maker), amount) for maker, amount in summary.made.items()]
    used = [(words, amount) for words, amount in summary.used.items() if amount.count]
    others = [(_OTHERS[kind], amount) for kind, amount in summary.others.items()]
    tables = [
        ("", "entries", [*made, ("all", summary.entries)]),
        ("last used", "entries", used),
        ("besides", "files", others),
    ]
    lines = [f"cache {summary.cache}", *_drawn([table for table in tables if table[2]])]
    if summary.foreign:
        lines += ["", "not of mindbooth, left alone", *_listed(summary.foreign)]
    lines += ["", "at work now" if summary.workers else "nobody is at work now"]
    lines += [
        f"  {worker.host}, process {worker.pid}: needs {counted(worker.needs)}"
        for worker in summary.workers
    ]
    return "".join(f"{line}\n" for line in lines)


def as_json(summary: Summary) -> str:
    """For programs; bytes and counts are whole numbers."""
    about = {
        "cache": str(summary.cache),
        "entries": asdict(summary.entries),
        "made_by": [{**asdict(maker), **asdict(amount)} for maker, amount in summary.made.items()],
        "last_used": {words: asdict(amount) for words, amount in summary.used.items()},
        "besides": {kind.value: asdict(amount) for kind, amount in summary.others.items()},
        "foreign": [str(path) for path in summary.foreign],
        "at_work": [asdict(worker) for worker in summary.workers],
    }
    return json.dumps(about, indent=2) + "\n"


def in_units(size: float) -> str:
    """Bytes, so that they are read at a glance.

    >>> in_units(0), in_units(999_960), in_units(12_345_678_901)
    ('0 B', '1.0 MB', '12.3 GB')
    """
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:,.1f} TB"


def counted(number: int, one: str = "entry", more: str = "entries") -> str:
    """
    >>> counted(1), counted(2000)
    ('1 entry', '2,000 entries')
    """
    return f"{number:,} {one if number == 1 else more}"


def _age(seconds: float) -> str:
    return next(words for words, longest in AGES if seconds < longest)


def _workers(root: Path) -> Iterator[Worker]:
    folder = root / presence.FOLDER
    for who in sorted(presence.living(root)):
        try:
            record = json.loads((folder / who).read_text(encoding="utf-8"))
            host, pid = str(record["host"]), int(record["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it has just ended, or is of another version
        try:
            needed = len(needs.read(folder / f"{who}{presence.KEYS_SUFFIX}"))
        except (OSError, DataError):
            needed = 0
        yield Worker(host=host, pid=pid, needs=needed)


def _words(maker: Maker) -> str:
    if maker == UNREADABLE:
        return "unreadable (verify tells more)"
    return f"{maker.kind}, {maker.by}" if maker.by else maker.kind


def _drawn(tables: Sequence[tuple[str, str, Sequence[tuple[str, Amount]]]]) -> Iterator[str]:
    """Tables with columns of equal width: a title, what is counted, and the rows."""
    rows = [row for _, _, rows in tables for row in rows]
    first = max(len(words) for words, _ in rows)
    for title, counted, below in tables:
        yield ""
        yield f"{title:{first}}  {counted:>10}  {'bytes':>10}"
        for words, amount in below:
            yield f"{words:{first}}  {amount.count:>10,}  {in_units(amount.bytes):>10}"


def _listed(paths: Sequence[Path]) -> list[str]:
    shown = [f"  {path}" for path in paths[:_FOREIGN_SHOWN]]
    more = len(paths) - _FOREIGN_SHOWN
    return [*shown, f"  and {more:,} more (verify names them)"] if more > 0 else shown
