"""Which hosts a job has and which of them this is, from a scheduler's variables -> `Allocation`.

`surroundings.py` asks: `detect` reads the environment, `agree` lays the command line beside it. One
launcher runs on each host, whoever starts it: srun, mpirun, blaunch, a pod, ssh or a hand. Trap: to
be in a job is not to be started by it. A batch script has all the variables of a job with many
hosts, and is one process on the first of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from .allocation import STARTS, Allocation
from .hostlist import parse_hosts, parse_name, position, shown
from .options import LaunchError

Read = Callable[[Path], str]

# From concept to variable, a table for each scheduler.
SLURM = {
    "job": "SLURM_JOB_ID",
    "job_hosts": "SLURM_JOB_NODELIST",
    "job_nnodes": "SLURM_JOB_NUM_NODES",
    "job_name": "SLURM_JOB_NAME",
    "host": "SLURMD_NODENAME",
    "step": "SLURM_STEP_ID",
    "hosts": "SLURM_STEP_NODELIST",  # those of the step, which may be fewer than the job's
    "node_rank": "SLURM_NODEID",  # counted within the step
    "processes": "SLURM_STEP_TASKS_PER_NODE",
    "local_process": "SLURM_LOCALID",
    "terminal": "SLURM_PTY_PORT",
}
OPEN_MPI = {
    "job": "PMIX_NAMESPACE",
    "nnodes": "OMPI_MCA_orte_num_nodes",  # up to version 4
    "size": "OMPI_COMM_WORLD_SIZE",
    "rank": "OMPI_COMM_WORLD_RANK",
    "processes": "OMPI_COMM_WORLD_LOCAL_SIZE",
    "local_process": "OMPI_COMM_WORLD_LOCAL_RANK",
}
PBS = {"job": "PBS_JOBID", "hosts": "PBS_NODEFILE"}  # a file: a line a process, hosts repeated
LSF = {
    "job": "LSB_JOBID",  # all elements of a job array have the same
    "element": "LSB_JOBINDEX",
    "hosts": "LSB_MCPU_HOSTS",  # "hostA 8 hostB 8"
}
MODELARTS = {
    "job": "MA_VJ_NAME",
    "nnodes": "MA_NUM_HOSTS",
    "node_rank": "VC_TASK_INDEX",  # means nothing where there is one host
    "hosts": "VC_WORKER_HOSTS",
    "devices_per_host": "MA_NUM_GPUS",  # NPUs too; 0 where there are none
    "rank_table": "RANK_TABLE_FILE",  # the file, or the folder that jobstart_hccl.json lies in
    "local_process": "ASCEND_DEVICE_ID",  # where the platform starts one process a device
}
ASCENDJOB = {
    "job": "MINDX_TASK_ID",
    "workers": "MS_WORKER_NUM",
    "devices_per_host": "MS_LOCAL_WORKER",
    "node_rank": "MS_NODE_RANK",
    "master_addr": "MS_SCHED_HOST",
    "master_port": "MS_SCHED_PORT",
    "role": "MS_ROLE",
    "has_devices": "NPU_POD",
}
VOLCANO = {"node_rank": "VC_TASK_INDEX"}
VOLCANO_HOSTS = re.compile(r"VC_([A-Z0-9_]+)_HOSTS")  # of a task; its name in capitals, - as _
INDEXED_JOB = {"node_rank": "JOB_COMPLETION_INDEX"}

MINDCLUSTER_TABLE = Path("/user/serverid/devindex/config/hccl.json")
# Slurm numbers steps of its own from here: the shell of salloc, the batch script, the extern step.
FIRST_SPECIAL_STEP = 0xFFFF_FFF0
SHELLS = ("bash", "csh", "fish", "ksh", "sh", "tcsh", "zsh")


@dataclass(frozen=True, kw_only=True)
class _Here:
    """What a detector may look at."""

    environ: Mapping[str, str]
    hostname: str
    read: Read

    def text(self, name: str) -> str:
        if self.environ.get(name):
            return self.environ[name]
        raise LaunchError(
            f"{name} is not set in the environment, though the scheduler's other variables are. "
            "Hand on all of them, or pass --scheduler none, --nnodes, --node_rank, --master_addr."
        )

    def number(self, name: str, default: int | None = None) -> int:
        if default is not None and not self.environ.get(name):
            return default
        text = self.text(name)
        if text.isascii() and text.isdigit():
            return int(text)
        raise LaunchError(f"{name}={text!r} in the environment is not a number. Set it right.")

    def file(self, path: Path) -> str | None:
        try:
            return self.read(path)
        except (OSError, UnicodeDecodeError):
            return None


class Detector(NamedTuple):
    """A scheduler, the variables by which it is known, and how the others are read."""

    name: str
    marks: tuple[str, ...]
    read: Callable[[_Here], Allocation]


def detect(
    environ: Mapping[str, str],
    *,
    hostname: str,
    scheduler: str | None = None,
    read: Read = Path.read_text,
) -> Allocation:
    """Ask the scheduler that is named, else the first whose variables are there, else nobody."""
    here = _Here(environ=environ, hostname=hostname, read=read)
    if scheduler is None:
        for detector in DETECTORS:
            if all(environ.get(mark) for mark in detector.marks):
                return detector.read(here)
    elif scheduler != "none":
        return _named(scheduler, environ).read(here)
    return Allocation(scheduler="none", source="this host alone", hosts=(hostname,))


def _named(name: str, environ: Mapping[str, str]) -> Detector:
    detector = next((detector for detector in DETECTORS if detector.name == name), None)
    if detector is None:
        known = ", ".join(detector.name for detector in DETECTORS)
        raise LaunchError(f"--scheduler {name}: none of auto, none, {known}.")
    missing = [mark for mark in detector.marks if not environ.get(mark)]
    if missing:
        raise LaunchError(
            f"--scheduler {name}, but the environment lacks {' and '.join(missing)}. "
            f"Start with {STARTS[name]}, or leave --scheduler out."
        )
    return detector


def _slurm(here: _Here) -> Allocation:
    job, step = here.text(SLURM["job"]), here.number(SLURM["step"], FIRST_SPECIAL_STEP)
    # srun names a job that it makes after its command: step 0 of a job named bash is that bash.
    shell = here.environ.get(SLURM["job_name"]) in SHELLS and SLURM["terminal"] in here.environ
    if step >= FIRST_SPECIAL_STEP or (shell and step == 0):
        return _slurm_script(here, job)
    hosts = parse_hosts(here.text(SLURM["hosts"]), SLURM["hosts"])
    counts = re.findall(r"([0-9]+)(?:\(x[0-9]+\))?", here.text(SLURM["processes"]))  # 2(x3),1
    return Allocation(
        scheduler="slurm",
        source=f"slurm job {job}, {SLURM['hosts']}",
        nnodes=len(hosts),
        node_rank=here.number(SLURM["node_rank"]),
        hosts=hosts,
        job=f"{job}.{step}",
        processes_per_host=max(map(int, counts)),
        local_process=here.number(SLURM["local_process"]),
        master_addr=_first(hosts),
    )


def _slurm_script(here: _Here, job: str) -> Allocation:
    """Read a batch script or a shell, which no srun has multiplied: right for one host only."""
    nnodes = here.number(SLURM["job_nnodes"])
    if nnodes > 1 or SLURM["host"] not in here.environ:
        raise LaunchError(
            f"slurm job {job}: this is one process, in a script or shell on {here.hostname}, but "
            f"the job has {nnodes} of {here.text(SLURM['job_hosts'])}. Start one on each with "
            f"{STARTS['slurm']} mindbooth launch, or pass --scheduler none for this host alone."
        )
    return Allocation(
        scheduler="slurm",
        source=f"slurm job {job}, {SLURM['job_nnodes']}=1",
        hosts=(here.environ[SLURM["host"]],),
        job=job,
    )


def _open_mpi(here: _Here) -> Allocation:
    """Read mpirun's own variables. It names no hosts; the allocation that it runs in may."""
    size, on_this = here.number(OPEN_MPI["size"]), here.number(OPEN_MPI["processes"])
    nnodes = here.number(OPEN_MPI["nnodes"], size // on_this)
    processes = max(on_this, -(-size // nnodes))
    node_rank = here.number(OPEN_MPI["rank"]) // processes
    source, hosts = _around(here)
    # mpirun may take some of them, or another order: believed where this host stands in its place.
    if len(hosts) != nnodes or position(hosts, here.hostname) != node_rank:
        source, hosts = "", ()
    return Allocation(
        scheduler="open-mpi",
        source=f"mpirun, {OPEN_MPI['rank']}{source}",
        nnodes=nnodes,
        node_rank=node_rank,
        hosts=hosts,
        job=here.environ.get(OPEN_MPI["job"]),
        processes_per_host=processes,
        local_process=here.number(OPEN_MPI["local_process"]),
        master_addr=_first(hosts),
    )


def _around(here: _Here) -> tuple[str, tuple[str, ...]]:
    """Find the hosts of an allocation in which mpirun was called."""
    if SLURM["job_hosts"] in here.environ:
        listed = here.environ[SLURM["job_hosts"]]
        return f", {SLURM['job_hosts']}", parse_hosts(listed, SLURM["job_hosts"])
    if LSF["hosts"] in here.environ:
        return f", {LSF['hosts']}", _lsf_hosts(here)
    if PBS["hosts"] in here.environ:
        return f", {PBS['hosts']}", _pbs_hosts(here)
    return "", ()


def _pbs(here: _Here) -> Allocation:
    return _by_name(here, "pbs", here.text(PBS["job"]), PBS["hosts"], _pbs_hosts(here))


def _pbs_hosts(here: _Here) -> tuple[str, ...]:
    """Read the node file. TORQUE and older PBS write it on a job's first host only."""
    text = here.file(Path(here.text(PBS["hosts"]))) or ""
    return _names(text.split(), PBS["hosts"])


def _lsf(here: _Here) -> Allocation:
    job, element = here.text(LSF["job"]), here.number(LSF["element"], 0)
    return _by_name(
        here, "lsf", f"{job}.{element}" if element else job, LSF["hosts"], _lsf_hosts(here)
    )


def _lsf_hosts(here: _Here) -> tuple[str, ...]:
    return _names(here.text(LSF["hosts"]).split()[::2], LSF["hosts"])


def _mindcluster_table(here: _Here) -> Path | None:
    return None if here.file(MINDCLUSTER_TABLE) is None else MINDCLUSTER_TABLE


def _by_name(
    here: _Here, scheduler: str, job: str, variable: str, hosts: tuple[str, ...]
) -> Allocation:
    """Place this host by its name: these schedulers number nothing."""
    index = position(hosts, here.hostname)
    untold: tuple[str, ...] = ()
    doubt = ""
    if not hosts:
        untold, doubt = ("nnodes", "node_rank"), " cannot be read here"
    elif index is None:
        untold, doubt = ("node_rank",), f" names {shown(hosts)} and not {here.hostname}"
    return Allocation(
        scheduler=scheduler,
        source=f"{scheduler} job {job}, {variable}{doubt}",
        nnodes=len(hosts) or 1,
        node_rank=index or 0,
        untold=untold,
        hosts=hosts,
        job=job,
        master_addr=_first(hosts),
    )


def _modelarts(here: _Here) -> Allocation:
    nnodes = here.number(MODELARTS["nnodes"])
    devices = here.number(MODELARTS["devices_per_host"], 0)
    hosts = parse_hosts(here.text(MODELARTS["hosts"]), MODELARTS["hosts"]) if nnodes > 1 else ()
    if nnodes > 1 and len(hosts) != nnodes:
        raise LaunchError(
            f"{MODELARTS['nnodes']}={nnodes}, but {MODELARTS['hosts']} names {len(hosts)} "
            f"({shown(hosts)}). Set them right, or leave them as ModelArts does."
        )
    table = here.environ.get(MODELARTS["rank_table"])
    one_a_device = MODELARTS["local_process"] in here.environ
    return Allocation(
        scheduler="modelarts",
        source=f"modelarts, {MODELARTS['nnodes']}={nnodes}",
        nnodes=nnodes,
        node_rank=here.number(MODELARTS["node_rank"]) if nnodes > 1 else 0,
        hosts=hosts or (here.hostname,),
        job=here.environ.get(MODELARTS["job"]),
        devices_per_host=devices or None,
        processes_per_host=devices if devices and one_a_device else 1,
        local_process=here.number(MODELARTS["local_process"], 0),
        master_addr=_first(hosts),
        rank_table=Path(table) if table else None,
    )


def _ascendjob(here: _Here) -> Allocation:
    workers = here.number(ASCENDJOB["workers"])
    devices = here.number(ASCENDJOB["devices_per_host"])
    node_rank = here.number(ASCENDJOB["node_rank"])
    # With NPUs the pod of the Scheduler is host 0. Without, the first Worker is number 0 as well,
    # and the address in MS_SCHED_HOST is that of a pod which can train nothing.
    first_worker = node_rank == 0 and here.environ.get(ASCENDJOB["role"]) == "MS_WORKER"
    if first_worker or here.environ.get(ASCENDJOB["has_devices"]) == "false":
        raise LaunchError(
            f"{ASCENDJOB['workers']}={workers}, and the pod of this AscendJob's Scheduler has no "
            "NPUs. MindSpore's scheduler runs beside the workers of host 0 here: let the Scheduler "
            "replica ask for NPUs as the Workers do, and take one Worker away."
        )
    if not devices or workers % devices:
        raise LaunchError(
            f"{ASCENDJOB['workers']}={workers} is no multiple of {ASCENDJOB['devices_per_host']}="
            f"{devices}. Give every pod of the job the same number of NPUs."
        )
    return Allocation(
        scheduler="ascendjob",
        source=f"ascendjob, {ASCENDJOB['node_rank']}={node_rank}",
        nnodes=workers // devices,
        node_rank=node_rank,
        job=here.environ.get(ASCENDJOB["job"]),
        devices_per_host=devices,
        master_addr=here.text(ASCENDJOB["master_addr"]),
        # The service of the address lets through what the manifest lists: this port and the next.
        master_port=here.number(ASCENDJOB["master_port"]),
        rank_table=_mindcluster_table(here),
    )


def _volcano(here: _Here) -> Allocation:
    """Read the plugins env and svc. VC_TASK_INDEX counts within a task, so there must be one."""
    tasks = sorted(name for name in here.environ if VOLCANO_HOSTS.fullmatch(name))
    found = Allocation(
        scheduler="volcano",
        source=f"volcano, {' and '.join(tasks) or 'no VC_..._HOSTS (plugin svc)'}",
        untold=("nnodes", "node_rank"),
        rank_table=_mindcluster_table(here),
    )
    if len(tasks) != 1:
        return found
    hosts = parse_hosts(here.environ[tasks[0]], tasks[0])
    return replace(
        found,
        nnodes=len(hosts),
        node_rank=here.number(VOLCANO["node_rank"]),
        untold=(),
        hosts=hosts,
        job=hosts[0].partition(".")[2] or None,  # job-task-0.job
        master_addr=_first(hosts),
    )


def _indexed_job(here: _Here) -> Allocation:
    """Read a pod's number. How many there are, and the service's name, no variable tells."""
    node_rank = here.number(INDEXED_JOB["node_rank"])
    job, _, number = here.hostname.partition(".")[0].rpartition("-")
    return Allocation(
        scheduler="indexed-job",
        source=f"indexed job, {INDEXED_JOB['node_rank']}={node_rank}",
        node_rank=node_rank,
        untold=("nnodes",),
        job=job if number == str(node_rank) else None,
    )


def _names(listed: Sequence[str], source: str) -> tuple[str, ...]:
    """Keep the first of each name: these lists repeat a host for each of its processes."""
    return tuple(parse_name(name, source) for name in dict.fromkeys(listed))


def _first(hosts: Sequence[str]) -> str | None:
    """Name host 0, where there are others to reach it."""
    return hosts[0] if len(hosts) > 1 else None


DETECTORS = (
    # mpirun first: it runs within an allocation of the others, whose variables are those of its
    # daemons. Slurm before PBS: its wrappers of PBS commands leave PBS variables. ModelArts and
    # AscendJob before Volcano, which schedules their pods. The Indexed Job last: whatever else
    # starts us in a pod of one knows more.
    Detector("open-mpi", (OPEN_MPI["size"], OPEN_MPI["rank"], OPEN_MPI["processes"]), _open_mpi),
    Detector("slurm", (SLURM["job"],), _slurm),
    Detector("pbs", (PBS["job"], PBS["hosts"]), _pbs),
    Detector("lsf", (LSF["job"], LSF["hosts"]), _lsf),
    Detector("modelarts", (MODELARTS["nnodes"],), _modelarts),
    # msrun gives its workers most of an AscendJob's variables, but not MS_LOCAL_WORKER.
    Detector("ascendjob", (ASCENDJOB["node_rank"], ASCENDJOB["devices_per_host"]), _ascendjob),
    Detector("volcano", (VOLCANO["node_rank"],), _volcano),
    Detector("indexed-job", (INDEXED_JOB["node_rank"],), _indexed_job),
)
