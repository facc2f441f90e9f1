"""Each planted fault is found at its place, and a good table has none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from clusters import PROPERTY
from hypothesis import given
from hypothesis import strategies as st

from mindbooth.ranktable.check import faults, warnings

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

SUPER_POD: dict[str, Any] = {
    "version": "1.2",
    "server_count": "4",
    "server_list": [
        {
            "server_id": f"node_{s}",
            "host_ip": f"172.16.0.{s}",
            "device": [
                {
                    "device_id": str(d),
                    "device_ip": f"192.168.{d}.{s}",
                    "super_device_id": str(s % 2 * 2 + d),
                    "device_port": "16666",
                    "backup_device_ip": f"192.168.{1 - d}.{s}",
                    "backup_device_port": "16667",
                    "rank_id": str(s * 2 + d),
                }
                for d in range(2)
            ],
        }
        for s in range(4)
    ],
    "super_pod_list": [
        {
            "super_pod_id": f"pod_{p}",
            "server_list": [{"server_id": f"node_{p * 2 + s}"} for s in range(2)],
        }
        for p in range(2)
    ],
    "status": "completed",
}


def device(table: dict[str, Any], server: int, index: int) -> dict[str, Any]:
    found: dict[str, Any] = table["server_list"][server]["device"][index]
    return found


PLANTED: list[tuple[Callable[[dict[str, Any]], object], list[str]]] = [
    (lambda t: t.pop("version"), ["version: missing"]),
    (lambda t: t.update(version="3"), ["version: '3' is not known"]),
    (lambda t: t.update(version="2.0"), ["version: 2.0 is for chip generation A5"]),
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
    (
        lambda t: t["server_list"][0].update(server_id="host\x1b[2J"),
        [r"server_list[0].server_id: 'host\x1b[2J' is not plain ASCII"],
    ),
    (
        lambda t: [server.update(host_ip="10.0.0") for server in t["server_list"]],
        ["server_list[1].host_ip: '10.0.0' is no IP address"],
    ),
    (
        lambda t: (
            device(t, 0, 0).update(device_ip="::ffff:1", rank_id="0")
            or device(t, 0, 1).update(device_ip="0:0::ffff:0001")
        ),
        ["server_list[0].device[1].device_ip: '0:0::ffff:0001' stands at server_list[0].device[0]"],
    ),
    (
        lambda t: device(t, 1, 0).update(host_port="65536"),
        ["server_list[1].device[0].host_port: '65536' is no port from 1 to 65535"],
    ),
    (
        lambda t: device(t, 1, 0).update(device_port="0"),
        ["server_list[1].device[0].device_port: '0' is no port"],
    ),
    (
        lambda t: t["server_list"][1].update(device={"0": {}}),
        ["server_list[1].device: an object. It must be a list"],
    ),
    (
        lambda t: t.update(comment={"a": [{"b": 7}]}),
        ["comment.a[0].b: 7 is a number"],
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
        lambda t: device(t, 1, 1).update(device_ip="192.168.1.1,192.168.1.1"),
        ["server_list[1].device[1].device_ip: '192.168.1.1' stands at server_list[1].device[1]"],
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

PLANTED_IN_SUPER_PODS: list[tuple[Callable[[dict[str, Any]], object], list[str]]] = [
    (lambda t: t.update(super_pod_list=[]), ["super_pod_list: empty"]),
    (lambda t: t.update(super_pod_list={"0": "node_0"}), ["super_pod_list: an object"]),
    (
        lambda t: t["super_pod_list"][1].pop("super_pod_id"),
        ["super_pod_list[1].super_pod_id: missing"],
    ),
    (
        lambda t: t["super_pod_list"][1].update(super_pod_id=1),
        ["super_pod_list[1].super_pod_id: 1 is a number"],
    ),
    (
        lambda t: t["super_pod_list"][1].update(super_pod_id="pod_0"),
        ["super_pod_list[1].super_pod_id: 'pod_0' stands at super_pod_list[0].super_pod_id"],
    ),
    (
        lambda t: t["super_pod_list"][1].update(super_pod_id="pod 1"),
        ["super_pod_list[1].super_pod_id: 'pod 1' is not plain ASCII"],
    ),
    (
        lambda t: t["super_pod_list"][1].pop("server_list"),
        [
            "super_pod_list[1].server_list: missing",
            "server_list[2].server_id: 'node_2' is in no super pod",
            "server_list[3].server_id: 'node_3' is in no super pod",
        ],
    ),
    (
        lambda t: t["super_pod_list"][0]["server_list"][1].update(server_id="node_9"),
        [
            "super_pod_list[0].server_list[1].server_id: 'node_9' is not in server_list",
            "server_list[1].server_id: 'node_1' is in no super pod",
        ],
    ),
    (
        lambda t: t["super_pod_list"][0]["server_list"][1].pop("server_id"),
        ["super_pod_list[0].server_list[1].server_id: missing"],
    ),
    (
        lambda t: t["super_pod_list"][1]["server_list"][0].update(server_id="node_0"),
        [
            "super_pod_list[1].server_list[0].server_id: 'node_0' stands at "
            "super_pod_list[0].server_list[0].server_id already",
        ],
    ),
    (
        lambda t: t["super_pod_list"][1]["server_list"].pop(),
        [
            "server_list[3].server_id: 'node_3' is in no super pod",
            "super_pod_list: super pods differ in number of servers "
            "(super_pod_list[0]: 2, super_pod_list[1]: 1). Make them equal, or leave the table out "
            "(--rank_table off).",
        ],
    ),
    (
        lambda t: device(t, 2, 1).pop("super_device_id"),
        ["server_list[2].device[1].super_device_id: missing, super_pod_list needs it"],
    ),
    (
        lambda t: device(t, 2, 1).update(super_device_id="0x3000000"),
        ["server_list[2].device[1].super_device_id: '0x3000000' is no number"],
    ),
    (
        lambda t: device(t, 2, 1).update(super_device_id="4294967295"),
        ["server_list[2].device[1].super_device_id: '4294967295' is no number"],
    ),
    (
        lambda t: device(t, 1, 1).update(super_device_id="0"),
        [
            "server_list[1].device[1].super_device_id: '0' stands at "
            "server_list[0].device[0].super_device_id already",
        ],
    ),
    (
        lambda t: device(t, 3, 0).pop("device_ip"),
        ["server_list[3].device[0].device_ip: missing, several servers need it"],
    ),
    (
        lambda t: device(t, 3, 0).update(backup_device_ip="192.168.1"),
        ["server_list[3].device[0].backup_device_ip: '192.168.1' is no IP address"],
    ),
    (
        lambda t: device(t, 3, 0).update(backup_device_ip="192.168.0.3"),
        [
            "server_list[3].device[0].backup_device_ip: '192.168.0.3' is the device's own",
            "server_list[3].device[1].backup_device_ip: '192.168.0.3' stands at "
            "server_list[3].device[0].backup_device_ip already",
        ],
    ),
    (
        lambda t: device(t, 3, 0).update(backup_device_port="port"),
        ["server_list[3].device[0].backup_device_port: 'port' is no port"],
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


@pytest.mark.parametrize(("plant", "told"), PLANTED_IN_SUPER_PODS)
def test_a_fault_planted_in_super_pods_is_found_at_its_place(
    plant: Callable[[dict[str, Any]], object], told: list[str]
) -> None:
    table = copy.deepcopy(SUPER_POD)
    assert faults(json.dumps(table)) == []
    plant(table)
    found = faults(json.dumps(table))
    for words in told:
        assert any(words in fault for fault in found), found


def without_addresses(table: dict[str, Any]) -> str:
    table = copy.deepcopy(table)
    for server in table["server_list"]:
        for entry in server["device"]:
            del entry["device_ip"]
    return json.dumps(table)


@pytest.mark.parametrize(
    ("change", "addresses", "needed"),
    [
        ({}, None, True),
        ({"super_pod_list": SUPER_POD["super_pod_list"][:1]}, None, False),
        ({}, False, False),
        ({"super_pod_list": SUPER_POD["super_pod_list"][:1]}, True, True),
    ],
)
def test_addresses_are_needed_between_super_pods_only(
    change: dict[str, Any], addresses: bool | None, needed: bool
) -> None:
    found = faults(without_addresses(SUPER_POD | change), addresses=addresses)
    assert any("device_ip: missing" in fault for fault in found) is needed


def test_one_number_may_stand_in_two_super_pods() -> None:
    ids = [device(SUPER_POD, server, 0)["super_device_id"] for server in (0, 2)]
    assert ids == ["0", "0"]
    assert faults(json.dumps(SUPER_POD)) == []


def test_a_table_of_generation_a5_is_named_as_such_and_nothing_else_is_said() -> None:
    table = {
        "version": "2.0",
        "status": "completed",
        "rank_count": 1,
        "rank_list": [{"rank_id": 0}],
    }
    (found,) = faults(json.dumps(table))
    assert found.startswith("version: 2.0 is for chip generation A5")
    (found,) = faults(json.dumps({"rank_list": []}))
    assert "A5" in found


def test_an_older_layout_is_named_as_such_and_nothing_else_is_said() -> None:
    (found,) = faults(json.dumps({"group_list": [], "status": "completed"}))
    assert found.startswith("group_list: an older layout")


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
        ("[" * 200_000, "$: nested too deeply"),
        ('{"rank_id": ' + "9" * 10_000 + "}", "$: nested too deeply, or a number of thousands"),
        ('{"a": ' * 30 + "{}" + "}" * 30, "a.a.a.a.a.a.a.a: nested deeper than any rank table"),
    ],
)
def test_text_that_is_no_table_is_told(text: str, told: str) -> None:
    assert any(told in fault for fault in faults(text))


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [path, *(place for key, item in items for place in places(item, (*path, key)))]
    return [path]


@pytest.mark.parametrize("good", [GOOD, SUPER_POD], ids=["1.0", "1.2"])
@pytest.mark.parametrize("odd", [None, 1, 2.5, True, [], {}, [[]], "\u0663", "-1"], ids=str)
def test_nothing_odd_anywhere_passes_or_crashes(odd: object, good: dict[str, Any]) -> None:
    for path in places(good):
        if not path or path[-1] == "host_nic_ip" and isinstance(odd, str):
            continue
        table = copy.deepcopy(good)
        holder: Any = table
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = odd
        if path[-1] not in ("server_id", "super_pod_id") or odd != "-1":
            assert faults(json.dumps(table)), path


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["version", "server_list", "device", "super_pod_list", "server_id"])
            | st.text(),
            inner,
            max_size=4,
        )
    ),
)


@PROPERTY
@given(st.text() | JSON.map(json.dumps))
def test_whatever_a_file_holds_is_told_in_plain_lines(text: str) -> None:
    found = faults(text)
    assert found
    assert all(fault.isprintable() and len(fault) < 1000 for fault in found)
    assert warnings(text) == []


def test_good_tables_carry_no_warning() -> None:
    assert warnings(json.dumps(GOOD)) == []
    assert warnings(json.dumps(SUPER_POD)) == []


def renamed(*server_ids: str) -> Callable[[dict[str, Any]], None]:
    def rename(table: dict[str, Any]) -> None:
        for server, name in zip(table["server_list"], server_ids, strict=True):
            server["server_id"] = name

    return rename


def ranked(*ranks: str) -> Callable[[dict[str, Any]], None]:
    def rank(table: dict[str, Any]) -> None:
        for index, value in enumerate(ranks):
            device(table, index // 2, index % 2)["rank_id"] = value

    return rank


@pytest.mark.parametrize(
    ("good", "change", "told"),
    [
        (
            GOOD,
            renamed("10.0.0.9", "10.0.0.10"),
            ["server_list[1].server_id: 10.0.0.10 has higher ranks than 10.0.0.9, but as text"],
        ),
        (GOOD, renamed("host-a", "host-b"), []),
        (
            GOOD,
            ranked("2", "3", "0", "1"),
            ["server_list[0].server_id: 10.0.0.0 has higher ranks than 10.0.0.1, but as text"],
        ),
        (
            GOOD,
            ranked("1", "0", "2", "3"),
            ["server_list[0].device[0].rank_id: 1 breaks the order"],
        ),
        (
            GOOD,
            ranked("0", "2", "1", "3"),
            ["server_list[1].device[0].rank_id: 1 breaks the order"],
        ),
        (
            GOOD,
            ranked("0", "3", "1", "2"),
            ["server_list[1].device[0].rank_id: 1 breaks the order"],
        ),
        (
            GOOD,
            lambda t: [server.update(host_ip="10.1.1.1") for server in t["server_list"]],
            ["server_list[0].host_ip: with it, HCCL of older CANN"],
        ),
        (GOOD, lambda t: t.update(super_pod_list=[]), ["super_pod_list: not read"]),
        (
            GOOD,
            lambda t: device(t, 0, 0).update(super_device_id="1"),
            ["super_device_id: not read in a table of version 1.0"],
        ),
        (
            GOOD,
            lambda t: (
                t.update(server_count="1", server_list=t["server_list"][:1])
                or device(t, 0, 1).pop("device_ip")
            ),
            [],
        ),
        (
            SUPER_POD,
            lambda t: (
                t.update(server_count="2", server_list=t["server_list"][:2])
                or t["super_pod_list"].pop()
                and [one.pop("backup_device_ip") for one in t["server_list"][0]["device"]]
                and device(t, 0, 1).pop("device_ip")
            ),
            ["server_list[0].device[1].device_ip: missing (1 devices in all)"],
        ),
        (
            GOOD,
            lambda t: [
                server["device"].append(
                    {"device_id": "2", "device_ip": f"192.168.2.{s}", "rank_id": str(s * 3 + 2)}
                )
                or server["device"][0].update(rank_id=str(s * 3))
                or server["device"][1].update(rank_id=str(s * 3 + 1))
                for s, server in enumerate(t["server_list"])
            ],
            ["server_list: 3 devices a server"],
        ),
        (SUPER_POD, lambda t: t.pop("super_pod_list"), ["super_pod_list: missing. HCCL then"]),
        (
            SUPER_POD,
            lambda t: device(t, 0, 0).update(backup_device_ip="192.168.9.9"),
            ["server_list[0].device[0].backup_device_ip: 192.168.9.9 is the device_ip of no"],
        ),
    ],
)
def test_what_is_accepted_but_may_not_be_meant_is_said(
    good: dict[str, Any], change: Callable[[dict[str, Any]], object], told: list[str]
) -> None:
    table = copy.deepcopy(good)
    change(table)
    text = json.dumps(table)
    assert faults(text) == []
    found = warnings(text)
    assert len(found) == len(told), found
    for words, warning in zip(told, found, strict=True):
        assert warning.startswith(words)
