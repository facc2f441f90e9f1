"""Which NPUs this machine has, their network addresses, their super pod.

`ask()` looks at /dev and hccn.conf and costs nothing; `addresses()` and `super_pod()` call the
driver's tools, a fraction of a second a device, so only who writes a rank table calls them. Two
numberings meet here: a device's physical id (the N of /dev/davinciN) stands in rank tables; its
logic id, the index among the nodes that this machine or container has, stands in
ASCEND_RT_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

from . import tools
from .topology import Device, RankTableError

DEV = Path("/dev")
HCCN_CONF = Path("/etc/hccn.conf")


def ask(dev: Path = DEV, hccn_conf: Path = HCCN_CONF) -> tuple[Device, ...]:
    """List the NPUs of this machine by physical id; empty where there is none."""
    ids = device_ids(entry.name for entry in dev.iterdir()) if dev.is_dir() else ()
    known = parse_hccn_conf(_read(hccn_conf), hccn_conf) if ids else {}
    return tuple(Device(physical_id=i, address=known.get(i)) for i in ids)


def addresses(
    devices: tuple[Device, ...], *, path: str, seconds: float = tools.SECONDS
) -> tuple[Device, ...]:
    """Ask hccn_tool for the addresses that hccn.conf does not give. `path` is a PATH to find it on.

    As HCCL does, take IPv6 only where a device has no IPv4. What nobody tells stays None.
    """
    found: dict[int, str | None] = {}
    for device, family in product(devices, ((), ("-inet6",))):
        if device.address or found.get(device.physical_id):
            continue
        question = ("-i", str(device.physical_id), "-ip", *family, "-g")
        answer = tools.run(tools.HCCN_TOOL, *question, path=path, seconds=seconds)
        if answer.status is None:  # it is not there, or hangs: so it will for the other devices
            break
        found[device.physical_id] = tools.parse_address(answer.text)
    return tuple(
        replace(device, address=device.address or found.get(device.physical_id))
        for device in devices
    )


def super_pod(devices: tuple[Device, ...], *, path: str) -> tuple[tuple[Device, ...], str | None]:
    """Ask npu-smi for this machine's super pod and the devices' numbers in it: all, or none."""
    mapping = tools.run(tools.NPU_SMI, "info", "-m", path=path)
    chips = {chip.physical_id: chip for chip in tools.parse_mapping(mapping.text)}
    members: list[Device] = []
    pods: set[str] = set()
    for device in devices:
        chip = chips.get(device.physical_id)
        if chip is None:
            return devices, None
        place = ("-i", str(chip.npu_id), "-c", str(chip.chip_id))
        answer = tools.run(tools.NPU_SMI, "info", "-t", "spod-info", *place, path=path)
        found = tools.parse_super_pod(answer.text)
        if found is None:  # a chip of another generation, or a machine in no super pod
            return devices, None
        members.append(replace(device, super_device_id=found.super_device_id))
        pods.add(found.super_pod_id)
    return (tuple(members), pods.pop()) if len(pods) == 1 else (devices, None)


def device_ids(names: Iterable[str]) -> tuple[int, ...]:
    """Pick the device nodes out of the names in /dev; davinci_manager is not one.

    >>> device_ids(["davinci10", "davinci2", "davinci_manager", "null"])
    (2, 10)
    """
    found = (re.fullmatch(r"davinci(\d+)", name) for name in names)
    return tuple(sorted(int(match[1]) for match in found if match))


def parse_hccn_conf(text: str, path: Path = HCCN_CONF) -> dict[int, str]:
    """Map physical ids to addresses: `address_N=A`, or else `IPv6address_N=A`, in any order."""
    preferred: dict[int, str] = {}
    others: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.fullmatch(r"\s*(IPv6)?address_(\d+)\s*=\s*(\S*)\s*", line)
        if match is None:
            continue
        try:
            (others if match[1] else preferred)[int(match[2])] = str(ipaddress.ip_address(match[3]))
        except ValueError as err:
            raise RankTableError(
                f"{path}, line {number}: {line.strip()!r} holds no IP address. Correct the line, "
                "or remove it: a single host needs no device addresses."
            ) from err
    return others | preferred


def visible(devices: tuple[Device, ...], value: str) -> tuple[Device, ...]:
    """Apply ASCEND_RT_VISIBLE_DEVICES as CANN does: ascending logic ids, up to the first bad one.

    >>> [d.physical_id for d in visible(tuple(Device(physical_id=i) for i in (4, 5, 6)), "1,2,9")]
    [5, 6]
    """
    chosen: list[int] = []
    for part in value.split(","):
        if not (part.isascii() and part.isdigit()) or int(part) >= len(devices):
            break
        if chosen and int(part) <= chosen[-1]:
            break
        chosen.append(int(part))
    return tuple(devices[logic_id] for logic_id in chosen)


def logic_ids(machine: tuple[Device, ...], chosen: Iterable[Device]) -> tuple[int, ...]:
    """Turn devices into what ASCEND_RT_VISIBLE_DEVICES takes: their indices among the machine's."""
    index: Mapping[int, int] = {device.physical_id: i for i, device in enumerate(machine)}
    return tuple(index[device.physical_id] for device in chosen)


def _read(path: Path) -> str:
    """Return a file's text; a file that is missing or only root's says nothing."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
