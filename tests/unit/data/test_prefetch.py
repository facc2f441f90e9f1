"""Prefetching keeps order and bounds, brings errors over, and leaves no thread behind."""

import gc
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from itertools import count, islice

import pytest

from mindbooth.data.prefetch import Prefetch

PROMPT_SECONDS = 20


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert threads() == []
    yield
    gc.collect()
    assert threads() == []


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
def test_items_come_in_order_and_once(depth: int) -> None:
    with Prefetch(lambda i: i * i, range(50), depth=depth) as items:
        assert list(items) == [i * i for i in range(50)]
        assert list(items) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_depth_items_are_built_ahead(depth: int) -> None:
    built = 0
    reached = threading.Semaphore(0)

    def make(index: int) -> int:
        nonlocal built
        built += 1
        reached.release()
        return index

    with Prefetch(make, count(), depth=depth) as items:
        for taken in range(1, 6):
            next(items)
            # Everything that may be built ahead is built; nothing beyond can be.
            while built < taken + depth:
                assert reached.acquire(timeout=PROMPT_SECONDS)
            assert built == taken + depth


def test_it_works_ahead_in_another_thread() -> None:
    second_is_built = threading.Event()
    makers = set()

    def make(index: int) -> int:
        makers.add(threading.current_thread())
        if index == 1:
            second_is_built.set()
        return index

    with Prefetch(make, range(3)) as items:
        assert second_is_built.wait(timeout=PROMPT_SECONDS)  # nobody has asked yet
        assert next(items) == 0
    assert threading.current_thread() not in makers


def test_an_error_comes_after_the_items_before_it_and_with_its_traceback() -> None:
    def make(index: int) -> int:
        if index == 3:
            raise_from_here()
        return index

    def raise_from_here() -> None:
        raise ZeroDivisionError("sample 3")

    with Prefetch(make, count(), depth=2) as items:
        assert list(islice(items, 3)) == [0, 1, 2]
        with pytest.raises(ZeroDivisionError, match="sample 3") as raised:
            next(items)
        assert list(items) == []
    assert "raise_from_here" in "".join(traceback.format_tb(raised.value.__traceback__))


def test_an_error_of_the_indices_comes_over_too() -> None:
    def indices() -> Iterator[int]:
        yield 0
        raise LookupError("no more updates")

    with Prefetch(lambda i: i, indices()) as items:
        assert next(items) == 0
        with pytest.raises(LookupError, match="no more updates"):
            next(items)


def test_closing_ends_a_thread_that_waits_for_room() -> None:
    items = Prefetch(lambda i: i, count(), depth=1)
    next(items)
    items.close()
    assert threads() == []
    items.close()
    assert list(items) == []


def test_dropping_it_ends_the_thread() -> None:
    items = Prefetch(lambda i: i, count())
    assert list(islice(items, 3)) == [0, 1, 2]
    del items
    gc.collect()
    assert threads() == []


def test_closing_wakes_a_consumer_that_waits() -> None:
    asked, release = threading.Event(), threading.Event()

    def indices() -> Iterator[int]:
        asked.set()
        release.wait(timeout=PROMPT_SECONDS)
        yield 0

    items = Prefetch(lambda i: i, indices(), depth=1)
    assert asked.wait(timeout=PROMPT_SECONDS)
    got: list[int] = []
    consumer = threading.Thread(target=lambda: got.extend(items), daemon=True)
    consumer.start()
    closer = threading.Thread(target=items.close, daemon=True)
    closer.start()
    release.set()
    for thread in (consumer, closer):
        thread.join(timeout=PROMPT_SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "1 / 0"])
def test_the_interpreter_exits_with_one_still_open(ending: str) -> None:
    script = (
        "from itertools import count\n"
        "from mindbooth.data.prefetch import Prefetch\n"
        f"items = Prefetch(lambda i: bytes(1000), count()); next(items)\n{ending}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PROMPT_SECONDS
    )
    assert done.returncode == {"": 0, "raise SystemExit(3)": 3, "1 / 0": 1}[ending]
    assert ("ZeroDivisionError" in done.stderr) == (ending == "1 / 0")
    assert "prefetch" not in done.stderr.replace("import Prefetch", "")
