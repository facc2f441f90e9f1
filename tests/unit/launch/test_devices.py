from dataclasses import replace
from pathlib import Path

import pytest
from machines import DESK, SERVER

from mindbooth.launch.devices import Choice, Machine, choose
from mindbooth.launch.options import LaunchConfig, LaunchError
from mindbooth.ranktable import hccl
from mindbooth.ranktable.topology import Cluster, Device, Host, RankTableError

CONTAINER = replace(SERVER, devices=SERVER.devices[4:])


def ids(choice: Choice) -> list[int]:
    return [seat.device.physical_id for seat in choice.cluster]


def table(*device_ids: int, hosts: int = 1) -> str:
    made = tuple(
        Host(
            name=f"h{h}",
            server_id=f"h{h}",
            devices=tuple(Device(physical_id=i, address=f"10.{h}.0.{i + 1}") for i in device_ids),
        )
        for h in range(hosts)
    )
    return hccl.render(hccl.from_cluster(Cluster(hosts=made, source="test", assumed=False)))


@pytest.mark.parametrize(
    ("config", "machine", "target", "devices", "visible"),
    [
        (LaunchConfig(), DESK, "CPU", [0], None),
        (LaunchConfig(nproc_per_node=3), DESK, "CPU", [0, 1, 2], None),
        (LaunchConfig(device_target="CPU", nproc_per_node=2), SERVER, "CPU", [0, 1], None),
        (LaunchConfig(), SERVER, "Ascend", list(range(8)), None),
        (LaunchConfig(nproc_per_node=8), SERVER, "Ascend", list(range(8)), None),
        (LaunchConfig(nproc_per_node=2), SERVER, "Ascend", [0, 1], "0,1"),
        (LaunchConfig(devices=(4, 5, 6, 7)), SERVER, "Ascend", [4, 5, 6, 7], "4,5,6,7"),
        (LaunchConfig(devices=(4, 6), nproc_per_node=2), SERVER, "Ascend", [4, 6], "4,6"),
        (LaunchConfig(devices=tuple(range(8))), SERVER, "Ascend", list(range(8)), None),
        # A container counts its own nodes from 0.
        (LaunchConfig(), CONTAINER, "Ascend", [4, 5, 6, 7], None),
        (LaunchConfig(devices=(5, 7)), CONTAINER, "Ascend", [5, 7], "1,3"),
    ],
)
def test_devices_are_chosen(
    config: LaunchConfig, machine: Machine, target: str, devices: list[int], visible: str | None
) -> None:
    choice = choose(config, machine, None)
    assert (choice.target, ids(choice), choice.visible) == (target, devices, visible)
    assert not choice.cluster.assumed


@pytest.mark.parametrize(
    ("config", "devices", "visible"),
    [
        (LaunchConfig(), [2, 3, 5], None),
        (LaunchConfig(devices=(3, 5)), [3, 5], "3,5"),
        (LaunchConfig(nproc_per_node=1), [2], "2"),
    ],
)
def test_devices_hidden_by_the_environment_stay_hidden(
    config: LaunchConfig, devices: list[int], visible: str | None
) -> None:
    machine = replace(SERVER, environ={"ASCEND_RT_VISIBLE_DEVICES": "2,3,5"})
    choice = choose(config, machine, None)
    assert (ids(choice), choice.visible) == (devices, visible)
    assert "ASCEND_RT_VISIBLE_DEVICES=2,3,5" in choice.cluster.source


@pytest.mark.parametrize(
    ("config", "devices", "visible"),
    [
        (LaunchConfig(device_target="Ascend", nproc_per_node=8), list(range(8)), None),
        (LaunchConfig(device_target="Ascend", devices=(4, 5)), [4, 5], "4,5"),
    ],
)
def test_without_npus_devices_are_assumed(
    config: LaunchConfig, devices: list[int], visible: str | None
) -> None:
    choice = choose(config, DESK, None)
    assert choice.cluster.assumed
    assert (ids(choice), choice.visible) == (devices, visible)


@pytest.mark.parametrize(
    ("config", "machine", "told"),
    [
        (LaunchConfig(devices=(0, 1)), DESK, "names NPUs, but training is on the CPU (no /dev/"),
        (
            LaunchConfig(devices=(0,), device_target="CPU"),
            SERVER,
            "training is on the CPU (--device_target CPU)",
        ),
        (LaunchConfig(device_target="Ascend"), DESK, "no /dev/davinciN here to count"),
        (LaunchConfig(nproc_per_node=9), SERVER, "--nproc_per_node 9, but /dev/davinci* gives 8"),
        (LaunchConfig(devices=(3, 4)), CONTAINER, "devices 3,4 were asked for, but /dev/davinci*"),
        (
            LaunchConfig(),
            replace(SERVER, environ={"ASCEND_RT_VISIBLE_DEVICES": ""}),
            "gives 0 devices (none)",
        ),
        (LaunchConfig(rank_table=Path("t.json")), DESK, "CPU workers read no rank table"),
    ],
)
def test_a_choice_that_cannot_be_made_says_what_is_there(
    config: LaunchConfig, machine: Machine, told: str
) -> None:
    with pytest.raises(LaunchError) as caught:
        choose(config, machine, table(0, 1) if config.rank_table else None)
    assert told in str(caught.value)


NO_ADDRESSES = replace(SERVER, devices=tuple(Device(physical_id=i) for i in range(8)))


def test_a_given_table_chooses_the_devices() -> None:
    choice = choose(LaunchConfig(rank_table=Path("t.json")), NO_ADDRESSES, table(4, 5))
    assert (ids(choice), choice.visible) == ([4, 5], "4,5")


def test_an_address_may_be_spelled_otherwise_in_a_given_table() -> None:
    devices = (Device(physical_id=4, address="2001:db8::1"),)
    text = table(4).replace("10.0.0.5", "2001:0db8:0:0::1")
    choice = choose(LaunchConfig(rank_table=Path("t.json")), replace(SERVER, devices=devices), text)
    assert ids(choice) == [4]


def test_a_given_table_of_another_host_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"the address 10\.0\.0\.5, here it is 192\.168\.4\.1"):
        choose(LaunchConfig(rank_table=Path("t.json")), SERVER, table(4, 5))


@pytest.mark.parametrize(
    ("config", "text", "told"),
    [
        (LaunchConfig(rank_table=Path("t.json"), devices=(0, 1)), table(4, 5), "on devices 4,5"),
        (LaunchConfig(rank_table=Path("t.json"), nproc_per_node=1), table(4, 5), "sit on 4"),
        (LaunchConfig(rank_table=Path("t.json")), table(5, 4), "ascending device ids"),
        (LaunchConfig(rank_table=Path("t.json")), table(0, hosts=2), "names 2 servers"),
        (LaunchConfig(rank_table=Path("t.json")), "{}", "t.json: version: missing"),
    ],
)
def test_a_given_table_must_agree(config: LaunchConfig, text: str, told: str) -> None:
    with pytest.raises((LaunchError, RankTableError)) as caught:
        choose(config, SERVER, text)
    assert told in str(caught.value)
