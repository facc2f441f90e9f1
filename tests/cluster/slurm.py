"""A real Slurm on the hosts of hosts.py: slurmctld and munged on `login`, a slurmd on each other.

Everything lies below one folder; nothing of the machine's own Slurm is read or written. Commands of
users (sbatch, squeue, scancel) run on `login`, as they do on a cluster. A job starts about a second
after it was submitted, and 6 s after it was requeued. sacct does not work here: `fields` does.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from hosts import LIMIT_SECONDS, Host, Hosts, Running, wait

FREEZER = Path("/sys/fs/cgroup/freezer")
READY_SECONDS = 30.0
# What a job's state becomes when nothing more will happen to it.
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

# FirstJobId: the freezer's groups are the machine's, and named by host and job: another session's
# jobs must have other ids. cred_expire: a requeued job waits as long before it starts again.
# config_overrides: more CPUs may be declared than the machine has. proctrack/cgroup ends what a
# job's processes leave behind; linuxproc does not.
CONF = """\
ClusterName=test
FirstJobId={first_job}
SlurmctldHost={login.name}({login.address})
SlurmctldPort=6817
SlurmdPort=6818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType={proctrack}
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool/%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
KillWait=5
MinJobAge=300
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=10
GresTypes=npu
SlurmdParameters=config_overrides
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
NODE = (
    "NodeName={host.name} NodeHostname={host.name} NodeAddr={host.address} CPUs=16 "
    "RealMemory={megabytes} Gres=npu:8 State=UNKNOWN\n"
)
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainCores=no
ConstrainRAMSpace=no
"""


class Slurm:
    """`with Slurm(hosts, folder) as slurm:` from the start to the end of its daemons."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self._daemons: list[Running] = []

    def __enter__(self) -> Slurm:
        for part in ("state", "spool"):
            (self.folder / part).mkdir(parents=True)
        self._configure()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge = {
            "--key-file": key,
            "--socket": self.folder / "munge.sock",
            "--pid-file": self.folder / "munged.pid",
            "--log-file": self.folder / "munged.log",
            "--seed-file": self.folder / "munge.seed",
        }
        options = [f"{name}={value}" for name, value in munge.items()]
        try:
            login = self.hosts.login
            munged = self._start(login, ["munged", "--foreground", "--force", *options])
            munged.until((self.folder / "munge.sock").exists, READY_SECONDS)
            self._start(login, ["slurmctld", "-D"])
            for host in self.hosts:
                self._start(host, ["slurmd", "-D", "-N", host.name])
            wait(self._ready, READY_SECONDS, self._logs)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def conf(self) -> Path:
        """What SLURM_CONF names: every command of Slurm needs it."""
        return self.folder / "slurm.conf"

    def run(self, *command: str | Path, cwd: Path = Path("/"), **environ: str) -> str:
        """Run a command on `login`, as a user does, to its end, which must be a good one."""
        return self.hosts.login.run(command, cwd=cwd, SLURM_CONF=str(self.conf), **environ)

    def submit(
        self, script: Path, *options: str, cwd: Path, arguments: Sequence[str] = (), **environ: str
    ) -> str:
        """sbatch it in `cwd`, where its output goes; return the job's id."""
        command: list[str | Path] = ["sbatch", "--parsable", *options, script, *arguments]
        return self.run(*command, cwd=cwd, **environ).strip()

    def fields(self, job: str) -> dict[str, str]:
        """All that Slurm tells of a job: JobState, ExitCode, Restarts, BatchHost, NodeList..."""
        told = self.run("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\S+?)=(\S*)", told))

    def state(self, job: str) -> str:
        return self.fields(job)["JobState"]

    def wait(self, job: str, seconds: float = LIMIT_SECONDS) -> str:
        """Return the state in which the job has ended, once its last process has."""

        def ended() -> bool:
            return self.state(job) in FINAL and not self.run("squeue", "-h", "-j", job).strip()

        wait(ended, seconds, lambda: self.told(job))
        return self.state(job)

    def exit_status(self, job: str) -> int:
        """The batch script's, as a shell would say."""
        status, number = map(int, self.fields(job)["ExitCode"].split(":"))
        return status if number == 0 else 128 + number

    def cancel(self, job: str, *options: str) -> None:
        """scancel; ("--batch", "--signal=USR1") is what --signal=B:USR1@N does, at once."""
        self.run("scancel", *options, job)

    def output(self, job: str) -> str:
        """What the job's script wrote so far."""
        path = Path(self.fields(job)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def told(self, job: str) -> str:
        return f"{self.fields(job)}\n{self.output(job)[-6000:]}"

    def _configure(self) -> None:
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        proctrack = "proctrack/cgroup" if FREEZER.is_dir() else "proctrack/linuxproc"
        text = CONF.format(
            login=self.hosts.login,
            folder=self.folder,
            proctrack=proctrack,
            first_job=os.getpid() % 600_000 * 100 + 1,
        )
        for host in self.hosts:
            text += NODE.format(host=host, megabytes=pages * page * 8 // 10 // 2**20)
        self.conf.write_text(text)
        self.conf.with_name("gres.conf").write_text("Name=npu Count=8\n")
        self.conf.with_name("cgroup.conf").write_text(CGROUP_CONF)

    def _start(self, host: Host, command: Sequence[str | Path]) -> Running:
        path = os.environ.get("PATH", "") + ":/usr/sbin"
        daemon = host.popen(command, cwd=self.folder / "cwd", SLURM_CONF=str(self.conf), PATH=path)
        self._daemons.append(daemon)
        return daemon

    def _ready(self) -> bool:
        for daemon in self._daemons:
            assert daemon.status is None, f"{daemon.status}: {daemon.told}{self._logs()}"
        try:
            states = self.run("sinfo", "--noheader", "--Node", "--format=%T").split()
        except AssertionError:  # slurmctld does not answer yet
            return False
        return states == ["idle"] * len(self.hosts)

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("*.log")))

    def _end(self) -> None:
        """Daemons end as they like it: a slurmd takes its groups of processes away."""
        for daemon in reversed(self._daemons):
            if daemon.status is None:
                daemon.send(signal.SIGTERM)
                wait(_ended(daemon), READY_SECONDS, lambda: self._logs())
        self._daemons.clear()
        for host in self.hosts:
            for group in sorted(FREEZER.glob(f"slurm_{host.name}/**/"), reverse=True):
                with suppress(OSError):  # it may be another session's
                    group.rmdir()


def _ended(daemon: Running) -> Callable[[], bool]:
    return lambda: daemon.status is not None
