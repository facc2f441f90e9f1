"""Files that others write while we read: what can become right is waited for, the rest is told."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mindbooth.ranktable import hccl, reader
from mindbooth.ranktable.topology import Cluster, Device, Host, RankTableError

HOST = Host(name="a", server_id="10.0.0.1", devices=(Device(physical_id=0), Device(physical_id=1)))
TABLE = hccl.from_cluster(Cluster(hosts=(HOST,), source="test", assumed=False))
TEXT = hccl.render(TABLE)
INITIALIZING = '{"status":"initializing"}'


def in_turn(*writes: Callable[[], object]) -> Callable[[float], None]:
    """Stand for the passing of time: at each pause, the next thing happens to the file."""
    left = list(writes)

    def pause(seconds: float) -> None:
        assert 0 < seconds <= reader.PAUSE_SECONDS
        left.pop(0)()

    return pause


def test_a_file_is_read_from_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(TEXT)
    assert reader.read(tmp_path / "x.json") == TABLE


@pytest.mark.parametrize("name", ["jobstart_hccl.json", "hccl.json"])
def test_a_folder_may_stand_for_the_file_in_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXT)
    assert reader.read(tmp_path) == TABLE


def test_a_file_rewritten_in_place_is_read_when_it_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "config" / "hccl.json"
    pause = in_turn(
        lambda: path.parent.mkdir(),
        lambda: path.write_text(""),
        lambda: path.write_text(INITIALIZING),
        lambda: path.write_text(TEXT[:40]),
        lambda: path.write_text(TEXT),
    )
    assert reader.read(path, wait_seconds=60, pause=pause) == TABLE


def test_a_folder_is_watched_until_a_table_is_in_it(tmp_path: Path) -> None:
    pause = in_turn(
        lambda: (tmp_path / "version").write_text("1"),
        lambda: (tmp_path / "hccl.json").write_text(TEXT),
    )
    assert reader.read(tmp_path, wait_seconds=60, pause=pause) == TABLE


def test_waiting_really_waits_and_ends_when_another_process_has_written(tmp_path: Path) -> None:
    path = tmp_path / "hccl.json"
    path.write_text(INITIALIZING)
    paused = threading.Event()

    def pause(seconds: float) -> None:
        paused.set()
        time.sleep(seconds)

    def write() -> None:
        if paused.wait(30):
            path.write_text(TEXT)

    writer = threading.Thread(target=write)
    writer.start()
    assert reader.read(path, wait_seconds=30, pause=pause) == TABLE
    writer.join()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file or directory"),
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (TEXT[:-3].encode(), "it is not whole: line 20, column 24: not JSON"),
        (b"[]", "it is not whole: $: a rank table is an object, not a list"),
        (INITIALIZING.encode(), "its status is 'initializing'"),
        (b'{"status": "unknown"}', "its status is 'unknown'"),
        (TEXT.encode()[:-10] + "\u00e9".encode()[:1], "is not UTF-8 text"),
    ],
)
def test_at_the_end_of_the_wait_it_is_told_what_the_file_said_last(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "hccl.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RankTableError) as caught:
        reader.read(path, wait_seconds=0.05)
    waited = "no completed rank table after 0.05 s of waiting"
    assert str(caught.value).startswith(f"{path}: {waited}; ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file or directory. Give the path of a rank table."),
        (b"", "line 1, column 1: not JSON (Expecting value). Correct it."),
        (b"[]", "$: a rank table is an object, not a list. Start it with {."),
        (TEXT.replace('"1.0"', '"3"').encode(), "version: '3' is not known. "),
        (TEXT.replace("completed", "initializing").encode(), "status: 'initializing', HCCL waits"),
        (b"\xe9", "byte 0 is not UTF-8 text. Give the path of a rank table."),
    ],
)
def test_without_a_wait_the_faults_of_a_file_are_told_and_no_more(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RankTableError) as caught:
        reader.read(path)
    assert str(caught.value).startswith(f"{path}: {told}")
    assert "wait longer" not in str(caught.value)


def test_a_folder_without_a_table_is_told_with_the_names_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RankTableError, match=r"neither jobstart_hccl\.json nor hccl\.json"):
        reader.read(tmp_path)


def never(seconds: float) -> None:
    raise AssertionError("waited for what cannot become right")


def test_a_completed_table_with_faults_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "hccl.json").write_text(TEXT.replace('"1.0"', '"3"'))
    with pytest.raises(RankTableError, match=r"hccl\.json: version: '3' is not known"):
        reader.read(tmp_path, wait_seconds=60, pause=never)


def test_an_older_layout_is_converted(tmp_path: Path) -> None:
    device = {"device_id": "4", "device_ip": "192.1.10.254"}
    pod = {"pod_name": "job-0", "server_id": "192.168.0.25", "devices": [device]}
    table = {"group_list": [{"instance_list": [pod]}], "status": "completed"}
    (tmp_path / "jobstart_hccl.json").write_text(json.dumps(table))
    assert reader.read(tmp_path).servers[0].devices[0].device_id == 4


def test_a_mark_of_byte_order_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert reader.read(tmp_path / "x.json") == TABLE


def test_a_file_of_100_mb_is_refused_by_name_and_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "hccl.json"
    with path.open("wb") as stream:
        stream.truncate(100_000_000)
    with pytest.raises(RankTableError, match=r"hccl\.json: 100,000,000 bytes, a rank table has"):
        reader.read(path, wait_seconds=60, pause=never)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hccl.json")
    with pytest.raises(RankTableError, match="not a file"):
        reader.read(tmp_path, wait_seconds=60, pause=never)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "hccl.json").touch(mode=0)
    with pytest.raises(RankTableError, match="may not be read"):
        reader.read(tmp_path, wait_seconds=60, pause=never)


REWRITE = """
import pathlib, sys
path, *tables = map(pathlib.Path, sys.argv[1:])
texts = [table.read_text() for table in tables]
while True:
    for text in texts:
        path.write_text(text)
"""


def test_a_file_that_another_process_keeps_rewriting_is_read_whole(tmp_path: Path) -> None:
    """Without care, some readings are the head of one table and the tail of the other."""
    tables, files = [], []
    for third in (1, 2):
        hosts = tuple(
            Host(
                name=f"{h}",
                server_id=f"{h}",
                devices=tuple(
                    Device(physical_id=d, address=f"10.{third}.{h}.{d}") for d in range(16)
                ),
            )
            for h in range(128)
        )
        tables.append(hccl.from_cluster(Cluster(hosts=hosts, source="test", assumed=False)))
        files.append(tmp_path / f"table_{third}.json")
        files[-1].write_text(hccl.render(tables[-1]))
    path = tmp_path / "hccl.json"
    writer = subprocess.Popen([sys.executable, "-c", REWRITE, str(path), *map(str, files)])
    try:
        for _ in range(5):
            assert reader.read(path, wait_seconds=60, pause=lambda _: None) in tables
    finally:
        writer.kill()
        writer.wait()
