from dataclasses import dataclass

import pytest

from mindbooth.launch import npu_findings
from mindbooth.launch.findings import Finding
from mindbooth.launch.npu_findings import Seen

WELL = Seen(address="192.168.0.1", health="OK", link="up", network="Success", tls="off")


def devices(*seen: Seen, several_hosts: bool = True) -> dict[str, Finding]:
    found = npu_findings.devices(dict(enumerate(seen)), [], several_hosts=several_hosts)
    return {one.name: one for one in found}


def test_devices_that_are_well_are_ok_in_every_line() -> None:
    found = devices(*[WELL] * 8)
    assert {one.state for one in found.values()} == {"ok"}
    assert found["NPUs"].found == "8: 0-7"
    assert set(found) == {
        *("NPUs", "health", "links", "network", "TLS switch", "addresses", "occupied")
    }


@pytest.mark.parametrize(
    ("name", "seen", "one_host", "several_hosts", "told"),
    [
        ("health", WELL._replace(health="Alarm"), "fault", "fault", "OK: 0; Alarm: 1"),
        ("health", WELL._replace(health="Critical"), "fault", "fault", "OK: 0; Critical: 1"),
        ("health", WELL._replace(health="Warning"), "warning", "warning", "OK: 0; Warning: 1"),
        ("health", WELL._replace(health="UNKNOWN"), "warning", "warning", "OK: 0; UNKNOWN: 1"),
        ("links", WELL._replace(link="down"), "ok", "fault", "up: 0; down: 1"),
        ("network", WELL._replace(network="Init"), "ok", "ok", "Success: 0; Init: 1"),
        ("network", WELL._replace(network="Fault"), "warning", "warning", "Success: 0; Fault: 1"),
        ("TLS switch", WELL._replace(tls="on"), "fault", "fault", "off: 0; on: 1"),
        ("addresses", WELL._replace(address=None), "ok", "warning", "none of 1"),
        (
            "occupied",
            WELL._replace(busy=("python (pid 7, 300 MB)", "python (pid 8, 9 MB)")),
            "warning",
            "warning",
            "python (pid 7, 300 MB), python (pid 8, 9 MB): 1",
        ),
    ],
)
def test_a_device_that_is_not_well_is_told_by_its_number(
    name: str, seen: Seen, one_host: str, several_hosts: str, told: str
) -> None:
    alone = devices(WELL, seen, several_hosts=False)[name]
    together = devices(WELL, seen)[name]
    assert (alone.state, together.state) == (one_host, several_hosts)
    assert together.found == told
    assert together.remedy or together.state == "ok"


def test_what_no_tool_told_has_no_line_and_the_tool_has_one() -> None:
    found = npu_findings.devices({0: Seen()}, ["npu-smi is not on PATH"], several_hosts=False)
    assert [(one.name, one.state) for one in found] == [
        ("NPUs", "ok"),
        ("tools", "warning"),
        ("addresses", "ok"),
        ("occupied", "ok"),
    ]


@dataclass(frozen=True)
class Case:
    mindspore: str | None
    cann: str
    driver: str
    states: tuple[str, str]


@pytest.mark.parametrize(
    "case",
    [
        Case("2.7.1", "8.3.RC1", "25.3.rc1", ("ok", "ok")),
        Case("2.7.1", "8.2.RC1", "25.2.0", ("ok", "ok")),
        Case("2.7.1", "8.5.0", "25.5.0", ("warning", "ok")),
        Case("2.7.1", "8.3.RC1", "24.1.rc3.b999", ("ok", "warning")),
        Case("2.7.0", "8.3.RC1", "25.3.rc1", ("warning", "ok")),
        Case("2.6.0", "8.1.RC1", "25.0.RC1", ("ok", "ok")),
        Case("2.6.0", "8.0.0", "24.1.0", ("warning", "warning")),
        Case("2.10.0", "8.0.0", "24.1.0", ("ok", "ok")),  # nothing is known of this one
        Case(None, "8.0.0", "24.1.0", ("ok", "ok")),
    ],
)
def test_cann_and_driver_are_paired_with_mindspore(case: Case) -> None:
    cann = npu_findings.cann(case.cann, sourced=True, mindspore=case.mindspore)
    driver = npu_findings.driver(case.driver, mindspore=case.mindspore)
    assert (cann.state, driver.state) == case.states


def test_a_missing_cann_is_a_fault_and_so_is_one_that_was_not_sourced() -> None:
    assert npu_findings.cann(None, sourced=False, mindspore="2.7.1").state == "fault"
    assert npu_findings.cann("8.3.RC1", sourced=False, mindspore="2.7.1").state == "fault"


def test_a_driver_that_is_not_seen_is_a_warning_as_in_a_container() -> None:
    assert npu_findings.driver(None, mindspore="2.7.1").state == "warning"
