import os
import platform
import socket
from pathlib import Path

import pytest

from mindbooth.launch import machine_facts
from mindbooth.launch.npu_findings import Seen

FIXTURES = Path(__file__).parents[2] / "fixtures" / "ranktable"
INSTALL_INFO = """\
package_name=Ascend-cann-toolkit
version=8.3.RC1
innerversion=V100R001C23SPC001B235
arch=aarch64
"""
DRIVER_INFO = "Version=25.3.rc1\nascendhal_version=7.35.23\npackage_version=25.3.rc1\n"


def tool(folder: Path, name: str, script: str) -> str:
    """Put a program into a folder; returns a PATH that finds it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}")
    (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def nodes(folder: Path, *ids: int) -> Path:
    folder.mkdir()
    for i in ids:
        (folder / f"davinci{i}").touch()
    return folder


def test_a_machine_without_npus_is_not_asked(tmp_path: Path) -> None:
    path = tool(tmp_path / "bin", "npu-smi", f"touch {tmp_path}/asked")
    assert machine_facts.npus(path, nodes(tmp_path / "dev"), tmp_path / "none") == ({}, [])
    assert not (tmp_path / "asked").exists()


def test_npus_are_what_both_tools_tell(tmp_path: Path) -> None:
    tool(tmp_path / "bin", "npu-smi", f"cat {FIXTURES}/npu_smi_info_910b.txt")
    path = tool(
        tmp_path / "bin",
        "hccn_tool",
        """
        case "$2 $3" in
        "5 -link") echo "link status: DOWN" ;;
        *" -link") echo "link status: UP" ;;
        *" -net_health") echo "net health status: Success" ;;
        *" -tls") echo "dev_id:$2, tls switch[0](0:disable, 1:enable)" ;;
        *" -ip") echo "ipaddr:192.168.0.10$2" ;;
        esac
        """,
    )
    seen, complaints = machine_facts.npus(path, nodes(tmp_path / "dev", 2, 5), tmp_path / "none")
    well = Seen(health="OK", link="up", network="Success", tls="off")
    assert complaints == []
    assert seen == {
        2: well._replace(address="192.168.0.102", busy=("python (pid 1203377, 37709 MB)",)),
        5: well._replace(address="192.168.0.105", health="Alarm", link="down"),
    }


@pytest.mark.parametrize("line", ["address_0=", "address_0=none"])
def test_a_bad_line_of_hccn_conf_is_told_and_the_tools_are_asked_all_the_same(
    tmp_path: Path, line: str
) -> None:
    tool(tmp_path / "bin", "npu-smi", f"cat {FIXTURES}/npu_smi_info_910b.txt")
    path = tool(tmp_path / "bin", "hccn_tool", 'echo "link status: UP"')
    conf = tmp_path / "hccn.conf"
    conf.write_text(f"{line}\n")
    seen, (complaint,) = machine_facts.npus(path, nodes(tmp_path / "dev", 0), conf)
    assert complaint.startswith(f"{conf}, line 1: {line!r} holds no IP address")
    assert seen[0] == Seen(health="OK", link="up")


def test_a_tool_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    tool(tmp_path / "bin", "hccn_tool", "echo 'hccn_tool: no permission'; exit 1")
    path = tool(
        tmp_path / "bin", "npu-smi", "echo 'dcmi module initialize failed. ret is -8005'\nexit 5"
    )
    seen, complaints = machine_facts.npus(path, nodes(tmp_path / "dev", 0), tmp_path / "none")
    assert seen == {0: Seen()}
    assert complaints == [
        "npu-smi info ended with status 5: dcmi module initialize failed. ret is -8005"
    ]


def test_without_tools_each_is_missed_once(tmp_path: Path) -> None:
    dev = nodes(tmp_path / "dev", *range(8))
    seen, complaints = machine_facts.npus(str(tmp_path), dev, tmp_path / "none")
    assert seen == dict.fromkeys(range(8), Seen())
    assert [text.split(" is ")[0] for text in complaints] == ["npu-smi", "hccn_tool"]


@pytest.mark.parametrize(
    ("place", "variable"),
    [
        ("ascend-toolkit/latest/{arch}-linux", None),
        ("cann/{arch}-linux", None),
        ("mine/{arch}-linux", "ASCEND_HOME_PATH"),
        ("mine", "ASCEND_TOOLKIT_HOME"),
    ],
)
def test_cann_is_found_where_it_is_named_or_usual(
    tmp_path: Path, place: str, variable: str | None
) -> None:
    folder = tmp_path / place.format(arch=platform.machine())
    folder.mkdir(parents=True)
    (folder / "ascend_toolkit_install.info").write_text(INSTALL_INFO)
    environ = {variable: str(tmp_path / "mine")} if variable else {}
    assert machine_facts.cann_version(environ, tmp_path) == "8.3.RC1"


def test_the_driver_tells_its_version_or_is_not_there(tmp_path: Path) -> None:
    assert machine_facts.driver_version(tmp_path) is None
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "version.info").write_text(DRIVER_INFO)
    assert machine_facts.driver_version(tmp_path) == "25.3.rc1"


def test_packages_that_are_missing_are_left_out() -> None:
    found = machine_facts.installed(["psutil>=1", "no-such-package-of-anyone; python_version>'3'"])
    assert list(found) == ["psutil"]


def test_the_holder_of_a_port_among_many_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = machine_facts.holders([port])
    assert f"(pid {os.getpid()}, " in found[port]


@pytest.mark.parametrize(
    ("base", "ports"),
    [
        ("", range(60000, 60032)),
        ("50000", range(50000, 50032)),
        ("65504", range(65504, 65536)),
        ("65530", range(65530, 65536)),
        ("65536", range(60000, 60032)),
        ("²", range(60000, 60032)),
    ],
)
def test_hccls_ports_end_where_ports_end(base: str, ports: range) -> None:
    assert machine_facts.hccl_ports(base) == ports


def test_a_folder_is_tried_where_it_would_be_made_and_nothing_stays(tmp_path: Path) -> None:
    found = machine_facts.space(tmp_path / "not" / "yet")
    assert found.refused is None
    assert found.free > 0
    assert os.listdir(tmp_path) == []


def test_a_folder_that_refuses_files_is_told_with_the_reason() -> None:
    assert machine_facts.space(Path("/proc/1/new")).refused is not None


def test_a_cgroups_limit_counts_wherever_above_it_stands(tmp_path: Path) -> None:
    own = "4:memory:/slurm/job_1/step_0\n3:cpu:/slurm\n0::/\n"
    for folder, limit in (("", 2**62), ("slurm/job_1", 2**20), ("slurm/job_1/step_0", 2**21)):
        (tmp_path / "memory" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "memory" / folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    assert machine_facts.memory(own, tmp_path) == (2**20, "limit of the cgroup")


@pytest.mark.parametrize(("content", "limited"), [("max\n", False), ("1048576\n", True)])
def test_the_second_version_of_cgroups_is_read_too(
    tmp_path: Path, content: str, limited: bool
) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "memory.max").write_text(content)
    size, source = machine_facts.memory("0::/job\n", tmp_path)
    assert (size == 2**20) == limited
    assert ("cgroup" in source) == limited


def test_the_cache_lies_where_the_trainer_puts_it(tmp_path: Path) -> None:
    from mindbooth.data.cache import default_root

    for environ in (
        {"HOME": "/home/anna"},
        {"HOME": "/home/anna", "XDG_CACHE_HOME": "/var/cache"},
        {"HOME": "/home/anna", "XDG_CACHE_HOME": "relative"},
        {},
    ):
        assert machine_facts.cache(environ) == default_root(environ)


@pytest.mark.parametrize(
    ("content", "version"),
    [('{"version": "1.0"}', "1.0"), ("{", "unreadable"), ("[]", "unknown"), (None, None)],
)
def test_a_table_that_lies_about_is_known_by_its_version(
    tmp_path: Path, content: str | None, version: str | None
) -> None:
    path = tmp_path / "hccl_rootinfo.json"
    if content is not None:
        path.write_text(content)
    assert machine_facts.table_version(path) == version
