"""Older layouts mean what they meant: same hosts, same devices, same ranks."""

import json
from typing import Any

import pytest
from clusters import PROPERTY, clusters
from hypothesis import given
from hypothesis import strategies as st

from mindbooth.ranktable import hccl
from mindbooth.ranktable.older import convert
from mindbooth.ranktable.topology import Cluster, RankTableError

Ranks = list[tuple[int, str, int, str | None]]


def ranks(table: hccl.RankTable) -> Ranks:
    return sorted(
        (device.rank_id, server.server_id, device.device_id, device.device_ip)
        for server in table.servers
        for device in server.devices
    )


def pod(number: int, devices: int = 2, server_id: str | None = None) -> dict[str, Any]:
    return {
        "pod_name": f"job0a1b-job-trainjob-{number}",
        "server_id": server_id or f"192.168.0.{number}",
        "devices": [
            {"device_id": str(d), "device_ip": f"192.{d + 1}.10.{number}"} for d in range(devices)
        ],
    }


def modelarts(*pods: dict[str, Any]) -> dict[str, Any]:
    group = {
        "group_name": "job-trainjob",
        "device_count": str(sum(len(entry["devices"]) for entry in pods)),
        "instance_count": str(len(pods)),
        "instance_list": list(pods),
    }
    return {"group_count": "1", "group_list": [group], "status": "completed"}


def of_2019(hosts: int, devices: int) -> dict[str, Any]:
    instances = [
        {
            "devices": [{"device_id": str(d), "device_ip": f"192.{d + 1}.27.{h}"}],
            "rank_id": str(h * devices + d),
            "server_id": f"10.155.111.{h}",
        }
        for h in range(hosts)
        for d in range(devices)
    ]
    return {
        "board_id": "0x0020",
        "chip_info": "910",
        "deploy_mode": "lab",
        "group_count": "1",
        "group_list": [
            {
                "device_num": str(hosts * devices),
                "server_num": str(hosts),
                "group_name": "",
                "instance_count": str(hosts * devices),
                "instance_list": instances,
            }
        ],
        "para_plane_nic_location": "device",
        "para_plane_nic_name": [f"eth{d}" for d in range(devices)],
        "para_plane_nic_num": devices,
        "status": "completed",
    }


def test_modelarts_ranks_follow_the_numbers_of_the_pods() -> None:
    assert ranks(convert(json.dumps(modelarts(pod(10), pod(2))), "t")) == [
        (0, "192.168.0.2", 0, "192.1.10.2"),
        (1, "192.168.0.2", 1, "192.2.10.2"),
        (2, "192.168.0.10", 0, "192.1.10.10"),
        (3, "192.168.0.10", 1, "192.2.10.10"),
    ]


@pytest.mark.parametrize("name", ["another", "job-7", None])
def test_pods_without_numbers_of_their_own_stay_in_the_order_of_the_list(name: str | None) -> None:
    pods = [pod(7, 1) | {"pod_name": name}, pod(3, 1) | {"pod_name": name}]
    found = ranks(convert(json.dumps(modelarts(*pods)), "t"))
    assert [server_id for _, server_id, _, _ in found] == ["192.168.0.7", "192.168.0.3"]


def test_pods_of_one_server_become_one_server() -> None:
    second = pod(1, server_id="192.168.0.0")
    for entry, device_id in zip(second["devices"], ("4", "5"), strict=True):
        entry["device_id"] = device_id
    table = convert(json.dumps(modelarts(pod(0), second)), "t")
    assert [(server.server_id, len(server.devices)) for server in table.servers] == [
        ("192.168.0.0", 4)
    ]


def test_a_group_without_devices_is_passed_over() -> None:
    table = modelarts(pod(0))
    table["group_list"].insert(0, {"group_name": "cpu", "device_count": "0", "instance_list": []})
    assert convert(json.dumps(table), "t").world_size == 2


def test_the_layout_of_2019_keeps_its_ranks() -> None:
    table = of_2019(2, 2)
    table["group_list"][0]["instance_list"].reverse()
    assert ranks(convert(json.dumps(table), "t")) == [
        (0, "10.155.111.0", 0, "192.1.27.0"),
        (1, "10.155.111.0", 1, "192.2.27.0"),
        (2, "10.155.111.1", 0, "192.1.27.1"),
        (3, "10.155.111.1", 1, "192.2.27.1"),
    ]


def change(table: dict[str, Any], *path: str | int, to: object = None) -> dict[str, Any]:
    """Set the value at a path of the only group; None takes the key out."""
    holder: Any = table["group_list"][0]
    for key in path[:-1]:
        holder = holder[key]
    if to is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = to
    return table


TWO = (pod(0), pod(1))
FIRST, SECOND = ("instance_list", 0), ("instance_list", 1)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (change(modelarts(*TWO), "instance_list"), "group_list[0].instance_list: missing"),
        (change(modelarts(*TWO), *SECOND, to="pod"), "group_list[0].instance_list[1]: a string"),
        (
            change(modelarts(pod(0), pod(1)), *SECOND, "devices"),
            "group_list[0].instance_list[1].devices: missing",
        ),
        (
            change(modelarts(*TWO), "instance_count", to="3"),
            "group_list[0].instance_count: '3', but the group holds 2 instances",
        ),
        (
            change(modelarts(*TWO), "device_count", to="8"),
            "group_list[0].device_count: '8', but the group holds 4 devices",
        ),
        (
            change(of_2019(1, 2), "device_num", to=16),
            "group_list[0].device_num: '16', but the group holds 2 devices",
        ),
        (
            change(of_2019(1, 2), "server_num", to="2"),
            "group_list[0].server_num: '2', but the group holds 1 servers",
        ),
        (
            {"group_list": modelarts(pod(0))["group_list"] * 2, "status": "completed"},
            "group_list: 2 groups with devices. Give one",
        ),
        ({"group_list": [], "status": "completed"}, "group_list: empty"),
        (modelarts(pod(0)) | {"status": "initializing"}, "status: 'initializing', HCCL waits"),
        ({"group_list": modelarts(pod(0))["group_list"]}, "status: missing"),
        (
            modelarts(pod(0), pod(1) | {"server_id": ""}),
            "group_list[0].instance_list[1].server_id: missing or empty",
        ),
        (
            modelarts(pod(1), {k: v for k, v in pod(0).items() if k != "server_id"}),
            "group_list[0].instance_list[1].server_id: missing or empty",
        ),
        (
            modelarts(pod(0), pod(1) | {"devices": [{"device_id": "0"}, {"device_id": "1"}]}),
            "group_list[0].instance_list[1].devices[0].device_ip: missing",
        ),
        (
            modelarts(pod(0), pod(1) | {"devices": pod(0)["devices"]}),
            "group_list[0].instance_list[1].devices[1].device_ip: '192.2.10.0' stands at "
            "group_list[0].instance_list[0].devices[1].device_ip already",
        ),
        (
            modelarts(pod(0), pod(1, devices=1)),
            "group_list: servers differ in number of devices (group_list[0].instance_list[0]: 2, "
            "group_list[0].instance_list[1]: 1)",
        ),
        (
            change(of_2019(2, 2), "instance_list", 3, "rank_id"),
            "group_list[0].instance_list[3].rank_id: missing, group_list[0].instance_list[0] has",
        ),
        (
            change(of_2019(2, 2), "instance_list", 3, "rank_id", to="2"),
            "group_list[0].instance_list[3].rank_id: '2' stands at "
            "group_list[0].instance_list[2].rank_id already",
        ),
        (
            change(of_2019(2, 2), "instance_list", 3, "devices", to=pod(0)["devices"]),
            "group_list[0].instance_list[3].devices: 2 devices share a rank_id",
        ),
    ],
)
def test_faults_are_told_with_their_places_in_the_older_layout(
    table: dict[str, Any], told: str
) -> None:
    with pytest.raises(RankTableError) as caught:
        convert(json.dumps(table), "jobstart_hccl.json")
    assert told in str(caught.value)
    assert str(caught.value).startswith("jobstart_hccl.json: ")


def test_a_table_of_generation_a5_is_refused_by_name() -> None:
    with pytest.raises(
        RankTableError, match=r"hccl\.json: version: 2\.0 is for chip generation A5"
    ):
        convert(json.dumps({"version": "2.0", "status": "completed", "rank_list": []}), "hccl.json")


@PROPERTY
@given(clusters())
def test_a_table_that_is_not_old_is_read_as_it_is(drawn: Cluster) -> None:
    table = hccl.from_cluster(drawn)
    assert convert(hccl.render(table), "t") == table


@PROPERTY
@given(clusters(super_pods=False, addresses=True), st.randoms())
def test_a_cluster_told_in_an_older_layout_is_the_same_cluster(drawn: Cluster, random: Any) -> None:
    pods = [
        {
            "pod_name": f"job-{number}",
            "server_id": host.server_id,
            "devices": [
                {"device_id": str(device.physical_id), "device_ip": device.address}
                for device in host.devices
            ],
        }
        for number, host in enumerate(drawn.hosts)
    ]
    random.shuffle(pods)
    assert hccl.to_cluster(convert(json.dumps(modelarts(*pods)), "t"), "drawn") == drawn
    seats = [
        {
            "server_id": seat.host.server_id,
            "rank_id": str(seat.rank),
            "devices": [
                {"device_id": str(seat.device.physical_id), "device_ip": seat.device.address}
            ],
        }
        for seat in drawn
    ]
    random.shuffle(seats)
    old = {"group_list": [{"instance_list": seats}], "status": "completed"}
    assert hccl.to_cluster(convert(json.dumps(old), "t"), "drawn") == drawn
