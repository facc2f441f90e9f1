"""Fan-out by ssh: real sshd on two hosts, real clients on a third, `login`, that trains nothing.

First with stand-ins for the remote launchers (leashed.py), which shows what ssh and the leash do in
a second; then with the launchers themselves.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jobs
import pytest
from hosts import Host, Hosts, Running, wait
from sshd import Sshd

from mindbooth.launch import processes
from mindbooth.launch.leash import BEAT_SECONDS, SILENCE_SECONDS

FAN = Path(__file__).with_name("fan.py")
LEASHED = Path(__file__).with_name("leashed.py")
SOON_SECONDS = 15.0

Start = Callable[..., Running]
Left = Callable[[], list[str]]


@pytest.fixture
def start(hosts: Hosts, sshd: Sshd, tmp_path: Path) -> Start:
    def start(*, reader: str = "", **behaviour: str) -> Running:
        """Fan out from `login`: for each host what its stand-in does. `reader` gets the output."""
        words: list[str] = []
        for host, what in behaviour.items():
            words += [host, shlex.join([sys.executable, str(LEASHED), *what.split()])]
        fan = [sys.executable, FAN, "1", *words]
        piped = ["bash", "-c", f'"$@" | {reader}', "bash"] if reader else []
        return hosts.login.popen([*piped, *fan], cwd=tmp_path / "login")

    return start


@pytest.fixture
def left(hosts: Hosts, sshd: Sshd) -> Left:
    """All that is alive, sessions of sshd included, beside the servers themselves."""
    servers = {server.pid for server in sshd.servers.values()}
    return lambda: [
        f"{host.name}: {command(pid)}"
        for host in (*hosts, hosts.login)
        for pid in host.processes()
        if pid not in servers
    ]


def nothing(left: Left, within: float) -> None:
    wait(lambda: not left(), within, lambda: str(left()))


def stand_ins(left: Left) -> list[str]:
    return [words for words in left() if f": {sys.executable} {LEASHED} " in words]


def command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return "gone"


def all_begun(run: Running) -> bool:
    return all(f"[{name}] a worker's line" in run.out for name in ("n1", "n2"))


def test_the_first_host_speaks_for_all_that_end_alike(start: Start) -> None:
    run = start(n1="ends 3", n2="ends 3")
    assert run.end() == 3
    assert sorted(run.out.splitlines()) == [
        "[n1] a worker's line",
        "[n2] a worker's line",
        "mindbooth: a launcher on n1",
    ]
    assert run.err == "mindbooth: n1 says how it ended\nlast line of n1\n"


def test_a_host_that_ends_otherwise_speaks_for_itself(start: Start, left: Left) -> None:
    run = start(n1="heeds", n2="ends 2")
    assert run.end() == 2
    assert run.err.splitlines() == [
        "mindbooth: n1 says how it ended",
        "last line of n1",
        "mindbooth: the other hosts are asked to stop",
        "n2: mindbooth: n2 says how it ended",
        "n2: last line of n2",
    ]
    assert "[n1] was asked by SIGTERM\n" in run.out
    nothing(left, SOON_SECONDS)


@pytest.mark.parametrize(
    ("sent", "arrives", "status"),
    [
        (signal.SIGTERM, "SIGTERM", 75),
        (signal.SIGUSR1, "SIGUSR1", 75),
        (signal.SIGHUP, "SIGTERM", 75),
        (signal.SIGINT, "SIGINT", 130),
    ],
)
def test_a_stop_request_reaches_every_host(
    start: Start, left: Left, sent: signal.Signals, arrives: str, status: int
) -> None:
    run = start(n1=f"heeds {status}", n2=f"heeds {status}")
    run.until(lambda: all_begun(run))
    run.send(sent)
    assert run.end(SOON_SECONDS) == status
    for name in ("n1", "n2"):
        assert f"[{name}] was asked by {arrives}\n" in run.out
    nothing(left, SOON_SECONDS)


def test_a_launcher_that_is_killed_leaves_nothing_on_the_hosts(start: Start, left: Left) -> None:
    run = start(n1="heeds", n2="heeds")
    run.until(lambda: all_begun(run))
    run.send(signal.SIGKILL)
    assert run.end(SOON_SECONDS) == 137
    nothing(left, SOON_SECONDS)


def test_a_ctrl_c_of_the_terminal_does_not_reach_the_clients(start: Start, hosts: Hosts) -> None:
    run = start(n1="heeds", n2="heeds")
    run.until(lambda: all_begun(run))
    clients = [pid for pid in hosts.login.processes() if command(pid).startswith("ssh ")]
    assert [os.getsid(pid) for pid in clients] == clients
    assert len(clients) == 2
    run.send(signal.SIGTERM)
    run.end(SOON_SECONDS)


def test_a_second_ctrl_c_does_not_wait_for_who_does_not_listen(start: Start, left: Left) -> None:
    run = start(n1="heeds 130", n2="stays 130")
    run.until(lambda: all_begun(run))
    for _ in range(2):
        run.send(signal.SIGINT)
        run.until_told("[n2] was asked by SIGINT")
    assert run.end(SOON_SECONDS) == 130
    assert "mindbooth: host n2 has not ended since it was asked to stop" in run.err
    nothing(left, SOON_SECONDS)


def test_a_host_that_cannot_be_reached_is_named_and_the_other_is_stopped(
    start: Start, left: Left
) -> None:
    run = start(n1="heeds", nowhere="heeds")
    assert run.end() == 1
    (told,) = [line for line in run.err.splitlines() if "nowhere" in line]
    assert told.startswith("mindbooth: host nowhere: ssh: Could not resolve hostname nowhere")
    assert told.endswith("(status 255 of ssh). Try: ssh nowhere true")
    assert "[n1] was asked by SIGTERM\n" in run.out
    nothing(left, SOON_SECONDS)


def test_a_first_host_that_cannot_be_reached_is_told_in_one_line(start: Start) -> None:
    run = start(nowhere="heeds", n2="heeds")
    assert run.end() == 1
    assert run.err.count("nowhere") == len(["host nowhere", "hostname nowhere", "ssh nowhere"])


@pytest.mark.parametrize(
    ("command", "status"),
    [("cd /no/such/folder || exit 126", 126), ("exec env /no/such/python", 127)],
)
def test_a_host_without_folder_or_python_is_named(
    hosts: Hosts, sshd: Sshd, tmp_path: Path, command: str, status: int
) -> None:
    run = hosts.login.popen([sys.executable, FAN, "1", "n1", command], cwd=tmp_path / "login")
    assert run.end() == status
    (told,) = run.err.splitlines()
    assert told.startswith("mindbooth: host n1: ")
    assert f"No such file or directory (status {status} of ssh). Every host needs" in told


def test_a_remote_launcher_that_is_killed_is_named_and_the_others_are_stopped(
    start: Start, left: Left
) -> None:
    run = start(n1="heeds", n2="dies")
    assert run.end() == 1
    assert "mindbooth: host n2: last line of n2 (status 255 of ssh). Try: ssh n2 true" in run.err
    assert "[n1] was asked by SIGTERM\n" in run.out
    nothing(left, SOON_SECONDS)


def test_a_cut_cable_ends_both_sides(start: Start, hosts: Hosts, sshd: Sshd, left: Left) -> None:
    run = start(n1="heeds", n2="heeds")
    run.until(lambda: all_begun(run))
    hosts[1].cut()
    try:
        assert run.end(2 * SILENCE_SECONDS) == 1
        assert "mindbooth: host n2: Timeout, server n2 not responding." in run.err
        wait(lambda: not stand_ins(left), 2 * SILENCE_SECONDS)
    finally:
        hosts[1].join()
        for pid in hosts[1].processes().keys() - {sshd.servers["n2"].pid}:
            os.kill(pid, signal.SIGKILL)  # sshd's session, which waits for TCP to give up


def test_a_terminal_on_hold_does_not_look_like_a_launcher_that_is_gone(
    start: Start, hosts: Hosts, left: Left
) -> None:
    seconds = SILENCE_SECONDS + BEAT_SECONDS
    run = start(reader=f"(sleep {seconds}; echo over >&2)", n1="chatters", n2="chatters")
    run.until(lambda: "over\n" in run.err)
    assert len(stand_ins(left)) == 2
    (fan,) = (pid for pid in hosts.login.processes() if command(pid).startswith(sys.executable))
    os.kill(fan, signal.SIGTERM)
    nothing(left, SOON_SECONDS)


# The launchers themselves.


@pytest.fixture
def launch(
    hosts: Hosts, sshd: Sshd, tiny_pipeline: Path, mini_sdxl: Path, tmp_path: Path
) -> Callable[..., Running]:
    def launch(names: str = "n1,n2", **flags: object) -> Running:
        """Train on the hosts, with a worker each; output goes to `tmp_path / "out"`."""
        usual = {
            "output_dir": tmp_path / "out",
            "latent_cache_dir": tmp_path / "cache",
            "report_to": "none",
            "allreduce_dtype": "fp32",
        }
        options = ["--hosts", names, "--device_target", "CPU", "--nproc_per_node", "1", "--"]
        training = jobs.training(tiny_pipeline, mini_sdxl / "instance", **usual | flags)
        return hosts.login.popen(
            [*jobs.MINDBOOTH, "launch", *options, *training], cwd=tmp_path / "job folder"
        )

    return launch


def test_two_hosts_train_one_adapter(
    launch: Callable[..., Running], left: Left, tmp_path: Path
) -> None:
    run = launch(max_train_steps=3, profile=True)  # then every rank tells its phases
    assert run.end() == 0, run.told
    nothing(left, SOON_SECONDS)
    assert run.err == ""
    assert jobs.learned(tmp_path / "out") > 0
    assert run.out.count("mindbooth: 2 workers on CPU") == 1
    for rank in (0, 1):
        assert f"\n[{rank}] " in run.out


def test_a_host_that_waits_for_one_that_cannot_be_reached_is_stopped(
    launch: Callable[..., Running], left: Left, tmp_path: Path
) -> None:
    run = launch("n1,nowhere")
    assert run.end(SOON_SECONDS) == 1
    assert "mindbooth: host nowhere: ssh: Could not resolve hostname nowhere" in run.err
    nothing(left, SOON_SECONDS)
    assert not (tmp_path / "out").exists()


def test_a_stop_request_saves_on_the_hosts(
    launch: Callable[..., Running], left: Left, tmp_path: Path
) -> None:
    run = launch(max_train_steps=100000)
    run.until(lambda: jobs.updates(tmp_path / "out") >= 2)
    run.send(signal.SIGTERM)
    assert run.end() == 75, run.told
    nothing(left, SOON_SECONDS)
    (saved,) = (tmp_path / "out").glob("checkpoint-*")
    assert saved.name == f"checkpoint-{jobs.updates(tmp_path / 'out')}"
    assert run.err.count("stopped on request, everything saved") == 1


def test_training_ends_on_the_hosts_when_the_launcher_here_is_killed(
    launch: Callable[..., Running], left: Left, tmp_path: Path
) -> None:
    run = launch(max_train_steps=100000)
    run.until(lambda: jobs.updates(tmp_path / "out") >= 2)
    run.send(signal.SIGKILL)
    nothing(left, SOON_SECONDS)
    assert list((tmp_path / "out").glob("checkpoint-*"))


def test_a_worker_that_is_killed_is_reported_once(
    launch: Callable[..., Running], hosts: Hosts, left: Left, tmp_path: Path
) -> None:
    run = launch(max_train_steps=100000)
    run.until(lambda: jobs.updates(tmp_path / "out") >= 2)
    os.kill(worker(hosts[1]), signal.SIGKILL)
    assert run.end(SOON_SECONDS) == 137, run.told
    nothing(left, SOON_SECONDS)
    assert run.err.count("mindbooth: rank 1 (host n2, CPU worker 0) was ended by SIGKILL") == 1
    assert "n2: " not in run.err


def worker(host: Host) -> int:
    """The pid of the one worker on a host, which may have children."""
    found = host.processes()
    workers = {pid for pid, environ in found.items() if environ.get("MS_ROLE") == "MS_WORKER"}
    (pid,) = (pid for pid in workers if processes.parent(pid) not in workers)
    return pid
