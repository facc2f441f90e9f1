"""Names that any prompt may have, and files that are never overwritten."""

from pathlib import Path

import pytest
from PIL import Image

from mindbooth.trainer import gallery


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A photo of sks dog in a bucket", "a-photo-of-sks-dog-in-a-bucket"),
        ("../../etc/passwd", "etc-passwd"),
        ("  'quoted', \"twice\"; $(rm *)\n", "quoted-twice-rm"),
        ("一只在雪中的狗", "一只在雪中的狗"),
        ("Ünïcode ﬁsh", "ünïcode-fish"),
        ("🐕 ... --", "picture"),
        ("", "picture"),
        ("CON.", "con"),
    ],
)
def test_a_prompt_becomes_a_name(prompt: str, name: str) -> None:
    assert gallery.slug(prompt) == name


@pytest.mark.parametrize("letter", ["w", "狗", "𠀀"])
def test_a_long_prompt_becomes_a_name_that_file_systems_take(letter: str, tmp_path: Path) -> None:
    (stem,) = gallery.slugs([letter * 300])
    path = gallery.unused(tmp_path, [f"{stem}-seed{2**63 - 1}-refined"])
    for file in path.values():
        file.touch()
        assert file.exists()


def test_prompts_that_would_share_a_name_have_their_own() -> None:
    names = gallery.slugs(["A dog!", "a cat", "a dog?", "狗" * 41, "狗" * 42, "1 a dog"])
    assert names[1] == "2-a-cat"
    assert len(set(names)) == 6


def test_files_of_one_run_have_one_number_that_is_free(tmp_path: Path) -> None:
    assert gallery.unused(tmp_path, ["a", "b"]) == {
        "a": tmp_path / "a.png", "b": tmp_path / "b.png"
    }  # fmt: skip
    (tmp_path / "a.png").touch()
    (tmp_path / "b-2.png").touch()
    assert gallery.unused(tmp_path, ["a", "b"]) == {
        "a": tmp_path / "a-3.png", "b": tmp_path / "b-3.png"
    }  # fmt: skip


def test_a_picture_says_how_it_was_made(tmp_path: Path) -> None:
    told = {"prompt": 'ein Hund, "狗"\nzweite Zeile', "seed": "7"}
    gallery.save(Image.new("RGB", (8, 8), "teal"), tmp_path / "dog.png", told)
    with Image.open(tmp_path / "dog.png") as opened:
        assert opened.text == told
        assert opened.getpixel((0, 0)) == (0, 128, 128)
    assert [path.name for path in tmp_path.iterdir()] == ["dog.png"]
