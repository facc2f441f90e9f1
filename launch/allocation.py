"""What a scheduler gives a job, and what the command line says of it -> one `Allocation`.

Pure. The detectors of `schedulers.py` make the record, `surroundings.py` has the command line laid
beside it. Trap: what a scheduler does not tell has no default, it must stand on the command line;
what it does tell may be repeated there, not changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .hostlist import parse_name, position, shown
from .options import LaunchError

# How each scheduler starts one launcher a host.
STARTS = {
    "open-mpi": "mpirun --map-by ppr:1:node",
    "slurm": "srun --ntasks-per-node=1",
    "pbs": "pbs_tmrsh or pbsdsh, once a host",
    "lsf": "blaunch, once a host",
    "modelarts": "the boot command of a custom image, which runs once a node",
    "ascendjob": "an AscendJob with a Scheduler and Workers",
    "volcano": "a Volcano job with the plugins env and svc",
    "indexed-job": "a Job with completionMode: Indexed",
}


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The hosts of a job and which of them this is.

    source: the evidence, in one phrase. hosts: their names in node-rank order, none where the
    scheduler names none. job: the same on all its hosts, different for what runs beside it.
    untold: what of nnodes and node_rank the scheduler does not tell; `agree` takes it from the
    command line, so none is left afterwards. processes_per_host: how many of us the scheduler has
    started here, of which this is `local_process`. rank_table: one that the platform provides.
    """

    scheduler: str
    source: str
    nnodes: int = 1
    node_rank: int = 0
    untold: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    job: str | None = None
    devices_per_host: int | None = None
    processes_per_host: int = 1
    local_process: int = 0
    master_addr: str | None = None
    master_port: int | None = None
    rank_table: Path | None = None


def agree(
    allocation: Allocation,
    *,
    nnodes: int | None,
    node_rank: int | None,
    master_addr: str | None,
    nproc_per_node: int | None,
) -> Allocation:
    """Lay the command line beside what the scheduler gave: refuse what differs, fill what lacks."""
    if nnodes == 0:
        raise LaunchError("--nnodes 0: at least one host is needed.")
    refuse_processes(allocation)
    if allocation.scheduler == "none":
        allocation = _by_hand(allocation, nnodes, node_rank, master_addr)
    _refuse_other(allocation, nnodes, node_rank)
    _refuse_devices(allocation, nproc_per_node)
    if master_addr is not None:
        allocation = replace(allocation, master_addr=_master(allocation, master_addr))
    return _fill(allocation, nnodes, node_rank)


def _by_hand(
    alone: Allocation, nnodes: int | None, node_rank: int | None, master_addr: str | None
) -> Allocation:
    """Without a scheduler the command line tells all, or nothing."""
    if nnodes is None and node_rank is None and master_addr is None:
        return alone
    if nnodes is None:
        raise LaunchError(
            f"{_flags(None, node_rank, master_addr)}, but no scheduler says how many hosts there "
            "are. Pass --nnodes too."
        )
    hosts = alone.hosts if nnodes == 1 else ()
    source = _flags(nnodes, None, None)
    return replace(alone, source=source, nnodes=nnodes, untold=("node_rank",), hosts=hosts)


def refuse_processes(allocation: Allocation) -> None:
    """Raise LaunchError where the scheduler has started several of us on this host."""
    if allocation.processes_per_host > 1:
        raise LaunchError(
            f"{allocation.source} has started {allocation.processes_per_host} processes on a host, "
            f"of which this is number {allocation.local_process}. One launcher a host starts all "
            f"its workers: start it with {STARTS[allocation.scheduler]}."
        )


def _refuse_other(allocation: Allocation, nnodes: int | None, node_rank: int | None) -> None:
    count = None if "nnodes" in allocation.untold else allocation.nnodes
    number = None if "node_rank" in allocation.untold else allocation.node_rank
    pairs = ((nnodes, count), (node_rank, number))
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        named = f" ({shown(allocation.hosts)})" if allocation.hosts else ""
        raise LaunchError(
            f"{_flags(nnodes, node_rank, None)} was asked for, but {allocation.source} gives "
            f"{_flags(count, number, None)}{named}. Leave out what it gives, or pass "
            "--scheduler none with --nnodes, --node_rank and --master_addr."
        )


def _refuse_devices(allocation: Allocation, nproc_per_node: int | None) -> None:
    devices = allocation.devices_per_host
    if devices is not None and (nproc_per_node or 0) > devices:
        raise LaunchError(
            f"--nproc_per_node {nproc_per_node}, but {allocation.source} gives a host {devices} "
            f"devices. Ask for {devices} at most."
        )


def _master(allocation: Allocation, asked: str) -> str:
    bare = ":" in asked and not asked.startswith("[")
    name = parse_name(f"[{asked}]" if bare else asked, "--master_addr")
    if position(allocation.hosts, name):
        raise LaunchError(
            f"--master_addr {asked} is host {position(allocation.hosts, name)}, but the workers "
            f"meet on host 0, {allocation.hosts[0]} ({allocation.source}). Name that one."
        )
    return name


def _fill(found: Allocation, nnodes: int | None, node_rank: int | None) -> Allocation:
    """Take from the command line what the scheduler does not tell."""
    uncounted = nnodes is None and "nnodes" in found.untold
    count = found.nnodes if nnodes is None else nnodes
    several = uncounted or count > 1
    missing = ["--nnodes (how many hosts there are)"] if uncounted else []
    if several and node_rank is None and "node_rank" in found.untold:
        missing.append("--node_rank (this one's number, from 0)")
    if several and found.master_addr is None:
        missing.append("--master_addr (host 0's, the same on each)")
    if missing:
        raise LaunchError(
            f"{found.source}: that does not tell all that several hosts need. "
            f"Pass {' and '.join(missing)}."
        )
    # One pod of an Indexed Job that trains on its own has a number, but nobody to be counted with.
    rank = node_rank if node_rank is not None else found.node_rank if several else 0
    if rank >= count:
        raise LaunchError(
            f"{_flags(count, rank, None)} ({found.source}): hosts are numbered from 0 to "
            f"{count - 1}. Correct one of them."
        )
    asked = {"nnodes": count, "node_rank": rank}
    return replace(
        found,
        source=", ".join([found.source, *(f"--{name} {asked[name]}" for name in found.untold)]),
        nnodes=count,
        node_rank=rank,
        untold=(),
        master_addr=found.master_addr if several else None,
    )


def _flags(nnodes: int | None, node_rank: int | None, master_addr: str | None) -> str:
    asked = {"nnodes": nnodes, "node_rank": node_rank, "master_addr": master_addr}
    return " ".join(f"--{name} {value}" for name, value in asked.items() if value is not None)
