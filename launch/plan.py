"""Options and what was seen of the machine -> Plan: all that `launch` will do, before it does it.

Pure: nothing is read, started or written here; `commands.py` looks and `supervise.py` acts. Where
the machine's NPUs cannot be read the plan assumes them and says so; only `mindbooth plan` accepts
that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mindbooth.ranktable import hccl
from mindbooth.ranktable.discover import HCCN_CONF
from mindbooth.ranktable.topology import Cluster, Device, RankTableError

from .devices import VISIBLE, Choice, Machine, choose, listed
from .options import DeviceTarget, LaunchConfig

TRAINER = ("-m", "mindbooth.trainer")
SCHEDULER_HOST = "127.0.0.1"
CLUSTER_TIMEOUT_SECONDS = 600
# Inherited values of these would place a worker, or switch msrun to another way of working.
UNSET = ("DEVICE_ID", "MS_NODE_ID", "MS_ROLE", "MS_SIMULATION_LEVEL", "RANK_ID", "RANK_TABLE_FILE")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One worker: where it sits, what msrun sets for it alone, where it writes."""

    rank: int
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
    """A whole launch. `job` is the token by which its processes are known."""

    job: str
    device_target: DeviceTarget
    cluster: Cluster
    workers: tuple[Worker, ...]
    command: tuple[str, ...]
    environment: Environment
    table: Table
    master_port: int
    output_dir: Path
    attempt_dir: Path
    grace_seconds: float
    notes: tuple[str, ...]

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


def make_plan(
    config: LaunchConfig,
    machine: Machine,
    *,
    output_dir: Path,
    log_dir: Path,
    attempt: int,
    master_port: int,
    job: str,
    table_text: str | None = None,
    program: tuple[str, ...] = TRAINER,
) -> Plan:
    """Decide everything. `table_text` is the content of --rank_table PATH; `program` what runs."""
    choice = choose(config, machine, table_text)
    attempt_dir = log_dir / f"attempt-{attempt}"
    table = _table(config, choice, output_dir / "launch" / "rank_table.json", table_text)
    msrun = (
        str(machine.python.parent / "msrun"),
        *_msrun_options(choice.cluster, attempt_dir, master_port, table),
    )
    # msrun runs the `python` that it finds on PATH: ours, because of `path_first`.
    worker = ("python", *program, *config.training_flags, "--device_target", choice.target)
    return Plan(
        job=job,
        device_target=choice.target,
        cluster=choice.cluster,
        workers=_workers(choice.cluster, attempt_dir),
        command=(*msrun, *worker),
        environment=_environment(machine, choice, master_port, job, table),
        table=table,
        master_port=master_port,
        output_dir=output_dir,
        attempt_dir=attempt_dir,
        grace_seconds=config.grace_seconds,
        notes=_notes(machine, table),
    )


def _table(config: LaunchConfig, choice: Choice, path: Path, given: str | None) -> Table:
    cluster = choice.cluster
    text = given or hccl.render(hccl.from_cluster(cluster))
    found = hccl.faults(text)
    if found:
        raise RankTableError(f"{cluster.source}, {HCCN_CONF}: {'; '.join(found)}")
    unknown = [seat.device.physical_id for seat in cluster if seat.device.address is None]
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
        reason = f"{HCCN_CONF} gives no address of device {listed(unknown)}"
    else:
        handed, reason = True, "every id and address in it was read from this machine"
    return Table(text=text, path=path, handed=handed, reason=reason)


def _workers(cluster: Cluster, attempt_dir: Path) -> tuple[Worker, ...]:
    return tuple(
        Worker(
            rank=seat.rank,
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
        for seat in cluster
    )


def _msrun_options(
    cluster: Cluster, attempt_dir: Path, master_port: int, table: Table
) -> tuple[str, ...]:
    return (
        f"--worker_num={cluster.world_size}",
        f"--local_worker_num={len(cluster.hosts[0].devices)}",
        f"--master_addr={SCHEDULER_HOST}",
        f"--master_port={master_port}",
        "--node_rank=0",
        f"--log_dir={attempt_dir}",
        "--join=False",
        f"--cluster_time_out={CLUSTER_TIMEOUT_SECONDS}",
        *([f"--rank_table_file={table.path}"] if table.handed else []),
    )


def _environment(
    machine: Machine, choice: Choice, master_port: int, job: str, table: Table
) -> Environment:
    cluster = choice.cluster
    ours = {"MINDBOOTH_JOB": job, "PYTHONUNBUFFERED": "1"}
    if "OMP_NUM_THREADS" not in machine.environ:
        ours["OMP_NUM_THREADS"] = str(max(1, machine.cores // len(cluster.hosts[0].devices)))
    if choice.visible is not None:
        ours[VISIBLE] = choice.visible
    by_msrun = {
        "MS_ROLE": "MS_WORKER",
        "MS_WORKER_NUM": str(cluster.world_size),
        "MS_SCHED_HOST": SCHEDULER_HOST,
        "MS_SCHED_PORT": str(master_port),
        "MS_TOPO_TIMEOUT": str(CLUSTER_TIMEOUT_SECONDS),
        "MS_NODE_RANK": "0",
        "RANK_SIZE": str(cluster.world_size),
    }
    if table.handed:
        by_msrun["RANK_TABLE_FILE"] = str(table.path)
    return Environment(set=ours, path_first=machine.python.parent, unset=UNSET, by_msrun=by_msrun)


def _notes(machine: Machine, table: Table) -> tuple[str, ...]:
    """Say what in the environment is overruled, so that nobody waits for it to act."""
    notes = []
    inherited = machine.environ.get("RANK_TABLE_FILE")
    if inherited and not table.handed:
        notes.append(
            f"RANK_TABLE_FILE={inherited} in the environment is not followed; "
            f"pass --rank_table {inherited} if it is meant."
        )
    if machine.environ.get("MS_SIMULATION_LEVEL"):
        notes.append("MS_SIMULATION_LEVEL in the environment is unset: workers really run.")
    if "OMP_NUM_THREADS" in machine.environ:
        notes.append(f"OMP_NUM_THREADS={machine.environ['OMP_NUM_THREADS']} stays as it was set.")
    return tuple(notes)
