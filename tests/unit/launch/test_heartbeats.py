import json
from dataclasses import asdict
from pathlib import Path

import pytest

from mindbooth.launch.heartbeats import (
    HOSTS_APART_SECONDS,
    Beat,
    Stall,
    Watch,
    parse,
    read,
    stalled,
)

HANG = 60.0


def beat(**changed: object) -> Beat:
    usual: dict[str, object] = {
        "phase": "updates", "phases": 20, "what": "update", "unit": "update", "first": 0,
        "done": 12, "total": 300, "since": 0.0, "figures": {"loss": "0.1"}, "updates": 12,
        "began": True, "time": 5.0,
    }  # fmt: skip
    return Beat(**usual | changed)  # type: ignore[arg-type]


def write(folder: Path, rank: int, kept: Beat) -> None:
    (folder / f"heartbeat_{rank}").write_text(json.dumps(asdict(kept)).ljust(511) + "\n")


def test_records_are_read_by_rank(tmp_path: Path) -> None:
    write(tmp_path, 2, beat())
    (tmp_path / "heartbeat_3").write_text("")
    assert read(tmp_path, (2, 3, 4)) == {2: beat(), 3: None, 4: None}


@pytest.mark.parametrize("record", ["", "\0\0\n", '{"phase": "upd', "7\n", "{}\n", '{"phases": 1}'])
def test_what_is_no_record_is_none(record: str) -> None:
    assert parse(record.encode()) is None


def test_what_an_earlier_longer_record_left_is_not_read() -> None:
    assert parse(json.dumps(asdict(beat())).encode() + b'\n"began": true}') == beat()


AHEAD, BEHIND = beat(phases=21), beat(phases=20, done=11, updates=11)
FIRST = beat(updates=None, done=0)


def encoding(done: int) -> Beat:
    return beat(phase="encode", phases=3, what="encoding", done=done, total=9, updates=None)


@pytest.mark.parametrize(
    ("beats", "stopped", "patience", "rank"),
    [
        ((beat(), beat()), {1}, HANG, 1),
        ((beat(), beat()), {0, 1}, HANG, 0),
        ((AHEAD, BEHIND), (), HANG, 1),
        ((AHEAD, beat(), BEHIND), (), HANG, 2),
        ((beat(), beat(updates=11)), (), HANG, 1),
        ((BEHIND, AHEAD), {1}, HANG, 1),
        ((BEHIND, None), {1}, HANG, 1),
        ((beat(), beat()), (), HANG + HOSTS_APART_SECONDS, 0),
        ((beat(),), (), HANG + HOSTS_APART_SECONDS, 0),
        ((beat(), None), (), HANG + HOSTS_APART_SECONDS, 0),
        ((beat(), FIRST), (), HANG, 1),
        ((encoding(1), encoding(1)), {1}, HANG, 1),
        ((encoding(8), encoding(0)), (), HANG + HOSTS_APART_SECONDS, 0),
        ((FIRST, encoding(1)), (), HANG, 1),
    ],
    ids=str,
)
def test_a_hang_is_found_after_so_many_seconds_and_a_rank_named(
    beats: tuple[Beat | None, ...], stopped: set[int], patience: float, rank: int
) -> None:
    known, changed = dict(enumerate(beats)), dict.fromkeys(range(len(beats)), 100.0)
    assert stalled(known, stopped, changed, 100 + patience, HANG) is None
    found = stalled(known, stopped, changed, 100.1 + patience, HANG)
    assert found is not None
    assert found.rank == rank


@pytest.mark.parametrize(
    ("beats", "hang_seconds"),
    [
        ((FIRST, FIRST), HANG),
        ((None, None), HANG),
        ((FIRST, None), HANG),
        ((encoding(0), encoding(0)), HANG),
        ((encoding(9), encoding(9)), HANG),
        ((encoding(1), encoding(1)), 0.0),
        ((beat(), beat()), 0.0),
    ],
    ids=str,
)
def test_nothing_is_a_hang_before_something_is_counted_or_where_hangs_are_not_asked_for(
    beats: tuple[Beat | None, ...], hang_seconds: float
) -> None:
    changed = dict.fromkeys(range(len(beats)), 0.0)
    assert stalled(dict(enumerate(beats)), {0}, changed, 1e6, hang_seconds) is None


def test_one_rank_that_moves_is_enough() -> None:
    assert stalled({0: beat(), 1: BEHIND}, (), {0: 500.0, 1: 1.0}, 501.0, HANG) is None


def test_where_all_are_equally_far_the_one_that_is_longest_quiet_is_named() -> None:
    found = stalled({0: beat(), 1: beat()}, (), {0: 100.0, 1: 99.0}, 200.0, HANG)
    assert found is not None
    assert found.rank == 1


def test_every_rank_is_told_of() -> None:
    pictures = beat(phase="validation pictures", what="pictures", done=1, total=4)
    loading = beat(phase="load the models", what="")
    known = {0: beat(done=13), 1: beat(), 2: pictures, 3: loading, 4: None}
    known[5] = encoding(3)
    found = stalled(known, {1}, dict.fromkeys(known, 100.0), 161.2, HANG)
    assert found == Stall(
        rank=1,
        why="nothing has moved for 61 s (rank 0: update 13 of 300, 61 s ago; "
        "rank 1: stopped (SIGSTOP) in update 12 of 300, 61 s ago; "
        "rank 2: validation pictures, pictures 1 of 4, 61 s ago; "
        "rank 3: load the models, 61 s ago; "
        "rank 5: encode, encoding 3 of 9, 61 s ago)",
    )


def test_a_watch_counts_from_the_last_change_of_any_record(tmp_path: Path) -> None:
    watch = Watch(folder=tmp_path, ranks=(0, 1))
    for now in range(200):
        if now < 100:
            write(tmp_path, 0, beat(time=float(now)))
            write(tmp_path, 1, beat(time=0.0))
        watch.look(float(now))
        assert (watch.stall((), HANG) is not None) == (now > 99 + HANG + HOSTS_APART_SECONDS)


def test_time_in_which_the_launcher_was_suspended_too_is_no_hang(tmp_path: Path) -> None:
    watch = Watch(folder=tmp_path, ranks=(0,))
    write(tmp_path, 0, beat())
    watch.look(0.0)
    watch.look(1.0)
    watch.look(1e6)
    assert watch.stall((), HANG) is None


def test_a_folder_that_vanishes_is_no_hang(tmp_path: Path) -> None:
    watch = Watch(folder=tmp_path, ranks=(0,))
    write(tmp_path, 0, beat())
    watch.look(0.0)
    (tmp_path / "heartbeat_0").unlink()
    for now in range(1, 200):
        watch.look(float(now))
    assert watch.stall((), HANG) is None
