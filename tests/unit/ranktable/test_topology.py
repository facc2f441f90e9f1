import pytest
from clusters import PROPERTY, clusters
from hypothesis import given

from mindbooth.ranktable.topology import Cluster, Device, Host, RankTableError


def host(name: str, *ids: int) -> Host:
    return Host(name=name, server_id=name, devices=tuple(Device(physical_id=i) for i in ids))


def test_ranks_follow_hosts_then_devices() -> None:
    cluster = Cluster(hosts=(host("a", 4, 5), host("b", 0, 1)), source="test", assumed=False)
    assert cluster.world_size == 4
    assert [(s.rank, s.host.name, s.local_rank, s.device.physical_id) for s in cluster] == [
        (0, "a", 0, 4),
        (1, "a", 1, 5),
        (2, "b", 0, 0),
        (3, "b", 1, 1),
    ]


@pytest.mark.parametrize("hosts", [(), (host("a"),), (host("a", 0), host("b"))])
def test_every_host_needs_a_device(hosts: tuple[Host, ...]) -> None:
    with pytest.raises(RankTableError, match="at least one device"):
        Cluster(hosts=hosts, source="test", assumed=False)


@PROPERTY
@given(clusters())
def test_every_rank_sits_once_and_hosts_are_whole(cluster: Cluster) -> None:
    seats = list(cluster)
    assert [seat.rank for seat in seats] == list(range(cluster.world_size))
    assert [seat.device for seat in seats] == [d for host in cluster.hosts for d in host.devices]
    assert all(seat.host.devices[seat.local_rank] == seat.device for seat in seats)
