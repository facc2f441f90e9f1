import json
import time

import pytest

from mindbooth.ranktable import hccl
from mindbooth.ranktable.topology import Cluster, Device, Host, RankTableError


def cluster(hosts: int, devices: int, first: int = 0, addresses: bool = True) -> Cluster:
    return Cluster(
        hosts=tuple(
            Host(
                name=f"host-{h}",
                server_id=f"10.0.{h // 256}.{h % 256}",
                devices=tuple(
                    Device(
                        physical_id=first + d,
                        address=f"192.{d}.{h // 256}.{h % 256}" if addresses else None,
                    )
                    for d in range(devices)
                ),
            )
            for h in range(hosts)
        ),
        source="test",
        assumed=False,
    )


def test_a_table_is_written_as_hccl_reads_it() -> None:
    assert json.loads(hccl.render(hccl.from_cluster(cluster(1, 2, first=4)))) == {
        "version": "1.0",
        "server_count": "1",
        "server_list": [
            {
                "server_id": "10.0.0.0",
                "host_nic_ip": "reserve",
                "device": [
                    {"device_id": "4", "device_ip": "192.0.0.0", "rank_id": "0"},
                    {"device_id": "5", "device_ip": "192.1.0.0", "rank_id": "1"},
                ],
            }
        ],
        "status": "completed",
    }


def test_an_unknown_address_is_left_out() -> None:
    assert "device_ip" not in hccl.render(hccl.from_cluster(cluster(1, 8, addresses=False)))


@pytest.mark.parametrize(("hosts", "devices"), [(1, 1), (1, 8), (2, 4), (3, 16), (300, 2)])
def test_render_and_parse_are_inverse(hosts: int, devices: int) -> None:
    table = hccl.from_cluster(cluster(hosts, devices))
    assert hccl.parse(hccl.render(table)) == table
    assert table.world_size == hosts * devices


def test_a_table_gives_its_cluster_back() -> None:
    before = cluster(2, 4, first=4)
    after = hccl.to_cluster(hccl.from_cluster(before), "table.json")
    assert [(s.rank, s.host.server_id, s.local_rank, s.device) for s in after] == [
        (s.rank, s.host.server_id, s.local_rank, s.device) for s in before
    ]


def test_servers_and_devices_may_stand_in_any_order() -> None:
    table = hccl.from_cluster(cluster(2, 2))
    shuffled = hccl.RankTable(
        servers=tuple(
            hccl.TableServer(server_id=server.server_id, devices=server.devices[::-1])
            for server in table.servers[::-1]
        )
    )
    assert hccl.to_cluster(shuffled, "t") == hccl.to_cluster(table, "t")


def test_ranks_dealt_out_to_hosts_in_turn_are_refused() -> None:
    def server(name: str, ranks: tuple[int, int]) -> hccl.TableServer:
        devices = tuple(
            hccl.TableDevice(device_id=i, device_ip=None, rank_id=rank)
            for i, rank in enumerate(ranks)
        )
        return hccl.TableServer(server_id=name, devices=devices)

    table = hccl.RankTable(servers=(server("a", (0, 2)), server("b", (1, 3))))
    with pytest.raises(RankTableError, match="server 'a' do not follow each other"):
        hccl.to_cluster(table, "table.json")


def test_parse_reports_every_fault_and_the_file() -> None:
    text = hccl.render(hccl.from_cluster(cluster(1, 2)))
    broken = text.replace('"completed"', '"initializing"').replace('"1.0"', '"9"')
    with pytest.raises(RankTableError, match=r"x\.json: version: .*; status: "):
        hccl.parse(broken, "x.json")


def test_a_large_cluster_is_quick() -> None:
    start = time.perf_counter()
    table = hccl.from_cluster(cluster(1024, 16))
    assert hccl.parse(hccl.render(table)) == table
    assert time.perf_counter() - start < 5  # 0.4 s on an idle machine
