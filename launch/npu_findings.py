"""What the doctor thinks of NPUs, their driver and CANN: values in, findings out. Pure.

Only asked where there are NPUs. Devices go by physical id, the N of /dev/davinciN.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .findings import Finding, State

# MindSpore's version, the CANN that it is made for, the driver that came with that CANN.
PAIRS = {
    "2.6": (("8.1", "8.2"), "25.0"),
    "2.7.0": (("8.2",), "25.2"),
    "2.7.1": (("8.2", "8.3"), "25.2"),
    "2.7.2": (("8.5",), "25.5"),
}
HEALTHY = "OK"
SICK = {"Alarm", "Critical"}


class Seen(NamedTuple):
    """What the tools told of one NPU; None where they did not tell."""

    address: str | None = None
    health: str | None = None  # OK, Warning, Alarm, Critical, UNKNOWN
    link: str | None = None  # up or down
    network: str | None = None  # the result of a ping: Success, Init, Fault ...
    tls: str | None = None  # on or off
    busy: tuple[str, ...] = ()  # the processes on it


def cann(version: str | None, *, sourced: bool, mindspore: str | None) -> Finding:
    """Judge CANN on a machine with NPUs."""
    if version is None:
        return Finding(
            "CANN",
            "fault",
            "no ascend_toolkit_install.info found",
            "Install CANN, or source its set_env.sh so that ASCEND_HOME_PATH names it.",
        )
    if not sourced:
        return Finding(
            "CANN",
            "fault",
            f"{version}, but neither ASCEND_HOME_PATH nor ASCEND_TOOLKIT_HOME is set",
            "source set_env.sh of CANN in the shell or script that starts the job.",
        )
    pair = _pair(mindspore)
    if pair and _short(version) not in pair[0]:
        return Finding(
            "CANN", "warning", version, f"MindSpore {mindspore} is made for {' or '.join(pair[0])}."
        )
    return Finding("CANN", "ok", version)


def driver(version: str | None, *, mindspore: str | None) -> Finding:
    """Judge the NPUs' driver on a machine with NPUs."""
    if version is None:
        return Finding(
            "driver",
            "warning",
            "no driver/version.info found",
            "In a container, mount /usr/local/Ascend/driver; on a host, install the driver.",
        )
    pair = _pair(mindspore)
    if pair and _numbers(version) < _numbers(pair[1]):
        return Finding(
            "driver",
            "warning",
            version,
            f"MindSpore {mindspore} and its CANN came with {pair[1]} or later. If devices can't "
            "be opened, update driver and firmware.",
        )
    return Finding("driver", "ok", version)


def devices(
    seen: Mapping[int, Seen], complaints: Sequence[str], *, several_hosts: bool
) -> list[Finding]:
    """Judge NPUs by physical id; `complaints` are what tools said instead of an answer."""
    findings = [Finding("NPUs", "ok", f"{len(seen)}: {spans(seen)}")]
    findings += [Finding("tools", "warning", complaint) for complaint in complaints]
    for name, judge, values in (
        ("health", _health, {i: one.health for i, one in seen.items()}),
        ("links", _links, {i: one.link for i, one in seen.items()}),
        ("network", _network, {i: one.network for i, one in seen.items()}),
        ("TLS switch", _tls, {i: one.tls for i, one in seen.items()}),
    ):
        told = {i: value for i, value in values.items() if value is not None}
        if told:
            state, remedy = judge(set(told.values()), several_hosts)
            findings.append(Finding(name, state, by_value(told), remedy))
    return [*findings, _addresses(seen, several_hosts), _occupied(seen)]


def _health(values: set[str], several_hosts: bool) -> tuple[State, str]:
    if values == {HEALTHY}:
        return "ok", ""
    remedy = "npu-smi info -t health -i N says more; --devices leaves a device out."
    return ("fault" if values & SICK else "warning"), remedy


def _links(values: set[str], several_hosts: bool) -> tuple[State, str]:
    if "down" not in values:
        return "ok", ""
    if several_hosts:
        return "fault", "Look at cable, switch port and optical module: hosts meet over these."
    return "ok", "Enough for one host; several need them up."


def _network(values: set[str], several_hosts: bool) -> tuple[State, str]:
    # Init: no address to ping was ever set (netdetect), which says nothing of the network.
    if values <= {"Success", "Init"}:
        return "ok", ""
    return "warning", "The device can't ping its netdetect address: look at gateway and switch."


def _tls(values: set[str], several_hosts: bool) -> tuple[State, str]:
    if len(values) == 1:
        return "ok", ""
    return "fault", "Devices that differ can't connect: hccn_tool -i N -tls -s enable 0 on each."


def _addresses(seen: Mapping[int, Seen], several_hosts: bool) -> Finding:
    missing = [i for i, one in seen.items() if one.address is None]
    if not missing:
        return Finding("addresses", "ok", f"of all {len(seen)}")
    remedy = "Enough for one host; several need /etc/hccn.conf or hccn_tool to tell them."
    if several_hosts:
        remedy = "hccn_tool -i N -ip -g must tell one; set it, or start with --rank_table off."
    state: State = "warning" if several_hosts else "ok"
    return Finding("addresses", state, f"none of {spans(missing)}", remedy)


def _occupied(seen: Mapping[int, Seen]) -> Finding:
    busy = {i: ", ".join(one.busy) for i, one in seen.items() if one.busy}
    if not busy:
        return Finding("occupied", "ok", "by nobody that npu-smi sees")
    return Finding(
        "occupied", "warning", by_value(busy), "Wait for it, end it, or take others with --devices."
    )


def spans(numbers: Iterable[int]) -> str:
    """Write numbers short.

    >>> spans([7, 0, 1, 2, 5])
    '0-2,5,7'
    """
    ends: list[list[int]] = []
    for number in sorted(numbers):
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ends)


def by_value(values: Mapping[int, str]) -> str:
    """Group devices by what was found.

    >>> by_value({0: "OK", 1: "OK", 2: "Alarm"})
    'OK: 0-1; Alarm: 2'
    """
    return "; ".join(
        f"{value}: {spans(i for i, other in values.items() if other == value)}"
        for value in dict.fromkeys(values.values())
    )


def _pair(mindspore: str | None) -> tuple[tuple[str, ...], str] | None:
    matching = [key for key in PAIRS if mindspore and f"{mindspore}.".startswith(f"{key}.")]
    return PAIRS[matching[0]] if matching else None


def _short(version: str) -> str:
    return ".".join(map(str, _numbers(version)))


def _numbers(version: str) -> tuple[int, ...]:
    """The two numbers that a version begins with.

    >>> _numbers("25.3.rc1"), _numbers("8.3.RC1")
    ((25, 3), (8, 3))
    """
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
