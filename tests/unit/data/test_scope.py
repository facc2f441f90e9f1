"""Real folders, meetings over TCP; ranks are threads. Hosts without a shared folder have two."""

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from mindbooth.data.errors import DataError
from mindbooth.data.meeting import Meeting
from mindbooth.data.scope import find, groups

LIMIT = 30
SHORT = 0.3
Where = tuple[str, Path]  # host, cache folder


def found(
    ranks: Sequence[Where], scope: str = "auto", seconds: float = LIMIT
) -> list["Future[tuple[int, ...]]"]:
    """What each rank finds, or raises."""
    size = len(ranks)
    host = Meeting.host(size)
    meetings = [host, *(Meeting.join(host.invitation, rank, size) for rank in range(1, size))]
    with ThreadPoolExecutor(size) as threads:
        futures = [
            threads.submit(
                find, folder, meetings[rank], rank=rank, size=size, host=name,
                scope=scope, shown_seconds=seconds,  # type: ignore[arg-type]
            )
            for rank, (name, folder) in enumerate(ranks)
        ]  # fmt: skip
        assert not wait(futures, LIMIT).not_done
        assert not wait([threads.submit(meeting.close) for meeting in meetings], LIMIT).not_done
    return futures


@pytest.fixture
def cannot_write(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "read-only"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a read-only file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], ()),
        ([set()], ((0,),)),
        ([{0, 1, 2}] * 3, ((0, 1, 2),)),
        ([{0, 2}, {1}, {0, 2}], ((0, 2), (1,))),
        ([{0}, {0, 1}], ((0, 1),)),
        ([{0, 1}, {1, 2}, {2}], ((0, 1, 2),)),
        ([{0}, {1}, {0, 1, 2}], ((0, 1, 2),)),
        ([{0, 1}, {0, 1}, set()], ((0, 1), (2,))),
        ([{0, 3}, {1, 2}, {2}, {3}], ((0, 3), (1, 2))),
    ],
)
def test_whoever_sees_a_rank_shares_with_it(
    seen: list[set[int]], expected: tuple[tuple[int, ...], ...]
) -> None:
    assert groups(seen) == expected


def test_thousands_of_ranks_are_grouped() -> None:
    every_other = [set(range(rank % 2, 4096, 2)) for rank in range(4096)]
    assert groups(every_other) == (tuple(range(0, 4096, 2)), tuple(range(1, 4096, 2)))


@pytest.mark.parametrize("scope", ["auto", "shared"])
def test_hosts_with_one_folder_share_it(tmp_path: Path, scope: str) -> None:
    ranks = [("n0", tmp_path), ("n0", tmp_path), ("n1", tmp_path)]
    assert [future.result() for future in found(ranks, scope)] == [(0, 1, 2)] * 3


def test_where_all_are_seen_nobody_waits_for_more(tmp_path: Path) -> None:
    futures = found([("n0", tmp_path), ("n1", tmp_path)], seconds=1000 * LIMIT)
    assert [future.result() for future in futures] == [(0, 1)] * 2


def test_hosts_with_folders_of_their_own_share_nothing(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    futures = found([("n0", a), ("n1", b), ("n0", a), ("n1", b)], seconds=SHORT)
    assert [future.result() for future in futures] == [(0, 2), (1, 3), (0, 2), (1, 3)]


def test_two_of_three_hosts_share(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    futures = found([("n0", one), ("n1", other), ("n2", one)], seconds=SHORT)
    assert [future.result() for future in futures] == [(0, 2), (1,), (0, 2)]


def test_a_folder_that_shows_others_late_is_shared(tmp_path: Path) -> None:
    shared, stale, seen = tmp_path / "shared", tmp_path / "stale", tmp_path / "seen"
    stale.mkdir()
    seen.symlink_to(stale)

    def show() -> None:
        while not list(stale.glob("scope/*/1")):
            assert not over.wait(0.01)
        (tmp_path / "new").symlink_to(shared)
        os.replace(tmp_path / "new", seen)

    over = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        shown = thread.submit(show)
        futures = found([("n0", shared), ("n1", seen)], seconds=3)
        over.set()
        shown.result()
    assert [future.result() for future in futures] == [(0, 1)] * 2


def test_on_request_the_ranks_of_a_host_are_taken_without_looking(tmp_path: Path) -> None:
    ranks = [("n0", tmp_path), ("n1", tmp_path), ("n0", tmp_path)]
    assert [future.result() for future in found(ranks, "host")] == [(0, 2), (1,), (0, 2)]
    assert list(tmp_path.iterdir()) == []


def test_one_rank_looks_for_nobody(tmp_path: Path) -> None:
    for scope in ("auto", "shared", "host"):
        assert found([("n0", tmp_path)], scope)[0].result() == (0,)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_cannot_write_is_alone_and_waited_for_by_nobody(
    tmp_path: Path, cannot_write: Path
) -> None:
    good = tmp_path / "good"
    ranks = [("n0", good), ("n0", good), ("n1", cannot_write), ("n1", cannot_write)]
    futures = found(ranks, seconds=1000 * LIMIT)
    assert [future.result() for future in futures] == [(0, 1), (0, 1), (2,), (3,)]


def test_a_file_in_the_folder_s_place_is_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    futures = found([("n0", tmp_path / "good"), ("n1", tmp_path / "file")])
    assert [future.result() for future in futures] == [(0,), (1,)]


def test_what_must_be_shared_and_is_not_is_told_to_all_by_host(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    ranks = [("n0", a), ("n0", a), ("n1", a), ("n2", b)]
    for future, (_, folder) in zip(found(ranks, "shared", SHORT), ranks, strict=True):
        error = future.exception()
        assert isinstance(error, DataError)
        assert f"one folder {folder}: different ones are on n0, n1 | n2. Give" in str(error)


def test_what_must_be_shared_and_cannot_be_written_is_told(
    tmp_path: Path, cannot_write: Path
) -> None:
    ranks = [("n0", tmp_path / "good"), ("n1", cannot_write), ("n2", cannot_write)]
    for future in found(ranks, "shared"):
        error = future.exception()
        assert isinstance(error, DataError)
        assert ": it can't be written to on n1, n2. Give" in str(error)


def test_of_many_hosts_some_are_named(tmp_path: Path) -> None:
    ranks = [(f"n{rank}", tmp_path / str(rank)) for rank in range(6)]
    error = found(ranks, "shared", SHORT)[0].exception()
    assert "different ones are on n0 | n1 | n2 | n3 and 2 more. Give" in str(error)


def test_what_was_written_is_removed(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    found([("n0", a), ("n0", a), ("n1", b)], seconds=SHORT)
    assert [list((folder / "scope").iterdir()) for folder in (a, b)] == [[], []]


def test_a_failure_ends_the_looking_and_leaves_nothing(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    host = Meeting.host(2)
    other = Meeting.join(host.invitation, 1, 2)
    ranks = [(host, a), (other, b)]
    with ThreadPoolExecutor(2) as threads:
        futures = [
            threads.submit(
                find, folder, meeting, rank=rank, size=2, host=f"n{rank}", scope="auto",
                shown_seconds=1000 * LIMIT,
            )
            for rank, (meeting, folder) in enumerate(ranks)
        ]  # fmt: skip
        other.fail("full disk", DataError)
        for future in futures:
            with pytest.raises(DataError, match="full disk"):
                future.result(LIMIT)
        other.close()
        host.close()
    assert [list(folder.glob("scope/*")) for folder in (a, b)] == [[], []]
