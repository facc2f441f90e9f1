"""Merging is the inverse of splitting, clashes are told, and a shared folder gives one table."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from clusters import PROPERTY, clusters
from cpu_clock import cpu_seconds
from hypothesis import given
from hypothesis import strategies as st

from mindbooth.ranktable import hccl, merge
from mindbooth.ranktable.hccl import RankTable
from mindbooth.ranktable.topology import Cluster, Device, Host, RankTableError

PATIENCE = 30.0


def host(index: int, ids: Sequence[int] = (0, 1), pod: str | None = None) -> Host:
    return Host(
        name=f"n{index}",
        server_id=f"n{index}",
        devices=tuple(
            Device(
                physical_id=i,
                address=f"10.{index // 256}.{index % 256}.{i}",
                super_device_id=None if pod is None else index * 16 + i,
            )
            for i in ids
        ),
        super_pod_id=pod,
    )


def table(*hosts: Host) -> RankTable:
    return hccl.from_cluster(Cluster(hosts=hosts, source="test", assumed=False))


@PROPERTY
@given(clusters())
def test_the_tables_of_single_hosts_merge_to_that_of_all(cluster: Cluster) -> None:
    texts = [hccl.render(table(one)) for one in cluster.hosts]
    names = [one.name for one in cluster.hosts]
    assert merge.merge([hccl.parse(text) for text in texts], names) == hccl.from_cluster(cluster)


@PROPERTY
@given(clusters(), st.data())
def test_it_is_the_same_whether_hosts_are_merged_at_once_or_in_groups(
    cluster: Cluster, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(cluster.hosts)))
    groups = [group for group in (cluster.hosts[:cut], cluster.hosts[cut:]) if group]
    merged = merge.merge([table(*group) for group in groups], ["a", "b"][: len(groups)])
    assert merge.digest(merged) == merge.digest(hccl.from_cluster(cluster))


def test_servers_keep_the_order_of_their_ranks() -> None:
    whole = table(host(0), host(1))
    turned = RankTable(servers=whole.servers[::-1])
    assert merge.merge([turned], ["a.json"]) == whole


def test_a_version_that_was_declared_is_kept() -> None:
    texts = [hccl.render(table(host(i))).replace('"1.0"', '"1.2"') for i in (0, 1)]
    assert merge.merge([hccl.parse(text) for text in texts], ["a", "b"]).version == "1.2"


def test_another_order_of_tables_is_another_table() -> None:
    one, two = table(host(0)), table(host(1))
    ways = [merge.merge([one, two], ["a", "b"]), merge.merge([two, one], ["b", "a"])]
    assert merge.digest(ways[0]) != merge.digest(ways[1])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (host(0, (4, 5)), "server_id 'n0' stands in a.json and in b.json. Give each host its own"),
        (
            Host(
                name="n1",
                server_id="n1",
                devices=(
                    Device(physical_id=0, address="10.0.0.1"),
                    Device(physical_id=1, address="10.0.1.1"),
                ),
            ),
            "device_ip 10.0.0.1 of device 0 of 'n1' stands in a.json and in b.json",
        ),
        (
            host(1, (0, 1, 2)),
            "number of devices: 2 for 'n0' in a.json, 3 for 'n1' in b.json. It must be alike",
        ),
        (host(1, pod="p"), "super pod: none for 'n0' in a.json, given for 'n1' in b.json"),
        (
            replace(host(1, pod="p"), host_ip="172.16.0.1"),
            "host_ip: none for 'n0' in a.json, given for 'n1' in b.json",
        ),
    ],
)
def test_a_clash_is_told_with_both_files(other: Host, told: str) -> None:
    with pytest.raises(RankTableError, match=re.escape(told)):
        merge.merge([table(host(0)), table(other)], ["a.json", "b.json"])


def test_a_number_may_stand_once_in_a_super_pod_and_again_in_another() -> None:
    def in_pod(index: int, pod: str) -> RankTable:
        device = Device(physical_id=0, address=f"10.0.0.{index}", super_device_id=7)
        return table(
            Host(name="", server_id=f"n{index}", devices=(device,), super_pod_id=pod),
        )

    merge.merge([in_pod(0, "p"), in_pod(1, "q")], ["a", "b"])
    with pytest.raises(RankTableError, match="super_device_id 7 of device 0 of 'n1' in super pod"):
        merge.merge([in_pod(0, "p"), in_pod(1, "p")], ["a", "b"])


def test_all_clashes_are_in_one_error() -> None:
    with pytest.raises(RankTableError) as caught:
        merge.merge([table(host(0)), table(host(0, (0, 1, 2)))], ["a", "b"])
    told = [r"server_id 'n0'", r"device_ip 10\.0\.0\.0", r"device_ip 10\.0\.0\.1", "number of dev"]
    assert all(re.search(claim, str(caught.value)) for claim in told)


def test_the_parts_of_a_thousand_hosts_merge_at_once() -> None:
    parts = [table(host(index, range(16))) for index in range(1024)]
    names = [f"host {index}" for index in range(1024)]
    assert merge.merge(parts, names).world_size == 16384
    assert cpu_seconds(lambda: merge.merge(parts, names)) < 1  # 0.1 s on an idle machine


NAMES = ("n0", "n1", "n2")


def start(
    pool: ThreadPoolExecutor, folder: Path, parts: dict[int, RankTable], wait: float = PATIENCE
) -> dict[int, Future[RankTable]]:
    return {
        index: pool.submit(
            merge.hand_over, folder, part, host_index=index, hosts=NAMES, wait_seconds=wait
        )
        for index, part in parts.items()
    }


def meet(folder: Path, parts: dict[int, RankTable]) -> list[RankTable]:
    with ThreadPoolExecutor(len(parts)) as pool:
        return [ending.result() for ending in start(pool, folder, parts).values()]


def parts_of(ids: Sequence[int] = (0, 1)) -> dict[int, RankTable]:
    return {index: table(host(index, ids)) for index in range(3)}


def test_hosts_that_meet_in_a_folder_hold_the_same_table(tmp_path: Path) -> None:
    whole = table(*(host(index) for index in range(3)))
    assert meet(tmp_path / "new" / "folder", parts_of()) == [whole] * 3


def test_files_of_an_earlier_run_are_never_taken_for_this_ones(tmp_path: Path) -> None:
    meet(tmp_path, parts_of())
    mine = parts_of()[0]  # as it was in the earlier run, and so are the others' files
    with pytest.raises(RankTableError, match="what n1, n2 wrote is of another run. Start the"):
        merge.hand_over(tmp_path, mine, host_index=0, hosts=NAMES, wait_seconds=0.0)


def test_a_folder_with_an_earlier_runs_files_gives_the_table_of_this_run(tmp_path: Path) -> None:
    meet(tmp_path, parts_of((0, 1)))
    (tmp_path / "host-2.json").write_bytes(b'{"server_list": \xff')
    whole = table(*(host(index, (4, 5)) for index in range(3)))
    with ThreadPoolExecutor(3) as pool:
        parts = parts_of((4, 5))
        early = start(pool, tmp_path, {0: parts[0], 1: parts[1]})
        until(lambda: "10.0.0.4" in (tmp_path / "host-0.json").read_text())
        late = start(pool, tmp_path, {2: parts[2]})
        assert [ending.result() for ending in (early | late).values()] == [whole] * 3


def test_who_is_missing_is_named_when_the_time_is_up(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        parts = parts_of()
        endings = start(pool, tmp_path, {0: parts[0], 2: parts[2]}, wait=1.0)
        for ending in endings.values():
            with pytest.raises(RankTableError, match=r"3 hosts were .* within 1 s, missing: n1\."):
                ending.result()


def test_who_is_missing_is_told_with_what_to_run_there(tmp_path: Path) -> None:
    with pytest.raises(RankTableError, match="missing: n1, n2. Run on n1: mindbooth ") as caught:
        merge.hand_over(tmp_path, parts_of()[0], host_index=0, hosts=NAMES, wait_seconds=0.0)
    command = f"ranktable write --folder {tmp_path} --nnodes 3 --node_rank 1 "
    assert command in str(caught.value)


def test_a_clash_ends_the_wait_of_every_host(tmp_path: Path) -> None:
    parts = parts_of() | {1: table(host(0))}
    with ThreadPoolExecutor(3) as pool:
        for ending in start(pool, tmp_path, parts).values():
            with pytest.raises(RankTableError, match="server_id 'n0' stands in n0 and in n1"):
                ending.result()


def test_the_files_are_written_by_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    before = os.umask(0)
    try:
        meet(folder, parts_of())
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o755
    assert modes == {f"host-{i}.{kind}": 0o644 for i in range(3) for kind in ("json", "seal")}


def test_a_part_is_a_rank_table_itself(tmp_path: Path) -> None:
    meet(tmp_path, parts_of())
    found = hccl.parse((tmp_path / "host-1.json").read_text())
    assert [server.server_id for server in found.servers] == ["n1"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RankTableError, match=r"file/t\.json: cannot be written \((Not a dir|File)"):
        merge.publish(tmp_path / "file" / "t.json", "{}")


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "t.json").mkdir()
    with pytest.raises(RankTableError, match=r"t\.json: cannot be written"):
        merge.publish(tmp_path / "t.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
