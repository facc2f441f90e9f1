"""Threads as ranks, on a real cache: each entry is encoded once, by whoever comes to it first."""

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from holders import dead_holder, holder

from mindbooth.data.cache import Store
from mindbooth.data.claims import Claims
from mindbooth.data.filling import Filling, walk
from mindbooth.data.presence import Presence

KEYS = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(60)]
TENSORS = {"mean": np.zeros((4, 2, 2), np.float32)}


class StopError(Exception):
    """What a check raises."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def publish(store: Store, *keys: str) -> None:
    for key in keys:
        store.publish(key, TENSORS, note={})


@contextmanager
def filling(
    store: Store,
    keys: list[str] = KEYS,
    *,
    share: int = 0,
    of: int = 1,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Filling]:
    with Presence(store.root) as presence, Claims(presence) as claims:
        yield Filling(keys, store, claims, share=share, of=of, check=check)


def left_behind(store: Store) -> list[str]:
    return [path.name for path in store.root.rglob(".*")]


def fill(store: Store, keys: list[str], *, share: int, of: int) -> list[str]:
    """Do one rank's part; what it encoded."""
    encoded = []
    with filling(store, keys, share=share, of=of) as mine:
        for key in mine:
            encoded.append(key)
            publish(store, key)
            mine.release(key)
        assert mine.done == len(set(keys))
    return encoded


def fill_together(store: Store, ranks: list[tuple[list[str], int, int]]) -> list[list[str]]:
    """Several ranks' parts at the same time: (keys, share, of) of each."""
    encoded: dict[int, list[str]] = {}
    together = threading.Barrier(len(ranks))

    def rank(number: int, keys: list[str], share: int, of: int) -> None:
        together.wait(timeout=30)
        encoded[number] = fill(Store(store.root), keys, share=share, of=of)

    threads = [
        threading.Thread(target=rank, args=(number, *part)) for number, part in enumerate(ranks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return [encoded[number] for number in range(len(ranks))]


# The order


@pytest.mark.parametrize(
    ("share", "of", "order"),
    [
        (0, 1, "abcdefg"),
        (0, 2, "abcgfed"),
        (1, 2, "defgcba"),
        (0, 3, "abgfedc"),
        (1, 3, "cdbagfe"),
        (2, 3, "efgdcba"),
    ],
)
def test_a_rank_walks_its_own_share_and_then_the_others_from_behind(
    share: int, of: int, order: str
) -> None:
    assert "".join(walk("abcdefg", share=share, of=of)) == order


@pytest.mark.parametrize("of", [1, 2, 3, 8, 100])
def test_shares_cover_every_key_once(of: int) -> None:
    shares = [walk(KEYS, share=share, of=of) for share in range(of)]
    assert all(sorted(keys) == sorted(KEYS) for keys in shares)
    own = [len(KEYS) * (share + 1) // of - len(KEYS) * share // of for share in range(of)]
    first = [key for keys, count in zip(shares, own, strict=True) for key in keys[:count]]
    assert first == KEYS


def test_one_rank_encodes_in_order(store: Store) -> None:
    assert fill(store, KEYS, share=0, of=1) == KEYS


# Once


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_ranks_encode_each_entry_once(store: Store, size: int) -> None:
    encoded = fill_together(store, [(KEYS, share, size) for share in range(size)])
    assert sorted(sum(encoded, [])) == sorted(KEYS)
    assert left_behind(store) == []


def test_jobs_that_start_together_encode_each_entry_once(store: Store) -> None:
    jobs = (KEYS[:40], KEYS[20:], KEYS[:40])
    encoded = fill_together(store, [(keys, share, 2) for keys in jobs for share in (0, 1)])
    assert Counter(sum(encoded, [])) == dict.fromkeys(KEYS, 1)
    assert left_behind(store) == []


def test_a_key_that_is_given_twice_is_encoded_once(store: Store) -> None:
    assert fill(store, [*KEYS[:2], KEYS[0]], share=0, of=1) == KEYS[:2]


def test_what_exists_is_not_encoded(store: Store, tmp_path: Path) -> None:
    publish(store, KEYS[0])
    publish(Store(tmp_path / "of the site"), KEYS[1])
    both = Store(store.root, below=[tmp_path / "of the site"])
    assert fill(both, KEYS[:4], share=0, of=1) == KEYS[2:4]


def test_what_was_encoded_since_the_last_look_is_not_encoded_again(store: Store) -> None:
    encoded = []
    with filling(store, KEYS[:4]) as mine:
        for key in mine:
            encoded.append(key)
            # Another job is as quick, and its claims are gone by now.
            publish(store, *KEYS[:3])
            publish(store, key)
            mine.release(key)
    assert encoded == [KEYS[0], KEYS[3]]


# Help, and waiting


def test_a_rank_does_the_share_of_one_that_never_comes(store: Store) -> None:
    assert sorted(fill(store, KEYS, share=1, of=2)) == sorted(KEYS)


def test_waits_for_what_another_one_is_encoding(store: Store) -> None:
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            publish(store, KEYS[0])

    with holder(store.root, store.path(KEYS[0])), filling(store, KEYS[:1], check=check) as mine:
        assert list(mine) == []
        assert mine.done == 1
    assert looks >= 3


def test_a_check_that_raises_ends_the_waiting(store: Store) -> None:
    def check() -> None:
        raise StopError

    with (
        holder(store.root, store.path(KEYS[0])),
        filling(store, KEYS[:1], check=check) as mine,
        pytest.raises(StopError),
    ):
        next(iter(mine))


def test_what_the_dead_were_encoding_is_taken_over(store: Store) -> None:
    with dead_holder(store.root, *map(store.path, KEYS[:5])):
        assert fill(store, KEYS, share=0, of=1) == KEYS


def test_what_one_is_encoding_who_dies_meanwhile_is_taken_over(store: Store) -> None:
    looks = 0
    with holder(store.root, store.path(KEYS[0])) as (process, _):

        def check() -> None:
            nonlocal looks
            looks += 1
            if looks == 3:
                process.kill()
                process.wait()

        with filling(store, KEYS[:1], check=check) as mine:
            assert next(iter(mine)) == KEYS[0]


def test_a_thread_may_be_ahead_of_who_encodes(store: Store) -> None:
    with filling(store, KEYS[:3]) as mine:
        keys = iter(mine)
        ahead = [next(keys) for _ in range(3)]
        waiting = threading.Thread(target=lambda: ahead.extend(keys))
        waiting.start()
        for key in KEYS[:3]:
            assert waiting.is_alive(), "not everything is there"
            publish(store, key)
            mine.release(key)
        waiting.join(timeout=30)
        assert not waiting.is_alive()
    assert ahead == KEYS[:3], "none came twice"


def test_where_no_claim_can_be_made_each_key_comes_once(store: Store) -> None:
    for key in KEYS[:3]:  # a folder in each claim's place
        (store.path(key).parent / f".{key}.claim").mkdir(parents=True)
    assert fill(store, KEYS[:3], share=0, of=1) == KEYS[:3]


def test_counts_what_others_have_encoded(store: Store) -> None:
    with filling(store) as mine:
        assert mine.done == 0
        publish(store, *KEYS[:7])
    with filling(store) as mine:
        assert mine.done == 7


def test_counts_at_once_what_this_process_has_encoded(store: Store) -> None:
    with filling(store, KEYS[:5]) as mine:
        assert mine.done == 0
        for number, key in enumerate(mine, start=1):
            publish(store, key)
            mine.release(key)
            assert mine.done == number
