"""Damage is found at the first read, told once, set aside, and what was lost encoded again."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from entries import KEY, KEYS, NOTE, Damage, damages, tensors

from mindbooth.data.cache import DAMAGED_SUFFIX, Missing, Store

DAMAGES = damages()
BIT_FLIP = next(iter(DAMAGES.values()))
NOBODY = 65534


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def is_missing(store: Store, key: str) -> bool:
    try:
        store.read(key)
    except Missing:
        return True
    return False


def test_there_are_a_hundred_damages() -> None:
    assert len(DAMAGES) == 100


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_told_once_set_aside_and_encoded_again(
    store: Store, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    damage(store.path(KEY))
    assert is_missing(store, KEY)
    assert is_missing(store, KEY)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{store.path(KEY)} is damaged" in caplog.text
    assert store.missing([KEY]) == [KEY]
    aside = list(store.path(KEY).parent.iterdir())
    assert [path.suffix for path in aside] == [DAMAGED_SUFFIX]
    store.publish(KEY, tensors(2.0), note=NOTE)
    assert np.array_equal(store.read(KEY)["mean"], tensors(2.0)["mean"])


def test_a_hundred_damages_leave_the_other_entries_and_are_encoded_again(store: Store) -> None:
    for number, key in enumerate(KEYS):
        store.publish(key, tensors(number), note=NOTE)
    for key, damage in zip(KEYS[::2], DAMAGES.values(), strict=True):
        damage(store.path(key))
    assert [key for key in KEYS if is_missing(store, key)] == KEYS[::2]
    for key in store.missing(KEYS):
        store.publish(key, tensors(KEYS.index(key)), note=NOTE)
    again = Store(store.root)
    assert [again.read(key)["mean"].flat[0] for key in KEYS] == list(range(len(KEYS)))


def test_a_thorough_look_finds_a_hundred_damages(store: Store) -> None:
    for key in KEYS:
        store.publish(key, tensors(), note=NOTE)
    for key, damage in zip(KEYS[1::2], DAMAGES.values(), strict=True):
        damage(store.path(key))
    assert store.missing(KEYS, verify=True) == KEYS[1::2]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_whatever_is_in_its_place_an_entry_is_published(store: Store, damage: Damage) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    damage(store.path(KEY))
    store.publish(KEY, tensors(2.0), note=NOTE)
    assert np.array_equal(store.read(KEY)["mean"], tensors(2.0)["mean"])


def test_an_entry_that_changes_after_its_first_read_is_verified_again(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    store.read(KEY)
    BIT_FLIP(store.path(KEY))
    assert is_missing(store, KEY)


def test_what_someone_else_has_put_right_is_not_set_aside(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    BIT_FLIP(store.path(KEY))
    # The one who repairs is here the handler of the warning: between the look and the renaming.
    handler = logging.Handler()
    handler.emit = lambda record: store.publish(KEY, tensors(2.0), note=NOTE)  # type: ignore
    logger = logging.getLogger("mindbooth.data.cache")
    logger.addHandler(handler)
    try:
        assert is_missing(store, KEY)
    finally:
        logger.removeHandler(handler)
    assert np.array_equal(store.read(KEY)["mean"], tensors(2.0)["mean"])


# In a cache below


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_below_is_told_once_left_there_and_encoded_into_ones_own(
    tmp_path: Path, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    site = Store(tmp_path / "site")
    own = Store(tmp_path / "own", below=(site.root,))
    site.publish(KEY, tensors(), note=NOTE)
    damage(site.path(KEY))
    assert is_missing(own, KEY)
    assert is_missing(own, KEY)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{site.path(KEY)} is damaged" in caplog.text
    assert own.missing([KEY]) == [KEY]
    assert os.listdir(site.path(KEY).parent) == [site.path(KEY).name]
    own.publish(KEY, tensors(2.0), note=NOTE)
    assert np.array_equal(own.read(KEY)["mean"], tensors(2.0)["mean"])
    assert own.missing([KEY], verify=True) == []


def test_a_damaged_entry_of_ones_own_is_read_from_below(tmp_path: Path) -> None:
    site = Store(tmp_path / "site")
    own = Store(tmp_path / "own", below=(site.root,))
    for store in (site, own):
        store.publish(KEY, tensors(), note=NOTE)
    BIT_FLIP(own.path(KEY))
    assert np.array_equal(own.read(KEY)["mean"], tensors()["mean"])
    assert not own.path(KEY).exists()


# Files that this process must not read

WITHOUT_PERMISSION = """
import os, sys
from pathlib import Path
from mindbooth.data.cache import Store
from mindbooth.data.errors import DataError
os.chdir(sys.argv[1])  # whose parents only root may enter
if os.geteuid() == 0:
    os.setuid(int(sys.argv[2]))
try:
    Store(Path(".")).read(sys.argv[3])
except DataError as err:
    print(err)
"""


def test_an_entry_without_permission_is_told_and_left_to_its_owner(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    store.path(KEY).chmod(0)
    if os.geteuid() == 0:
        for path in (store.root, store.path(KEY).parent, store.path(KEY)):
            os.chown(path, NOBODY, NOBODY)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PERMISSION, store.root, str(NOBODY), KEY],
        capture_output=True,
        text=True,
    )
    name = store.path(KEY).relative_to(store.root)
    assert f"cache entry ./{name} cannot be read (Permission denied)" in done.stdout, done.stderr
    assert store.path(KEY).is_file()


def test_what_is_much_too_long_is_damaged_and_not_read(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    os.truncate(store.path(KEY), 1 << 42)
    with pytest.raises(Missing):
        store.read(KEY)
    assert not store.path(KEY).exists()


def test_a_folder_that_is_no_folder_hides_no_other_entries(store: Store) -> None:
    for key in KEYS[:20]:
        store.publish(key, tensors(), note=NOTE)
    spoilt = store.path(KEY).parent
    shutil.rmtree(spoilt)
    spoilt.write_text("a file in the place of a folder")
    lost = [key for key in KEYS[:20] if store.path(key).parent == spoilt]
    assert store.missing(KEYS[:20], verify=True) == lost


def test_links_in_a_circle_hide_no_other_entries(store: Store) -> None:
    store.publish(KEY, tensors(), note=NOTE)
    other = KEY[:-1] + ("0" if KEY[-1] != "0" else "1")
    store.path(other).symlink_to(store.path(other))
    assert store.missing([other, KEY]) == [other]
