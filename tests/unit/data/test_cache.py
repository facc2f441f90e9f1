"""An entry is there whole or not at all, whoever publishes, reads, dies or removes it when.

What is damaged: test_cache_damage.py. Disks that are full or not to be written to:
test_cache_disks.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from entries import KEY, KEYS, NOTE, tensors

from mindbooth.data.atomic import is_unfinished, writer_of
from mindbooth.data.cache import DAMAGED_SUFFIX, Missing, Store, default_root

LIMIT_SECONDS = 60
WRITER = "00112233445566ff"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def until(happened: Callable[[], bool]) -> None:
    """Poll for an event in another process."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.0005)


def python(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


# Publishing and reading


def test_what_is_published_is_read_by_another_process_of_the_same_root(store: Store) -> None:
    store.publish(KEY, tensors(3.0), note=NOTE)
    back = Store(store.root).read(KEY)
    assert np.array_equal(back["mean"], tensors(3.0)["mean"])
    assert np.array_equal(back["std"], tensors()["std"])


def test_entries_fan_out_by_two_digits(store: Store) -> None:
    assert store.path(KEY) == store.root / KEY[:2] / f"{KEY}.safetensors"


def test_publishing_leaves_one_file_and_no_other(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    store.publish(KEY, tensors(), note=NOTE)
    assert [path for path in store.root.rglob("*") if path.is_file()] == [store.path(KEY)]


def test_an_absent_entry_is_missing(store: Store) -> None:
    assert store.missing([KEY]) == [KEY]
    with pytest.raises(Missing):
        store.read(KEY)


def test_missing_keeps_the_order_and_names_each_once(store: Store) -> None:
    for key in KEYS[:20:2]:
        store.publish(key, tensors(), note=NOTE)
    assert store.missing([*KEYS[:20], *KEYS[:20]]) == KEYS[1:20:2]
    assert store.missing([]) == []


def test_an_entry_in_another_ones_folder_is_missing(store: Store) -> None:
    for key in KEYS[:2]:
        store.publish(key, tensors(), note=NOTE)
    store.path(KEY).rename(store.path(KEYS[1]).with_name(store.path(KEY).name))
    assert store.missing(KEYS[:2]) == store.missing([KEY]) == [KEY]


def test_what_was_read_stays_as_it_is_whatever_is_read_next(store: Store) -> None:
    for number, key in enumerate(KEYS[:40]):
        store.publish(key, tensors(number), note=NOTE)
    held = [store.read(key)["mean"][1:3] for key in KEYS[:40]]
    for key in KEYS[:40]:
        store.read(key)
    assert [set(mean.flat) for mean in held] == [{number} for number in range(40)]


def test_threads_read_through_one_store(store: Store) -> None:
    for number, key in enumerate(KEYS[:40]):
        store.publish(key, tensors(number, size=4096), note=NOTE)

    def mean(number: int) -> set[float]:
        return set(store.read(KEYS[number])["mean"].flat)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(mean, [*range(40)] * 3)) == [{number} for number in range(40)] * 3


def test_what_was_read_cannot_be_written_to(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    with pytest.raises(ValueError, match="read-only"):
        store.read(KEY)["mean"][:] = 0


def test_entries_are_read_with_few_files_open(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    held = [store.read(KEY) for _ in range(200)]
    assert len(os.listdir("/proc/self/fd")) < 150
    assert len(held) == 200


def test_a_writable_folder_is_made_and_left_empty(store: Store) -> None:
    store.ensure_writable()
    assert list(store.root.iterdir()) == []


# Caches below


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Store, Store, Store]:
    """One's own, and two caches below it by themselves."""
    team, site = Store(tmp_path / "team"), Store(tmp_path / "site")
    return Store(tmp_path / "own", below=(team.root, site.root)), team, site


def test_the_first_cache_that_has_an_entry_gives_it(layers: tuple[Store, Store, Store]) -> None:
    for number, store in enumerate(layers):
        for key in KEYS[: number + 1]:
            store.publish(key, tensors(number), note=NOTE)
    assert [layers[0].read(key)["mean"].flat[0] for key in KEYS[:3]] == [0, 1, 2]


def test_what_lies_below_is_not_missing(layers: tuple[Store, Store, Store]) -> None:
    own, team, site = layers
    team.publish(KEYS[1], tensors(), note=NOTE)
    site.publish(KEYS[2], tensors(), note=NOTE)
    assert own.missing(KEYS[:4]) == [KEYS[0], KEYS[3]]
    assert own.missing(KEYS[:4], verify=True) == [KEYS[0], KEYS[3]]


def test_only_ones_own_cache_is_written_to(layers: tuple[Store, Store, Store]) -> None:
    own, team, site = layers
    own.ensure_writable()
    own.publish(KEY, tensors(), note=NOTE)
    assert own.path(KEY).is_file()
    assert not team.root.exists()
    assert not site.root.exists()


# Several processes

PUBLISH_ALL = """
import sys
import numpy as np
from pathlib import Path
from mindbooth.data.cache import Missing, Store
store, keys, rounds = Store(Path(sys.argv[1])), sys.argv[3:], int(sys.argv[2])
for round in range(rounds):
    for number, key in enumerate(keys):
        mean = np.full((4, 4096), number, np.float32)
        store.publish(key, {"mean": mean, "std": mean + 1}, note={})
        for number, key in enumerate(keys):
            try:
                back = Store(store.root).read(key)
            except Missing:
                continue
            assert (back["mean"] == number).all() and (back["std"] == number + 1).all()
assert not store.missing(keys, verify=True)
"""


def test_concurrent_publishers_and_readers_see_whole_entries_only(store: Store) -> None:
    running = [python(PUBLISH_ALL, store.root, 5, *KEYS[:6]) for _ in range(4)]
    assert [process.wait(timeout=LIMIT_SECONDS) for process in running] == [0, 0, 0, 0]
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert sorted(path.stem for path in files) == sorted(KEYS[:6])


PUBLISH_FOR_EVER = """
import sys
import numpy as np
from pathlib import Path
from mindbooth.data.cache import Store
store = Store(Path(sys.argv[1]), writer=sys.argv[2])
big = np.ones((4, 1 << 20), np.float32)
while True:
    for key in sys.argv[3:]:
        store.publish(key, {"mean": big}, note={})
"""


def test_a_publisher_killed_midway_leaves_nothing_that_is_read(store: Store) -> None:
    folder = store.path(KEY).parent
    for _ in range(4):
        known = set(folder.glob(".*"))
        process = python(PUBLISH_FOR_EVER, store.root, WRITER, KEY)
        try:
            until(lambda known=known: bool(set(folder.glob(".*")) - known))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert store.missing([KEY], verify=True) in ([], [KEY])
    hidden = [path.name for path in folder.glob(".*")]
    assert hidden, "no kill fell into a publication: the test has shown nothing"
    assert all(map(is_unfinished, hidden))
    assert {writer_of(name) for name in hidden} == {WRITER}
    assert not list(folder.glob(f"*{DAMAGED_SUFFIX}"))
    store.publish(KEY, tensors(), note=NOTE)
    assert store.missing([KEY], verify=True) == []


# A cache that is removed while it is in use


def test_a_removed_cache_is_missing_and_is_made_anew(store: Store) -> None:
    for key in KEYS[:3]:
        store.publish(key, tensors(), note=NOTE)
        store.read(key)
    shutil.rmtree(store.root)
    for key in KEYS[:3]:
        with pytest.raises(Missing):
            store.read(key)
    assert store.missing(KEYS[:3]) == KEYS[:3]
    store.publish(KEY, tensors(2.0), note=NOTE)
    assert np.array_equal(store.read(KEY)["mean"], tensors(2.0)["mean"])


def test_a_read_entry_outlives_its_cache(store: Store) -> None:
    store.publish(KEY, tensors(5.0), note=NOTE)
    back = store.read(KEY)
    os.truncate(store.path(KEY), 0)
    shutil.rmtree(store.root)
    assert np.array_equal(back["mean"], tensors(5.0)["mean"])


def test_a_cache_that_is_removed_during_a_publication_is_made_anew(store: Store) -> None:
    removed = threading.Event()

    def remove_once() -> None:
        until(lambda: bool(list(store.root.glob("*/.*"))))
        shutil.rmtree(store.root, ignore_errors=True)
        removed.set()

    while not removed.is_set() or store.missing([KEY]):
        removed.clear()
        remover = threading.Thread(target=remove_once)
        remover.start()
        store.publish(KEY, tensors(size=1 << 20), note=NOTE)
        remover.join()


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"HOME": "/home/ann"}, "/home/ann/.cache/mindbooth"),
        ({"HOME": "/home/ann", "XDG_CACHE_HOME": "/fast"}, "/fast/mindbooth"),
        ({"HOME": "/home/ann", "XDG_CACHE_HOME": ""}, "/home/ann/.cache/mindbooth"),
        ({"HOME": "/home/ann", "XDG_CACHE_HOME": "relative"}, "/home/ann/.cache/mindbooth"),
    ],
)
def test_default_root(env: dict[str, str], expected: str) -> None:
    assert default_root(env) == Path(expected)
