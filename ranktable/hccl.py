"""HCCL's rank table, JSON v1.0 and v1.2: written and read. Text in, text out, no file is touched.

The trap: `device_id` is the physical id, whatever ASCEND_RT_VISIBLE_DEVICES says, so with devices
4-7 visible, local rank 0 stands as device 4. The version follows the chip: 1.2 is for super pods
(Atlas A3), 1.0 for all else that this writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from . import superpods
from .check import COMPLETED, VERSION
from .check import faults as faults
from .topology import Cluster, Device, Host, RankTableError

MOST_FAULTS_TOLD = 20
SERVER_KEYS = frozenset({"server_id", "host_nic_ip", "host_ip", "device"})
DEVICE_KEYS = frozenset({"device_id", "device_ip", "rank_id", "super_device_id"})

Others = tuple[tuple[str, str], ...]  # keys and values that are handed on as they stand


@dataclass(frozen=True, kw_only=True)
class TableDevice:
    """One entry of `device`. `device_ip` may hold several addresses, joined by commas.

    `others` are further keys with text values: ports, the spare card's address.
    """

    device_id: int
    device_ip: str | None
    rank_id: int
    super_device_id: int | None = None
    others: Others = ()


@dataclass(frozen=True, kw_only=True)
class TableServer:
    """One entry of `server_list`. `others` are further keys, such as MindSpore's `pod_ip`."""

    server_id: str
    devices: tuple[TableDevice, ...]
    host_ip: str | None = None
    super_pod_id: str | None = None
    others: Others = ()


@dataclass(frozen=True, kw_only=True)
class RankTable:
    """`declared`: the version that a file gave, where its servers alone would mean another."""

    servers: tuple[TableServer, ...]
    declared: str | None = None

    @property
    def world_size(self) -> int:
        return sum(len(server.devices) for server in self.servers)

    @property
    def version(self) -> str:
        """1.2 where the table speaks of a super pod, else what was declared, or 1.0."""
        in_pod = any(server.super_pod_id is not None for server in self.servers)
        numbered = any(d.super_device_id is not None for s in self.servers for d in s.devices)
        return superpods.VERSION if in_pod or numbered else self.declared or VERSION


def from_cluster(cluster: Cluster) -> RankTable:
    """Write down who sits where.

    `host_ip` goes into tables of super pods only: in version 1.0, HCCL of older CANN takes it as
    an order to use the host's network card instead of the devices' own.
    """
    seats = iter(cluster)
    return RankTable(
        servers=tuple(
            TableServer(
                server_id=host.server_id,
                host_ip=host.host_ip if host.super_pod_id is not None else None,
                super_pod_id=host.super_pod_id,
                devices=tuple(
                    TableDevice(
                        device_id=seat.device.physical_id,
                        device_ip=seat.device.address,
                        rank_id=seat.rank,
                        super_device_id=(
                            seat.device.super_device_id if host.super_pod_id is not None else None
                        ),
                    )
                    for seat in islice(seats, len(host.devices))
                ),
            )
            for host in cluster.hosts
        )
    )


def to_cluster(table: RankTable, source: str) -> Cluster:
    """Read the hosts and devices off a table, in the order of its ranks."""
    servers = sorted(table.servers, key=lambda server: min(d.rank_id for d in server.devices))
    cluster = Cluster(
        hosts=tuple(
            Host(
                name=server.server_id,
                server_id=server.server_id,
                devices=tuple(
                    Device(
                        physical_id=device.device_id,
                        address=device.device_ip,
                        super_device_id=device.super_device_id,
                    )
                    for device in sorted(server.devices, key=lambda device: device.rank_id)
                ),
                host_ip=server.host_ip,
                super_pod_id=server.super_pod_id,
            )
            for server in servers
        ),
        source=source,
        assumed=False,
    )
    by_rank = {d.rank_id: (s.server_id, d.device_id) for s in table.servers for d in s.devices}
    for seat in cluster:
        if by_rank[seat.rank] != (seat.host.server_id, seat.device.physical_id):
            raise RankTableError(
                f"{source}: the ranks of server {seat.host.server_id!r} do not follow each other; "
                "msrun numbers the workers of a host consecutively. Renumber rank_id host by host."
            )
    return cluster


def render(table: RankTable) -> str:
    """Write the table as HCCL reads it. An unknown address is left out, not written empty."""
    version = table.version
    super_pods: dict[str, list[dict[str, str]]] = {}
    for server in table.servers:
        if server.super_pod_id is not None:
            members = super_pods.setdefault(server.super_pod_id, [])
            members.append({"server_id": server.server_id})
    document: dict[str, object] = {
        "version": version,
        "server_count": str(len(table.servers)),
        "server_list": [_server(server, version) for server in table.servers],
    }
    if super_pods:
        document[superpods.LIST] = [
            {"super_pod_id": name, "server_list": members} for name, members in super_pods.items()
        ]
    return json.dumps(document | {"status": COMPLETED}, indent=2) + "\n"


def _server(server: TableServer, version: str) -> dict[str, object]:
    entry: dict[str, object] = {"server_id": server.server_id}
    if version == VERSION:
        entry["host_nic_ip"] = "reserve"
    if server.host_ip is not None:
        entry["host_ip"] = server.host_ip
    return entry | dict(server.others) | {"device": [_device(d) for d in server.devices]}


def _device(device: TableDevice) -> dict[str, str]:
    entry = {"device_id": str(device.device_id)}
    if device.device_ip is not None:
        entry["device_ip"] = device.device_ip
    if device.super_device_id is not None:
        entry["super_device_id"] = str(device.super_device_id)
    return entry | dict(device.others) | {"rank_id": str(device.rank_id)}


def parse(text: str, source: str = "rank table") -> RankTable:
    """Read a table without faults; anything else is one error that lists them."""
    found = faults(text)
    if found:
        raise refusal(source, found)
    document = json.loads(text)
    in_pods = document["version"] == superpods.VERSION
    pod_of = {
        member["server_id"]: pod["super_pod_id"]
        for pod in (document.get(superpods.LIST, ()) if in_pods else ())
        for member in pod["server_list"]
    }
    table = RankTable(
        servers=tuple(
            TableServer(
                server_id=server["server_id"],
                devices=tuple(
                    TableDevice(
                        device_id=int(device["device_id"]),
                        device_ip=device.get("device_ip") or None,
                        rank_id=int(device["rank_id"]),
                        super_device_id=(
                            int(device["super_device_id"])
                            if in_pods and "super_device_id" in device
                            else None
                        ),
                        others=_others(device, DEVICE_KEYS),
                    )
                    for device in server["device"]
                ),
                host_ip=server.get("host_ip"),
                super_pod_id=pod_of.get(server["server_id"]),
                others=_others(server, SERVER_KEYS),
            )
            for server in document["server_list"]
        )
    )
    declared = document["version"]
    return table if table.version == declared else replace(table, declared=declared)


def _others(entry: Mapping[str, object], ours: frozenset[str]) -> Others:
    return tuple((k, v) for k, v in entry.items() if k not in ours and isinstance(v, str))


def refusal(source: str, found: Sequence[str]) -> RankTableError:
    """Make one error of the faults of a table; thousands are not put on one line."""
    more = len(found) - MOST_FAULTS_TOLD
    told = [*found[:MOST_FAULTS_TOLD], *([f"and {more} faults more"] if more > 0 else [])]
    return RankTableError(f"{source}: {'; '.join(told)}")
