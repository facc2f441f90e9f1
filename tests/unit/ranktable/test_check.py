"""Each planted fault is found at its place, and a good table has none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from mindbooth.ranktable.check import faults

GOOD: dict[str, Any] = {
    "version": "1.0",
    "server_count": "2",
    "server_list": [
        {
            "server_id": f"10.0.0.{s}",
            "host_nic_ip": "reserve",
            "device": [
                {
                    "device_id": str(d),
                    "device_ip": f"192.168.{d}.{s}",
                    "rank_id": str(s * 2 + d),
                }
                for d in range(2)
            ],
        }
        for s in range(2)
    ],
    "status": "completed",
}


def device(table: dict[str, Any], server: int, index: int) -> dict[str, Any]:
    found: dict[str, Any] = table["server_list"][server]["device"][index]
    return found


PLANTED: list[tuple[Callable[[dict[str, Any]], object], list[str]]] = [
    (lambda t: t.pop("version"), ["version: missing"]),
    (lambda t: t.update(version="3"), ["version: '3' is not known"]),
    (lambda t: t.update(version="1.2"), ["version: 1.2 belongs to another chip generation"]),
    (lambda t: t.pop("status"), ["status: missing"]),
    (lambda t: t.update(status="initializing"), ["status: 'initializing', HCCL waits"]),
    (lambda t: t.pop("server_count"), ['server_count: missing. Add "server_count": "2"']),
    (lambda t: t.update(server_count="3"), ["server_count: '3', but server_list holds 2"]),
    (lambda t: t.update(server_count=2), ["server_count: 2 is a number, HCCL reads strings only"]),
    (lambda t: t.pop("server_list"), ["server_list: missing"]),
    (lambda t: t.update(server_list={}), ["server_list: an object"]),
    (
        lambda t: t.update(server_list=[], server_count="0"),
        ["server_list: empty"],
    ),
    (
        lambda t: t["server_list"].__setitem__(1, "host-b"),
        ["server_list[1]: a string. It must be an object"],
    ),
    (lambda t: t["server_list"][1].pop("server_id"), ["server_list[1].server_id: missing"]),
    (lambda t: t["server_list"][1].update(server_id=""), ["server_list[1].server_id: missing"]),
    (
        lambda t: t["server_list"][1].update(server_id="10.0.0.0"),
        ["server_list[1].server_id: '10.0.0.0' stands at server_list[0].server_id already"],
    ),
    (
        lambda t: t["server_list"][0].update(server_id="h" * 64),
        ["server_list[0].server_id: 64 characters, HCCL takes 63"],
    ),
    (
        lambda t: t["server_list"][0].update(host_ip="1.2.3.4"),
        ["server_list[1].host_ip: missing, other servers have it"],
    ),
    (lambda t: device(t, 0, 1).pop("device_id"), ["server_list[0].device[1].device_id: missing"]),
    (
        lambda t: device(t, 0, 1).update(device_id="16"),
        ["server_list[0].device[1].device_id: '16' is no device number from 0 to 15"],
    ),
    (
        lambda t: device(t, 0, 1).update(device_id="0"),
        ["server_list[0].device[1].device_id: '0' stands at server_list[0].device[0].device_id"],
    ),
    (
        lambda t: device(t, 1, 0).update(device_id=0),
        ["server_list[1].device[0].device_id: 0 is a number, HCCL reads strings only. Write"],
    ),
    (lambda t: device(t, 0, 0).pop("device_ip"), ["server_list[0].device[0].device_ip: missing"]),
    (
        lambda t: device(t, 0, 0).update(device_ip="192.168.0.256"),
        ["server_list[0].device[0].device_ip: '192.168.0.256' is no IP address"],
    ),
    (
        lambda t: device(t, 1, 1).update(device_ip="192.168.0.0"),
        ["server_list[1].device[1].device_ip: '192.168.0.0' stands at server_list[0].device[0]"],
    ),
    (
        lambda t: device(t, 1, 1).update(device_ip="10.1.1.1,10.1.1.2"),
        ["server_list[1].device[1].device_ip: 2 addresses, other devices have 1"],
    ),
    (lambda t: device(t, 1, 1).pop("rank_id"), ["server_list[1].device[1].rank_id: missing"]),
    (
        lambda t: device(t, 1, 1).update(rank_id="03"),
        ["server_list[1].device[1].rank_id: '03' is no rank"],
    ),
    (
        lambda t: device(t, 1, 1).update(rank_id=None),
        ["server_list[1].device[1].rank_id: null is null, HCCL", "[1].rank_id: missing"],
    ),
    (
        lambda t: device(t, 1, 1).update(rank_id="2"),
        [
            "server_list[1].device[1].rank_id: '2' stands at server_list[1].device[0].rank_id",
            "server_list: no device has rank 3",
        ],
    ),
    (
        lambda t: device(t, 0, 0).update(rank_id="4"),
        [
            "server_list[0].device[0].rank_id: '4', but the table holds 4 devices",
            "server_list: no device has rank 0",
        ],
    ),
    (
        lambda t: t["server_list"][1].update(device=[]),
        ["server_list[1].device: empty"],
    ),
    (
        lambda t: t["server_list"][1]["device"].pop(),
        ["server_list: servers differ in number of devices (server_list[0]: 2, server_list[1]: 1)"],
    ),
]


def test_a_good_table_has_no_fault() -> None:
    assert faults(json.dumps(GOOD)) == []


def test_a_single_server_needs_no_addresses() -> None:
    table = copy.deepcopy(GOOD)
    table.update(server_count="1", server_list=table["server_list"][:1])
    for entry in table["server_list"][0]["device"]:
        del entry["device_ip"]
    assert faults(json.dumps(table)) == []


@pytest.mark.parametrize(("plant", "told"), PLANTED)
def test_a_planted_fault_is_found_at_its_place(
    plant: Callable[[dict[str, Any]], object], told: list[str]
) -> None:
    table = copy.deepcopy(GOOD)
    plant(table)
    found = faults(json.dumps(table))
    for words in told:
        assert any(words in fault for fault in found), found


def test_every_fault_is_reported_at_once() -> None:
    table = copy.deepcopy(GOOD)
    table.update(status="initializing", server_count=2)
    device(table, 0, 0).update(rank_id="1")
    device(table, 1, 0).update(device_ip="here")
    places = {fault.partition(":")[0] for fault in faults(json.dumps(table))}
    assert places == {
        "server_count",
        "status",
        "server_list",
        "server_list[0].device[1].rank_id",
        "server_list[1].device[0].device_ip",
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1, column 1: not JSON"),
        ('{"version": "1.0",\n "status" "x"}', "line 2, column 11: not JSON"),
        ("[]", "$: a rank table is an object, not a list"),
        ('{"status": "completed", "status": "completed"}', "status: stands 2 times in one object"),
    ],
)
def test_text_that_is_no_table_is_told(text: str, told: str) -> None:
    assert any(told in fault for fault in faults(text))


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(place for key, item in items for place in places(item, (*path, key)))]
    return [path]


@pytest.mark.parametrize("odd", [None, 1, 2.5, True, [], {}, [[]], "\u0663", "-1"], ids=str)
def test_nothing_odd_anywhere_passes_or_crashes(odd: object) -> None:
    for path in places(GOOD):
        if not path or path[-1] == "host_nic_ip" and isinstance(odd, str):
            continue
        table = copy.deepcopy(GOOD)
        holder: Any = table
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = odd
        if path[-1] != "server_id" or not isinstance(odd, str):
            assert faults(json.dumps(table)), path
