"""Hosts, their devices and the rank of each: what a rank table says, before it is JSON.

Ranks are arithmetic, never stored: hosts in order, the devices of a host in order. So a cluster
cannot hold a rank twice or leave one out. `physical_id` is the N of /dev/davinciN, not the index
that a process sees when only some devices are visible to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class RankTableError(ValueError):
    """What a user can put right: a table, a device list or an environment that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One NPU, or one worker's slot on CPU. `address` is None where it is not known.

    `super_device_id` is the device's number in its super pod (Atlas A3), None outside one.
    """

    physical_id: int
    address: str | None = None
    super_device_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine. `name` is for people, `server_id` for the rank table."""

    name: str
    server_id: str
    devices: tuple[Device, ...]
    host_ip: str | None = None
    super_pod_id: str | None = None


class Seat(NamedTuple):
    """Where one rank sits."""

    rank: int
    host: Host
    local_rank: int
    device: Device


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """All hosts of a job. `source` names the evidence in one phrase; `assumed` if nobody looked."""

    hosts: tuple[Host, ...]
    source: str
    assumed: bool

    def __post_init__(self) -> None:
        if not self.hosts or not all(host.devices for host in self.hosts):
            raise RankTableError(f"{self.source}: every host of a job needs at least one device.")

    @property
    def world_size(self) -> int:
        return sum(len(host.devices) for host in self.hosts)

    def __iter__(self) -> Iterator[Seat]:
        rank = 0
        for host in self.hosts:
            for local_rank, device in enumerate(host.devices):
                yield Seat(rank, host, local_rank, device)
                rank += 1
