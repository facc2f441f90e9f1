"""The sample stream depends on seed and sample number, and on nothing else."""

from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest

from mindbooth.data.errors import DataError
from mindbooth.data.stream import Purpose, Stream, epoch, generator, micro_batch, updates

PINNED_ORDER = [1, 4, 3, 0, 2, 4, 0, 1, 2, 3]
PINNED_WORDS = [
    8305950373989433421,
    5362162366488802786,
    7176295760302886488,
    7827410377924947245,
    16815381890043990364,
    6833752007584618429,
    8562752266218434738,
    6528599130699116170,
]
PINNED_PARTNERS = [1, 2, 3, 4, 0, 2, 4, 3, 1, 0]

SPLITS_OF_8 = [
    (world_size, batch, accumulation)
    for world_size, batch, accumulation in product((1, 2, 4, 8), repeat=3)
    if world_size * batch * accumulation == 8
]


def consumed(update: int, world_size: int, batch: int, accumulation: int) -> list[int]:
    """All samples of an update in the order of time, then rank, then slot."""
    return [
        k
        for micro in range(accumulation)
        for rank in range(world_size)
        for k in micro_batch(
            update, micro, rank, batch=batch, accumulation=accumulation, world_size=world_size
        )
    ]


@pytest.mark.parametrize(("world_size", "batch", "accumulation"), SPLITS_OF_8)
def test_every_split_consumes_the_same_samples_in_the_same_order(
    world_size: int, batch: int, accumulation: int
) -> None:
    for update in (0, 1, 1000):
        expected = list(range(update * 8, update * 8 + 8))
        assert consumed(update, world_size, batch, accumulation) == expected


@pytest.mark.parametrize("examples", [1, 2, 5, 7, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_each_example_comes_once_an_epoch_over_all_ranks(examples: int, world_size: int) -> None:
    stream = Stream(seed=3, examples=examples)
    total = 3 * examples * world_size  # whole epochs, however many ranks share them
    rounds = range(total // world_size)
    samples = [k for update in rounds for k in consumed(update, world_size, 1, 1)]
    for start in range(0, total, examples):
        once = Counter(stream.example(k) for k in samples[start : start + examples])
        assert once == dict.fromkeys(range(examples), 1)


def test_epochs_and_seeds_are_ordered_differently() -> None:
    def order(seed: int, number: int) -> list[int]:
        stream = Stream(seed=seed, examples=20)
        return [stream.example(number * 20 + place) for place in range(20)]

    orders = [order(seed, number) for seed in (0, 1) for number in (0, 1, 2)]
    assert len({tuple(each) for each in orders}) == 6


def test_positions_in_the_order_are_uniform() -> None:
    first = Counter(Stream(seed=seed, examples=4).example(0) for seed in range(2000))
    assert all(abs(count - 500) < 100 for count in first.values())


def test_the_stream_is_pinned() -> None:
    """A change of these numbers breaks the resume of every run that exists."""
    stream = Stream(seed=42, examples=5)
    assert [stream.example(k) for k in range(10)] == PINNED_ORDER
    partners = Stream(seed=42, examples=5, partners=True)
    assert [partners.example(k) for k in range(10)] == PINNED_PARTNERS
    draws = [generator(42, purpose, 7).bit_generator.random_raw() for purpose in Purpose]
    assert draws == PINNED_WORDS


def test_samples_can_be_asked_in_any_order() -> None:
    stream = Stream(seed=1, examples=6)
    forward = [stream.example(k) for k in range(60)]
    assert [stream.example(k) for k in reversed(range(60))] == forward[::-1]


def test_draws_of_seeds_samples_and_purposes_are_all_different() -> None:
    draws = {
        float(generator(seed, purpose, number).random())
        for seed in (0, 1, 2**64 - 1)
        for purpose in Purpose
        for number in (0, 1, 2**32, 2**64, 2**191)
    }
    assert len(draws) == 3 * len(Purpose) * 5


def test_neighbouring_samples_are_uncorrelated() -> None:
    stream = Stream(seed=0, examples=1)
    noise = [stream.generator(k, Purpose.NOISE).standard_normal(50_000) for k in range(4)]
    for left, right in pairwise(noise):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.02
    assert abs(np.mean(noise)) < 0.01
    assert abs(np.std(noise) - 1) < 0.01


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    stream = Stream(seed=0, examples=1)
    short, long = (stream.generator(9, Purpose.NOISE).random(n) for n in (3, 300))
    assert np.array_equal(short, long[:3])


@pytest.mark.parametrize(
    ("update", "samples_per_update", "examples", "expected"),
    [(0, 4, 5, 0), (1, 4, 5, 0), (2, 4, 5, 1), (5, 4, 5, 4), (3, 8, 5, 4), (1, 4, 4, 1)],
)
def test_epoch_of_an_update_is_where_it_begins(
    update: int, samples_per_update: int, examples: int, expected: int
) -> None:
    assert epoch(update, samples_per_update=samples_per_update, examples=examples) == expected


@pytest.mark.parametrize(
    ("epochs", "samples_per_update", "examples", "expected"),
    [(1, 4, 5, 2), (4, 4, 5, 5), (1, 8, 5, 1), (100, 4, 5, 125), (1, 1, 5, 5)],
)
def test_updates_cover_the_epochs(
    epochs: int, samples_per_update: int, examples: int, expected: int
) -> None:
    assert updates(epochs, samples_per_update=samples_per_update, examples=examples) == expected


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(DataError, match=f"seed {seed} is out of range"):
        Stream(seed=seed, examples=1)
