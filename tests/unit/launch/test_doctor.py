import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mindbooth.launch import doctor
from mindbooth.launch.examination import Report
from mindbooth.launch.findings import Finding
from mindbooth.launch.options import LaunchError
from mindbooth.launch.plan import port_for

FIXTURES = Path(__file__).parents[2] / "fixtures" / "ranktable"
DOCTOR = (
    *(sys.executable, "-c"),
    "import sys; from mindbooth.launch import doctor; sys.exit(doctor.main(sys.argv[1:]))",
)
ORDINARY = {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}
REPORT = Report(
    host="n1",
    groups={
        "network": [Finding("host name", "fault", "n1 is 127.0.1.1", "Correct /etc/hosts.")],
        "limits": [
            Finding("open files", "warning", "256", "ulimit -n 4096"),
            Finding("cores", "ok", "192 for 8 workers"),
        ],
    },
)


def start(
    *options: str, environ: Mapping[str, str] = {}, before: Sequence[str] = ()
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, *DOCTOR, "--json", *options],
        env=ORDINARY | dict(environ),
        stdout=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The exit status and the groups."""
    output, _ = process.communicate(timeout=60)
    report: dict[str, Any] = json.loads(output)
    return process.returncode, report["groups"]


def state(groups: dict[str, list[dict[str, str]]], group: str, name: str) -> str:
    (found,) = [one for one in groups[group] if one["name"] == name]
    return found["state"]


def test_a_report_is_a_table_of_findings_each_with_its_remedy_below() -> None:
    assert doctor.as_text(REPORT, coloured=False).splitlines() == [
        "mindbooth doctor on n1: 1 warning, 1 fault",
        "",
        "network",
        "  fault    host name   n1 is 127.0.1.1",
        "                       -> Correct /etc/hosts.",
        "",
        "limits",
        "  warning  open files  256",
        "                       -> ulimit -n 4096",
        "  ok       cores       192 for 8 workers",
    ]


def test_a_terminal_gets_colours_and_nothing_else_changes() -> None:
    coloured = doctor.as_text(REPORT, coloured=True)
    assert "\033[31mfault  \033[0m" in coloured
    for code in ("\033[31m", "\033[32m", "\033[33m", "\033[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == doctor.as_text(REPORT, coloured=False)


def test_programs_get_all_of_it_as_json() -> None:
    assert json.loads(doctor.as_json(REPORT))["groups"]["limits"][1] == {
        "name": "cores",
        "state": "ok",
        "found": "192 for 8 workers",
        "remedy": "",
    }


def test_this_machine_is_examined_in_every_group_and_nothing_is_at_fault() -> None:
    status, groups = end(start())
    assert status == 0
    assert list(groups) == [
        *("versions", "devices", "network", "ports", "folders", "limits", "environment")
    ]
    assert state(groups, "versions", "mindspore") == "ok"


def test_what_is_wrong_with_this_process_is_seen() -> None:
    low = ("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")
    environ = {"GLOG_v": "0", "RANK_ID": "3", "HOME": "/proc/1"}
    status, groups = end(start(environ=environ, before=low))
    assert status == 1
    assert state(groups, "limits", "open files") == "warning"
    assert state(groups, "folders", "cache") == "fault"
    told = [one["found"].partition(":")[0] for one in groups["environment"]]
    assert told == ["GLOG_v=0", "RANK_ID=3"]


def test_two_doctors_on_one_folder_see_one_another_and_that_they_share_a_name(
    tmp_path: Path,
) -> None:
    both = [start("--folder", str(tmp_path), "--nnodes", "2", "--node_rank", rank) for rank in "01"]
    for status, groups in map(end, both):
        assert status == 1
        assert groups["hosts"][0]["found"].startswith("2 of 2: ")
        assert state(groups, "hosts", "clocks") == "ok"
        assert state(groups, "hosts", "names") == "fault"
    assert os.listdir(tmp_path) == []


def test_a_host_that_does_not_come_is_a_fault(tmp_path: Path) -> None:
    status, groups = end(
        start(
            *("--folder", str(tmp_path), "--nnodes", "2", "--node_rank", "0"),
            *("--wait_seconds", "0.5"),
        )
    )
    assert status == 1
    assert state(groups, "hosts", "host 1") == "fault"


def test_a_folder_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    status, groups = end(
        start("--folder", str(tmp_path / "nowhere"), "--nnodes", "2", "--node_rank", "0")
    )
    assert status == 1
    (found,) = groups["hosts"]
    assert (found["state"], found["found"]) == ("fault", f"{tmp_path}/nowhere: it is not there")
    assert found["remedy"].endswith(f"mkdir -p {tmp_path}/nowhere")


def test_a_master_port_that_nothing_tells_is_said_to_be_unknown() -> None:
    status, groups = end(start("--nnodes", "2", "--node_rank", "0"))
    assert state(groups, "ports", "master port") == "ok"
    assert groups["ports"][0]["found"].startswith("not known: ")


def test_a_master_port_that_is_taken_is_a_fault_of_host_0(tmp_path: Path) -> None:
    place = ("--folder", str(tmp_path), "--nnodes", "2", "--wait_seconds", "0", "--node_rank")
    with socket.create_server(("", port_for(str(tmp_path)) + 1)):
        _, first = end(start(*place, "0"))
        _, second = end(start(*place, "1"))
    assert state(first, "ports", "master port") == "fault"
    assert f"(pid {os.getpid()}, " in first["ports"][0]["found"]
    assert "ports" not in second


def test_a_scheduler_that_contradicts_itself_is_a_fault_and_the_rest_is_examined() -> None:
    status, groups = end(start(environ={"SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "n[1-"}))
    assert status == 1
    assert state(groups, "network", "job") == "fault"
    assert state(groups, "versions", "mindspore") == "ok"


def test_a_scheduler_that_does_not_tell_how_many_hosts_there_are_is_told_of() -> None:
    environ = {"JOB_COMPLETION_INDEX": "3"}
    _, groups = end(start(environ=environ))
    assert state(groups, "network", "job") == "warning"
    _, groups = end(start("--nnodes", "4", "--node_rank", "3", environ=environ))
    assert state(groups, "network", "job") == "ok"


def test_several_processes_on_a_host_are_as_wrong_as_at_a_launch() -> None:
    environ = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
        "SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NODEID": "0", "SLURMD_NODENAME": "a1",
        "SLURM_LOCALID": "0",
    }  # fmt: skip
    _, groups = end(start(environ=environ))
    assert state(groups, "network", "job") == "fault"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a process another /dev")
def test_npus_are_examined_with_driver_and_cann(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "npu-smi").write_text(f"#!/bin/sh\ncat {FIXTURES}/npu_smi_info_910b.txt\n")
    (tools / "npu-smi").chmod(0o755)
    (tmp_path / "ascend_toolkit_install.info").write_text("version=8.3.RC1\n")
    other_dev = (
        f"mount -t tmpfs none {tmp_path}/dev && cp -a /dev/null /dev/urandom {tmp_path}/dev && "
        f"mkdir {tmp_path}/dev/shm && touch {tmp_path}/dev/davinci4 {tmp_path}/dev/davinci5 && "
        f'mount --move {tmp_path}/dev /dev && exec "$@"'
    )
    (tmp_path / "dev").mkdir()
    status, groups = end(
        start(
            environ={"PATH": f"{tools}:/usr/bin:/bin", "ASCEND_HOME_PATH": str(tmp_path)},
            before=("unshare", "--mount", "sh", "-c", other_dev, "sh"),
        )
    )
    assert status == 1
    assert groups["devices"][0]["found"] == "2: 4-5"
    assert state(groups, "devices", "health") == "fault"  # 5: Alarm
    assert state(groups, "versions", "CANN") == "ok"
    assert state(groups, "versions", "driver") == "warning"
    assert "HCCL's ports" in [one["name"] for one in groups["ports"]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--nnodes", "2"], "--nnodes and --node_rank belong together"),
        (["--node_rank", "0"], "--nnodes and --node_rank belong together"),
        (["--nnodes", "2", "--node_rank", "2"], "--node_rank 2: 2 hosts have the numbers 0 to 1"),
        (["--nnodes", "two", "--node_rank", "2"], "--nnodes"),
        (["--folders", "x"], "--folders"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(options: list[str], told: str) -> None:
    with pytest.raises(LaunchError, match=told):
        doctor.main(options)
