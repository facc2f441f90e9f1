"""`mindbooth cache stat|verify|prune`: the cache, for people.

No training needs these: a run finds damage itself. The options are in cache_options.py; what the
commands do is in summary.py and upkeep.py.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from tqdm import tqdm

from . import cache_options, census, needs, summary, upkeep
from .cache import default_root
from .census import Amount, Kind
from .errors import DataError
from .summary import counted, in_units
from .upkeep import Failed

DONE, FOUND, BAD_INPUT = 0, 1, 2


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file's name may be no text
            stream.reconfigure(errors="backslashreplace")
    # What the store logs of an entry that it sets aside, verify tells itself.
    logging.getLogger("mindbooth.data").addHandler(logging.NullHandler())
    try:
        options = cache_options.parser(default_root(os.environ)).parse_args(argv)
        return {"stat": _stat, "verify": _verify, "prune": _prune}[options.command](options)
    except DataError as err:
        print(f"mindbooth: error: {err}", file=sys.stderr)
        return BAD_INPUT


def _stat(options: argparse.Namespace) -> int:
    found = summary.look(options.latent_cache_dir, now=time.time())
    print((summary.as_json if options.json else summary.as_text)(found), end="")
    return DONE


def _verify(options: argparse.Namespace) -> int:
    root = options.latent_cache_dir
    items = list(census.walk(root))
    total = sum(item.size for item in items if item.kind is Kind.ENTRY)
    with tqdm(
        total=total, desc="reading", unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        found = upkeep.verify(root, items, on_read=lambda item: bar.update(item.size))
    for item in items:
        if item.kind is Kind.FOREIGN:
            print(f"{item.path}: not of mindbooth, left alone")
    for path in found.removed:
        print(f"{path}: left behind, removed")
    for path, fault in found.damaged:
        print(f"{path}: damaged, {fault}")
    _tell(found.failed)
    print(f"{root}: {counted(found.sound)} sound, {len(found.damaged):,} damaged")
    return FOUND if found.damaged or found.failed else DONE


def _prune(options: argparse.Namespace) -> int:
    root = options.latent_cache_dir
    needed = None if options.unneeded_by is None else _needed(options.unneeded_by)
    limits = upkeep.Limits(
        older_than=options.older_than, needed=needed, most_bytes=options.max_size
    )
    found = upkeep.prune(root, list(census.walk(root)), limits, dry_run=options.dry_run)
    went, stay = ("would go", "would stay") if options.dry_run else ("went", "stay")
    print(f"{root}: {_amount(found.went)} {went}, {_amount(found.left)} {stay}")
    if found.in_use:
        print(f"{root}: in use now, so they stay anyway: {counted(found.in_use)}")
    if found.set_aside.count:
        print(f"{root}: {_amount(found.set_aside)} set aside as damaged {went}, too")
    if options.max_size is not None and found.left.bytes > options.max_size:
        limit = in_units(options.max_size)
        print(f"{root}: that is more than --max_size {limit}; nothing else may go")
    _tell(found.failed)
    return FOUND if found.failed else DONE


def _needed(folder: Path) -> set[str]:
    runs = needs.of_runs(folder)
    keys = set().union(*runs.values())
    need = "run needs" if len(runs) == 1 else "runs need"
    print(f"{folder}: {len(runs):,} {need} {counted(len(keys))}")
    return keys


def _amount(amount: Amount) -> str:
    return f"{counted(amount.count)} ({in_units(amount.bytes)})"


def _tell(failed: Failed) -> None:
    for path, why in failed:
        print(f"{path}: {why}")
