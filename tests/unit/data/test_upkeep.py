"""Damage is found, what the dead left goes, what the living need stays, nothing else is hurt."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import entries
import pytest
from entries import KEY, KEYS, NOTE, damages, tensors
from holders import dead_holder, holder
from hypothesis import given
from hypothesis import strategies as st

from mindbooth.data import census, presence, upkeep
from mindbooth.data.atomic import unfinished_name
from mindbooth.data.cache import DAMAGED_SUFFIX, Store
from mindbooth.data.census import Item, Kind
from mindbooth.data.presence import Presence
from mindbooth.data.upkeep import Limits, Pruned, Verified

DAMAGES = damages()
HOUR = 3600
DAY = 24 * HOUR


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def store(root: Path) -> Store:
    return Store(root)


def publish(store: Store, keys: Iterable[str]) -> None:
    for key in keys:
        store.publish(key, tensors(), note=NOTE)


def verify(root: Path) -> Verified:
    return upkeep.verify(root, list(census.walk(root)), on_read=lambda item: None)


def prune(root: Path, limits: Limits, *, dry_run: bool = False) -> Pruned:
    return upkeep.prune(root, list(census.walk(root)), limits, dry_run=dry_run)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def kinds(root: Path) -> set[Kind]:
    return {item.kind for item in census.walk(root)}


def test_a_hundred_damaged_entries_are_all_found_and_no_sound_one_is(
    root: Path, store: Store
) -> None:
    publish(store, KEYS)
    planted = {store.path(key) for key in KEYS[::2]}
    for path, damage in zip(sorted(planted), DAMAGES.values(), strict=True):
        damage(path)
    found = verify(root)
    assert len(found.damaged) == 100
    assert {path for path, _ in found.damaged} == planted
    assert all(fault for _, fault in found.damaged)
    assert (found.sound, found.removed, found.failed) == (100, [], [])
    assert sorted(store.missing(KEYS)) == sorted(KEYS[::2])
    assert sum(path.name.endswith(DAMAGED_SUFFIX) for path in root.glob("*/*")) == 100
    assert verify(root) == Verified(sound=100)


def test_every_entry_is_told_as_it_is_read(root: Path, store: Store) -> None:
    publish(store, KEYS[:40])
    read: list[str] = []
    upkeep.verify(root, list(census.walk(root)), on_read=lambda item: read.append(item.key))
    assert sorted(read) == sorted(KEYS[:40])


def test_to_verify_an_entry_is_not_to_use_it(root: Path, store: Store) -> None:
    publish(store, [KEY])
    os.utime(store.path(KEY), (1000, 2000))
    assert verify(root).sound == 1
    assert store.path(KEY).stat().st_atime == 1000


def test_entries_that_go_meanwhile_are_neither_sound_nor_damaged(root: Path, store: Store) -> None:
    publish(store, KEYS)
    items = list(census.walk(root))
    for key in KEYS[::2]:
        store.path(key).unlink()
    shutil.rmtree(store.path(KEYS[1]).parent)
    found = upkeep.verify(root, items, on_read=lambda item: None)
    assert found == Verified(sound=len(KEYS) - len(store.missing(KEYS)))


def test_an_entry_that_was_encoded_again_meanwhile_stays(root: Path, store: Store) -> None:
    publish(store, [KEY])
    store.path(KEY).write_bytes(b"damaged")
    found = upkeep.verify(root, list(census.walk(root)), on_read=lambda item: publish(store, [KEY]))
    assert [path for path, _ in found.damaged] == [store.path(KEY)]
    assert kinds(root) == {Kind.ENTRY}


def test_what_the_dead_left_goes_at_once(root: Path, store: Store) -> None:
    entry = store.path(KEY)
    with dead_holder(root, entry) as dead:
        half = entry.parent / unfinished_name(entry.name, writer=dead)
        half.write_bytes(b"half")
        left = {
            half,
            entry.parent / f".{KEY}.claim",
            root / presence.FOLDER / dead,
            root / presence.FOLDER / f"{dead}.keys",
        }
        assert set(verify(root).removed) == left
        assert list(census.walk(root)) == []


def test_what_the_living_are_at_is_left_alone(root: Path, store: Store) -> None:
    entry = store.path(KEY)
    with holder(root, entry) as (_, living):
        half = entry.parent / unfinished_name(entry.name, writer=living)
        half.write_bytes(b"half")
        age(half, 2 * HOUR)
        before = sorted(item.path for item in census.walk(root))
        assert verify(root) == Verified()
        assert sorted(item.path for item in census.walk(root)) == before


@pytest.mark.parametrize("folder", ["", "ab", "pictures", "datasets", "present"])
@pytest.mark.parametrize(("seconds", "goes"), [(0, False), (HOUR - 60, False), (HOUR + 60, True)])
def test_half_written_files_of_an_unknown_writer_go_after_an_hour(
    root: Path, folder: str, seconds: float, goes: bool
) -> None:
    """Or at once where nobody is at work."""
    half = root / folder / unfinished_name("something")
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    age(half, seconds)
    with Presence(root):
        assert (verify(root).removed == [half]) is goes
        assert half.exists() is not goes
    verify(root)
    assert not half.exists()


@pytest.mark.parametrize(("seconds", "goes"), [(0, False), (HOUR + 60, True)])
def test_marks_of_ranks_that_looked_for_others_go_after_an_hour(
    root: Path, seconds: float, goes: bool
) -> None:
    token = root / "scope" / "0123456789abcdef"
    token.mkdir(parents=True)
    (token / "0").touch()
    age(token, seconds)
    with Presence(root):
        assert (verify(root).removed == [token]) is goes
        assert token.exists() is not goes
    verify(root)
    assert not token.exists()


FOREIGN = ("notes.txt", "ab/holiday.jpg", "present/for you.txt", "scope/lens.txt",
           "holidays/2019/dog.jpg")  # fmt: skip


def test_foreign_files_are_left_alone(root: Path) -> None:
    for name in FOREIGN:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
        age(root / name, 1000 * DAY)
    verify(root)
    prune(root, Limits(older_than=0, needed=(), most_bytes=0))
    assert all((root / name).read_text() == "mine" for name in FOREIGN)


def test_a_damaged_folder_in_an_entrys_place_goes_with_prune(root: Path, store: Store) -> None:
    path = store.path(KEY)
    path.mkdir(parents=True)
    (path / "inside").touch()
    verify(root)
    assert prune(root, Limits()).set_aside.count == 1
    assert list(census.walk(root)) == []


def test_a_read_only_cache_is_told_and_left_as_it_is(small_disk: Path) -> None:
    store = Store(small_disk)
    publish(store, KEYS[:2])
    store.path(KEY).write_bytes(b"damaged")
    half = small_disk / unfinished_name("something")
    half.touch()
    age(half, 2 * HOUR)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    found = verify(small_disk)
    pruned = prune(small_disk, Limits(most_bytes=0))
    assert [path for path, _ in found.damaged] == [store.path(KEY)]
    assert {path for path, _ in found.failed} == {store.path(KEY), half}
    assert (found.sound, found.removed) == (1, [])
    assert (pruned.went.count, pruned.left.count, len(pruned.failed)) == (0, 2, 2)


def test_without_limits_only_what_was_set_aside_goes(root: Path, store: Store) -> None:
    publish(store, KEYS[:3])
    store.path(KEY).write_bytes(b"damaged")
    verify(root)
    pruned = prune(root, Limits())
    assert (pruned.went.count, pruned.left.count, pruned.set_aside.count) == (0, 2, 1)
    assert pruned.set_aside.bytes == len(b"damaged")
    assert kinds(root) == {Kind.ENTRY}


def test_a_dry_run_tells_what_a_real_one_does_and_removes_nothing(root: Path, store: Store) -> None:
    publish(store, KEYS[:40])
    store.path(KEY).write_bytes(b"damaged")
    verify(root)
    limits = Limits(most_bytes=3000)
    before = sorted(census.walk(root), key=lambda item: item.path)
    told = prune(root, limits, dry_run=True)
    assert sorted(census.walk(root), key=lambda item: item.path) == before
    assert told.went.count > 0
    assert prune(root, limits) == told
    assert sum(item.size for item in census.walk(root)) == told.left.bytes


def test_entries_that_were_not_used_for_long_go(root: Path, store: Store) -> None:
    publish(store, KEYS[:4])
    for number, key in enumerate(KEYS[:4]):
        age(store.path(key), number * 20 * DAY)
    assert prune(root, Limits(older_than=30 * DAY)).went.count == 2
    assert store.missing(KEYS[:4]) == KEYS[2:4]


def test_an_old_entry_that_a_run_reads_stays(root: Path, store: Store) -> None:
    publish(store, [KEY])
    os.utime(store.path(KEY), (time.time() - 200 * DAY, time.time() - 300 * DAY))
    assert prune(root, Limits(older_than=30 * DAY), dry_run=True).went.count == 1
    probe = root.with_name("probe")
    probe.write_bytes(b"x")
    os.utime(probe, (0, 0))
    if probe.read_bytes() and not probe.stat().st_atime:
        pytest.skip("this file system does not tell when a file was read")
    store.read(KEY)
    assert prune(root, Limits(older_than=30 * DAY)).went.count == 0


@pytest.mark.parametrize("limits", [Limits(older_than=0), Limits(needed=()), Limits(most_bytes=0)])
def test_what_living_runs_need_or_encode_stays(root: Path, store: Store, limits: Limits) -> None:
    encoded, needed, neither = KEY, "a" * 64, KEYS[1]  # "a" * 64 is what a holder uses
    publish(store, [encoded, needed, neither])
    for key in (encoded, needed, neither):
        age(store.path(key), DAY)
    with holder(root, store.path(encoded)):
        pruned = prune(root, limits)
        assert store.missing([encoded, needed, neither]) == [neither]
        assert (pruned.went.count, pruned.left.count, pruned.in_use) == (1, 2, 2)


def test_what_a_dead_run_needed_goes(root: Path, store: Store) -> None:
    needed = "a" * 64
    publish(store, [needed])
    with dead_holder(root):
        assert prune(root, Limits(needed=())).went.count == 1


def test_entries_that_went_meanwhile_are_no_error(root: Path, store: Store) -> None:
    publish(store, KEYS[:9])
    items = list(census.walk(root))
    for key in KEYS[:4]:
        store.path(key).unlink()
    pruned = upkeep.prune(root, items, Limits(needed=()))
    assert (pruned.went.count, pruned.failed) == (5, [])
    assert list(census.walk(root)) == []


PUBLISHES_AND_READS = """
import sys
from pathlib import Path
from entries import KEYS, NOTE, tensors
from mindbooth.data.cache import Missing, Store
from mindbooth.data.presence import Presence

with Presence(Path(sys.argv[1])) as presence:
    store = Store(presence.root, writer=presence.id)
    print("begun", flush=True)
    while True:
        for number, key in enumerate(KEYS[:20]):
            store.publish(key, tensors(number), note=NOTE)
            try:
                assert store.read(key)["mean"][0, 0] == number
            except Missing:
                pass
"""


def test_a_cache_is_checked_and_pruned_while_a_run_writes_and_reads_it(root: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", PUBLISHES_AND_READS, root],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(entries.__file__).parent)},
    )
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == b"begun\n"
        went = 0
        while went < 100:
            found = verify(root)
            assert (found.damaged, found.removed, found.failed) == ([], [], [])
            pruned = prune(root, Limits(needed=()))
            assert pruned.failed == []
            went += pruned.went.count
        assert run.poll() is None
    finally:
        run.kill()
        run.wait()


def entry(number: int, *, size: int = 1, used: float = 0) -> Item:
    path = Path(f"{KEYS[number]}.safetensors")
    return Item(path, Kind.ENTRY, size=size, modified=used, used=used, is_folder=False)


ENTRIES = [entry(n, size=10, used=100 - n) for n in range(10)]  # the last one is the oldest


@pytest.mark.parametrize(
    ("limits", "going"),
    [
        (Limits(), []),
        (Limits(older_than=0), range(1, 10)),
        (Limits(older_than=5), range(6, 10)),
        (Limits(needed=()), range(10)),
        (Limits(needed=KEYS[3:10]), range(3)),
        (Limits(most_bytes=100), []),
        (Limits(most_bytes=99), [9]),
        (Limits(most_bytes=70), [7, 8, 9]),
        (Limits(most_bytes=0), range(10)),
        (Limits(older_than=5, needed=[KEYS[8]]), [6, 7, 9]),
        (Limits(older_than=5, most_bytes=70), [7, 8, 9]),
        (Limits(older_than=5, most_bytes=0), range(6, 10)),
        (Limits(needed=KEYS[5:10], most_bytes=70), [2, 3, 4]),
    ],
)
def test_of_several_limits_what_all_let_go_goes(limits: Limits, going: Iterable[int]) -> None:
    chosen = upkeep.choose(ENTRIES, limits, in_use=(), now=100)
    assert {item.key for item in chosen} == {KEYS[n] for n in going}


def test_a_folder_in_an_entrys_place_is_not_for_prune_to_remove() -> None:
    folder = Item(Path(KEY), Kind.ENTRY, size=4096, modified=0, used=0, is_folder=True)
    assert upkeep.choose([folder], Limits(needed=()), in_use=(), now=100) == []


@pytest.mark.parametrize(("make", "goes"), [(Path.touch, True), (Path.mkdir, False)])
def test_a_file_in_a_claims_place_goes_and_a_folder_is_told(
    root: Path, make: Callable[[Path], object], goes: bool
) -> None:
    claim = Store(root).path(KEY).parent / f".{KEY}.claim"
    claim.parent.mkdir()
    make(claim)
    found = verify(root)
    told = [path for path, _ in found.failed]
    assert (found.removed, told) == (([claim], []) if goes else ([], [claim]))


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=20),
    st.integers(0, 500),
    st.sets(st.integers(0, 19)),
)
def test_a_size_is_reached_by_as_few_of_the_oldest_as_do(
    shapes: Sequence[tuple[int, int]], most_bytes: int, in_use: set[int]
) -> None:
    present = [entry(n, size=size, used=used) for n, (size, used) in enumerate(shapes)]
    kept = {KEYS[n] for n in in_use}
    going = upkeep.choose(present, Limits(most_bytes=most_bytes), in_use=kept, now=100)
    staying = [item for item in present if item not in going]
    assert kept.isdisjoint(item.key for item in going)
    size = sum(item.size for item in staying)
    assert size <= most_bytes or kept.issuperset(item.key for item in staying)
    assert not going or size + going[-1].size > most_bytes
    movable = [item.used for item in staying if item.key not in kept]
    assert max((item.used for item in going), default=0) <= min(movable, default=100)
