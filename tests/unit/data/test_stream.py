"""The sample stream depends on seed and sample number, and on nothing else."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mindbooth.data.errors import DataError
from mindbooth.data.stream import Purpose, Stream, epoch, generator, micro_batch, updates

PINNED_ORDER = [1, 4, 3, 0, 2, 4, 0, 1, 2, 3]
PINNED_WORDS = [
    8305950373989433421,
    7176295760302886488,
    7827410377924947245,
    16815381890043990364,
    6833752007584618429,
    8562752266218434738,
    6528599130699116170,
]
PINNED_PARTNERS = [1, 2, 3, 4, 0, 2, 4, 3, 1, 0]
LATE = (0, 1, 999, 1000, 123_456, 10**12)
PINNED_LATE = [887, 535, 896, 62, 961, 359]
PINNED_LATE_PARTNERS = [509, 410, 523, 178, 163, 856]
PINNED_BUCKETS = [0, 1, 0, 2, 0, 1, 0]
PINNED_BUCKETED = [2, 5, 1, 3, 0, 4, 6, 6, 0, 2, 3, 1, 4, 5]

SPLITS_OF_8 = [
    (world_size, batch, accumulation)
    for world_size, batch, accumulation in product((1, 2, 4, 8), repeat=3)
    if world_size * batch * accumulation == 8
]


# Sizes of buckets: some smaller than an update, some of many examples.
BUCKETS = [(7, 3, 1), (5, 5), (40, 1, 1, 1, 1, 1), (13,), (1, 1, 1), (9, 8, 4, 4, 2)]
# Ranks, batch and accumulation.
SPLITS = [(1, 1, 1), (1, 5, 1), (2, 1, 1), (2, 2, 2), (3, 1, 1), (3, 2, 3), (8, 1, 1), (8, 2, 2)]

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=40).map(
    lambda sizes: sorted(sizes, reverse=True)
)


def bucketed(sizes: Sequence[int], samples_per_update: int, *, seed: int = 3,
             partners: bool = False) -> Stream:  # fmt: skip
    """Examples are dealt out, so that those of a bucket are not side by side."""
    left = [bucket for bucket, size in enumerate(sizes) for _ in range(size)]
    dealt = np.random.default_rng(0).permutation(left)
    buckets = [np.flatnonzero(dealt == bucket).tolist() for bucket in range(len(sizes))]
    return Stream(seed, buckets, samples_per_update, partners)


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
    stream = Stream.of(3, examples)
    total = 3 * examples * world_size  # whole epochs, however many ranks share them
    rounds = range(total // world_size)
    samples = [k for update in rounds for k in consumed(update, world_size, 1, 1)]
    for start in range(0, total, examples):
        once = Counter(stream.example(k) for k in samples[start : start + examples])
        assert once == dict.fromkeys(range(examples), 1)


def test_epochs_and_seeds_are_ordered_differently() -> None:
    def order(seed: int, number: int) -> list[int]:
        stream = Stream.of(seed, 20)
        return [stream.example(number * 20 + place) for place in range(20)]

    orders = [order(seed, number) for seed in (0, 1) for number in (0, 1, 2)]
    assert len({tuple(each) for each in orders}) == 6


def test_positions_in_the_order_are_uniform() -> None:
    first = Counter(Stream.of(seed, 4).example(0) for seed in range(2000))
    assert all(abs(count - 500) < 100 for count in first.values())


def test_the_stream_is_pinned() -> None:
    """A change of these numbers breaks the resume of every run that exists."""
    stream = Stream.of(42, 5)
    assert [stream.example(k) for k in range(10)] == PINNED_ORDER
    partners = Stream.of(42, 5, partners=True)
    assert [partners.example(k) for k in range(10)] == PINNED_PARTNERS
    long, others = (Stream.of(7, 1000, partners=partners) for partners in (False, True))
    assert [long.example(k) for k in LATE] == PINNED_LATE
    assert [others.example(k) for k in LATE] == PINNED_LATE_PARTNERS
    draws = [generator(42, purpose, 7).bit_generator.random_raw() for purpose in Purpose]
    assert draws == PINNED_WORDS


def test_samples_can_be_asked_in_any_order() -> None:
    stream = Stream.of(1, 6)
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
    stream = Stream.of(0, 1)
    noise = [stream.generator(k, Purpose.NOISE).standard_normal(50_000) for k in range(4)]
    for left, right in pairwise(noise):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.02
    assert abs(np.mean(noise)) < 0.01
    assert abs(np.std(noise) - 1) < 0.01


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    stream = Stream.of(0, 1)
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
        Stream.of(seed, 1)


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("sizes", BUCKETS, ids=str)
def test_each_example_comes_once_in_an_epoch_of_its_bucket(
    sizes: tuple[int, ...], split: tuple[int, int, int]
) -> None:
    world_size, batch, accumulation = split
    stream = bucketed(sizes, world_size * batch * accumulation)
    updates = 3 * stream.examples  # whole epochs of every bucket
    seen: dict[int, list[int]] = {}
    for update in range(updates):
        samples = consumed(update, world_size, batch, accumulation)
        seen.setdefault(stream.bucket(update), []).extend(map(stream.example, samples))
    for bucket, members in enumerate(stream.buckets):
        epochs = [
            seen[bucket][start : start + len(members)]
            for start in range(0, len(seen[bucket]), len(members))
        ]
        assert all(sorted(epoch) == sorted(members) for epoch in epochs)


@pytest.mark.parametrize("sizes", BUCKETS, ids=str)
def test_all_samples_of_an_update_come_from_one_bucket(sizes: tuple[int, ...]) -> None:
    stream = bucketed(sizes, 6)
    for update in range(100):
        members = stream.buckets[stream.bucket(update)]
        assert {stream.example(k) for k in range(6 * update, 6 * update + 6)} <= set(members)


@pytest.mark.parametrize("split", [split for split in product((1, 2, 3, 8), (1, 2, 3, 8), (1, 2, 3))
                                   if 24 % np.prod(split) == 0], ids=str)  # fmt: skip
def test_ranks_that_share_an_update_take_what_one_card_takes(split: tuple[int, int, int]) -> None:
    world_size, batch, few = split
    accumulation = 24 // (world_size * batch)
    one, ranks = (bucketed((9, 8, 4, 4, 2), 24) for _ in range(2))
    for update in (0, 1, 5, 1000):
        expected = [one.example(k) for k in range(24 * update, 24 * update + 24)]
        taken = consumed(update, world_size, batch, accumulation)
        assert [ranks.example(k) for k in taken] == expected


@given(SIZES, st.integers(1, 400))
@example([61] + [1] * 39, 50)
@example([1] * 40, 20)
def test_turns_are_never_far_from_the_shares(sizes: list[int], updates: int) -> None:
    stream = bucketed(sizes, 4)
    turns = Counter(stream.bucket(update) for update in range(updates))
    apart = (1 + sum(1 / n for n in range(1, len(sizes) - 1))) / 2
    for bucket, size in enumerate(sizes):
        assert abs(turns[bucket] - updates * size / stream.examples) <= apart + 1e-9


@given(SIZES)
def test_turns_are_the_shares_after_as_many_updates_as_examples(sizes: list[int]) -> None:
    stream = bucketed(sizes, 1)
    turns = Counter(stream.bucket(update) for update in range(stream.examples))
    assert turns == dict(enumerate(sizes))


@given(SIZES, st.integers(1, 9), st.integers(0, 2**64 - 1), st.booleans())
def test_one_bucket_is_the_plain_stream(
    sizes: list[int], samples_per_update: int, seed: int, partners: bool
) -> None:
    plain = Stream.of(seed, sizes[0], partners=partners)
    one = Stream(seed, [range(sizes[0])], samples_per_update, partners)
    assert [one.example(k) for k in range(100)] == [plain.example(k) for k in range(100)]


def test_an_update_that_no_walk_reaches_has_its_bucket_and_examples() -> None:
    stream = bucketed((9, 8, 4, 4, 2), 3)
    start = stream.examples * 10**15
    near, far = ([stream.bucket(first + update) for update in range(200)] for first in (0, start))
    assert near == far
    seen: dict[int, list[int]] = {}
    for update in range(start, start + stream.examples):
        samples = [stream.example(k) for k in range(3 * update, 3 * update + 3)]
        seen.setdefault(stream.bucket(update), []).extend(samples)
    for bucket, members in enumerate(stream.buckets):
        assert Counter(seen[bucket]) == dict.fromkeys(members, 3)
        assert sorted(seen[bucket][: len(members)]) == sorted(members)


def test_buckets_and_partners_have_orders_of_their_own() -> None:
    def places(partners: bool) -> list[tuple[int, ...]]:
        """In each bucket, the places in it of the first epoch's examples."""
        stream = bucketed((30, 30, 30), 30, partners=partners)
        firsts = {stream.bucket(update): update for update in reversed(range(3))}
        return [
            tuple(
                stream.buckets[bucket].index(stream.example(k))
                for k in range(30 * update, 30 * update + 30)
            )
            for bucket, update in firsts.items()
        ]

    assert len({*places(False), *places(True)}) == 6


def test_the_buckets_order_is_pinned() -> None:
    """A change of these numbers breaks the resume of every run with buckets."""
    stream = Stream(42, ((0, 2, 4, 5), (1, 3), (6,)), samples_per_update=2)
    assert [stream.bucket(update) for update in range(7)] == PINNED_BUCKETS
    assert [stream.example(k) for k in range(14)] == PINNED_BUCKETED
