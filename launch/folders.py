"""What a launch leaves in the output folder: plan.json, rank_table.json, attempt-N/ with its logs.

An attempt's folder is made anew, so that no run writes over an older run's logs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mindbooth.ranktable import merge
from mindbooth.ranktable.topology import RankTableError

from .options import LaunchError

FOLDER_MODE = 0o755


def next_attempt(names: Iterable[str]) -> int:
    """Number the next attempt, given the names in the log folder.

    >>> next_attempt(["attempt-1", "attempt-10", "plan.json"])
    11
    """
    found = (re.fullmatch(r"attempt-(\d+)", name) for name in names)
    return max((int(match[1]) for match in found if match), default=0) + 1


def look(log_dir: Path) -> int:
    """Number the next attempt in a folder that may not exist yet."""
    return next_attempt(os.listdir(log_dir) if log_dir.is_dir() else ())


def name(attempt: int) -> str:
    return f"attempt-{attempt}"


def claim(log_dir: Path, option: str, at_least: int = 1) -> int:
    """Make the folder of the next attempt, ours alone. `option` is whom to blame in errors."""
    try:
        log_dir.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        while True:
            attempt = max(look(log_dir), at_least)
            try:
                (log_dir / name(attempt)).mkdir(mode=FOLDER_MODE)
            except FileExistsError:
                continue
            return attempt
    except OSError as err:
        raise LaunchError(f"{option}: cannot write in {log_dir} ({err.strerror}).") from err


def make(folder: Path, option: str) -> None:
    """Make a folder that may be there already."""
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as err:
        raise LaunchError(f"{option}: cannot make {folder} ({err.strerror}).") from err


def publish(path: Path, text: str) -> None:
    """Write a file so that readers see the old one or the new one, never a part."""
    try:
        merge.publish(path, text)
    except RankTableError as err:
        raise LaunchError(f"--output_dir: {err}") from err


def has_checkpoint(output_dir: Path) -> bool:
    """Whether the trainer has left a checkpoint; each is whole or not there."""
    names = (path.name for path in output_dir.glob("checkpoint-*"))
    return any(re.fullmatch(r"checkpoint-\d+", name) for name in names)


def missing(*paths: Path) -> tuple[Path, ...]:
    """List the folders, innermost first, that making `paths` would make."""
    folders = {folder for path in paths for folder in (path, *path.parents)}
    absent = [folder for folder in folders if not folder.exists()]
    return tuple(sorted(absent, key=lambda folder: len(folder.parts), reverse=True))


def forget(attempt_dir: Path, files: Iterable[Path], made: Iterable[Path]) -> None:
    """Undo a launch that ended at its input: its one line has been shown, nothing else was done."""
    shutil.rmtree(attempt_dir, ignore_errors=True)
    for file in files:
        file.unlink(missing_ok=True)
    for folder in made:
        with suppress(OSError):  # the trainer may have left something in it: then it stays
            folder.rmdir()
