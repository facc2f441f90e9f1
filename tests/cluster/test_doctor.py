"""`mindbooth doctor` on two real hosts: they look at one another through the folder they share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hosts import Hosts
from slurm import Slurm

DOCTOR = (str(Path(sys.executable).with_name("mindbooth")), "doctor", "--json")

Groups = dict[str, list[dict[str, str]]]


def examine(hosts: Hosts, folder: Path) -> list[tuple[int, Groups]]:
    """Exit status and groups of the doctor on each host, at the same time."""
    shared = folder / "shared"
    shared.mkdir()
    asked = ("--folder", str(shared), "--nnodes", "2", "--node_rank")
    doctors = [
        host.popen([*DOCTOR, *asked, str(rank)], cwd=folder / host.name)
        for rank, host in enumerate(hosts)
    ]
    told = [(doctor.end(), json.loads(doctor.out)["groups"]) for doctor in doctors]
    assert list(shared.iterdir()) == []
    return told


def found(groups: Groups, group: str, name: str) -> dict[str, str]:
    (one,) = [one for one in groups[group] if one["name"] == name]
    return one


@contextmanager
def cable_pulled(hosts: Hosts, index: int) -> Iterator[None]:
    hosts[index].cut()
    try:
        yield
    finally:
        hosts[index].join()


def test_two_hosts_see_and_reach_one_another_and_nothing_is_at_fault(
    hosts: Hosts, tmp_path: Path
) -> None:
    for status, groups in examine(hosts, tmp_path):
        assert status == 0, groups
        assert found(groups, "hosts", "hosts")["found"] == "2 of 2: n1 (10.77.0.1), n2 (10.77.0.2)"
        assert found(groups, "hosts", "reached")["state"] == "ok"
        assert found(groups, "hosts", "clocks")["state"] == "ok"
        assert found(groups, "hosts", "equal on all")["state"] == "ok"
        assert found(groups, "network", "host name")["state"] == "ok"


def test_hosts_that_share_a_folder_and_no_network_are_told(hosts: Hosts, tmp_path: Path) -> None:
    with cable_pulled(hosts, 1):
        first, second = examine(hosts, tmp_path)
    assert (first[0], second[0]) == (1, 1)
    assert found(first[1], "hosts", "reached")["found"] == "no connection to n2 (10.77.0.2)"
    assert found(second[1], "hosts", "reached")["found"] == "no connection to n1 (10.77.0.1)"


def test_under_slurm_the_hosts_need_no_numbers(slurm: Slurm, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    output = slurm.run(
        *("srun", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/report-%n"),
        *(*DOCTOR, "--folder", shared),
        cwd=tmp_path,
    )
    assert output == ""
    for rank in range(2):
        told = json.loads((tmp_path / f"report-{rank}").read_text())["groups"]
        assert found(told, "hosts", "hosts")["found"].startswith("2 of 2: n1 ")
        assert f"host {rank} of 2 (" in found(told, "network", "job")["found"]
    assert list(shared.iterdir()) == []
