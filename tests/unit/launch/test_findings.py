from pathlib import Path

import pytest

from mindbooth.launch import findings
from mindbooth.launch.findings import GIB, Finding, Space

ASKED = (
    "mindspore<2.8,>=2.6",
    "mindone==0.5.0",
    "pillow>=11",
    'wandb>=0.31; extra == "wandb"',
)
FITTING = {"mindspore": "2.7.1", "mindone": "0.5.0", "pillow": "12.0.0"}
OWN = ("127.0.0.1", "10.0.0.1")


def states(found: list[Finding]) -> dict[str, str]:
    return {one.name: one.state for one in found}


def test_packages_that_fit_are_ok_and_extras_are_not_asked_for() -> None:
    assert states(findings.packages(ASKED, FITTING)) == {
        "mindspore": "ok",
        "mindone": "ok",
        "other packages": "ok",
    }


@pytest.mark.parametrize(
    ("name", "version", "command"),
    [
        ("mindspore", "2.10.0", "pip install 'mindspore<2.8,>=2.6'"),
        ("mindspore", "2.5.0", "pip install 'mindspore<2.8,>=2.6'"),
        ("mindone", None, "pip install 'mindone==0.5.0'"),
        ("pillow", "9.0", "pip install 'pillow>=11'"),
    ],
)
def test_a_package_that_does_not_fit_is_at_fault_with_the_command(
    name: str, version: str | None, command: str
) -> None:
    there = {key: value for key, value in FITTING.items() if key != name}
    there |= {name: version} if version else {}
    (fault,) = [one for one in findings.packages(ASKED, there) if one.state == "fault"]
    assert (fault.name, fault.remedy) == (name, command)
    assert (version or "not installed") in fault.found


def test_a_release_candidate_counts_as_its_version() -> None:
    assert findings.packages(["mindspore<2.8,>=2.6"], {"mindspore": "2.7.1rc1"})[0].state == "ok"


@pytest.mark.parametrize(("version", "state"), [("3.11.2", "ok"), ("3.9.1", "fault")])
def test_python_is_compared_with_what_is_asked_for(version: str, state: str) -> None:
    assert findings.python(version, ">=3.10,<3.12").state == state


def test_a_program_that_is_missing_is_named_with_its_folder() -> None:
    fault = findings.programs(Path("/venv/bin"), ["msrun"])
    assert (fault.state, fault.found) == ("fault", "no msrun in /venv/bin")
    assert findings.programs(Path("/venv/bin"), []).state == "ok"


@pytest.mark.parametrize(
    ("address", "one_host", "several_hosts"),
    [
        ("10.0.0.1", "ok", "ok"),
        ("10.9.9.9", "ok", "warning"),
        ("127.0.1.1", "ok", "fault"),
        (None, "ok", "fault"),
    ],
)
def test_a_name_that_others_cannot_use_is_a_note_on_one_host_and_a_fault_on_several(
    address: str | None, one_host: str, several_hosts: str
) -> None:
    alone = findings.host_name("n1", address, OWN, several_hosts=False)
    together = findings.host_name("n1", address, OWN, several_hosts=True)
    assert (alone.state, together.state) == (one_host, several_hosts)
    assert bool(together.remedy) == (together.state != "ok")


def test_interfaces_are_shown_without_what_leads_back() -> None:
    present = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.1", "fe80::1"], "ifb0": []}
    assert findings.interfaces(present, several_hosts=True).found == "eth0 10.0.0.1"


def test_a_host_with_lo_alone_is_at_fault_among_several() -> None:
    present = {"lo": ["127.0.0.1"]}
    assert findings.interfaces(present, several_hosts=False).state == "ok"
    assert findings.interfaces(present, several_hosts=True).state == "fault"


def test_a_proxy_is_shown_without_its_password() -> None:
    proxy = findings.proxy({"https_proxy": "http://anna:secret@proxy:3128"})
    assert proxy is not None
    assert proxy.found == "https_proxy: proxy:3128"
    assert findings.proxy({}) is None


@pytest.mark.parametrize(
    ("synchronised", "one_host", "several_hosts"),
    [(True, "ok", "ok"), (False, "ok", "warning"), (None, "ok", "warning")],
)
def test_a_clock_of_its_own_matters_among_several_hosts(
    synchronised: bool | None, one_host: str, several_hosts: str
) -> None:
    assert findings.clock(synchronised, several_hosts=False).state == one_host
    assert findings.clock(synchronised, several_hosts=True).state == several_hosts


def test_a_taken_master_port_is_at_fault_and_says_who() -> None:
    taken = findings.master_port((20000, 20001), {20001: "python (pid 7, user anna)"}, "job 42")
    assert taken.state == "fault"
    assert taken.found == "20001 is taken by python (pid 7, user anna)"
    assert findings.master_port((20000, 20001), {}, "job 42").state == "ok"


@pytest.mark.parametrize(
    ("reserved", "ephemeral", "state"),
    [
        ("", "32768\t60999", "warning"),
        ("60000-60031", "32768\t60999", "ok"),
        ("8080,60000-60031,61000", "32768\t60999", "ok"),
        ("60000-60015", "32768\t60999", "warning"),
        ("", "32768\t59999", "ok"),
        ("", "", "ok"),
    ],
)
def test_hccls_ports_are_to_be_kept_from_clients(reserved: str, ephemeral: str, state: str) -> None:
    found = findings.hccl_ports(range(60000, 60032), {}, reserved=reserved, ephemeral=ephemeral)
    assert found.state == state
    if state == "warning":
        assert found.remedy == "sysctl -w net.ipv4.ip_local_reserved_ports=60000-60031"


def test_a_holder_of_hccls_ports_is_named() -> None:
    found = findings.hccl_ports(range(60000, 60032), {60003: "sshd"}, reserved="", ephemeral="")
    assert (found.state, found.found) == ("warning", "60003 is taken by sshd")


@pytest.mark.parametrize(
    ("free", "refused", "state"),
    [
        (50 * GIB, None, "ok"),
        (GIB, None, "warning"),
        (0, None, "fault"),
        (50 * GIB, "Permission denied", "fault"),
    ],
)
def test_a_folder_needs_room_and_the_right_to_write(
    free: int, refused: str | None, state: str
) -> None:
    found = findings.space("output", Space(Path("/out"), free, refused))
    assert found.state == state
    assert "/out" in found.found


@pytest.mark.parametrize(
    ("value", "state", "shown"),
    [(-1, "ok", "unlimited"), (4096, "ok", "4096"), (1024, "warning", "1024")],
)
def test_a_low_limit_is_told_with_the_command(value: int, state: str, shown: str) -> None:
    found = findings.limit("open files", "-n", value, 4096)
    assert (found.state, found.found) == (state, shown)
    assert ("ulimit -n 4096" in found.remedy) == (state == "warning")


def test_dockers_shared_memory_is_little() -> None:
    assert findings.shared_memory(64 * 2**20).state == "warning"
    assert findings.shared_memory(8 * GIB).state == "ok"


@pytest.mark.parametrize(("workers", "state"), [(1, "ok"), (8, "warning")])
def test_memory_and_cores_are_counted_for_each_worker(workers: int, state: str) -> None:
    assert findings.memory(32 * GIB, "of this machine", workers).state == state
    assert findings.cores(2, workers).state == state


def test_each_variable_that_bites_is_a_warning() -> None:
    assert states(findings.variables([])) == {"variables": "ok"}
    assert [one.found for one in findings.variables(["A=1: bites.", "B=2: bites."])] == [
        "A=1: bites.",
        "B=2: bites.",
    ]
