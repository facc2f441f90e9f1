"""Each thing in a cache folder is told by its name and place, and nothing there stops the walk."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from entries import KEY, NOTE, damages, tensors

from mindbooth.data import census
from mindbooth.data.cache import Store
from mindbooth.data.census import UNREADABLE, Item, Kind, Maker
from mindbooth.data.errors import DataError

K = KEY
OTHER = ("0" if K[0] != "0" else "1") + K[1:]
F = K[:2]  # the folder of K
ID = "0123456789abcdef"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"{F}/{K}.safetensors", Kind.ENTRY),
        (f"{F}/{OTHER}.safetensors", Kind.FOREIGN),  # nobody looks for it there
        (f"{F}/{K.upper()}.safetensors", Kind.FOREIGN),
        (f"{F}/{K}.safetensors.bak", Kind.FOREIGN),
        (f"{F}/{K}.0123abcd.damaged", Kind.SET_ASIDE),
        (f"{F}/{K}.damaged", Kind.FOREIGN),
        (f"{F}/.{K}.claim", Kind.CLAIM),
        (f"{F}/.{K}.safetensors.{ID}.part", Kind.UNFINISHED),
        (f"{F}/.{K}.safetensors.{ID}-{ID}.part", Kind.UNFINISHED),
        (f"{F}/notes.txt", Kind.FOREIGN),
        (f"{F}", Kind.FOREIGN),
        ("weights.json", Kind.REMEMBERED),
        (f".weights.json.{ID}.part", Kind.UNFINISHED),
        (f".now.{ID}.part", Kind.UNFINISHED),
        (f"present/{ID}", Kind.PRESENCE),
        (f"present/{ID}.keys", Kind.PRESENCE),
        (f"present/.{ID}.keys.{ID}-{ID}.part", Kind.UNFINISHED),
        ("present/mine.txt", Kind.FOREIGN),
        (f"scope/{ID}/", Kind.TOKEN),
        ("scope/binoculars", Kind.FOREIGN),
        (f"pictures/{K}.json", Kind.REMEMBERED),
        (f"pictures/.{K}.json.{ID}.part", Kind.UNFINISHED),
        (f"datasets/{K}.jpg", Kind.DATASET),
        (f"datasets/more/{K}.jpg", Kind.DATASET),
        ("holiday.jpg", Kind.FOREIGN),
        ("holidays/", Kind.FOREIGN),
        (f"{K}.safetensors", Kind.FOREIGN),
    ],
)
def test_a_thing_is_told_by_its_name_and_place(tmp_path: Path, path: str, kind: Kind) -> None:
    thing = tmp_path / path
    thing.parent.mkdir(parents=True, exist_ok=True)
    if path.endswith("/"):
        thing.mkdir()
    else:
        thing.write_bytes(b"12345")
    (item,) = census.walk(tmp_path)
    assert (item.path, item.kind) == (thing, kind)
    assert item.is_folder or item.size == 5


def test_an_entry_and_what_belongs_to_it_tell_its_key(tmp_path: Path) -> None:
    (tmp_path / F).mkdir()
    for name in (f"{K}.safetensors", f"{K}.0123abcd.damaged", f".{K}.claim"):
        (tmp_path / F / name).touch()
    assert {item.key for item in census.walk(tmp_path)} == {K}


def test_it_counts_as_used_when_it_was_written_or_read_last(tmp_path: Path) -> None:
    (tmp_path / F).mkdir()
    path = tmp_path / F / f"{K}.safetensors"
    path.touch()
    for read, written in ((10, 20), (30, 20)):
        os.utime(path, (read, written))
        (item,) = census.walk(tmp_path)
        assert (item.used, item.modified) == (max(read, written), written)


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("place", [F, "present", "datasets", "scope", "weights.json", "other"])
@pytest.mark.parametrize(
    "make",
    [
        Path.touch,
        Path.mkdir,
        _circle,
        lambda path: path.symlink_to("nothing"),
        lambda path: path.symlink_to("."),
        os.mkfifo,
    ],
    ids=["file", "folder", "circle", "link to nothing", "link to the cache", "pipe"],
)
def test_nothing_stops_the_walk(tmp_path: Path, place: str, make: Callable[[Path], object]) -> None:
    make(tmp_path / place)
    (tmp_path / "ff").mkdir()
    entry = tmp_path / "ff" / f"{'f' * 64}.safetensors"
    entry.touch()
    assert entry in {item.path for item in census.walk(tmp_path)}


def test_links_out_of_the_cache_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "holiday.jpg").touch()
    (tmp_path / "cache" / "datasets").mkdir(parents=True)
    (tmp_path / "cache" / "datasets" / "more").symlink_to(outside)
    (item,) = census.walk(tmp_path / "cache")
    assert item.path.name == "more"


def test_a_file_that_goes_while_one_looks_is_passed_over(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").touch()
    walk = census.walk(tmp_path)
    next(walk)  # by now the folder is listed
    for path in tmp_path.iterdir():
        path.unlink()
    assert list(walk) == []


@pytest.mark.parametrize("make", [None, Path.touch], ids=["nothing", "a file"])
def test_where_there_is_no_folder_there_is_no_cache(
    tmp_path: Path, make: Callable[[Path], None] | None
) -> None:
    root = tmp_path / "cache"
    if make:
        make(root)
    with pytest.raises(DataError, match=f"there is no cache in {root}.*--latent_cache_dir"):
        next(census.walk(root))


def published(root: Path, note: Mapping[str, str]) -> Item:
    Store(root).publish(K, tensors(), note=note)
    return next(census.walk(root))


@pytest.mark.parametrize(
    ("note", "maker"),
    [
        ({"picture": "dog.jpg", "vae": "sdxl-vae-fp16-fix"}, Maker("latents", "sdxl-vae-fp16-fix")),
        ({"prompt": "a photo of sks dog"}, Maker("text")),
        ({"prompt": "a very long prompt, " * 1000}, Maker("text")),
        ({"prompt": "ein süßer Hund 🐕" * 300}, Maker("text")),
        ({}, UNREADABLE),
    ],
)
def test_an_entry_tells_what_made_it(tmp_path: Path, note: dict[str, str], maker: Maker) -> None:
    assert census.maker(published(tmp_path, note)) == maker


@pytest.mark.parametrize("damage", damages().values(), ids=damages().keys())
def test_a_damaged_entry_counts_all_the_same(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    item = published(tmp_path, {**NOTE, "vae": "x"})
    damage(item.path)
    assert isinstance(census.maker(item), Maker)


def test_an_entry_that_went_does_not_count(tmp_path: Path) -> None:
    item = published(tmp_path, NOTE)
    item.path.unlink()
    assert census.maker(item) is None


def test_to_look_at_an_entry_is_not_to_use_it(tmp_path: Path) -> None:
    item = published(tmp_path, NOTE)
    os.utime(item.path, (1000, 2000))
    census.maker(item)
    assert item.path.stat().st_atime == 1000


def test_results_come_in_the_order_of_the_things() -> None:
    things = list(range(1000))
    assert list(census.in_threads(lambda thing: -thing, things)) == [-thing for thing in things]
