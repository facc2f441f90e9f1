import os
from pathlib import Path

import pytest

from mindbooth.launch import folders
from mindbooth.launch.options import LaunchError


def test_attempts_are_numbered_after_the_last_and_never_shared(tmp_path: Path) -> None:
    logs = tmp_path / "out" / "launch"
    assert folders.look(logs) == 1
    assert folders.claim(logs, "--output_dir") == 1
    (logs / "attempt-9").mkdir()
    (logs / "attempt-x").mkdir()
    assert folders.claim(logs, "--output_dir") == 10
    assert folders.look(logs) == 11


def test_a_file_is_replaced_whole_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    folders.publish(path, "one\n")
    folders.publish(path, "two\n")
    assert path.read_text() == "two\n"
    assert os.listdir(path.parent) == ["plan.json"]


def test_nothing_is_writable_for_everyone_even_without_a_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folders.publish(tmp_path / "plan.json", "")
        attempt = folders.claim(tmp_path, "--output_dir")
    finally:
        os.umask(before)
    for path in (tmp_path / "plan.json", tmp_path / f"attempt-{attempt}"):
        assert path.stat().st_mode & 0o022 == 0


def test_a_place_that_takes_no_files_is_told_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file, not a folder")
    with pytest.raises(LaunchError, match=r"--log_dir: cannot write in .*out/launch"):
        folders.claim(tmp_path / "out" / "launch", "--log_dir")
    with pytest.raises(LaunchError, match=r"--output_dir: .*plan\.json: cannot be written"):
        folders.publish(tmp_path / "out" / "launch" / "plan.json", "")


def test_forgetting_removes_what_was_made_and_keeps_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = folders.missing(out / "launch", out / "logs")
    assert made[-1] == out
    attempt = out / "launch" / f"attempt-{folders.claim(out / 'launch', '--output_dir')}"
    folders.publish(out / "launch" / "plan.json", "")
    folders.forget(attempt, [out / "launch" / "plan.json"], made)
    assert not out.exists()
    assert tmp_path.exists()


def test_forgetting_leaves_a_folder_that_holds_more(tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = folders.missing(out / "launch")
    attempt = out / "launch" / f"attempt-{folders.claim(out / 'launch', '--output_dir')}"
    (out / "picture.png").touch()
    folders.forget(attempt, [], made)
    assert os.listdir(out) == ["picture.png"]
