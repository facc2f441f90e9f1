"""Environment variables that bite: of MindSpore, HCCL and CANN, found before anything is started.

Pure. `launch` shows the remarks as notes of its plan, `mindbooth doctor` as warnings. An ordinary
environment gets none. Which values bite is from the documents of CANN and the sources of
MindSpore 2.7; only the compile cache was seen to bite (on the CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from mindbooth.ranktable.discover import visible
from mindbooth.ranktable.document import decimal
from mindbooth.ranktable.topology import Device

from .devices import VISIBLE
from .options import DeviceTarget

HCCL_CONNECT_SECONDS = range(120, 7201)  # what HCCL takes
HCCL_BASE_PORTS = range(1024, 65521)
WORKER_TURNS_SECONDS = 300  # how long ranks may wait while one of them saves or makes pictures
# More than any host has: of a list of devices only the spelling is in question.
DEVICES = tuple(Device(physical_id=i) for i in range(64))

# Values that another launcher left would place a process that is started without ours.
LEFTOVERS = {
    "RANK_TABLE_FILE": "MindSpore would take ranks and addresses from this table",
    "MINDSPORE_HCCL_CONFIG_PATH": "MindSpore would take ranks and addresses from this table",
    "MS_ROLE": "a process takes itself for a part of an msrun job",
    "MS_NODE_ID": "a process takes itself for a worker of an msrun job",
    "RANK_ID": "a process takes itself for this rank of a job",
    "DEVICE_ID": "a process takes this device, whoever else uses it",
    "MS_SIMULATION_LEVEL": "MindSpore would only pretend to run",
}


def remarks(
    environ: Mapping[str, str],
    *,
    target: DeviceTarget,
    several_hosts: bool,
    interfaces: Mapping[str, Collection[str]] | None = None,
) -> tuple[str, ...]:
    """Tell, a line each, which variables that workers inherit will bite.

    `interfaces` as `interfaces()` gives them; None leaves out what only they can tell.
    """
    rules = [rule for rule in RULES if rule.targets in ("both", target)]
    told = [
        f"{rule.variable}={value}: {rule.remark}"
        for rule in rules
        if (value := environ.get(rule.variable, "").strip()) and rule.bites(value)
    ]
    if several_hosts and environ.get("MS_ENABLE_LCCL") == "1":
        told.append("MS_ENABLE_LCCL=1: LCCL works inside one host only. Unset it.")
    if target == "Ascend":
        told += _ascend_remarks(environ)
    return tuple(told + _address_remarks(environ, target, interfaces))


def leftovers(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Tell, a line each, what an earlier job left: `launch` drops it, other ways to start don't."""
    return tuple(
        f"{name}={environ[name]}: {effect}. mindbooth launch drops it; unset it for the rest."
        for name, effect in LEFTOVERS.items()
        if environ.get(name)
    )


class Rule(NamedTuple):
    """One variable that bites: for whom, with which values, what happens and what to do."""

    variable: str
    targets: DeviceTarget | Literal["both"]
    bites: Callable[[str], bool]
    remark: str


def _is(*values: str) -> Callable[[str], bool]:
    return lambda value: value in values


def _outside(numbers: range) -> Callable[[str], bool]:
    return lambda value: not decimal(value, numbers[-1]) or int(value) not in numbers


RULES = (
    Rule(
        "MS_DISABLE_HEARTBEAT",
        "both",
        _is("1"),
        "MindSpore's scheduler will not notice a lost worker. Unset it.",
    ),
    Rule(
        "MS_ENABLE_RECOVERY",
        "both",
        _is("1"),
        "MindSpore waits for a lost worker to come back, so a failure looks like a hang. Unset it.",
    ),
    Rule(
        "MS_COMPILER_CACHE_ENABLE",
        "both",
        _is("1"),
        "MindSpore reuses a compiled graph even where its constants have changed. Unset it.",
    ),
    Rule(
        "GLOG_v",
        "both",
        _is("0", "1"),
        "MindSpore fills the workers' logs with its own steps. Unset it, or set 2.",
    ),
    Rule(
        "GLOG_v",
        "both",
        _is("4"),
        "MindSpore's errors are left out of the workers' logs. Unset it, or set 2.",
    ),
    Rule(
        "GLOG_logtostderr",
        "both",
        _is("0"),
        "MindSpore's errors go to files elsewhere, not to the workers' logs. Unset it.",
    ),
    Rule(
        "HCCL_CONNECT_TIMEOUT",
        "Ascend",
        _outside(HCCL_CONNECT_SECONDS),
        f"HCCL takes {HCCL_CONNECT_SECONDS[0]} to {HCCL_CONNECT_SECONDS[-1]} seconds. Unset it, "
        "or set 600.",
    ),
    Rule(
        "HCCL_EXEC_TIMEOUT",
        "Ascend",
        lambda value: value != "0" and decimal(value, WORKER_TURNS_SECONDS - 1),
        "ranks that wait this long while one of them saves end with EI0002. Unset it.",
    ),
    Rule(
        "HCCL_IF_BASE_PORT",
        "Ascend",
        _outside(HCCL_BASE_PORTS),
        f"HCCL takes a port from {HCCL_BASE_PORTS[0]} to {HCCL_BASE_PORTS[-1]}. Unset it.",
    ),
    Rule(
        "HCCL_DETERMINISTIC",
        "Ascend",
        lambda value: value not in ("true", "false", "strict"),
        "MindSpore and HCCL read true, false or strict, in small letters. Correct it.",
    ),
    Rule(
        "ASCEND_GLOBAL_LOG_LEVEL",
        "Ascend",
        _is("0", "1"),
        "CANN writes down every call, which is slow and fills the disk. Unset it.",
    ),
    Rule(
        "ASCEND_SLOG_PRINT_TO_STDOUT",
        "Ascend",
        _is("1"),
        "CANN's own log floods the workers' logs. Unset it.",
    ),
    Rule(
        "ASCEND_LAUNCH_BLOCKING",
        "Ascend",
        _is("1"),
        "every operator is waited for, which is for debugging and slow. Unset it.",
    ),
)


def _ascend_remarks(environ: Mapping[str, str]) -> list[str]:
    told = []
    if environ.get("HCCL_WHITELIST_DISABLE") == "0" and not environ.get("HCCL_WHITELIST_FILE"):
        told.append(
            "HCCL_WHITELIST_DISABLE=0 without HCCL_WHITELIST_FILE: HCCL refuses every connection. "
            "Unset it, or name the file."
        )
    limit = environ.get(VISIBLE)
    if limit is not None:
        read = ",".join(str(device.physical_id) for device in visible(DEVICES, limit))
        if read != limit or not limit:
            told.append(
                f"{VISIBLE}={limit}: CANN reads {read or 'nothing'} of it, as it stops at the "
                "first space or number that is out of order or too high. Write ascending numbers, "
                "as in 0,1,2."
            )
    return told


def _address_remarks(
    environ: Mapping[str, str],
    target: DeviceTarget,
    present: Mapping[str, Collection[str]] | None,
) -> list[str]:
    if present is None:
        return []
    addresses = {address for some in present.values() for address in some}
    told = []
    for name in ("MS_WORKER_IP", "HCCL_IF_IP") if target == "Ascend" else ("MS_WORKER_IP",):
        if environ.get(name, "") not in ("", *addresses):
            told.append(f"{name}={environ[name]}: no interface here has that address. Unset it.")
    rule = environ.get("HCCL_SOCKET_IFNAME")
    if target == "Ascend" and rule and not picked(rule, tuple(present)):
        told.append(
            f"HCCL_SOCKET_IFNAME={rule} matches none of {', '.join(sorted(present))}. Correct it, "
            "or unset it."
        )
    return told


def picked(rule: str, names: Sequence[str]) -> tuple[str, ...]:
    """Apply HCCL_SOCKET_IFNAME: `eth` is a prefix, `=eth0` a name, and ^ before either is not.

    >>> picked("^=lo,docker0", ["lo", "docker0", "eth0"]), picked("eth,en", ["eth0", "lo"])
    (('eth0',), ('eth0',))
    """
    positive = rule.removeprefix("^")
    words = tuple(positive.removeprefix("=").split(","))
    exact = positive.startswith("=")
    return tuple(
        name
        for name in names
        if (name in words if exact else name.startswith(words)) == (positive == rule)
    )
