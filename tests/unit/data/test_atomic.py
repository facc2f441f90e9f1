"""A file is there whole or not at all, and what was not finished tells who was writing it."""

import os
from pathlib import Path

import pytest

from mindbooth.data.atomic import is_unfinished, replace_file, unfinished_name, writer_of

WRITER = "00112233445566ff"


@pytest.mark.parametrize(
    ("name", "unfinished", "writer"),
    [
        (".a.safetensors.0123456789abcdef.part", True, None),
        (f".a.safetensors.{WRITER}-0123456789abcdef.part", True, WRITER),
        pytest.param(unfinished_name("a"), True, None, id="its own"),
        pytest.param(unfinished_name("a", writer=WRITER), True, WRITER, id="its own, of a writer"),
        pytest.param(unfinished_name(f"a.{WRITER}-"), True, None, id="its own, misleading"),
        ("a.safetensors", False, None),
        ("a.0123456789abcdef.part", False, None),
        (".nfs000000000001", False, None),
        (".a.safetensors.part", False, None),
        (f".a.safetensors.{WRITER}-.part", False, None),
        (f".a.safetensors.{WRITER}-0123456789abcdef.part.old", False, None),
    ],
)
def test_a_name_tells_what_is_unfinished_and_whose_it_is(
    name: str, unfinished: bool, writer: str | None
) -> None:
    assert (is_unfinished(name), writer_of(name)) == (unfinished, writer)


def test_no_two_unfinished_files_share_a_name() -> None:
    assert len({unfinished_name("a", writer=WRITER) for _ in range(100)}) == 100


def test_a_file_is_written_into_a_folder_that_was_not_there(tmp_path: Path) -> None:
    replace_file(tmp_path / "some" / "folder" / "file", b"new")
    assert (tmp_path / "some" / "folder" / "file").read_bytes() == b"new"


def test_a_file_is_replaced_by_another_rather_than_written_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what was there")
    with path.open("rb") as reader:
        replace_file(path, b"new", writer=WRITER)
        assert reader.read() == b"what was there"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_what_fails_leaves_the_file_as_it_was_and_no_other(small_disk: Path) -> None:
    path = small_disk / "file"
    replace_file(path, b"old")
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, bytes(2 << 20))
    assert path.read_bytes() == b"old"
    assert os.listdir(small_disk) == ["file"]
