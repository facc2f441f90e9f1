"""A disk that is full or not to be written to is told in one line, and loses nothing."""

import errno
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from entries import KEY, KEYS, NOTE, tensors

from mindbooth.data import cache
from mindbooth.data.cache import Missing, Store
from mindbooth.data.errors import DataError

Attempt = Callable[[Store], object]
ATTEMPTS: dict[str, Attempt] = {
    "ensure_writable": lambda store: store.ensure_writable(),
    "publish": lambda store: store.publish(KEYS[1], tensors(), note=NOTE),
    "publish over": lambda store: store.publish(KEYS[0], tensors(), note=NOTE),
}
attempts = pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS.keys())


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def fill(disk: Path, *, leave: int) -> None:
    about = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(about.f_bavail * about.f_frsize - leave))


def spoil(store: Store, key: str) -> None:
    content = bytearray(store.path(key).read_bytes())
    content[-5] ^= 4
    store.path(key).write_bytes(content)


# Files in the way


@pytest.mark.parametrize("below", ["", "sub/folder"])
@attempts
def test_a_file_in_place_of_the_folder_is_named(
    tmp_path: Path, below: str, attempt: Attempt
) -> None:
    (tmp_path / "cache").write_text("a file")
    store = Store(tmp_path / "cache" / below)
    assert store.missing([KEY]) == [KEY]
    with pytest.raises(DataError, match=r"a file is in its place.*--latent_cache_dir") as raised:
        attempt(store)
    assert str(tmp_path / "cache") in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)


# Full


@pytest.mark.parametrize("left", [0, 4096, 64 << 10, 600 << 10])
def test_a_disk_that_fills_up_within_an_entry_keeps_nothing_of_it(
    small_disk: Path, left: int
) -> None:
    store = Store(small_disk)
    store.publish(KEY, tensors(), note=NOTE)
    store.path(KEYS[1]).parent.mkdir()
    fill(small_disk, leave=left)
    with pytest.raises(DataError) as raised:
        store.publish(KEYS[1], tensors(size=1 << 16), note=NOTE)
    folder = re.escape(str(store.path(KEYS[1]).parent))
    assert re.fullmatch(
        rf"cache folder {folder}: the disk is full, 0 MiB are left \(No space left on device\)\. "
        r"Free some, or choose another folder with --latent_cache_dir",
        str(raised.value),
    )
    files = {path for path in small_disk.rglob("*") if path.is_file()}
    assert files == {store.path(KEY), small_disk / "filler"}
    assert store.missing(KEYS[:2], verify=True) == [KEYS[1]]


def test_a_quota_that_is_used_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **options: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    store = Store(tmp_path)
    monkeypatch.setattr(cache, "replace_file", refuse)
    with pytest.raises(
        DataError, match=r"the quota of space or files there is used up .*Free some"
    ):
        store.publish(KEY, tensors(), note=NOTE)


def test_an_entry_is_not_lost_when_its_replacement_does_not_fit(small_disk: Path) -> None:
    store = Store(small_disk)
    store.publish(KEY, tensors(3.0), note=NOTE)
    with pytest.raises(DataError, match="the disk is full"):
        store.publish(KEY, tensors(size=1 << 20), note=NOTE)
    assert np.array_equal(Store(small_disk).read(KEY)["mean"], tensors(3.0)["mean"])


def test_publishing_goes_on_when_there_is_space_again(small_disk: Path) -> None:
    store = Store(small_disk)
    store.path(KEY).parent.mkdir()
    fill(small_disk, leave=0)
    with pytest.raises(DataError, match="the disk is full"):
        store.publish(KEY, tensors(), note=NOTE)
    (small_disk / "filler").unlink()
    store.publish(KEY, tensors(), note=NOTE)
    assert store.missing([KEY], verify=True) == []


def test_damage_on_a_full_disk_is_set_aside(small_disk: Path) -> None:
    store = Store(small_disk)
    store.publish(KEY, tensors(), note=NOTE)
    fill(small_disk, leave=0)
    spoil(store, KEY)
    assert store.missing([KEY], verify=True) == [KEY]
    assert not store.path(KEY).exists()


@attempts
def test_a_disk_that_can_hold_no_more_files_says_so(small_disk: Path, attempt: Attempt) -> None:
    store = Store(small_disk)
    for key in KEYS[:2]:
        store.path(key).parent.mkdir()
    remount(small_disk, "nr_inodes=20")
    with suppress(OSError):
        for number in range(20):
            (small_disk / str(number)).touch()
    with pytest.raises(DataError, match=r"can hold no more files.*--latent_cache_dir"):
        attempt(store)


# Read-only


@pytest.fixture
def read_only(small_disk: Path) -> Store:
    """KEYS[0] sound, KEYS[1] damaged, others absent."""
    store = Store(small_disk)
    for key in KEYS[:2]:
        store.publish(key, tensors(), note=NOTE)
    spoil(store, KEYS[1])
    remount(small_disk, "ro")
    return store


def test_a_read_only_cache_is_read(read_only: Store) -> None:
    assert np.array_equal(read_only.read(KEY)["mean"], tensors()["mean"])
    assert read_only.missing(KEYS[:3], verify=True) == KEYS[1:3]


def test_damage_that_cannot_be_set_aside_is_told_once(
    read_only: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with pytest.raises(Missing):
            read_only.read(KEYS[1])
    assert caplog.text.count("is damaged") == 1
    assert read_only.missing(KEYS[:2]) == [KEYS[1]]


def test_damage_that_could_not_be_set_aside_is_published_over_later(read_only: Store) -> None:
    with pytest.raises(Missing):
        read_only.read(KEYS[1])
    remount(read_only.root, "rw")
    read_only.publish(KEYS[1], tensors(2.0), note=NOTE)
    assert np.array_equal(read_only.read(KEYS[1])["mean"], tensors(2.0)["mean"])


@attempts
def test_a_read_only_cache_is_told_with_what_to_do(read_only: Store, attempt: Attempt) -> None:
    with pytest.raises(DataError) as raised:
        attempt(read_only)
    root = re.escape(str(read_only.root))
    assert re.fullmatch(
        rf"cache folder {root}(/..)?: it cannot be written to \(Read-only file system\)\. "
        "Make it writable, or put a folder of your own above it: "
        f"--latent_cache_dir YOUR_FOLDER --latent_cache_readonly {root}",
        str(raised.value),
    )


def test_a_folder_that_cannot_be_made_is_not_put_below_another(read_only: Store) -> None:
    with pytest.raises(DataError, match=r"or choose another folder with --latent_cache_dir$"):
        Store(read_only.root / "not" / "there").ensure_writable()


def test_a_private_cache_above_a_read_only_one_takes_what_that_lacks(
    read_only: Store, tmp_path: Path
) -> None:
    own = Store(tmp_path / "own", below=(read_only.root,))
    own.ensure_writable()
    assert own.missing(KEYS[:3], verify=True) == KEYS[1:3]
    for key in KEYS[1:3]:
        own.publish(key, tensors(2.0), note=NOTE)
    assert [own.read(key)["mean"].flat[0] for key in KEYS[:3]] == [1, 2, 2]
    assert sorted(path.stem for path in own.root.rglob("*.safetensors")) == sorted(KEYS[1:3])


def test_another_error_of_a_disk_is_told_with_its_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / ("a" * 255) / ("b" * 256))
    with pytest.raises(DataError, match=os.strerror(errno.ENAMETOOLONG) + ".*Check its disk"):
        store.ensure_writable()
