"""The folder of class images: what is missing, what is used, and what its pictures say."""

import itertools
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindbooth.data import class_images, images
from mindbooth.data.class_images import Origin
from mindbooth.data.errors import DataError

ORIGIN = Origin(prompt="a photo of a dog", model="sdxl", resolution=32, steps=50, guidance=5.0)


def picture(seed: int = 0, side: int = 32) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(levels)


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("present", "count", "missing"),
    [
        ((), 3, [0, 1, 2]),
        (("dog.jpg", "Rex.PNG"), 5, [0, 1, 2]),
        (("class-00000.png", "class-00003.png"), 5, [1, 2, 4]),
        (("class-00001.png", "dog.jpg"), 4, [0, 2]),
        (("class-00001.jpg",), 2, [0]),
        (("class-00000.png", "class-00001.png"), 2, []),
        (("a.png", "b.png", "c.png"), 2, []),
        (("class-00007.png",), 3, [0, 1]),
        ((".class-00000.png.0123456789abcdef.part", ".hidden.png", "notes.txt"), 2, [0, 1]),
    ],
)
def test_as_many_are_made_as_lack_under_the_lowest_free_names(
    tmp_path: Path, present: tuple[str, ...], count: int, missing: list[int]
) -> None:
    assert class_images.missing(touch(tmp_path, *present), count) == missing


def test_of_an_absent_folder_all_is_missing_and_it_stays_absent(tmp_path: Path) -> None:
    folder = tmp_path / "class"
    class_images.check(folder, instance=tmp_path)
    assert class_images.missing(folder, 2) == [0, 1]
    assert not folder.exists()


def test_a_folder_is_no_picture_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "dogs.png").mkdir()
    (tmp_path / "circle.txt").symlink_to("circle.txt")
    assert class_images.missing(tmp_path, 1) == [0]


def test_whichever_were_made_before_a_crash_the_rest_is_made_after_it(tmp_path: Path) -> None:
    before = ("mine.jpg", "class-00002.png")
    wanted = class_images.missing(touch(tmp_path / "all", *before), 6)
    for length in range(len(wanted) + 1):
        for made in itertools.combinations(wanted, length):
            folder = tmp_path / f"after {made}"
            touch(folder, *before, *map(class_images.name, made))
            assert class_images.missing(folder, 6) == [n for n in wanted if n not in made]


def test_the_first_pictures_by_name_are_trained_on_with_the_class_prompt(tmp_path: Path) -> None:
    touch(tmp_path, "10.png", "9.png", "class-00000.png", "zebra.png")
    (tmp_path / "9.txt").write_text("a caption of its own")
    used = class_images.listing(tmp_path, prompt="a dog", count=3).examples
    assert [example.image.name for example in used] == ["9.png", "10.png", "class-00000.png"]
    assert {example.caption for example in used} == {"a dog"}


def test_a_written_picture_keeps_its_pixels_and_is_the_same_file_each_time(tmp_path: Path) -> None:
    for folder in (tmp_path / "one", tmp_path / "other"):
        class_images.write(folder, 17, picture(), ORIGIN)
    one, other = tmp_path / "one" / "class-00017.png", tmp_path / "other" / "class-00017.png"
    assert np.array_equal(images.load(one), picture())
    assert one.read_bytes() == other.read_bytes()


def test_pictures_made_as_now_and_the_users_own_need_no_remark(tmp_path: Path) -> None:
    class_images.write(tmp_path, 0, picture(), ORIGIN)
    picture().save(tmp_path / "mine.png")
    picture().save(tmp_path / "mine.jpg")
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG")
    assert class_images.remarks(tmp_path, count=4, origin=ORIGIN) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": "a photo of a cat"}, "prompt 'a photo of a cat' (now 'a photo of a dog')"),
        ({"prompt": "一只猫 🐈"}, "prompt '一只猫 🐈' (now 'a photo of a dog')"),
        ({"model": "other"}, "model 'other' (now 'sdxl')"),
        ({"resolution": 512, "steps": 25}, "resolution 512 (now 32), steps 25 (now 50)"),
    ],
)
def test_pictures_made_otherwise_are_counted_and_told_with_the_difference(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    other = replace(ORIGIN, **change)  # type: ignore[arg-type]
    for number, origin in enumerate([other, ORIGIN, other]):
        class_images.write(tmp_path, number, picture(), origin)
    (remark,) = class_images.remarks(tmp_path, count=3, origin=ORIGIN)
    assert remark.startswith(f"2 of the class images in {tmp_path} were made with {told};")
    assert "Delete them" in remark


def test_more_pictures_than_are_used_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (remark,) = class_images.remarks(tmp_path, count=2, origin=ORIGIN)
    assert "holds 3 pictures: the first 2 by name are used" in remark


def test_the_folder_of_the_instance_pictures_is_refused_by_any_path(tmp_path: Path) -> None:
    dog = touch(tmp_path / "dog", "1.jpg")
    (tmp_path / "link").symlink_to(dog)
    for spelling in (dog, tmp_path / "link", dog / ".." / "dog"):
        with pytest.raises(DataError, match="--instance_data_dir too"):
            class_images.check(spelling, instance=dog)


def test_a_file_in_the_folders_place_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for attempt in (
        lambda: class_images.check(file, instance=None),
        lambda: class_images.ensure_writable(file),
        lambda: class_images.ensure_writable(file / "class"),
    ):
        with pytest.raises(DataError, match=r"--class_data_dir .*: a file is in its place"):
            attempt()


def test_a_full_disk_is_told_and_leaves_nothing_half_written(small_disk: Path) -> None:
    class_images.write(small_disk, 0, picture(), ORIGIN)
    with pytest.raises(DataError, match=r"the disk is full.*Free some space"):
        class_images.write(small_disk, 1, picture(side=1024), ORIGIN)
    assert [path.name for path in small_disk.iterdir()] == ["class-00000.png"]
    assert class_images.missing(small_disk, 2) == [1]


def test_a_read_only_folder_is_told_before_anything_is_made(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(DataError, match="can't be used: Read-only file system"):
        class_images.ensure_writable(small_disk)


def test_waiting_ends_when_the_last_picture_shows(tmp_path: Path) -> None:
    touch(tmp_path, "class-00000.png")
    late = threading.Timer(0.1, touch, (tmp_path, "class-00001.png"))
    late.start()
    class_images.wait(tmp_path, 2)
    assert class_images.missing(tmp_path, 2) == []


def test_a_folder_that_is_not_shared_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "class-00000.png")
    with pytest.raises(DataError, match=r"2 of 3 class images don't show up in .* all hosts share"):
        class_images.wait(tmp_path, 3, seconds=0)
