"""Which entries runs need: too few would be entries lost, so what is not clear is an error."""

import os
import re
from pathlib import Path

import pytest

from mindbooth.data import needs
from mindbooth.data.errors import DataError

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    needs.write(tmp_path / "run" / needs.KEYS, [B, A, B])
    assert needs.read(tmp_path / "run" / needs.KEYS) == {A, B}
    assert (tmp_path / "run" / needs.KEYS).read_text() == f"{A}\n{B}\n"


def test_no_keys_are_keys_too(tmp_path: Path) -> None:
    needs.write(tmp_path / needs.KEYS, [])
    assert needs.read(tmp_path / needs.KEYS) == set()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f"{A}\n{B[:-1]}\n".encode(), "line 2: 'b"),
        (f"{A}\n\n{B}\n".encode(), "line 2: ''"),
        (f"{A}\r\n".encode(), "line 1: "),
        (f"{A.upper()}\n".encode(), "line 1: "),
        (b"\xff\x00" * 40 + b"\n", "line 1: "),
        (f"{A}\n{B}".encode(), "line 2: its end is missing"),
    ],
)
def test_a_line_that_is_no_key_is_told(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / needs.KEYS
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(f"{path}, {line}")):
        needs.read(path)


def test_runs_are_found_at_any_depth_and_through_links(tmp_path: Path) -> None:
    needs.write(tmp_path / "runs" / needs.KEYS, [A])
    needs.write(tmp_path / "runs" / "dogs" / "second" / needs.KEYS, [B])
    needs.write(tmp_path / "other disk" / needs.KEYS, [C])
    (tmp_path / "runs" / "third").symlink_to(tmp_path / "other disk")
    found = needs.of_runs(tmp_path / "runs")
    assert {
        str(path.parent.relative_to(tmp_path / "runs")): keys for path, keys in found.items()
    } == {
        ".": {A},
        "dogs/second": {B},
        "third": {C},
    }


def test_links_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    needs.write(tmp_path / "run" / needs.KEYS, [A])
    (tmp_path / "run" / "latest").symlink_to(tmp_path)
    assert needs.of_runs(tmp_path) == {tmp_path / "run" / needs.KEYS: {A}}


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_runs_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{name} and the folders below it have no cache_keys.txt"):
        needs.of_runs(tmp_path / name)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    os.symlink("nowhere", tmp_path / "run" / needs.KEYS)
    with pytest.raises(DataError, match="cannot be read .No such file"):
        needs.of_runs(tmp_path)
