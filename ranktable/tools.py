"""What npu-smi and hccn_tool say about the NPUs of this machine, and how they are asked.

The parsers take text; `run` is the one function that starts a tool. discover.py asks for addresses
and super pods, the doctor for health, links and who is at work. Two numberings meet here too:
hccn_tool's -i takes a device's physical id, npu-smi's -i and -c take a card (NPU ID) and a chip on
it, two numbers that `npu-smi info -m` maps to the physical id. A tool that fails prints its reason
where the answer would stand, so each parser takes what has the answer's form and nothing else.
"""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

HCCN_TOOL = "hccn_tool"
NPU_SMI = "npu-smi"
# Where the driver puts them; containers often have these folders, but not on PATH.
FOLDERS = "/usr/local/Ascend/driver/tools:/usr/local/bin:/usr/local/sbin"
SECONDS = 10.0  # a healthy tool takes a fraction of one; with a broken driver it never returns
BUSY = "hccn_tool is busy"  # it serves one caller at a time, and monitors call it too
BUSY_TRIES = 5
BUSY_PAUSE = 0.5
NO_SUPER_DEVICE = 2**32 - 1


class Answer(NamedTuple):
    """A tool's exit status and output. Status None: it is not there, or did not end in time."""

    status: int | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One NPU as npu-smi names it: a chip on a card.

    Where the tool prints no physical id the card's number is it: such cards (910, 910B) hold one
    chip each. `health` is OK, Warning, Alarm, Critical or UNKNOWN; None in the mapping.
    """

    physical_id: int
    npu_id: int
    chip_id: int
    name: str
    health: str | None = None


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process that holds memory of a chip. Inside a container its name and pid may be hidden."""

    npu_id: int
    chip_id: int
    pid: int
    name: str
    memory_mb: int


class SuperPod(NamedTuple):
    super_device_id: int
    super_pod_id: str


def run(tool: str, *arguments: str, path: str, seconds: float = SECONDS) -> Answer:
    """Ask a tool, found on `path` or where the driver puts it. Call one after the other."""
    program = shutil.which(tool, path=f"{path}:{FOLDERS}" if path else FOLDERS)
    if program is None:
        return Answer(None, f"{tool} is not on PATH, nor in {FOLDERS.replace(':', ', ')}")
    for left in reversed(range(BUSY_TRIES)):
        answer = _once(program, arguments, seconds)
        if BUSY not in answer.text or not left:
            break
        time.sleep(BUSY_PAUSE)
    return answer


def _once(program: str, arguments: tuple[str, ...], seconds: float) -> Answer:
    try:
        ended = subprocess.run(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(None, f"{program} did not answer in {seconds:g} s")
    except OSError as err:
        return Answer(None, f"{program} cannot be started ({err.strerror})")
    return Answer(ended.returncode, ended.stdout)


def parse_address(text: str) -> str | None:
    """Read `hccn_tool -i N -ip -g`, or `-ip -inet6 -g`; None where the device has no address.

    >>> parse_address("ipaddr:192.168.100.100\\nnetmask:255.255.255.0\\n")
    '192.168.100.100'
    >>> parse_address("Get ipconf failed, because no ip was preset there!")
    """
    match = re.search(r"^\s*(?:ipaddr|ipv6_address)\s*:\s*([^\s/]+)", text, re.MULTILINE)
    try:
        return None if match is None else str(ipaddress.ip_address(match[1]))
    except ValueError:
        return None


def link_is_up(text: str) -> bool | None:
    """Read `hccn_tool -i N -link -g`; None where it does not say."""
    match = re.search(r"^\s*link status\s*:\s*(UP|DOWN)\b", text, re.MULTILINE)
    return None if match is None else match[1] == "UP"


def network_health(text: str) -> str | None:
    """Read `hccn_tool -i N -net_health -g`: Success, Init, Fault, Receive timeout and others.

    It is the result of a ping to the device's `netdetect` address: Init where none is set.
    """
    match = re.search(r"^\s*net health status\s*:\s*(\S.*?)\s*$", text, re.MULTILINE)
    return None if match is None else match[1]


def tls_is_on(text: str) -> bool | None:
    """Read `hccn_tool -i N -tls -g`. Devices that differ in it cannot connect to each other."""
    match = re.search(r"\btls switch\[([01])\]", text)
    return None if match is None else match[1] == "1"


def parse_super_pod(text: str) -> SuperPod | None:
    """Read `npu-smi info -t spod-info -i NPU -c CHIP`: lines `SDID : 16777216` and so on."""
    found = dict(re.findall(r"^\s*(SDID|Super Pod ID)\s*:\s*(\d+)\s*$", text, re.MULTILINE))
    if len(found) < 2 or int(found["SDID"]) == NO_SUPER_DEVICE:
        return None
    return SuperPod(int(found["SDID"]), found["Super Pod ID"])


def parse_mapping(text: str) -> tuple[Chip, ...]:
    """Read `npu-smi info -m`. Drivers differ in the columns, so they are found by their names."""
    chips: list[Chip] = []
    columns: list[str] = []
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0] == "NPU ID":
            columns = cells
        elif columns and len(cells) == len(columns):
            row = dict(zip(columns, cells, strict=True))
            npu_id, chip_id = row["NPU ID"], row.get("Chip ID", "0")
            physical_id = row.get("Chip Phy-ID", npu_id)
            # A card's controller has a row too, with - for its numbers; NPU ID -1 is a dead card.
            alive = "-" not in cells and all(map(str.isdecimal, (npu_id, chip_id, physical_id)))
            if alive:
                chips.append(_chip(physical_id, npu_id, chip_id, row.get("Chip Name", "")))
    return tuple(chips)


def parse_npu_smi(text: str) -> tuple[Chip, ...]:
    """Read the chips and their health off `npu-smi info`, where each has two lines.

    | 0     Ascend910  | OK            | 232.5       52 ...  <- card and name | health
    | 1     1          | 0000:9F:00.0  | 17          0  ...  <- chip, physical id | bus
    """
    chips: list[Chip] = []
    npu_id, name, health = "", "", ""
    for left, value, _ in _rows(text, "Health"):
        if not re.fullmatch(r"NA|[0-9A-Fa-f]+:[0-9A-Fa-f]+:\S+", value):
            npu_id, _, name = left.partition(" ")
            health = value
        elif npu_id.isdecimal():
            chip_id, *physical_id = left.split() or ["0"]
            chips.append(_chip((*physical_id, npu_id)[0], npu_id, chip_id, name, health))
            npu_id = ""
    return tuple(chips)


def parse_processes(text: str) -> tuple[Process, ...]:
    """Read who is at work off the second table of `npu-smi info`."""
    found = []
    for left, pid, rest in _rows(text, "Process id"):
        numbers = [*left.split(), "0"]  # the newest tool names no chip: its cards have one
        if pid.isdecimal() and len(rest) == 2 and rest[1].isdecimal():
            found.append(
                Process(
                    npu_id=int(numbers[0]),
                    chip_id=int(numbers[1]),
                    pid=int(pid),
                    name=rest[0],
                    memory_mb=int(rest[1]),
                )
            )
    return tuple(found)


def _rows(text: str, column: str) -> Iterator[tuple[str, str, list[str]]]:
    """Walk a table drawn with |: what stands left of `column`, in it, and right of it."""
    at = None
    for line in text.splitlines():
        cells = [" ".join(cell.split()) for cell in line.strip().strip("|").split("|")]
        if "Health" in cells or "Process id" in cells:
            at = cells.index(column) if column in cells else None
        elif at is not None and line.lstrip().startswith("|") and len(cells) > at:
            yield " ".join(cells[:at]).strip(), cells[at], cells[at + 1 :]


def _chip(
    physical_id: str, npu_id: str, chip_id: str, name: str, health: str | None = None
) -> Chip:
    return Chip(
        physical_id=int(physical_id),
        npu_id=int(npu_id),
        chip_id=int(chip_id),
        name=name,
        health=health,
    )
