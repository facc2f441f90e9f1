"""What is read out of the tools' real layouts, and how the tools themselves are treated."""

from __future__ import annotations

from pathlib import Path

import pytest
from executables import executable

from mindbooth.ranktable import tools
from mindbooth.ranktable.tools import Chip, Process

FIXTURES = Path(__file__).parents[2] / "fixtures" / "ranktable"


def recorded(name: str) -> str:
    return (FIXTURES / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ipaddr:192.168.100.100\nnetmask:255.255.255.0\n", "192.168.100.100"),
        ("ipaddr: 10.20.0.20 \nnetmask: 255.255.0.0\n", "10.20.0.20"),
        ("ipaddr:fe80::1a2b\nprefix:64\n", "fe80::1a2b"),
        ("ipv6_address:2001:db8:0:0::1/64\nprefix_length:64\n", "2001:db8::1"),
        ("netmask:255.255.255.0\nipaddr:192.168.100.100\n", "192.168.100.100"),
        ("Get ipconf failed, because no ip was preset there!\n", None),
        ("hccn_tool is busy, please try again.\n", None),
        ("ipaddr:permission denied: pls check this cmd run permission.\n", None),
        ("ipaddr:\nnetmask:255.255.255.0\n", None),
        ("netmask:255.255.255.0\n", None),
        ("", None),
    ],
)
def test_only_an_address_becomes_an_address(text: str, address: str | None) -> None:
    assert tools.parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "up"),
    [
        ("link status: UP\n", True),
        ("link status: DOWN\n", False),
        ("The device is not exist!\n", None),
        ("", None),
    ],
)
def test_a_link_is_up_or_down_or_not_known(text: str, up: bool | None) -> None:
    assert tools.link_is_up(text) is up


@pytest.mark.parametrize(
    ("text", "health"),
    [
        ("net health status: Success\n", "Success"),
        ("net health status: Receive timeout\n", "Receive timeout"),
        ("net health status: Init \n", "Init"),
        ("Get device health status failed!\n", None),
    ],
)
def test_network_health_is_the_word_of_the_tool(text: str, health: str | None) -> None:
    assert tools.network_health(text) == health


@pytest.mark.parametrize(
    ("text", "on"),
    [
        (recorded("hccn_tool_tls"), False),
        (recorded("hccn_tool_tls").replace("switch[0]", "switch[1]"), True),
        ("permission denied: pls check this cmd run permission.\n", None),
    ],
)
def test_the_tls_switch_is_found_among_certificates(text: str, on: bool | None) -> None:
    assert tools.tls_is_on(text) is on


def test_a_super_pod_is_read_with_the_number_of_the_device_in_it() -> None:
    assert tools.parse_super_pod(recorded("npu_smi_spod_info")) == (16777218, "3")


@pytest.mark.parametrize(
    "text",
    [
        "This device does not support querying spod-info.\n",
        "\tSuper Pod Size                 : 384\n\tSuper Pod ID                   : 3\n",
        recorded("npu_smi_spod_info").replace("16777218", str(2**32 - 1)),
        "",
    ],
)
def test_without_both_numbers_there_is_no_super_pod(text: str) -> None:
    assert tools.parse_super_pod(text) is None


def test_the_mapping_of_a_container_names_its_cards_and_leaves_out_controllers_and_dead_ones() -> (
    None
):
    assert tools.parse_mapping(recorded("npu_smi_mapping_910b")) == tuple(
        Chip(physical_id=n, npu_id=n, chip_id=0, name="Ascend 910B3") for n in (3, 4, 6)
    )


def test_the_mapping_of_two_chips_a_card_has_a_column_of_physical_ids() -> None:
    assert tools.parse_mapping(recorded("npu_smi_mapping_a3")) == tuple(
        Chip(physical_id=n, npu_id=n // 2, chip_id=n % 2, name="Ascend910") for n in range(8)
    )


def test_the_columns_of_the_mapping_are_found_by_name() -> None:
    assert tools.parse_mapping(recorded("npu_smi_mapping_950")) == (
        Chip(physical_id=0, npu_id=0, chip_id=0, name="Ascend950PR"),
        Chip(physical_id=1, npu_id=1, chip_id=0, name="Ascend950PR"),
    )


@pytest.mark.parametrize("text", ["", "There is no NPU card on this server.\n", "dcmi failed\n"])
def test_an_error_is_no_chip(text: str) -> None:
    found = (tools.parse_mapping(text), tools.parse_npu_smi(text), tools.parse_processes(text))
    assert found == ((), (), ())


def test_the_health_of_each_chip_is_read() -> None:
    chips = tools.parse_npu_smi(recorded("npu_smi_info_910b"))
    assert [chip.physical_id for chip in chips] == list(range(8))
    assert [chip.health for chip in chips] == ["OK"] * 5 + ["Alarm", "Warning", "OK"]
    assert {chip.name for chip in chips} == {"910B3"}


def test_two_chips_of_a_card_have_their_own_health_and_physical_id() -> None:
    chips = tools.parse_npu_smi(recorded("npu_smi_info_a3"))
    assert [(c.physical_id, c.npu_id, c.chip_id) for c in chips] == [
        (n, n // 2, n % 2) for n in range(8)
    ]
    assert [chip.physical_id for chip in chips if chip.health != "OK"] == [5]


def test_the_layout_without_a_chip_column_is_read() -> None:
    text = recorded("npu_smi_info_950")
    assert [(chip.npu_id, chip.health) for chip in tools.parse_npu_smi(text)] == [
        (0, "OK"),
        (1, "UNKNOWN"),
    ]
    assert tools.parse_processes(text) == (
        Process(npu_id=0, chip_id=0, pid=4410, name="python3", memory_mb=80231),
    )


def test_a_chip_whose_first_line_is_missing_takes_no_other_chips_health() -> None:
    lines = recorded("npu_smi_info_910b").splitlines()
    without = [line for line in lines if not line.startswith("| 2     910B3")]
    chips = tools.parse_npu_smi("\n".join(without))
    assert [chip.npu_id for chip in chips] == [0, 1, 3, 4, 5, 6, 7]
    assert [chip.npu_id for chip in chips if chip.health == "Alarm"] == [5]


def test_processes_are_told_with_their_chip_and_may_be_nameless() -> None:
    assert tools.parse_processes(recorded("npu_smi_info_a3")) == (
        Process(npu_id=1, chip_id=0, pid=330598, name="", memory_mb=50117),
        Process(npu_id=1, chip_id=1, pid=333165, name="", memory_mb=50119),
        Process(npu_id=1, chip_id=0, pid=333165, name="", memory_mb=132),
    )


def test_a_tool_is_given_its_arguments_and_answers_with_status_and_text(tmp_path: Path) -> None:
    path = executable(tmp_path / "bin", "hccn_tool", 'echo "asked: $*"; echo failed >&2; exit 13')
    answer = tools.run("hccn_tool", "-i", "3", "-ip", "-g", path=path)
    assert answer == (13, "asked: -i 3 -ip -g\nfailed\n")


def test_a_tool_that_is_not_there_is_an_answer_too(tmp_path: Path) -> None:
    answer = tools.run("no_such_tool", path=str(tmp_path))
    assert answer.status is None
    assert answer.text.startswith("no_such_tool is not on PATH, nor in /usr/local/Ascend/driver")


def test_no_tool_is_taken_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path, "no_such_tool", "echo taken")
    monkeypatch.chdir(tmp_path)
    assert "no_such_tool is not on PATH" in tools.run("no_such_tool", path="").text


def test_a_tool_that_hangs_is_ended(tmp_path: Path) -> None:
    path = executable(tmp_path / "bin", "npu-smi", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    answer = tools.run("npu-smi", path=path, seconds=0.5)
    assert (answer.status, answer.text) == (
        None,
        f"{tmp_path}/bin/npu-smi did not answer in 0.5 s",
    )
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_busy_tool_is_asked_again(tmp_path: Path) -> None:
    path = executable(
        tmp_path / "bin",
        "hccn_tool",
        f'if mkdir {tmp_path}/asked 2>/dev/null; then echo "hccn_tool is busy, please try again."\n'
        "else echo ipaddr:10.0.0.1; fi",
    )
    assert tools.run("hccn_tool", path=path) == (0, "ipaddr:10.0.0.1\n")
