"""The heartbeat as its readers find it; what happens where it cannot be kept; what it costs."""

import json
import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mindbooth.launch import heartbeats
from mindbooth.launch.heartbeats import Beat
from mindbooth.trainer.heartbeat import FOLDER, SIZE, Heart
from mindbooth.trainer.phases import Phases
from mindbooth.trainer.report import Progress

BEAT_SECONDS = 50e-6  # what an update may pay for telling that it is done


def beat(folder: Path, rank: int = 0) -> Beat:
    found = heartbeats.read(folder, [rank])[rank]
    assert found is not None
    return found


def test_the_launcher_reads_what_the_worker_keeps(tmp_path: Path) -> None:
    with Heart.of({FOLDER: str(tmp_path)}, rank=3) as heart:
        heart.phase("updates")
        heart.count("update", "update", done=10, total=300)
        heart.reach(11, {"loss": "0.1234"})
        found = beat(tmp_path, rank=3)
    assert (found.phase, found.phases, found.began) == ("updates", 1, False)
    assert (found.what, found.unit, found.first, found.done, found.total, found.updates) == (
        "update", "update", 10, 11, 300, 11,
    )  # fmt: skip
    assert found.figures == {"loss": "0.1234"}
    assert found.since <= found.time <= time.monotonic()


def test_progress_and_phases_beat_by_themselves(tmp_path: Path) -> None:
    seen = []
    with Heart(tmp_path / "heartbeat_0") as heart:
        phases = Phases(heart=heart)
        with phases("encode"), Progress("encoding", 1, unit="entry", heart=heart) as encoding:
            seen.append(beat(tmp_path))
            encoding.advance()
            seen.append(beat(tmp_path))
        with phases("compile"):
            seen.append(beat(tmp_path))
    assert [(b.phase, b.phases, b.what, b.done) for b in seen] == [
        ("encode", 1, "encoding", 0), ("encode", 1, "encoding", 1), ("compile", 2, "encoding", 1),
    ]  # fmt: skip


def test_updates_go_on_behind_the_pictures_that_interrupt_them(tmp_path: Path) -> None:
    with Heart(tmp_path / "heartbeat_0") as heart:
        with Progress("update", 3, unit="update", show=False, heart=heart) as updates:
            updates.advance()
            with Progress("pictures", 2, unit="picture", show=False, heart=heart) as pictures:
                pictures.advance()
                inside = beat(tmp_path)
            after = beat(tmp_path)
        end = beat(tmp_path)
    assert (inside.what, inside.done, inside.updates) == ("pictures", 1, 1)
    assert [(b.what, b.done, b.updates) for b in (after, end)] == 2 * [("update", 1, 1)]


def test_no_update_is_told_before_the_first_of_this_attempt(tmp_path: Path) -> None:
    with (
        Heart(tmp_path / "heartbeat_0") as heart,
        Progress("update", 9, unit="update", done=5, show=False, heart=heart) as updates,
    ):
        assert beat(tmp_path).updates is None
        updates.advance()
        assert beat(tmp_path).updates == 6


def test_a_run_tells_when_it_has_begun(tmp_path: Path) -> None:
    with Heart(tmp_path / "heartbeat_0") as heart:
        heart.phase("compile")
        assert not beat(tmp_path).began
        heart.begin()
        assert beat(tmp_path).began


def test_each_beat_changes_the_record(tmp_path: Path) -> None:
    with Heart(tmp_path / "heartbeat_0") as heart:
        heart.phase("validation pictures")
        first = beat(tmp_path)
        heart.beat()
        assert beat(tmp_path) != first


def test_a_record_is_one_line_of_one_size(tmp_path: Path) -> None:
    with Heart(tmp_path / "heartbeat_0") as heart:
        for name in ("validation pictures", "updates"):
            heart.phase(name)
            raw = (tmp_path / "heartbeat_0").read_bytes()
            assert (len(raw), raw.count(b"\n"), raw[-1:]) == (SIZE, 1, b"\n")
            assert json.loads(raw)["phase"] == name


def test_without_the_variable_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Heart.of({}, rank=0) as heart:
        heart.phase("updates")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "heartbeat_0").symlink_to("/dev/full")
    with Heart(tmp_path / "heartbeat_0") as heart:
        for _ in range(3):
            heart.phase("updates")
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "No space left on device" in caplog.text


def test_a_folder_that_is_not_there_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Heart(tmp_path / "gone" / "heartbeat_0") as heart:
        for _ in range(3):
            heart.phase("updates")
    assert len(caplog.records) == 1
    assert "No such file or directory" in caplog.text


@contextmanager
def no_room() -> Iterator[None]:
    """Inside, this process can write to no file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_record_that_is_not_kept_up_is_withdrawn_until_it_is(tmp_path: Path) -> None:
    """Nobody may take its age for a hang."""
    with Heart(tmp_path / "heartbeat_0") as heart:
        heart.phase("updates")
        with no_room():
            heart.phase("updates")
        assert heartbeats.read(tmp_path, [0]) == {0: None}
        heart.phase("updates")
        assert beat(tmp_path).phases == 3


def test_who_gets_no_further_shows_no_sign_of_life(tmp_path: Path) -> None:
    with Heart(tmp_path / "heartbeat_0") as heart:
        heart.count("encoding", "entry", done=0, total=9)
        heart.reach(3, {})
        before = beat(tmp_path)
        heart.reach(3, {})
        assert beat(tmp_path) == before


def test_a_whole_update_pays_little_for_its_heartbeat(tmp_path: Path) -> None:
    figures = {"loss": "0.1234", "lr": "1.00e-04"}
    best = float("inf")
    with Heart(tmp_path / "heartbeat_0") as heart:
        heart.count("update", "update", done=0, total=10_000)
        for _ in range(50):
            began = time.perf_counter()
            for done in range(1, 21):
                heart.phase("updates")
                heart.reach(done, figures)
            best = min(best, (time.perf_counter() - began) / 20)
    assert best < BEAT_SECONDS
