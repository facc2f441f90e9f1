"""Ranks wait for one another without a collective: each leaves a mark in the cache's folder.

For waits of any length, such as for the slowest rank's graph to be compiled: collectives give up
(MindSpore's on CPU after 30 s, HCCL's after half an hour), and a mark in a folder does not.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from .atomic import replace_file
from .errors import DataError

POLL_SECONDS = 0.05


class Meeting:
    """The ranks of one run.

    run_token: differs between jobs and attempts, and is equal on all ranks of one. root: a folder
    that all of them see. check: raises when a rank of the run has given up.
    """

    def __init__(
        self,
        root: Path,
        *,
        run_token: str,
        rank: int,
        size: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        name = hashlib.sha256(run_token.encode()).hexdigest()[:32]
        self._folder = root / "meetings" / name
        self._rank, self._size, self._check = rank, size, check

    def at(self, name: str) -> None:
        """Returns when all ranks have come to the point of this name; each name once a run."""
        if self._size == 1:
            return
        folder = self._folder / name
        try:
            replace_file(folder / str(self._rank), b"")
            # The folder is listed: network file systems may remember that a name was missing.
            while sum(mark.isdecimal() for mark in os.listdir(folder)) < self._size:
                self._check()
                time.sleep(POLL_SECONDS)
        except FileNotFoundError:
            return  # the others have met, and rank 0 has already cleared up
        except OSError as err:
            raise DataError(
                f"ranks cannot meet in {folder} ({err.strerror}): choose a cache folder that all "
                "of them can write to, with --latent_cache_dir"
            ) from err

    def over(self) -> None:
        """Clears up after the last meeting; rank 0 does."""
        if self._rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
