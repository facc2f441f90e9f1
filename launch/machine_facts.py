"""Looks at this machine for the doctor: versions, NPUs, ports, folders, limits. Judges nothing.

Thin probes, each with the root or the PATH that it looks below. What can't be read is None, or
left out: findings.py knows what that means.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import re
import resource
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from mindbooth.ranktable import discover, tools
from mindbooth.ranktable.document import decimal
from mindbooth.ranktable.topology import RankTableError

from . import preflight
from .findings import Space
from .npu_findings import Seen
from .options import LaunchError

ASCEND = Path("/usr/local/Ascend")
CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
CANN_INFO = "ascend_toolkit_install.info"
LEFTOVER_TABLE = Path("/etc/hccl_rootinfo.json")
CGROUPS = Path("/sys/fs/cgroup")
KERNEL_PORTS = Path("/proc/sys/net/ipv4")
HCCN_QUESTIONS = ("-link", "-net_health", "-tls")
HCCL_BASE_PORT = 60000
HCCL_PORTS = 32  # CANN 8.2 and later; earlier ones take 16
LAST_PORT = 65535
CLOCK_WRONG = 5  # what adjtimex returns where the clock is not synchronised


def installed(asked: Iterable[str]) -> dict[str, str]:
    """Look up the versions of the packages that requirements name; what is missing is left out."""
    versions = {}
    for name in (Requirement(text).name for text in asked):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cann_version(environ: Mapping[str, str], ascend: Path = ASCEND) -> str | None:
    """Read the version of the CANN that the environment names, else of one in the usual place."""
    roots = [Path(environ[name]) for name in CANN_VARIABLES if environ.get(name)]
    for root in (*roots, ascend / "ascend-toolkit" / "latest", ascend / "cann"):
        for folder in (root, root / f"{platform.machine()}-linux"):
            version = parse_version(_text(folder / CANN_INFO))
            if version is not None:
                return version
    return None


def driver_version(ascend: Path = ASCEND) -> str | None:
    return parse_version(_text(ascend / "driver" / "version.info"))


def parse_version(text: str) -> str | None:
    """Read `version=8.3.RC1` among other lines; the driver writes Version.

    >>> parse_version("package_name=Ascend-cann-toolkit\\nversion=8.3.RC1\\ninnerversion=V100R001")
    '8.3.RC1'
    """
    match = re.search(r"^version\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE)
    return match[1] if match else None


def npus(
    path: str, dev: Path = discover.DEV, conf: Path = discover.HCCN_CONF
) -> tuple[dict[int, Seen], list[str]]:
    """Ask the tools about each NPU that has a node under /dev; `path` is a PATH to find them on.

    The second answer is what tools said instead of an answer; such a one is not asked again. A
    hccn.conf that can't be understood is told there too, and no address is taken from it.
    """
    complaints = []
    try:
        devices = discover.ask(dev, conf)
    except RankTableError as err:
        complaints.append(str(err))
        devices = discover.ask(dev, Path(os.devnull))
    found = discover.addresses(devices, path=path)
    if not found:
        return {}, []
    table = tools.run(tools.NPU_SMI, "info", path=path)
    if table.status != 0:
        complaints.append(_complaint("npu-smi info", table))
    chips = {chip.physical_id: chip for chip in tools.parse_npu_smi(table.text)}
    at_work = tools.parse_processes(table.text)
    seen, hangs = {}, False
    for device in found:
        texts = dict.fromkeys(HCCN_QUESTIONS, "")
        for question in () if hangs else HCCN_QUESTIONS:
            asked = ("-i", str(device.physical_id), question, "-g")
            answer = tools.run(tools.HCCN_TOOL, *asked, path=path)
            texts[question] = answer.text
            if answer.status is None:  # it is not there, or does not end
                complaints.append(_complaint("hccn_tool", answer))
                hangs = True
                break
        chip = chips.get(device.physical_id)
        up, on = tools.link_is_up(texts["-link"]), tools.tls_is_on(texts["-tls"])
        seen[device.physical_id] = Seen(
            address=device.address,
            health=chip.health if chip else None,
            link=None if up is None else "up" if up else "down",
            network=tools.network_health(texts["-net_health"]),
            tls=None if on is None else "on" if on else "off",
            busy=tuple(
                f"{process.name or 'a process'} (pid {process.pid}, {process.memory_mb} MB)"
                for process in at_work
                if chip and (process.npu_id, process.chip_id) == (chip.npu_id, chip.chip_id)
            ),
        )
    return seen, complaints


def _complaint(asked: str, answer: tools.Answer) -> str:
    if answer.status is None:
        return answer.text
    words = answer.text.strip().splitlines() or ["no word"]
    return f"{asked} ended with status {answer.status}: {words[0]}"


def address_of(name: str) -> str | None:
    """Resolve a host name as this host does; the first address that doesn't lead back to it."""
    try:
        return preflight.resolve(name, several_hosts=False)
    except LaunchError:
        return None


def holders(ports: Iterable[int], address: str = "0.0.0.0") -> dict[int, str]:
    """Say who holds which of these ports."""
    found = {port: preflight.holder(address, port) for port in ports}
    return {port: who for port, who in found.items() if who is not None}


def hccl_ports(base: str) -> range:
    """Name the ports that HCCL takes; from its own where HCCL_IF_BASE_PORT holds no port.

    >>> hccl_ports("65530"), hccl_ports("65536")
    (range(65530, 65536), range(60000, 60032))
    """
    first = int(base) if decimal(base, LAST_PORT) else HCCL_BASE_PORT
    return range(first, min(first + HCCL_PORTS, LAST_PORT + 1))


def kernel_ports(name: str, root: Path = KERNEL_PORTS) -> str:
    """Read `local_reserved_ports` or `local_port_range`."""
    return _text(root / f"ip_{name}").strip()


def clock_is_synchronised() -> bool | None:
    """Ask the kernel whether NTP keeps its clock right: adjtimex(2), which only reads here."""
    nothing_to_set = ctypes.create_string_buffer(1024)  # struct timex, larger than any
    answer = ctypes.CDLL(None).adjtimex(nothing_to_set)
    return None if answer < 0 else answer != CLOCK_WRONG


def cache(environ: Mapping[str, str]) -> Path:
    """Name the folder of the cache, by the rules of data/cache.py, which launch doesn't import."""
    base = environ.get("XDG_CACHE_HOME", "")
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    return (Path(base) if os.path.isabs(base) else home / ".cache") / "mindbooth"


def space(path: Path) -> Space:
    """Look at the place where a folder is or would be made; try to write there, leave nothing."""
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        about = os.statvfs(there)
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"mindbooth")
            probe.flush()
    except OSError as err:
        return Space(path, free=0, refused=f"nothing can be written ({err.strerror})")
    return Space(path, free=about.f_bavail * about.f_frsize, refused=None)


def soft_limit(kind: int) -> int:
    """Read a soft limit; -1 is unlimited."""
    return resource.getrlimit(kind)[0]


def shared_memory(path: Path = Path("/dev/shm")) -> int:
    about = os.statvfs(path)
    return about.f_blocks * about.f_frsize


def memory(own: str | None = None, cgroups: Path = CGROUPS) -> tuple[int, str]:
    """Return what memory this process may use, in bytes, and who says so.

    `own` is the text of /proc/self/cgroup.
    """
    groups = parse_cgroups(_text(Path("/proc/self/cgroup")) if own is None else own)
    limits = [int(text) for name in groups if (text := _text(cgroups / name).strip()).isdigit()]
    total = psutil.virtual_memory().total
    least = min(limits, default=total)
    return (least, "limit of the cgroup") if least < total else (total, "of this machine")


def parse_cgroups(own: str) -> list[str]:
    """Name the files that may limit this process: its cgroup's and those of all above it.

    >>> parse_cgroups("4:memory:/job\\n0::/")
    ['memory/job/memory.limit_in_bytes', 'memory/memory.limit_in_bytes', 'memory.max']
    """
    names = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        group = Path(controllers, path.lstrip("/"))
        top = Path(controllers)
        names += [
            str(folder / file) for folder in (group, *group.parents) if folder.is_relative_to(top)
        ]
    return names


def table_version(path: Path = LEFTOVER_TABLE) -> str | None:
    """Read the version of a rank table that lies where HCCL looks unasked; None without one."""
    if not path.is_file():
        return None
    try:
        content = json.loads(_text(path))
    except ValueError:
        return "unreadable"
    return str(content.get("version", "unknown")) if isinstance(content, dict) else "unknown"


def _text(path: Path) -> str:
    """Return a file's text; a file that is missing or not for this user says nothing."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
