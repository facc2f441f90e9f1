"""Which devices a launch uses, on this one host: options and what was seen -> `Choice`.

Pure. NPUs are named by physical id (the N of /dev/davinciN) everywhere but in
ASCEND_RT_VISIBLE_DEVICES, which counts the nodes that this machine or container has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mindbooth.ranktable import hccl
from mindbooth.ranktable.check import LONGEST_SERVER_ID, address_bytes
from mindbooth.ranktable.discover import logic_ids, visible
from mindbooth.ranktable.topology import Cluster, Device, Host

from .options import DeviceTarget, LaunchConfig, LaunchError

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was seen of this machine. `devices` are all NPUs that it has nodes for."""

    name: str
    devices: tuple[Device, ...]
    cores: int
    python: Path
    environ: Mapping[str, str]
    super_pod_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`visible`: what ASCEND_RT_VISIBLE_DEVICES must become, None to leave it as it is."""

    target: DeviceTarget
    cluster: Cluster
    visible: str | None


def choose(
    config: LaunchConfig,
    machine: Machine,
    table_text: str | None,
    *,
    nnodes: int = 1,
    node_rank: int = 0,
) -> Choice:
    """Decide this host's target and devices. `table_text` is the content of --rank_table PATH."""
    target = config.device_target or ("Ascend" if machine.devices else "CPU")
    if target == "CPU":
        return Choice(target=target, cluster=_cpu(config, machine), visible=None)
    given = None if table_text is None else _given(config, table_text, nnodes, node_rank)
    asked = config.devices
    if asked is None and given is not None:
        asked = tuple(seat.device.physical_id for seat in given)
    choice = (_seen if machine.devices else _assumed)(config, machine, asked)
    if given is not None:
        _agree(config, choice.cluster, given)
    return choice


def _cpu(config: LaunchConfig, machine: Machine) -> Cluster:
    """Give each worker a slot; one worker by default, as MindSpore's operators use all cores."""
    if config.devices is not None:
        raise LaunchError(
            f"--devices {listed(config.devices)} names NPUs, but training is on the CPU "
            f"({_why_cpu(config)}). Use --nproc_per_node, or pass --device_target Ascend."
        )
    if isinstance(config.rank_table, Path):
        raise LaunchError(
            f"--rank_table {config.rank_table}: CPU workers read no rank table "
            f"({_why_cpu(config)}). Leave it out, or pass --device_target Ascend."
        )
    count = config.nproc_per_node or 1
    return Cluster(
        hosts=(_host(machine, tuple(Device(physical_id=i) for i in range(count))),),
        source=f"--nproc_per_node {count}" if config.nproc_per_node else "one uses all cores",
        assumed=False,
    )


def _why_cpu(config: LaunchConfig) -> str:
    return "--device_target CPU" if config.device_target else "no /dev/davinciN here"


def _seen(config: LaunchConfig, machine: Machine, asked: tuple[int, ...] | None) -> Choice:
    """Choose among the NPUs that this machine, and what was set before us, lets us see."""
    limit = machine.environ.get(VISIBLE)
    usable = machine.devices if limit is None else visible(machine.devices, limit)
    source = "/dev/davinci*" if limit is None else f"/dev/davinci*, {VISIBLE}={limit}"
    present = [device.physical_id for device in usable]
    if asked is not None:
        missing = [i for i in asked if i not in present]
        if missing:
            raise LaunchError(
                f"devices {listed(asked)} were asked for, but {source} gives "
                f"{listed(present) or 'none'}. Ask for those."
            )
        usable = tuple(device for device in usable if device.physical_id in asked)
    count = config.nproc_per_node or len(usable)
    if count > len(usable) or not usable:
        raise LaunchError(
            f"--nproc_per_node {config.nproc_per_node or 'auto'}, but {source} gives "
            f"{len(usable)} devices ({listed(present) or 'none'}). One worker needs one device."
        )
    chosen = usable[:count]
    subset = [device.physical_id for device in chosen] != present
    return Choice(
        target="Ascend",
        cluster=Cluster(hosts=(_host(machine, chosen),), source=source, assumed=False),
        visible=listed(logic_ids(machine.devices, chosen)) if subset else None,
    )


def _assumed(config: LaunchConfig, machine: Machine, asked: tuple[int, ...] | None) -> Choice:
    """Take the devices that were asked for on trust: another machine than this one is meant."""
    if asked is None and config.nproc_per_node is None:
        raise LaunchError(
            "--device_target Ascend, but there is no /dev/davinciN here to count. "
            "Pass --nproc_per_node or --devices to plan for another machine."
        )
    ids = asked if asked is not None else tuple(range(config.nproc_per_node or 0))
    devices = tuple(Device(physical_id=i) for i in ids)
    source = "assumed, no /dev/davinciN here"
    return Choice(
        target="Ascend",
        cluster=Cluster(hosts=(_host(machine, devices),), source=source, assumed=True),
        visible=None if asked is None else listed(asked),
    )


def _given(config: LaunchConfig, text: str, nnodes: int, node_rank: int) -> Cluster:
    """Read this host's part off a table; servers stand in it in the order of node ranks."""
    cluster = hccl.to_cluster(hccl.parse(text, str(config.rank_table)), str(config.rank_table))
    if len(cluster.hosts) != nnodes:
        raise LaunchError(
            f"--rank_table {config.rank_table} names {len(cluster.hosts)} servers, but the job "
            f"has {nnodes} hosts. Give --nnodes {len(cluster.hosts)}, or another table."
        )
    return replace(cluster, hosts=(cluster.hosts[node_rank],))


def _agree(config: LaunchConfig, cluster: Cluster, given: Cluster) -> None:
    ours = [seat.device.physical_id for seat in cluster]
    theirs = [seat.device.physical_id for seat in given]
    if ours != theirs:
        raise LaunchError(
            f"--rank_table {config.rank_table} puts this host's ranks on devices {listed(theirs)}, "
            f"the workers would sit on {listed(ours)}. Leave out --devices and "
            "--nproc_per_node, or correct the table (ranks follow ascending device ids)."
        )
    for seat, told in zip(cluster, given, strict=True):
        here, there = seat.device.address, told.device.address
        if here is None or there is None:
            continue
        if address_bytes(here) not in map(address_bytes, there.split(",")):
            raise LaunchError(
                f"--rank_table {config.rank_table} gives device {seat.device.physical_id} of this "
                f"host the address {there}, here it is {here}. Servers stand in the table in the "
                "order of node ranks: correct it, or --node_rank."
            )


def _host(machine: Machine, devices: tuple[Device, ...]) -> Host:
    return Host(
        name=machine.name,
        server_id=machine.name[:LONGEST_SERVER_ID],
        devices=devices,
        super_pod_id=machine.super_pod_id if machine.devices else None,
    )


def listed(ids: Sequence[int]) -> str:
    """Write numbers the way that --devices takes them."""
    return ",".join(map(str, ids))
