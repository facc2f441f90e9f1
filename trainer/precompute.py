"""Fills the cache with what this run needs: VAE latents of the pictures, embeddings of the prompts.

`fill()` encodes what is missing, together with all ranks and jobs that share the cache folder, and
returns when everything is there, whoever encoded it. The encoders are loaded only by a worker that
has something to encode, and leave memory with the function that loaded them.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable

import numpy as np

from mindbooth.data.claims import Claims
from mindbooth.data.errors import DataError
from mindbooth.data.filling import Filling
from mindbooth.data.prefetch import Prefetch

from . import device
from .encoders import Encoders, Entry, Pixels
from .heartbeat import Heart
from .report import Progress
from .run import Run

log = logging.getLogger(__name__)

# Up to so many entries are all read before the training, when a damaged one costs least; of more,
# each is verified when it is first read.
VERIFIED_AT_START = 1000


def fill(run: Run, heart: Heart | None = None) -> None:
    """Returns when the cache has everything that the run needs."""
    group, keys = run.group, run.needed.keys
    share, of = group.index(run.comm.rank), len(group)
    if len(keys) <= VERIFIED_AT_START:
        run.store.missing(keys[share::of], verify=True)
        run.meeting.at("verified")
    absent = run.store.missing(keys)
    made = _encode(absent, run, heart, share=share, of=of) if absent else 0
    counts = run.meeting.exchange("encoded", str(made).encode())
    if share == 0:
        _tell(sum(int(counts[rank]) for rank in group), len(keys), run)


def _encode(absent: list[str], run: Run, heart: Heart | None, *, share: int, of: int) -> int:
    """This rank's part, and the wait for the others'; how many it encoded."""
    run.store.ensure_writable()
    encoders, pixels = _makers(run)
    over, made = threading.Event(), 0

    def look_around() -> None:
        if over.is_set():
            raise _OverError
        run.meeting.check()
        progress.reach(filling.done)

    with (
        Claims(run.presence) as claims,
        Progress("encoding", len(absent), unit="entry", show=share == 0, heart=heart) as progress,
    ):
        filling = Filling(absent, run.store, claims, share=share, of=of, check=look_around)
        with Prefetch(lambda key: (key, pixels(key)), filling) as ahead:
            try:
                for key, ready in ahead:
                    entry, note = encoders(key, ready)
                    run.store.publish(key, entry, note=note)
                    filling.release(key)
                    made += 1
                    progress.reach(filling.done)
            finally:
                over.set()  # its thread may be waiting for others
        progress.reach(len(absent))
    del encoders
    gc.collect()
    return made


def _makers(run: Run) -> tuple[Encoders, Pixels]:
    return Encoders(run.needed, run.model, run.dtype, run.digests), Pixels(run.needed)


class _OverError(Exception):
    """Ends the thread that waits for other ranks, when this one gives up."""


def _tell(made: int, total: int, run: Run) -> None:
    if made:
        log.info("Encoded %d of %d entries; the cache is %s.", made, total, run.store.root)
    else:
        log.info("Nothing to encode: all %d entries are in the cache %s.", total, run.store.root)


def repairer(run: Run) -> Callable[[str], Entry]:
    """Encodes one entry again, for one that was damaged or removed while training, and returns it:
    training goes on with it even where it can't be kept.

    Called in the thread that prepares batches, so it waits until no graph is running.
    """
    encoders, pixels = _makers(run)
    complained = False

    def again(key: str) -> dict[str, np.ndarray]:
        nonlocal complained
        with device.mode("pynative"):
            entry, note = encoders(key, pixels(key))
        try:
            run.store.publish(key, entry, note=note)
        except DataError as err:
            if not complained:
                log.warning("%s; what is lost there is encoded each time that it is needed.", err)
            complained = True
        return entry

    return again
