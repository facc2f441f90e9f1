"""What a launcher sees around it: its NPUs, and the name of host 0."""

import os
from pathlib import Path
from typing import Literal

import pytest

from mindbooth.launch import preflight
from mindbooth.launch.options import LaunchConfig
from mindbooth.launch.rendezvous import AbsentError
from mindbooth.launch.surroundings import look
from mindbooth.ranktable import discover
from mindbooth.ranktable.topology import RankTableError

NOBODY = "nobody.invalid"  # RFC 2606


@pytest.fixture
def faulty_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an NPU, whose hccn.conf has a line without an address."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "davinci0").touch()
    (tmp_path / "hccn.conf").write_text("address_0=\n")
    monkeypatch.setattr(discover.ask, "__defaults__", (tmp_path / "dev", tmp_path / "hccn.conf"))


@pytest.mark.parametrize(
    "config", [LaunchConfig(device_target="CPU"), LaunchConfig(rank_table="off")]
)
def test_who_needs_no_addresses_does_not_read_them(faulty_conf: None, config: LaunchConfig) -> None:
    (device,) = look(config, {}, pause=None).machine.devices
    assert device.address is None


def test_a_faulty_line_is_told_where_addresses_are_needed(faulty_conf: None) -> None:
    with pytest.raises(RankTableError, match="holds no IP address"):
        look(LaunchConfig(device_target="Ascend"), {}, pause=None)


@pytest.mark.parametrize(
    ("scheduler", "error", "status"),
    [("none", preflight.UnknownName, 2), ("indexed-job", AbsentError, 1)],
)
def test_a_host_0_without_a_name_is_a_mistake_by_hand_and_absent_under_a_scheduler(
    scheduler: Literal["none", "indexed-job"], error: type[Exception], status: int, tmp_path: Path
) -> None:
    config = LaunchConfig(
        nnodes=2,
        node_rank=1,
        master_addr=NOBODY,
        rendezvous_seconds=0.1,
        scheduler=scheduler,
        training_flags=("--output_dir", str(tmp_path)),
    )
    environ = {"JOB_COMPLETION_INDEX": "1", "HOSTNAME": os.uname().nodename}
    with pytest.raises(error, match=NOBODY) as caught:
        look(config, environ, pause=lambda seconds: None)
    assert vars(type(caught.value)).get("status", 2) == status
