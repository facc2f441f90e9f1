from pathlib import Path

import pytest
from executables import executable

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


def devices(*addresses: str | None) -> tuple[Device, ...]:
    return tuple(Device(physical_id=4 + i, address=a) for i, a in enumerate(addresses))


def test_ipv6_is_read_from_hccn_conf_where_there_is_no_ipv4() -> None:
    text = "IPv6address_0=2001:db8::1\nIPv6address_1=2001:db8::2\naddress_1=10.0.0.2\n"
    assert discover.parse_hccn_conf(text) == {0: "2001:db8::1", 1: "10.0.0.2"}


def test_hccn_tool_is_asked_for_the_addresses_that_are_missing_and_for_no_other(
    tmp_path: Path,
) -> None:
    path = executable(
        tmp_path / "bin", "hccn_tool", f'echo "$*" >> {tmp_path}/asked; echo "ipaddr:10.0.0.$2"'
    )
    found = discover.addresses(devices(None, "192.168.0.5", None), path=path)
    assert found == devices("10.0.0.4", "192.168.0.5", "10.0.0.6")
    assert (tmp_path / "asked").read_text() == "-i 4 -ip -g\n-i 6 -ip -g\n"


def test_a_device_without_ipv4_is_asked_for_ipv6(tmp_path: Path) -> None:
    path = executable(
        tmp_path / "bin",
        "hccn_tool",
        'case "$*" in *inet6*) echo "ipaddr:2001:db8::$2";;\n'
        '*) echo "Get ipconf failed, because no ip was preset there!"; exit 13;; esac',
    )
    assert discover.addresses(devices(None), path=path) == devices("2001:db8::4")


def test_an_error_never_becomes_an_address(tmp_path: Path) -> None:
    path = executable(tmp_path / "bin", "hccn_tool", 'echo "error: device 4: open failed"; exit 1')
    assert discover.addresses(devices(None, None), path=path) == devices(None, None)


def test_without_the_tool_addresses_stay_unknown(tmp_path: Path) -> None:
    assert discover.addresses(devices(None, "10.0.0.5"), path=str(tmp_path)) == devices(
        None, "10.0.0.5"
    )


def test_a_tool_that_hangs_is_asked_once_for_all_devices(tmp_path: Path) -> None:
    path = executable(
        tmp_path / "bin", "hccn_tool", f'echo "$*" >> {tmp_path}/asked; exec sleep 600'
    )
    discover.addresses(devices(*[None] * 16), path=path, seconds=0.5)
    assert (tmp_path / "asked").read_text() == "-i 4 -ip -g\n"


NPU_SMI = """\
case "$*" in
  "info -m") cat {mapping};;
  "info -t spod-info -i "*" -c "*)
    echo "	SDID                           : $(($5 * 100 + $7))"
    echo "	Super Pod Size                 : 384"
    echo "	Super Pod ID                   : {pod}"
    echo "	Server Index                   : 4";;
  *) exit 1;;
esac"""
FIXTURES = Path(__file__).parents[2] / "fixtures" / "ranktable"


def npu_smi(tmp_path: Path, generation: str, pod: str = "3") -> str:
    mapping = FIXTURES / f"npu_smi_mapping_{generation}.txt"
    return executable(tmp_path / "bin", "npu-smi", NPU_SMI.format(mapping=mapping, pod=pod))


def test_the_super_pod_is_asked_by_card_and_chip(tmp_path: Path) -> None:
    found, pod = discover.super_pod(devices(None, None), path=npu_smi(tmp_path, "a3"))
    assert (pod, [device.super_device_id for device in found]) == ("3", [200, 201])


def test_devices_that_name_several_super_pods_are_in_none(tmp_path: Path) -> None:
    before = devices(None, None)
    assert discover.super_pod(before, path=npu_smi(tmp_path, "a3", pod="$7")) == (before, None)


def test_a_device_that_npu_smi_does_not_list_is_in_no_super_pod(tmp_path: Path) -> None:
    before = devices(None, None)  # 4 and 5; the container of the mapping has 3, 4 and 6
    assert discover.super_pod(before, path=npu_smi(tmp_path, "910b")) == (before, None)


def test_without_npu_smi_there_is_no_super_pod(tmp_path: Path) -> None:
    before = devices("10.0.0.4")
    assert discover.super_pod(before, path=str(tmp_path)) == (before, None)
