"""Real threads as ranks: nobody leaves a meeting before everybody has come."""

import threading
from pathlib import Path

import pytest

from mindbooth.data.cache import Store
from mindbooth.data.errors import DataError
from mindbooth.data.meeting import Meeting


def test_nobody_leaves_before_everybody_has_come(tmp_path: Path) -> None:
    came: list[int] = []
    left: list[tuple[int, int]] = []

    def rank(number: int) -> None:
        came.append(number)
        Meeting(tmp_path, run_token="job 1", rank=number, size=4).at("compiled")
        left.append((number, len(came)))

    early = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in early:
        thread.start()
    for thread in early:
        thread.join(timeout=0.2)
    assert left == [], "three of four have come, so all three wait"
    rank(3)
    for thread in early:
        thread.join(timeout=10)
    assert sorted(left) == [(number, 4) for number in range(4)]


def test_another_run_s_marks_do_not_count(tmp_path: Path) -> None:
    done = threading.Thread(
        target=Meeting(tmp_path, run_token="old", rank=0, size=2).at,
        args=("compiled",),
        daemon=True,
    )
    done.start()
    waiting = threading.Thread(
        target=Meeting(tmp_path, run_token="new", rank=1, size=2).at,
        args=("compiled",),
        daemon=True,
    )
    waiting.start()
    waiting.join(timeout=0.3)
    assert waiting.is_alive()


def test_a_rank_that_gave_up_ends_the_waiting_of_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.mark_failed("job", "rank 1 has no picture")
    meeting = Meeting(tmp_path, run_token="job", rank=0, size=2, check=lambda: store.check("job"))
    with pytest.raises(DataError, match="rank 1 has no picture"):
        meeting.at("compiled")


def test_one_rank_meets_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    Meeting(tmp_path, run_token="job", rank=0, size=1).at("compiled")
    assert list(tmp_path.iterdir()) == []


def test_rank_0_clears_up(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path, run_token="job", rank=0, size=2)
    other = threading.Thread(
        target=Meeting(tmp_path, run_token="job", rank=1, size=2).at, args=("end",)
    )
    other.start()
    meeting.at("end")
    other.join(timeout=10)
    meeting.over()
    assert list((tmp_path / "meetings").iterdir()) == []


def test_a_file_in_the_folder_s_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "meetings").write_text("")
    with pytest.raises(DataError, match="--latent_cache_dir"):
        Meeting(tmp_path, run_token="job", rank=0, size=2).at("compiled")
