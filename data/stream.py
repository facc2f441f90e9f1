"""The sample stream: which example and which random numbers sample k has. Pure.

Samples are numbered once for the whole run, over all ranks. Everything random about sample k
comes from counter-based generators keyed by (seed, purpose) and positioned at k: rank and world
size never enter, so N cards compute what one card computes and a resume needs only a number.
L examples, G samples an update, B samples a micro-batch, N ranks.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .errors import DataError


class Purpose(IntEnum):
    """What is drawn. Each has a stream of its own, so an option that draws more or less of one
    leaves the others as they were. Append only: a changed number changes every run."""

    ORDER = 0  # numbered by epoch
    CROP = 1  # numbered by the picture's digest
    VARIANT = 2  # from here on numbered by sample
    LATENTS = 3
    NOISE = 4
    TIMESTEP = 5
    CAPTION = 6
    OFFSET = 7


def generator(seed: int, purpose: Purpose, number: int) -> np.random.Generator:
    """A generator of its own for every (seed, purpose, number); number below 2**192.

    Philox has a 256-bit counter: the number takes the upper three words, and the lowest is left
    to the draws themselves, so that two numbers cannot run into each other.
    """
    return np.random.Generator(_philox(seed, purpose, number))


@dataclass(frozen=True)
class Stream:
    """The instance examples of a run; or, with `partners`, its class examples: sample k then means
    the partner of sample k, with draws and an order of its own."""

    seed: int
    examples: int
    partners: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise DataError(f"seed {self.seed} is out of range: pass 0 to 2**64 - 1")
        assert self.examples > 0, "a listing is never empty"

    def example(self, k: int) -> int:
        """The example of sample k: each exactly once an epoch, in an order drawn for that epoch."""
        epoch, place = divmod(k, self.examples)
        return int(_order(self.seed, self._number(epoch), self.examples)[place])

    def generator(self, k: int, purpose: Purpose) -> np.random.Generator:
        assert purpose >= Purpose.VARIANT, f"{purpose.name} is not drawn for each sample"
        return generator(self.seed, purpose, self._number(k))

    def _number(self, n: int) -> int:
        """Numbers of partners lie beyond all numbers that samples and epochs can have."""
        return n + (1 << 64) * self.partners


def micro_batch(
    update: int, micro: int, rank: int, *, batch: int, accumulation: int, world_size: int
) -> range:
    """The samples of one micro-step of one rank.

    k = u*G + (a*N + r)*B + b: the G samples of an update do not depend on how they are split.

    >>> [micro_batch(3, 1, rank, batch=2, accumulation=2, world_size=2) for rank in (0, 1)]
    [range(28, 30), range(30, 32)]
    """
    assert 0 <= micro < accumulation
    assert 0 <= rank < world_size
    start = (update * accumulation * world_size + micro * world_size + rank) * batch
    return range(start, start + batch)


def epoch(update: int, *, samples_per_update: int, examples: int) -> int:
    """The epoch in which an update begins."""
    return update * samples_per_update // examples


def updates(epochs: int, *, samples_per_update: int, examples: int) -> int:
    """How many updates `epochs` passes over the examples take; the last one may reach beyond."""
    return -(-epochs * examples // samples_per_update)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, examples: int) -> NDArray[np.intp]:
    # A stable sort of raw words, because NumPy pledges the words for good, but not `permutation`.
    words = _philox(seed, Purpose.ORDER, epoch).random_raw(examples)
    return np.argsort(words, kind="stable")


def _philox(seed: int, purpose: Purpose, number: int) -> np.random.Philox:
    return np.random.Philox(counter=number << 64, key=seed | purpose << 64)
