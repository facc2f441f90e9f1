"""An entry is there whole or not at all, whoever dies, writes or damages what and when."""

import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mindbooth.data.atomic import is_unfinished
from mindbooth.data.cache import DAMAGED_SUFFIX, Missing, Store, default_root
from mindbooth.data.entry import pack
from mindbooth.data.errors import DataError, RankFailed, RankStopped

KEYS = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20)]
KEY = KEYS[0]
NOTE = {"image": "dog.jpg"}
LIMIT_SECONDS = 60


def tensors(value: float = 1.0, size: int = 64) -> dict[str, NDArray[np.float32]]:
    return {"mean": np.full((4, size), value, np.float32), "std": np.ones((4, size), np.float32)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def until(happened: Callable[[], bool]) -> None:
    """Poll for an event in another process."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.0005)


def looks(limit: int) -> Callable[[int, int], None]:
    """For `wait`: fails where it would go on looking."""
    left = iter(range(limit))

    def on_progress(present: int, total: int) -> None:
        assert next(left, None) is not None, f"still waiting with {present} of {total}"

    return on_progress


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
    assert not store.has(KEY)
    with pytest.raises(Missing):
        store.read(KEY)


def test_missing_keeps_the_order_and_names_each_once(store: Store) -> None:
    for key in KEYS[::2]:
        store.publish(key, tensors(), note=NOTE)
    assert store.missing([*KEYS, *KEYS]) == KEYS[1::2]
    assert store.missing([]) == []


def test_a_thousand_entries_are_read_with_few_files_open(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    held = [store.read(KEY) for _ in range(200)]
    assert len(os.listdir("/proc/self/fd")) < 150
    assert len(held) == 200


# Damage


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


def make_a_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def loop_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit flip": flip_a_bit,
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut at a block": lambda path: os.truncate(path, 512),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "foreign": lambda path: path.write_text("kept here by someone else"),
    "another entry": lambda path: path.write_bytes(pack(KEYS[1], tensors(), NOTE)),
    "a folder": make_a_folder,
    "a link to itself": loop_to_itself,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_told_set_aside_and_encoded_again(
    store: Store, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    damage(store.path(KEY))
    with caplog.at_level(logging.WARNING), pytest.raises(Missing):
        store.read(KEY)
    assert str(store.path(KEY)) in caplog.text
    assert not store.has(KEY)
    assert store.missing([KEY]) == [KEY]
    store.publish(KEY, tensors(2.0), note=NOTE)
    assert np.array_equal(store.read(KEY)["mean"], tensors(2.0)["mean"])
    leftovers = [path for path in store.path(KEY).parent.iterdir() if path != store.path(KEY)]
    assert [path.suffix for path in leftovers] == [DAMAGED_SUFFIX]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_thorough_look_finds_damage_at_once(
    store: Store, damage: Callable[[Path], object]
) -> None:
    for key in KEYS[:3]:
        store.publish(key, tensors(), note=NOTE)
    damage(store.path(KEYS[2]))
    assert store.missing(KEYS[:4], verify=True) == KEYS[2:4]


def test_a_folder_in_the_place_of_an_entry_is_published_over(store: Store) -> None:
    (store.path(KEY) / "inside").mkdir(parents=True)
    assert not store.has(KEY)
    assert store.missing([KEY]) == [KEY]
    store.publish(KEY, tensors(), note=NOTE)
    assert np.array_equal(store.read(KEY)["mean"], tensors()["mean"])


def test_an_entry_that_changes_after_its_first_read_is_verified_again(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    store.read(KEY)
    flip_a_bit(store.path(KEY))
    with pytest.raises(Missing):
        store.read(KEY)


def test_a_read_entry_outlives_its_file(store: Store) -> None:
    store.publish(KEY, tensors(5.0), note=NOTE)
    back = store.read(KEY)
    os.truncate(store.path(KEY), 0)
    assert np.array_equal(back["mean"], tensors(5.0)["mean"])


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
store = Store(Path(sys.argv[1]))
big = np.ones((4, 1 << 20), np.float32)
while True:
    for key in sys.argv[2:]:
        store.publish(key, {"mean": big}, note={})
"""


def test_a_publisher_killed_midway_leaves_nothing_that_is_read(store: Store) -> None:
    folder = store.path(KEY).parent
    for _ in range(4):
        known = set(folder.glob(".*"))
        process = python(PUBLISH_FOR_EVER, store.root, KEY)
        try:
            until(lambda known=known: bool(set(folder.glob(".*")) - known))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert store.missing([KEY], verify=True) in ([], [KEY])
    hidden = [path.name for path in folder.glob(".*")]
    assert hidden, "no kill fell into a publication: the test has shown nothing"
    assert all(map(is_unfinished, hidden))
    assert not list(folder.glob(f"*{DAMAGED_SUFFIX}"))
    store.publish(KEY, tensors(), note=NOTE)
    assert store.missing([KEY], verify=True) == []


@pytest.mark.parametrize(
    ("name", "unfinished"),
    [
        (f".{KEY}.safetensors.0123456789abcdef.part", True),
        (f"{KEY}.safetensors", False),
        (".nfs000000000001", False),
        (f".{KEY}.safetensors.part", False),
    ],
)
def test_unfinished_files_are_told_by_name(name: str, unfinished: bool) -> None:
    assert is_unfinished(name) == unfinished


# Folders that cannot be used


@pytest.mark.parametrize("attempt", ["publish", "ensure_writable"])
@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path, below: str, attempt: str) -> None:
    (tmp_path / "cache").write_text("a file")
    store = Store(tmp_path / "cache" / below)
    assert store.missing([KEY]) == [KEY]
    with pytest.raises(DataError, match=r"a file is in its place.*--latent_cache_dir") as raised:
        store.ensure_writable() if attempt == "ensure_writable" else store.publish(
            KEY, tensors(), note=NOTE
        )
    assert str(tmp_path / "cache") in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)


def test_a_writable_folder_is_made_and_left_empty(store: Store) -> None:
    store.ensure_writable()
    assert list(store.root.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing_half_written(small_disk: Path) -> None:
    store = Store(small_disk)
    store.publish(KEY, tensors(), note=NOTE)
    with pytest.raises(DataError, match=r"the disk is full.*--latent_cache_dir") as raised:
        store.publish(KEYS[1], tensors(size=1 << 20), note=NOTE)
    assert str(small_disk) in str(raised.value)
    assert [path.name for path in small_disk.rglob("*") if path.is_file()] == [store.path(KEY).name]
    assert store.missing(KEYS[:2], verify=True) == [KEYS[1]]


def test_a_failure_on_a_full_disk_still_reaches_the_others(small_disk: Path) -> None:
    store = Store(small_disk)
    store.ensure_writable()
    with suppress(OSError):
        (small_disk / "filler").write_bytes(bytes(2 << 20))
    assert shutil.disk_usage(small_disk).free == 0
    store.mark_failed("run 1", "the disk is full")
    with pytest.raises(RankFailed, match="its own log says why"):
        store.wait([KEY], run_token="run 1", on_progress=looks(1))


def test_a_read_only_cache_is_read_and_not_written(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(small_disk)
    for key in KEYS[:2]:
        store.publish(key, tensors(), note=NOTE)
    flip_a_bit(store.path(KEYS[1]))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert store.read(KEY)
    with pytest.raises(Missing):
        store.read(KEYS[1])
    assert "is damaged" in caplog.text
    for attempt in (
        store.ensure_writable,
        lambda: store.publish(KEYS[1], tensors(), note=NOTE),
        lambda: store.publish(KEYS[2], tensors(), note=NOTE),
    ):
        with pytest.raises(DataError, match=r"cannot be written to.*--latent_cache_dir"):
            attempt()
    store.mark_failed("run 1", "it is read-only")  # never raises
    store.check("run 1")  # nothing could be told


# Waiting for others


def test_waiting_ends_when_all_entries_exist(store: Store) -> None:
    store.publish(KEYS[0], tensors(), note=NOTE)
    seen: list[tuple[int, int]] = []

    def on_progress(present: int, total: int) -> None:
        seen.append((present, total))
        for key in KEYS[: present + 1][:4]:  # another rank publishes one more at each look
            store.publish(key, tensors(), note=NOTE)

    store.wait([*KEYS[:4], KEYS[0]], run_token="t", on_progress=on_progress, poll_seconds=0)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_waiting_for_nothing_returns_at_once(store: Store) -> None:
    store.wait([], run_token="t", on_progress=looks(1))
    store.publish(KEY, tensors(), note=NOTE)
    store.wait([KEY], run_token="t", on_progress=looks(1))


def test_waiting_ends_with_the_failure_of_another_rank(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    Store(store.root).mark_failed("job-7/attempt 1", "rank 3: dog.jpg is damaged")
    with pytest.raises(DataError, match=re.escape("rank 3: dog.jpg is damaged")):
        store.wait(KEYS[:2], run_token="job-7/attempt 1", on_progress=looks(1))


@pytest.mark.parametrize("error", [DataError, RankFailed, RankStopped])
def test_the_kind_of_failure_reaches_the_others(store: Store, error: type[Exception]) -> None:
    store.mark_failed("t", "two\nlines", error=error)
    with pytest.raises(error, match="two\nlines"):
        store.check("t")


def test_the_first_failure_counts(store: Store) -> None:
    store.mark_failed("t", "first")
    store.mark_failed("t", "second")
    with pytest.raises(DataError, match="first"):
        store.check("t")


def test_the_failure_of_another_run_is_not_believed(store: Store) -> None:
    store.mark_failed("yesterday", "rank 3: dog.jpg is damaged")
    store.check("today")
    looks = 0

    def on_progress(present: int, total: int) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            store.publish(KEY, tensors(), note=NOTE)

    store.wait([KEY], run_token="today", on_progress=on_progress, poll_seconds=0)


def test_a_failure_does_not_matter_when_all_entries_exist(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    store.mark_failed("t", "late")
    store.wait([KEY], run_token="t", on_progress=looks(1))


def test_a_caller_can_leave_the_wait(store: Store) -> None:
    def stop(present: int, total: int) -> None:
        raise InterruptedError("asked to stop")

    with pytest.raises(InterruptedError):
        store.wait([KEY], run_token="t", on_progress=stop)


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
