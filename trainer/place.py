"""Where a run's ranks meet, and what they keep their entries in: found before all else.

loop.py calls it when the group is joined, and hands the `Place` on to run.py, which finds out what
the run is. It writes nothing but what shows ranks whether they see the same cache folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mindbooth.data import scope
from mindbooth.data.cache import Store, default_root
from mindbooth.data.digests import WeightDigests
from mindbooth.data.errors import DataError, RankFailed, RankStopped
from mindbooth.data.meeting import Meeting
from mindbooth.data.presence import Presence

from .config import ConfigError, TrainConfig
from .device import Comm

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Place:
    """presence: tells others who use the cache that this rank is at work. digests: of the model's
    weights, remembered in the cache. drawn: a seed, the same on all ranks."""

    comm: Comm
    meeting: Meeting
    store: Store
    presence: Presence
    digests: WeightDigests
    drawn: int

    def group(self, how: Literal["auto", "shared", "host"]) -> tuple[int, ...]:
        """The ranks that fill one cache folder together with this one."""
        rank, size, root = self.comm.rank, self.comm.size, self.store.root
        host = socket.gethostname()
        group = scope.find(root, self.meeting, rank=rank, size=size, host=host, scope=how)
        if len(group) < size and how == "auto" and rank == group[0] and os.access(root, os.W_OK):
            log.warning(
                "Not all ranks see one cache folder %s: ranks %s, on %s, encode everything for "
                "themselves. With one on a shared disk (--latent_cache_dir) all would share the "
                "work.",
                root, ", ".join(map(str, group)), host,
            )  # fmt: skip
        return group


def meet(config: TrainConfig, comm: Comm, environ: Mapping[str, str]) -> Place:
    """Opens the ranks' meeting, and finds the cache. Ranks have just joined their group: later, one
    may still download what another one has, for longer than a collective waits."""
    data = config.data
    root = Path(data.latent_cache_dir).expanduser() if data.latent_cache_dir else None
    root = root or default_root(environ)
    below = [Path(folder).expanduser() for folder in data.latent_cache_readonly or ()]
    meeting = _meeting(comm, environ.get("MS_SCHED_HOST"))
    drawn = comm.agree(secrets.randbelow(2**24))
    presence = Presence(root)
    return Place(
        comm=comm,
        meeting=meeting,
        store=Store(root, below=below, writer=presence.id),
        presence=presence,
        digests=WeightDigests(root, writer=presence.id),
        drawn=drawn,
    )


@contextlib.contextmanager
def failures_told(meeting: Meeting) -> Iterator[None]:
    """A rank that gives up inside is noticed by those who wait for it."""
    try:
        yield
    except BaseException as err:
        kind: type[Exception] = RankFailed
        if isinstance(err, (ConfigError, DataError)):
            kind = DataError
        elif isinstance(err, SystemExit):
            kind = RankStopped
        meeting.fail(str(err), error=kind)
        raise
    finally:
        meeting.close()


def _meeting(comm: Comm, scheduler: str | None) -> Meeting:
    if comm.size == 1:
        return Meeting.alone()
    mine = Meeting.host(comm.size, scheduler=scheduler) if comm.rank == 0 else None
    invitation = np.zeros(Meeting.INVITATION, np.float32)
    if mine:
        invitation[:] = mine.invitation
    told = [int(number) for number in comm.sum(invitation)]
    return mine or Meeting.join(told, comm.rank, comm.size)
