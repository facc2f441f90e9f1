"""HCCL's rank table, JSON v1.0: written and read. Text in, text out; no file is touched here.

The trap: `device_id` is the physical id, whatever ASCEND_RT_VISIBLE_DEVICES says, so with devices
4-7 visible, local rank 0 stands as device 4.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice

from .check import COMPLETED, VERSION
from .check import faults as faults
from .topology import Cluster, Device, Host, RankTableError


@dataclass(frozen=True, kw_only=True)
class TableDevice:
    """One entry of `device`. `device_ip` may hold several addresses, joined by commas."""

    device_id: int
    device_ip: str | None
    rank_id: int


@dataclass(frozen=True, kw_only=True)
class TableServer:
    server_id: str
    devices: tuple[TableDevice, ...]


@dataclass(frozen=True, kw_only=True)
class RankTable:
    servers: tuple[TableServer, ...]

    @property
    def world_size(self) -> int:
        return sum(len(server.devices) for server in self.servers)


def from_cluster(cluster: Cluster) -> RankTable:
    """Write down who sits where."""
    seats = iter(cluster)
    return RankTable(
        servers=tuple(
            TableServer(
                server_id=host.server_id,
                devices=tuple(
                    TableDevice(
                        device_id=seat.device.physical_id,
                        device_ip=seat.device.address,
                        rank_id=seat.rank,
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
                    Device(physical_id=device.device_id, address=device.device_ip)
                    for device in sorted(server.devices, key=lambda device: device.rank_id)
                ),
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
    servers = []
    for server in table.servers:
        devices = []
        for device in server.devices:
            entry = {"device_id": str(device.device_id)}
            if device.device_ip is not None:
                entry["device_ip"] = device.device_ip
            devices.append(entry | {"rank_id": str(device.rank_id)})
        servers.append({"server_id": server.server_id, "host_nic_ip": "reserve", "device": devices})
    document = {
        "version": VERSION,
        "server_count": str(len(table.servers)),
        "server_list": servers,
        "status": COMPLETED,
    }
    return json.dumps(document, indent=2) + "\n"


def parse(text: str, source: str = "rank table") -> RankTable:
    """Read a table without faults; anything else is one error that lists them all."""
    found = faults(text)
    if found:
        raise RankTableError(f"{source}: " + "; ".join(found))
    document = json.loads(text)
    return RankTable(
        servers=tuple(
            TableServer(
                server_id=server["server_id"],
                devices=tuple(
                    TableDevice(
                        device_id=int(device["device_id"]),
                        device_ip=device.get("device_ip") or None,
                        rank_id=int(device["rank_id"]),
                    )
                    for device in server["device"]
                ),
            )
            for server in document["server_list"]
        )
    )
