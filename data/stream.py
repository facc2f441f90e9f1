"""The sample stream: which example and which random numbers sample k has. Pure.

Samples are numbered once for the whole run, over all ranks. Everything random about sample k
comes from counter-based generators keyed by (seed, purpose) and positioned at k: rank and world
size never enter, so N cards compute what one card computes and a resume needs only a number.
L examples, G samples an update, B samples a micro-batch, N ranks.

Examples of different sizes lie in buckets, and an update takes all its samples from one. A bucket
counts its own samples and has epochs of its own; how often its turn comes goes by its share of the
examples. Without buckets there is one, of all examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from .errors import DataError


class Purpose(IntEnum):
    """What is drawn. Each has a stream of its own, so an option that draws more or less of one
    leaves the others as they were. Append only: a changed number changes every run."""

    ORDER = 0  # numbered by epoch
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
    the partner of sample k, with draws and an order of its own.

    buckets: which examples are in each, the largest one first. samples_per_update: G, which only
    several buckets have a use for.
    """

    seed: int
    buckets: Sequence[Sequence[int]]
    samples_per_update: int
    partners: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise DataError(f"seed {self.seed} is out of range: pass 0 to 2**64 - 1")
        sizes = [len(bucket) for bucket in self.buckets]
        assert sizes, "a listing is never empty"
        assert sizes == sorted(sizes, reverse=True), "turns are spread evenly only in this order"
        assert sizes[-1] > 0, "nor is a bucket"

    @classmethod
    def of(cls, seed: int, examples: int, *, partners: bool = False) -> "Stream":
        """One without buckets."""
        return cls(seed, buckets=(range(examples),), samples_per_update=1, partners=partners)

    @property
    def examples(self) -> int:
        """L."""
        return sum(map(len, self.buckets))

    def bucket(self, update: int) -> int:
        """The bucket that an update takes its samples from."""
        return self._turn(update)[0]

    def example(self, k: int) -> int:
        """The example of sample k: each exactly once in an epoch of its bucket, in an order drawn
        for that epoch."""
        update, slot = divmod(k, self.samples_per_update)
        bucket, turn = self._turn(update)
        members = self.buckets[bucket]
        epoch, place = divmod(turn * self.samples_per_update + slot, len(members))
        number = self._number(epoch) + (bucket << 65)  # beyond the numbers of partners
        return members[int(_order(self.seed, number, len(members))[place])]

    def generator(self, k: int, purpose: Purpose) -> np.random.Generator:
        assert purpose >= Purpose.VARIANT, f"{purpose.name} is not drawn for each sample"
        return generator(self.seed, purpose, self._number(k))

    def _turn(self, update: int) -> tuple[int, int]:
        """The bucket of an update, and how many updates that bucket had before.

        Each bucket takes its share of the turns that the larger ones leave, as evenly as whole
        numbers go. What B buckets have had is at no time further than (1 + H) / 2 updates from
        their shares, H = 1 + 1/2 + ... + 1/(B - 2), and exactly that after every L updates.
        """
        turn, left = update, self.examples
        for bucket, members in enumerate(self.buckets[:-1]):
            had, has = ((n * len(members) + left // 2) // left for n in (turn, turn + 1))
            if has > had:
                return bucket, had
            turn -= had
            left -= len(members)
        return len(self.buckets) - 1, turn

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
def _order(seed: int, number: int, examples: int) -> NDArray[np.intp]:
    # A stable sort of raw words, because NumPy pledges the words for good, but not `permutation`.
    words = _philox(seed, Purpose.ORDER, number).random_raw(examples)
    return np.argsort(words, kind="stable")


def _philox(seed: int, purpose: Purpose, number: int) -> np.random.Philox:
    key: Any = _Key(seed, purpose)  # NumPy's stubs know only its own SeedSequence here
    return np.random.Philox(key, counter=number << 64)


class _Key(ISeedSequence):
    """Philox's key. Its own argument for that does the same, but only after NumPy has gathered
    entropy for nothing, which takes twice as long as all else."""

    def __init__(self, *words: int) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        assert n_words == len(self._words)
        return np.array(self._words, dtype)
