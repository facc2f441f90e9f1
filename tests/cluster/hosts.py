"""Several hosts on one Linux machine: each has its own processes, network, name and /dev/shm.

A host is a process in namespaces of its own, which others are put beside; the file system is the
same for all, as on a cluster with a shared folder. `login` carries the switch that the others hang
on, at 10.77.0.254; hosts n1, n2, ... are at 10.77.0.1, 10.77.0.2, ... Nothing of it is visible from
outside, so any number of sessions can have such hosts at the same time. When `Hosts` closes, or its
process dies, the kernel ends everything on them.

Needs root, unshare, nsenter and ip. Process ids here are those of the machine, not of a host.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

SUBNET = "10.77.0"
LOGIN = "login"
SWITCH = "switch"
LIMIT_SECONDS = 120.0
POLL_SECONDS = 0.02
# Variables by which a job that runs these tests would be taken for the job under test.
FOREIGN = ("MINDBOOTH_", "SLURM_", "SBATCH_", "MS_", "RANK_", "PYTEST_")

# The first process of a host. Ignoring SIGCHLD, it leaves no zombies; its end is the host's end.
INIT = """\
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
ip link set lo up
echo ready
exec env --ignore-signal=CHLD cat > /dev/null
"""


class HostsError(RuntimeError):
    """This machine cannot be divided into hosts."""


@dataclass
class Running:
    """A command at work on a host, or done. Its output goes to files: nobody has to read it."""

    entry: subprocess.Popen[bytes]  # nsenter, which ends as the command does
    pid: int | None
    folder: Path

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(errors="replace")

    @property
    def told(self) -> str:
        return f"{self.out}\n{self.err}"[-6000:]

    @property
    def status(self) -> int | None:
        """As a shell would say, 128+n for signal n; None while it runs."""
        code = self.entry.poll()
        return code if code is None or code >= 0 else 128 - code

    def until(self, true: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
        """Return when it is true, which must be before the command ends."""

        def done() -> bool:
            if true():
                return True
            assert self.status is None, f"ended with {self.status}: {self.told}"
            return False

        wait(done, seconds, lambda: self.told)

    def until_told(self, words: str, times: int = 1, seconds: float = LIMIT_SECONDS) -> None:
        self.until(lambda: self.out.count(words) >= times, seconds)

    def send(self, number: signal.Signals) -> None:
        assert self.pid is not None, self.told
        os.kill(self.pid, number)

    def end(self, seconds: float = LIMIT_SECONDS) -> int:
        wait(lambda: self.status is not None, seconds, lambda: self.told)
        assert self.status is not None
        return self.status


@dataclass
class Host:
    """One of them. `init` is its first process; `port` the switch's end of its cable."""

    name: str
    address: str
    init: int
    pid_namespace: int
    port: str
    switch: int  # the first process of the host that carries the switch

    def popen(self, command: Sequence[str | Path], *, cwd: Path, **environ: str) -> Running:
        """Start a command in `cwd`, which is made; its end is the host's, at the latest."""
        cwd.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"terminal-{self.name}-", dir=cwd.parent))
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            entry = subprocess.Popen(
                self.enter(command, cwd),
                env={**own_environ(), **environ},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                preexec_fn=_heed_signals,
                start_new_session=True,
            )
        return Running(entry=entry, pid=_only_child(entry), folder=folder)

    def run(self, command: Sequence[str | Path], *, cwd: Path = Path("/"), **environ: str) -> str:
        """Run a command to its end, which must be a good one; return its output."""
        done = subprocess.run(
            self.enter(command, cwd),
            env={**own_environ(), **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def enter(self, command: Sequence[str | Path], cwd: Path) -> list[str]:
        """The command line that runs a command on this host, from anywhere on the machine."""
        into = ["nsenter", f"--target={self.init}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        return [*into, "env", f"--chdir={cwd}", *map(str, command)]

    def processes(self) -> dict[int, dict[str, str]]:
        """All that is alive on this host, with the environment of each."""
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            pid = int(name)
            if pid != self.init and _pid_namespace(pid) == self.pid_namespace and not _dead(pid):
                found[pid] = environ(pid)
        return found

    def carriers(self, job: str) -> dict[int, dict[str, str]]:
        """What is alive here of a job, by its token: workers, scheduler, msrun, their children."""
        marks = ("MINDBOOTH_JOB", "MINDBOOTH_LAUNCHER")
        return {
            pid: own
            for pid, own in self.processes().items()
            if any(own.get(mark, "").partition(".")[0] == job for mark in marks)
        }

    def cut(self) -> None:
        """Pull this host's cable out of the switch."""
        self._cable("down")

    def join(self) -> None:
        """Plug it in again."""
        self._cable("up")

    def _cable(self, state: str) -> None:
        _ip(self.switch, f"link set {self.port} {state}")


class Hosts:
    """`with Hosts(2, folder) as hosts:` hosts[0] and hosts[1] are n1 and n2, beside hosts.login."""

    def __init__(self, count: int, folder: Path) -> None:
        self.addresses = {f"n{i + 1}": f"{SUBNET}.{i + 1}" for i in range(count)}
        self.addresses[LOGIN] = f"{SUBNET}.254"
        self.folder = folder
        self._inits: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Hosts:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{address} {name}" for name, address in self.addresses.items()]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        try:
            inits = {name: self._start(name) for name in self.addresses}
            self._wire(inits)
        except BaseException:
            self._end()
            raise
        made = {name: self._host(name, inits) for name in self.addresses}
        self.login = made.pop(LOGIN)
        self.all = tuple(made.values())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def __getitem__(self, index: int) -> Host:
        return self.all[index]

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[Host]:
        return iter(self.all)

    def _start(self, name: str) -> int:
        """Start a host that is on its own; return its first process."""
        own = ["--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc"]
        init = subprocess.Popen(
            [
                "unshare",
                *own,
                "--kill-child",
                "sh",
                "-c",
                INIT,
                "init",
                name,
                self.folder / "hosts",
            ],
            stdin=subprocess.PIPE,  # its end is the host's end
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._inits.append(init)
        assert init.stdout is not None
        pid = init.stdout.readline() == "ready\n" and _only_child(init)
        if not pid:
            raise HostsError(f"no namespaces for a host: {init.communicate()[1].strip()}")
        return pid

    def _wire(self, inits: Mapping[str, int]) -> None:
        login = inits[LOGIN]
        _ip(login, f"link add {SWITCH} type bridge")
        _ip(login, f"addr add {self.addresses[LOGIN]}/24 dev {SWITCH}", f"link set {SWITCH} up")
        for name, init in inits.items():
            if name != LOGIN:
                _ip(login, f"link add {name} type veth peer name eth0 netns {init}")
                _ip(login, f"link set {name} master {SWITCH} up")
                _ip(init, f"addr add {self.addresses[name]}/24 dev eth0", "link set eth0 up")

    def _host(self, name: str, inits: Mapping[str, int]) -> Host:
        namespace = _pid_namespace(inits[name])
        assert namespace is not None
        return Host(
            name=name,
            address=self.addresses[name],
            init=inits[name],
            pid_namespace=namespace,
            port=name,
            switch=inits[LOGIN],
        )

    def _end(self) -> None:
        for init in self._inits:
            init.communicate()  # which closes its standard input
        self._inits.clear()


def wait(true: Callable[[], bool], seconds: float, told: Callable[[], str] = lambda: "") -> float:
    """Poll, because what is looked at belongs to others; return how long it took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() < start + seconds, f"not within {seconds:g} s. {told()}"
        time.sleep(POLL_SECONDS)
    return time.monotonic() - start


def own_environ() -> dict[str, str]:
    """This process's environment without what belongs to a job that we may be part of."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def environ(pid: int) -> dict[str, str]:
    """Of a process on any host; empty for one that is gone."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (part.partition(b"=") for part in raw.split(b"\0") if b"=" in part)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _pid_namespace(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def _dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _only_child(parent: subprocess.Popen[bytes] | subprocess.Popen[str]) -> int | None:
    """The process that unshare or nsenter has put into the namespaces, once it is there."""
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while parent.poll() is None:
        found = children.read_text().split()
        if found:
            return int(found[0])
        time.sleep(0.002)
    return None


def _ip(init: int, *commands: str) -> None:
    """Run `ip` in the network of a host; process ids in it are the machine's."""
    for command in commands:
        done = subprocess.run(
            ["nsenter", f"--target={init}", "--net", "ip", *command.split()],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HostsError(f"ip {command}: {done.stderr.strip()}")


def _heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # what a shell's background job does not
