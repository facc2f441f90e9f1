"""A folder's pictures are listed in one order everywhere, and what is not used is said."""

from pathlib import Path

import pytest

from mindbooth.data.errors import DataError
from mindbooth.data.examples import from_folder


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def listed(folder: Path) -> list[str]:
    return [example.image.name for example in from_folder(folder, caption="sks dog").examples]


def test_names_sort_naturally_and_without_case(tmp_path: Path) -> None:
    fill(tmp_path, "dog10.png", "Dog2.JPG", "dog1.jpeg", "cat.webp", "dog02.png", "10.png", "9.png")
    assert listed(tmp_path) == [
        "9.png", "10.png", "cat.webp", "dog1.jpeg", "Dog2.JPG", "dog02.png", "dog10.png",
    ]  # fmt: skip


def test_numbers_sort_by_their_value_however_long_and_with_zeros(tmp_path: Path) -> None:
    numbers = ["0", "1", "9", "10", "31", "0099", "100", *(f"1{'0' * n}" for n in (29, 30, 31)),
               *(f"{first}{'5' * n}" for n in (49, 61, 62) for first in "12")]  # fmt: skip
    names = [f"a{number}.png" for number in numbers]
    fill(tmp_path, *reversed(names), "ab.png", "a.png")
    assert listed(tmp_path) == [*names, "a.png", "ab.png"]


def test_names_of_equal_numbers_sort_by_their_text(tmp_path: Path) -> None:
    fill(tmp_path, "a2.png", "A2.png", "a002.png", "a02.png", "a0.png", "a00.png", "A0x.png")
    assert listed(tmp_path) == [
        "a0.png", "a00.png", "A0x.png", "A2.png", "a002.png", "a02.png", "a2.png",
    ]  # fmt: skip


def test_what_is_no_picture_is_passed_over_and_named_once(tmp_path: Path) -> None:
    others = (
        ".DS_Store", "Thumbs.db", ".cache/huggingface/x.png", ".hidden.png", "notes.txt",
        "class/b.png", "noext", "._a.png", "metadata.parquet",
    )  # fmt: skip
    listing = from_folder(fill(tmp_path, "a.png", *others), caption="sks dog")
    assert [example.image for example in listing.examples] == [tmp_path / "a.png"]
    assert listing.remark is not None
    told = listing.remark.removeprefix(f"passed over in {tmp_path}: ")
    assert told.split(", ") == [
        "._a.png", ".cache/", ".DS_Store", ".hidden.png", "class/", "metadata.parquet", "noext",
        "notes.txt and 1 more",
    ]  # fmt: skip


@pytest.mark.parametrize("target", ["circle", "absent"])
def test_a_link_that_leads_nowhere_is_passed_over(tmp_path: Path, target: str) -> None:
    (fill(tmp_path, "a.png") / "circle").symlink_to(target)
    assert from_folder(tmp_path, caption="x").remark == f"passed over in {tmp_path}: circle"


def test_nothing_passed_over_gives_no_remark(tmp_path: Path) -> None:
    assert from_folder(fill(tmp_path, "a.png"), caption="").remark is None


def test_a_remark_stays_short_and_tells_how_many_more(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", *(f"note{i}.txt" for i in range(50)))
    remark = from_folder(tmp_path, caption="").remark
    assert remark is not None
    assert "and 42 more" in remark
    assert "note49" not in remark


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "IMG_1.heif", "a.CR2", "a.dng"])
def test_unread_photo_formats_come_with_a_remedy(tmp_path: Path, name: str) -> None:
    remark = from_folder(fill(tmp_path, "a.png", name), caption="").remark
    assert remark is not None
    assert f"{Path(name).suffix.lower()} cannot be read: export {name} as JPEG or PNG" in remark


def test_repeats_repeat_each_picture_with_its_caption(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png")
    (tmp_path / "b.txt").write_text("mine")
    examples = from_folder(tmp_path, caption="c", repeats=3).examples
    assert [(example.image.name, example.caption) for example in examples] == [
        *[("a.png", "c")] * 3,
        *[("b.png", "mine")] * 3,
    ]


def test_without_own_captions_all_have_the_one_and_no_caption_file_counts(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png", "deep/c.png")
    (tmp_path / "a.txt").write_bytes(b"\xff not even text")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "deep/c.png", "text": "mine"}')
    listing = from_folder(tmp_path, caption="a dog", own_captions=False)
    assert [example.image.name for example in listing.examples] == ["a.png", "b.png"]
    assert {example.caption for example in listing.examples} == {"a dog"}
    assert listing.remark == f"passed over in {tmp_path}: a.txt, deep/, metadata.jsonl"


@pytest.mark.parametrize(
    ("names", "pass_in", "message"),
    [
        ((), "nowhere", "nowhere does not exist"),
        (("file.png",), "file.png", "file.png is a file: pass the folder"),
        ((), ".", "is empty"),
        (("a.txt", ".DS_Store"), ".", "only .DS_Store, a.txt. Read are .jpg"),
        (("a.heic",), ".", "export a.heic as JPEG or PNG"),
        (("dog6/1.jpg", "dog6/2.jpg"), ".", "dog6 holds 2: pass that folder"),
    ],
)
def test_a_folder_without_pictures_is_explained(
    tmp_path: Path, names: tuple[str, ...], pass_in: str, message: str
) -> None:
    fill(tmp_path, *names)
    with pytest.raises(DataError) as raised:
        from_folder(tmp_path / pass_in, caption="")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_repeats_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="repeats is 0"):
        from_folder(fill(tmp_path, "a.png"), caption="", repeats=0)
