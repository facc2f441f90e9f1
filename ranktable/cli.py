"""`mindbooth ranktable write|show|check|merge|convert`: rank tables for people.

`mindbooth launch` needs none of these. They are for those who start msrun themselves, who are given
a table by a platform, or who want to know what is wrong with one. The options are in arguments.py.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import arguments, check, discover, hccl, merge, reader
from .hccl import RankTable
from .topology import Cluster, Device, Host, RankTableError

BAD_INPUT = 2
VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def main(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    dev: Path = discover.DEV,
    hccn_conf: Path = discover.HCCN_CONF,
) -> int:
    """Run one command. What it would look at on this machine can be handed in."""
    options = arguments.parser().parse_args(argv)
    if options.command == "show":
        print(as_text(reader.read(options.file)), end="")
        return 0
    if options.command == "check":
        return max([_check(file) for file in options.files])
    if options.command == "merge":
        tables = [reader.read(file) for file in options.files]
        table = merge.merge(tables, [str(file) for file in options.files])
    elif options.command == "convert":
        table = reader.read(options.file, wait_seconds=options.wait_seconds)
    else:
        environ = os.environ if environ is None else environ
        devices = choose(discover.ask(dev, hccn_conf), options.devices, environ.get(VISIBLE))
        table = _write(options, devices, environ.get("PATH", ""))
    return _deliver(table, options.output)


def choose(
    machine: tuple[Device, ...], asked: tuple[int, ...] | None, limit: str | None
) -> tuple[Device, ...]:
    """Pick the devices of a table: what is here and visible, and of that what was asked for."""
    source = "/dev/davinci*" + ("" if limit is None else f", {VISIBLE}={limit}")
    usable = machine if limit is None else discover.visible(machine, limit)
    present = [device.physical_id for device in usable]
    missing = [number for number in asked or () if number not in present]
    if missing or not usable:
        wanted = "an NPU was" if asked is None else f"--devices {arguments.listed(asked)} were"
        raise RankTableError(
            f"{wanted} asked for, but {source} gives {arguments.listed(present) or 'none'}. "
            "Run this on the host that the table is for, or ask for what is there."
        )
    return tuple(d for d in usable if asked is None or d.physical_id in asked)


def as_text(table: RankTable) -> str:
    """Draw a table, a line a rank."""
    in_pods = table.version != check.VERSION
    seats = sorted(
        ((server, device) for server in table.servers for device in server.devices),
        key=lambda seat: seat[1].rank_id,
    )
    rows = [("rank", "host", "device", "address", "super pod", "number in it")]
    rows += [
        (
            str(device.rank_id),
            server.server_id,
            str(device.device_id),
            device.device_ip or "-",
            server.super_pod_id or "-",
            "-" if device.super_device_id is None else str(device.super_device_id),
        )
        for server, device in seats
    ]
    kept = [row if in_pods else row[:4] for row in rows]
    widths = [max(map(len, column)) for column in zip(*kept, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in kept)
    return f"{summary(table)}\n\n" + "".join(f"{line.rstrip()}\n" for line in lines)


def summary(table: RankTable) -> str:
    """Say in one line what a table is; the hash tells whether two hosts hold the same one."""
    return (
        f"version {table.version}, {_count(len(table.servers), 'host')}, "
        f"{_count(table.world_size, 'rank')}, sha256 {merge.digest(table)[:16]}"
    )


def _write(options: argparse.Namespace, devices: tuple[Device, ...], path: str) -> RankTable:
    several = (options.folder, options.nnodes, options.node_rank)
    if None in several and {*several, options.wait_seconds} != {None}:
        raise RankTableError(
            "--folder, --nnodes and --node_rank belong together, and --wait_seconds to them: give "
            "them for a job on several hosts, none of them for one host."
        )
    if options.folder and options.node_rank >= options.nnodes:
        raise RankTableError(
            f"--node_rank {options.node_rank}, but --nnodes {options.nnodes}: the hosts are "
            "numbered from 0, so the last one is --nnodes - 1. Correct one of them."
        )
    devices = discover.addresses(devices, path=path)
    super_pod_id = None
    if options.super_pod == "auto":
        devices, super_pod_id = discover.super_pod(devices, path=path)
    name = socket.gethostname()
    host = Host(
        name=name,
        server_id=options.server_id or name[: check.LONGEST_SERVER_ID],
        devices=devices,
        super_pod_id=super_pod_id,
    )
    mine = hccl.from_cluster(Cluster(hosts=(host,), source="this host", assumed=False))
    alone = options.folder is None
    # What is wrong with this host's part is told here and now, not after the others have waited.
    _refuse("the table of this host", mine, addresses=not alone and super_pod_id is None)
    if alone:
        return mine
    print(
        f"mindbooth: {options.nnodes} hosts meet in {options.folder}", file=sys.stderr, flush=True
    )
    waits = options.wait_seconds
    return merge.hand_over(
        options.folder,
        mine,
        host_index=options.node_rank,
        hosts=[f"host {i}" for i in range(options.nnodes)],
        wait_seconds=arguments.WAIT_SECONDS if waits is None else waits,
    )


def _check(file: Path) -> int:
    try:
        file, text = reader.look(file)
    except RankTableError as err:
        print(err)
        return BAD_INPUT
    found = check.faults(text)
    said = _count(len(found), "fault") if found else f"good, {summary(hccl.parse(text))}"
    print(f"{file}: {said}")
    for line in found:
        print(f"  {line}")
    for line in check.warnings(text):
        print(f"  warning: {line}")
    return BAD_INPUT if found else 0


def _deliver(table: RankTable, output: Path) -> int:
    """Write what HCCL can use, or refuse it; warnings go where they are in no program's way."""
    _refuse("the table is not written", table)
    text = hccl.render(table)
    for line in check.warnings(text):
        print(f"mindbooth: warning: {line}", file=sys.stderr)
    if output == arguments.STDOUT:
        print(text, end="")
    else:
        merge.publish(output, text)
        print(f"{output}: {summary(table)}")
    return 0


def _refuse(what: str, table: RankTable, addresses: bool | None = None) -> None:
    found = check.faults(hccl.render(table), addresses=addresses)
    if found:
        raise hccl.refusal(what, found)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
