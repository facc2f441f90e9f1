"""Which NPUs this machine has: device nodes under /dev, network addresses from hccn.conf.

The parsers take text or names; `ask()` is the one function that looks at the machine, below the
roots that it is given. Two numberings meet here: a device's physical id (the N of /dev/davinciN)
stands in rank tables; its logic id, the index among the nodes that this machine or container has,
stands in ASCEND_RT_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from .topology import Device, RankTableError

DEV = Path("/dev")
HCCN_CONF = Path("/etc/hccn.conf")


def ask(dev: Path = DEV, hccn_conf: Path = HCCN_CONF) -> tuple[Device, ...]:
    """List the NPUs of this machine by physical id; empty where there is none."""
    ids = device_ids(entry.name for entry in dev.iterdir()) if dev.is_dir() else ()
    addresses = parse_hccn_conf(_read(hccn_conf), hccn_conf) if ids else {}
    return tuple(Device(physical_id=i, address=addresses.get(i)) for i in ids)


def device_ids(names: Iterable[str]) -> tuple[int, ...]:
    """Pick the device nodes out of the names in /dev; davinci_manager is not one.

    >>> device_ids(["davinci10", "davinci2", "davinci_manager", "null"])
    (2, 10)
    """
    found = (re.fullmatch(r"davinci(\d+)", name) for name in names)
    return tuple(sorted(int(match[1]) for match in found if match))


def parse_hccn_conf(text: str, path: Path = HCCN_CONF) -> dict[int, str]:
    """Map physical ids to addresses: lines `address_N=A`, in any order; other keys are not ours."""
    addresses: dict[int, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.fullmatch(r"\s*address_(\d+)\s*=\s*(\S*)\s*", line)
        if match is None:
            continue
        try:
            addresses[int(match[1])] = str(ipaddress.ip_address(match[2]))
        except ValueError as err:
            raise RankTableError(
                f"{path}, line {number}: {line.strip()!r} holds no IP address. Correct the line, "
                "or remove it: a single host needs no device addresses."
            ) from err
    return addresses


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
