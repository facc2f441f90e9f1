"""Options and what was seen of the machine -> Plan: all that `launch` will do, before it does it.

Pure: nothing is read, started or written here; `commands.py` looks and `supervise.py` acts. Where
the machine's NPUs cannot be read the plan assumes them and says so; only `mindbooth plan` accepts
that.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from mindbooth.ranktable import hccl
from mindbooth.ranktable.check import LONGEST_SERVER_ID
from mindbooth.ranktable.discover import HCCN_CONF
from mindbooth.ranktable.topology import Cluster, Device, Host, RankTableError

from .devices import VISIBLE, Choice, Machine, choose
from .options import DeviceTarget, Job, LaunchConfig
from .variables import LEFTOVERS, remarks

TRAINER = ("-m", "mindbooth.trainer")
RESUME = ("--resume_from_checkpoint", "latest")
LOOPBACK = "127.0.0.1"
AUTO_PORTS = range(20000, 30000)  # below the ports that the kernel gives to clients
CLUSTER_TIMEOUT_SECONDS = 600
MOST_SHOWN = 8
# Inherited values of these would place a worker, or switch msrun to another way of working.
UNSET = tuple(sorted(LEFTOVERS))


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a launcher stands among those of its job.

    names: of all hosts, as far as they are known. peers: what all hosts told of themselves, in the
    order of their node ranks; None where they were not asked. platform_table: a rank table that the
    scheduler provides. source: how we know.
    """

    master_port: int
    master_addr: str = LOOPBACK
    nnodes: int = 1
    node_rank: int = 0
    names: tuple[str, ...] = ()
    peers: tuple[Host, ...] | None = None
    platform_table: Path | None = None
    source: str = ""

    def name(self, node_rank: int) -> str:
        return self.names[node_rank] if self.names else f"host-{node_rank}"


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker: where it sits, what msrun sets for it alone, where it writes."""

    rank: int
    node_rank: int
    host: str
    local_rank: int
    device: Device
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What the workers share: what we set, put first on PATH and unset; what msrun sets for all."""

    set: Mapping[str, str]
    path_first: Path
    unset: tuple[str, ...]
    by_msrun: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rank table, where it is written, and whether and why msrun gets it."""

    text: str
    path: Path
    handed: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole launch, as one of its hosts sees it.

    job: a token that all its hosts share. work: what the workers do. workers: those of all hosts,
    by rank. command, environment: what this host starts, and with what.
    """

    job: str
    work: Job
    device_target: DeviceTarget
    cluster: Cluster
    node_rank: int
    workers: tuple[Worker, ...]
    command: tuple[str, ...]
    environment: Environment
    table: Table
    master_addr: str
    master_port: int
    output_dir: Path
    attempt_dir: Path
    grace_seconds: float
    hang_seconds: float
    max_restarts: int
    notes: tuple[str, ...]

    @property
    def token(self) -> str:
        """What the processes on this host carry, and no others: the sweep goes by it."""
        return token(self.job, self.node_rank)

    @property
    def here(self) -> tuple[Worker, ...]:
        """This host's workers."""
        return tuple(worker for worker in self.workers if worker.node_rank == self.node_rank)

    @property
    def has_scheduler(self) -> bool:
        """Whether msrun starts its scheduler process on this host."""
        return self.node_rank == 0

    @property
    def launch_dir(self) -> Path:
        return self.output_dir / "launch"

    @property
    def scheduler_log(self) -> Path:
        return self.attempt_dir / "scheduler.log"

    def environ(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Complete the environment of msrun, which its workers inherit."""
        kept = {name: value for name, value in inherited.items() if name not in UNSET}
        path = f"{self.environment.path_first}:{inherited.get('PATH', '/usr/bin:/bin')}"
        return kept | dict(self.environment.set) | {"PATH": path}


def port_for(key: str) -> int:
    """The port of a job on several hosts: the same rule everywhere, so that nobody has to ask.

    Even numbers: the launchers talk on the next one.
    """
    return AUTO_PORTS[2 * (zlib.crc32(os.fsencode(key)) % (len(AUTO_PORTS) // 2))]


def token(job: str, node_rank: int) -> str:
    """Name the part of a job that one launcher starts; two of them may share a machine."""
    return f"{job}.{node_rank}"


def make_plan(
    config: LaunchConfig,
    machine: Machine,
    *,
    site: Site,
    output_dir: Path,
    log_dir: Path,
    attempt: int,
    job: str,
    table_text: str | None = None,
    program: tuple[str, ...] = TRAINER,
    resume: bool = False,
) -> Plan:
    """Decide everything.

    `table_text` is the content of --rank_table PATH, `program` what runs, `resume` whether this
    attempt goes on from the newest checkpoint of the one before. A precompute leaves none: what is
    in the cache is not done again anyway.
    """
    choice = choose(config, machine, table_text, nnodes=site.nnodes, node_rank=site.node_rank)
    cluster = _cluster(choice, site)
    attempt_dir = log_dir / f"attempt-{attempt}"
    table = _table(config, choice, cluster, output_dir / "launch" / "rank_table.json", table_text)
    msrun = (
        str(machine.python.parent / "msrun"),
        *_msrun_options(cluster, site, attempt_dir, table),
    )
    # msrun runs the `python` that it finds on PATH: ours, because of `path_first`.
    words = () if config.job == "train" else (config.job,)
    flags = (*config.training_flags, *(RESUME if resume else ()))
    worker = ("python", *program, *words, *flags, "--device_target", choice.target)
    return Plan(
        job=job,
        work=config.job,
        device_target=choice.target,
        cluster=cluster,
        node_rank=site.node_rank,
        workers=_workers(cluster, attempt_dir),
        command=(*msrun, *worker),
        environment=_environment(machine, choice, cluster, site, job, attempt_dir, table),
        table=table,
        master_addr=site.master_addr,
        master_port=site.master_port,
        output_dir=output_dir,
        attempt_dir=attempt_dir,
        grace_seconds=config.grace_seconds,
        hang_seconds=config.hang_seconds,
        max_restarts=config.max_restarts,
        notes=_notes(machine, choice, site, table),
    )


def _cluster(choice: Choice, site: Site) -> Cluster:
    """Put this host among the others; those that were not asked are taken to be like it."""
    here = choice.cluster
    source = "; ".join(filter(None, (site.source, here.source)))
    if site.nnodes == 1:
        return replace(here, source=source)
    if site.peers is not None:
        return Cluster(hosts=site.peers, source=source, assumed=here.assumed)
    unasked = tuple(replace(device, address=None) for device in here.hosts[0].devices)
    hosts = [
        here.hosts[0]
        if node_rank == site.node_rank
        else Host(name=name, server_id=name[:LONGEST_SERVER_ID], devices=unasked)
        for node_rank in range(site.nnodes)
        for name in [site.name(node_rank)]
    ]
    return Cluster(hosts=tuple(hosts), source=source, assumed=True)


def _table(
    config: LaunchConfig, choice: Choice, cluster: Cluster, path: Path, given: str | None
) -> Table:
    text = given or hccl.render(hccl.from_cluster(cluster))
    unknown = [
        f"{seat.device.physical_id} of {seat.host.name}"
        for seat in cluster
        if seat.device.address is None and seat.host.super_pod_id is None
    ]
    found = hccl.faults(text, addresses=False if unknown and given is None else None)
    if found:
        raise RankTableError(f"{cluster.source}, {HCCN_CONF}: {'; '.join(found)}")
    handed, reason = False, ""
    if choice.target == "CPU":
        reason = "CPU workers read none"
    elif config.rank_table == "off":
        reason = "--rank_table off"
    elif given is not None:
        handed, reason = True, f"given by --rank_table {config.rank_table}"
    elif cluster.assumed:
        reason = "its devices are assumed"
    elif unknown:
        reason = (
            f"neither {HCCN_CONF} nor hccn_tool gives an address of {len(unknown)} devices "
            f"({', '.join(unknown[:MOST_SHOWN])}{', ...' * (len(unknown) > MOST_SHOWN)})"
        )
    else:
        whose = "this machine" if len(cluster.hosts) == 1 else "its machines"
        handed, reason = True, f"every id and address in it was read from {whose}"
    return Table(text=text, path=path, handed=handed, reason=reason)


def _workers(cluster: Cluster, attempt_dir: Path) -> tuple[Worker, ...]:
    seats = iter(cluster)
    return tuple(
        Worker(
            rank=seat.rank,
            node_rank=node_rank,
            host=seat.host.name,
            local_rank=seat.local_rank,
            device=seat.device,
            environment={
                "RANK_ID": str(seat.rank),
                "MS_NODE_ID": str(seat.rank),
                "DEVICE_ID": str(seat.local_rank),
            },
            log=attempt_dir / f"worker_{seat.rank}.log",
        )
        for node_rank, host in enumerate(cluster.hosts)
        for seat in islice(seats, len(host.devices))
    )


def _msrun_options(
    cluster: Cluster, site: Site, attempt_dir: Path, table: Table
) -> tuple[str, ...]:
    return (
        f"--worker_num={cluster.world_size}",
        f"--local_worker_num={len(cluster.hosts[0].devices)}",
        f"--master_addr={site.master_addr}",
        f"--master_port={site.master_port}",
        f"--node_rank={site.node_rank}",
        f"--log_dir={attempt_dir}",
        "--join=False",
        f"--cluster_time_out={CLUSTER_TIMEOUT_SECONDS}",
        *([f"--rank_table_file={table.path}"] if table.handed else []),
    )


def _environment(
    machine: Machine,
    choice: Choice,
    cluster: Cluster,
    site: Site,
    job: str,
    attempt_dir: Path,
    table: Table,
) -> Environment:
    ours = {
        "MINDBOOTH_JOB": job,
        "MINDBOOTH_LAUNCHER": token(job, site.node_rank),
        "MINDBOOTH_HEARTBEATS": str(attempt_dir),
        "PYTHONUNBUFFERED": "1",
    }
    if "OMP_NUM_THREADS" not in machine.environ:
        ours["OMP_NUM_THREADS"] = str(max(1, machine.cores // len(cluster.hosts[0].devices)))
    if choice.visible is not None:
        ours[VISIBLE] = choice.visible
    by_msrun = {
        "MS_ROLE": "MS_WORKER",
        "MS_WORKER_NUM": str(cluster.world_size),
        "MS_SCHED_HOST": site.master_addr,
        "MS_SCHED_PORT": str(site.master_port),
        "MS_TOPO_TIMEOUT": str(CLUSTER_TIMEOUT_SECONDS),
        "MS_NODE_RANK": str(site.node_rank),
        "RANK_SIZE": str(cluster.world_size),
    }
    if table.handed:
        by_msrun["RANK_TABLE_FILE"] = str(table.path)
    return Environment(set=ours, path_first=machine.python.parent, unset=UNSET, by_msrun=by_msrun)


def _notes(machine: Machine, choice: Choice, site: Site, table: Table) -> tuple[str, ...]:
    """Say what in the environment is overruled or will bite, so that nobody has to find out."""
    notes = []
    if site.nnodes > 1 and site.peers is None:
        notes.append("The other hosts were not asked: they are taken to be like this one.")
    inherited = machine.environ.get("RANK_TABLE_FILE")
    if inherited and not table.handed:
        notes.append(
            f"RANK_TABLE_FILE={inherited} in the environment is not followed; "
            f"pass --rank_table {inherited} if it is meant."
        )
    elif site.platform_table and not table.handed:
        notes.append(
            f"The scheduler's rank table {site.platform_table} is not followed; "
            f"pass --rank_table {site.platform_table} if it is meant."
        )
    if machine.environ.get("MS_SIMULATION_LEVEL"):
        notes.append("MS_SIMULATION_LEVEL in the environment is unset: workers really run.")
    if "OMP_NUM_THREADS" in machine.environ:
        notes.append(f"OMP_NUM_THREADS={machine.environ['OMP_NUM_THREADS']} stays as it was set.")
    notes += remarks(machine.environ, target=choice.target, several_hosts=site.nnodes > 1)
    return tuple(notes)
