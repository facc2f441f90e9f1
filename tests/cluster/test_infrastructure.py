"""What the other tests of this folder stand on: hosts that are apart, and Slurm and ssh on them."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from hosts import Host, Hosts, wait
from slurm import Slurm
from sshd import Sshd

SERVE = "import socket; s = socket.create_server(('', 5000)); print('up', flush=True); s.accept()"
REACH = "import socket, sys; socket.create_connection((sys.argv[1], 5000), timeout=1)"


def reaches(host: Host, name: str, folder: Path) -> bool:
    return host.popen([sys.executable, "-c", REACH, name], cwd=folder).end() == 0


def test_a_host_sees_its_own_processes_only(hosts: Hosts, tmp_path: Path) -> None:
    sleeper = hosts[1].popen(["sleep", "600"], cwd=tmp_path, MINDBOOTH_JOB="job")
    assert [set(host.carriers("job")) for host in hosts] == [set(), {sleeper.pid}]
    seen = [host.run(["sh", "-c", "cat /proc/[0-9]*/cmdline"]) for host in hosts]
    assert ["sleep" in words for words in seen] == [False, True]


def test_hosts_have_names_and_a_network_that_can_be_cut(hosts: Hosts, tmp_path: Path) -> None:
    assert [host.run(["hostname"]).strip() for host in hosts] == ["n1", "n2"]
    for _ in range(2):
        server = hosts[0].popen([sys.executable, "-c", SERVE], cwd=tmp_path)
        server.until_told("up")
        hosts[0].cut()
        assert not reaches(hosts[1], "n1", tmp_path)
        hosts[0].join()
        assert reaches(hosts[1], "n1", tmp_path)
        assert server.end() == 0


def test_orphans_on_a_host_do_not_stay_as_zombies(hosts: Hosts) -> None:
    hosts[0].run(["sh", "-c", "(sh -c 'sleep 0.1; exit 3' &) > /dev/null 2>&1"], MINDBOOTH_JOB="j")
    wait(lambda: not hosts[0].carriers("j"), seconds=5)
    assert "zombie" not in hosts[0].run(["sh", "-c", "grep -h State /proc/[0-9]*/status"])


def test_hosts_end_with_all_that_runs_on_them(hosts: Hosts, tmp_path: Path) -> None:
    with Hosts(1, tmp_path / "more") as more:
        sleeper = more[0].popen(["setsid", "sleep", "600"], cwd=tmp_path / "cwd")
    assert sleeper.end() == 137
    assert socket.gethostname() not in ("n1", "login")


def test_ssh_reaches_every_host_and_tells_the_status(
    hosts: Hosts, sshd: Sshd, tmp_path: Path
) -> None:
    for start in (hosts.login, *hosts):
        for name in ("n1", "n2"):
            assert start.run(["ssh", name, "hostname"]) == f"{name}\n"
    assert hosts.login.popen(["ssh", "n2", "exit 37"], cwd=tmp_path).end() == 37


def test_slurm_runs_on_both_hosts(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "job"
    script.write_text("#!/bin/bash\nsrun hostname\n")
    job = slurm.submit(script, "-N2", cwd=tmp_path)
    assert slurm.wait(job) == "COMPLETED"
    assert sorted(slurm.output(job).split()) == ["n1", "n2"]
