import json
import string
from dataclasses import replace

import pytest
from clusters import PROPERTY, clusters
from cpu_clock import cpu_seconds
from hypothesis import given
from hypothesis import strategies as st

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


def test_thousands_of_faults_are_counted_not_listed() -> None:
    text = hccl.render(hccl.from_cluster(cluster(64, 16))).replace('"192.', '"x')
    with pytest.raises(RankTableError, match=r"and 1004 faults more$") as caught:
        hccl.parse(text, "x.json")
    assert len(str(caught.value)) < 3000


def test_a_table_of_a_super_pod_is_written_as_hccl_reads_it() -> None:
    device = Device(physical_id=0, address="192.168.1.6", super_device_id=16777216)
    host = Host(
        name="a", server_id="node_0", host_ip="172.16.0.100", super_pod_id="0", devices=(device,)
    )
    alone = Cluster(hosts=(host,), source="test", assumed=False)
    assert json.loads(hccl.render(hccl.from_cluster(alone))) == {
        "version": "1.2",
        "server_count": "1",
        "server_list": [
            {
                "server_id": "node_0",
                "host_ip": "172.16.0.100",
                "device": [
                    {
                        "device_id": "0",
                        "device_ip": "192.168.1.6",
                        "super_device_id": "16777216",
                        "rank_id": "0",
                    }
                ],
            }
        ],
        "super_pod_list": [{"super_pod_id": "0", "server_list": [{"server_id": "node_0"}]}],
        "status": "completed",
    }


def test_outside_a_super_pod_no_host_ip_is_written() -> None:
    before = cluster(1, 1)
    hosts = tuple(replace(host, host_ip="10.1.1.1") for host in before.hosts)
    assert "host_ip" not in hccl.render(hccl.from_cluster(replace(before, hosts=hosts)))


def test_a_table_of_version_1_2_without_super_pods_stays_one() -> None:
    text = hccl.render(hccl.from_cluster(cluster(2, 2))).replace('"1.0"', '"1.2"')
    table = hccl.parse(text)
    assert json.loads(hccl.render(table))["version"] == "1.2"
    assert hccl.parse(hccl.render(table)) == table


def test_super_pods_in_a_table_of_version_1_0_are_not_read() -> None:
    text = hccl.render(hccl.from_cluster(cluster(2, 2)))
    document = json.loads(text) | {"super_pod_list": "see 1.2"}
    document["server_list"][0]["device"][0]["super_device_id"] = "7"
    assert hccl.parse(json.dumps(document)) == hccl.parse(text)


@PROPERTY
@given(clusters())
def test_any_cluster_is_written_without_faults_and_read_back(drawn: Cluster) -> None:
    table = hccl.from_cluster(drawn)
    text = hccl.render(table)
    assert hccl.faults(text) == []
    assert hccl.parse(text) == table
    assert table.version == ("1.2" if drawn.hosts[0].super_pod_id else "1.0")
    assert hccl.to_cluster(table, "drawn") == drawn


OTHERS = st.dictionaries(
    st.text(string.ascii_lowercase, min_size=1).map(lambda name: f"{name}_x"), st.text(), max_size=3
).map(lambda others: tuple(others.items()))


@PROPERTY
@given(clusters(), st.data())
def test_what_else_a_table_carries_stays_in_it(drawn: Cluster, data: st.DataObject) -> None:
    table = hccl.from_cluster(drawn)
    servers = tuple(
        replace(
            server,
            others=data.draw(OTHERS),
            devices=tuple(replace(device, others=data.draw(OTHERS)) for device in server.devices),
        )
        for server in table.servers
    )
    table = replace(table, servers=servers)
    assert hccl.parse(hccl.render(table)) == table


def test_1024_hosts_of_16_devices_are_quick() -> None:
    large = cluster(1024, 16)

    def write_check_and_read() -> None:
        table = hccl.from_cluster(large)
        text = hccl.render(table)
        assert (hccl.faults(text), hccl.parse(text)) == ([], table)

    assert cpu_seconds(write_check_and_read) < 2  # 0.5 s on an idle machine
