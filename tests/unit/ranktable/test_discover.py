from pathlib import Path

import pytest

from mindbooth.ranktable import discover
from mindbooth.ranktable.topology import Device, RankTableError

HCCN_CONF = """\
netmask_0=255.255.255.0
address_0=192.168.100.101
gateway_0=192.168.100.1
netdetect_0=192.168.100.1
address_10 = 192.168.101.101
 address_2=fe80::1

# address_3=192.168.1.1
"""


def machine(tmp_path: Path, nodes: list[str], conf: str | None) -> tuple[Device, ...]:
    for node in nodes:
        (tmp_path / node).touch()
    path = tmp_path / "hccn.conf"
    if conf is not None:
        path.write_text(conf)
    return discover.ask(dev=tmp_path, hccn_conf=path)


def test_devices_are_the_numbered_nodes_in_numeric_order(tmp_path: Path) -> None:
    nodes = ["davinci10", "davinci2", "davinci_manager", "davinci0", "null", "xdavinci1"]
    assert machine(tmp_path, nodes, HCCN_CONF) == (
        Device(physical_id=0, address="192.168.100.101"),
        Device(physical_id=2, address="fe80::1"),
        Device(physical_id=10, address="192.168.101.101"),
    )


def test_addresses_may_be_unknown(tmp_path: Path) -> None:
    assert machine(tmp_path, ["davinci0"], None) == (Device(physical_id=0, address=None),)


def test_a_machine_without_npus_has_no_devices_whatever_its_files_say(tmp_path: Path) -> None:
    assert machine(tmp_path, [], "address_0=nonsense") == ()
    assert discover.ask(dev=tmp_path / "no-dev", hccn_conf=tmp_path / "no-conf") == ()


def test_a_bad_address_is_told_with_its_line() -> None:
    with pytest.raises(RankTableError, match=r"/etc/hccn.conf, line 2: 'address_1=192.168.1'"):
        discover.parse_hccn_conf("address_0=192.168.1.1\naddress_1=192.168.1\n")


@pytest.mark.parametrize(
    ("value", "physical"),
    [
        ("0,1", [4, 5]),
        ("1,3", [5, 7]),
        ("1, 3", [5]),
        ("1,3,8", [5, 7]),
        ("3,1", [7]),
        ("1,1", [5]),
        ("", []),
        ("x", []),
    ],
)
def test_visible_devices_are_read_as_cann_reads_them(value: str, physical: list[int]) -> None:
    devices = tuple(Device(physical_id=i) for i in (4, 5, 6, 7))
    assert [device.physical_id for device in discover.visible(devices, value)] == physical


def test_logic_ids_and_visible_devices_are_inverse() -> None:
    devices = tuple(Device(physical_id=i) for i in (4, 5, 6, 7))
    chosen = (devices[1], devices[3])
    assert discover.logic_ids(devices, chosen) == (1, 3)
    assert discover.visible(devices, "1,3") == chosen
