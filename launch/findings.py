"""What the doctor thinks of what it saw: values in, findings out.

Pure; `machine_facts.py` looks, `doctor.py` puts both together. A finding is at fault where a job
could not run, a warning where it could run badly or another machine would have to be asked; what
is said of thresholds stands beside them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

State = Literal["ok", "warning", "fault"]

GIB = 2**30
UNLIMITED = -1
SHOWN_PACKAGES = ("mindspore", "mindone", "transformers", "numpy")
LEAST_FILES = 4096  # a worker holds some hundred: libraries, pictures, sockets
LEAST_PROCESSES = 4096  # threads count; a worker has some hundred
LEAST_LOCKED = 8192  # KiB, what systemd gives a login
LEAST_SHM = GIB  # docker gives 64 MB where it is not told --shm-size
LEAST_MEMORY = 8 * GIB  # a worker: SDXL's weights are 7 GB in fp16
LITTLE_SPACE, NO_SPACE = 5 * GIB, GIB // 10


class Finding(NamedTuple):
    """One line of the report. `remedy` is what to do, or a note where all is well."""

    name: str
    state: State
    found: str
    remedy: str = ""


class Space(NamedTuple):
    """A place for files: `free` bytes, and why nothing can be written there, if so."""

    path: Path
    free: int
    refused: str | None


def python(version: str, asked: str) -> Finding:
    if SpecifierSet(asked).contains(version):
        return Finding("Python", "ok", f"{version} ({asked})")
    return Finding("Python", "fault", version, f"mindbooth needs {asked}: make a new environment.")


def packages(asked: Iterable[str], installed: Mapping[str, str]) -> list[Finding]:
    """Compare what setup.cfg asks for with what is there.

    The packages that matter most have a line each; the rest only where they do not fit.
    """
    findings, fitting = [], 0
    for requirement in map(Requirement, asked):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(requirement.name)
        wanted = str(requirement.specifier) or "any"
        if version is None:
            found, fits = "not installed", False
        else:
            found, fits = (
                f"{version} ({wanted})",
                requirement.specifier.contains(version, prereleases=True),
            )
        if not fits:
            remedy = f"pip install '{requirement.name}{requirement.specifier}'"
            findings.append(Finding(requirement.name, "fault", found, remedy))
        elif requirement.name in SHOWN_PACKAGES:
            findings.append(Finding(requirement.name, "ok", found))
        else:
            fitting += 1
    return [*findings, Finding("other packages", "ok", f"{fitting} as asked for")]


def programs(folder: Path, missing: Sequence[str]) -> Finding:
    """Judge the programs that a launch starts from the interpreter's own folder."""
    if missing:
        return Finding(
            "msrun", "fault", f"no {' and no '.join(missing)} in {folder}", "pip install mindspore"
        )
    return Finding("msrun", "ok", str(folder / "msrun"))


def host_name(name: str, address: str | None, own: Iterable[str], several_hosts: bool) -> Finding:
    """Judge what the host's own name means here; `address` None: it can't be resolved."""
    state: State = "fault" if several_hosts else "ok"
    note = "" if several_hosts else "Enough for one host. For several: "
    if address is None:
        remedy = f"write '<address that the others reach> {name}' to /etc/hosts."
        return Finding("host name", state, f"{name}, which has no address here", note + remedy)
    found = f"{name} is {address}"
    if _leads_back(address):
        remedy = f"{name} must not be 127.x in /etc/hosts, or pass --master_addr."
        return Finding("host name", state, found, note + remedy)
    if address not in own:
        remedy = "no interface here has that address: correct /etc/hosts, or pass --master_addr."
        return Finding("host name", "warning" if several_hosts else "ok", found, note + remedy)
    return Finding("host name", "ok", found)


def interfaces(present: Mapping[str, Iterable[str]], several_hosts: bool) -> Finding:
    """Show the addresses that others may reach: those that don't lead back here."""
    shown = [
        f"{name} {address}"
        for name, addresses in sorted(present.items())
        for address in sorted(addresses)
        if not _leads_back(address) and not ipaddress.ip_address(address).is_link_local
    ]
    if shown or not several_hosts:
        return Finding("interfaces", "ok", ", ".join(shown) or "none but lo")
    return Finding("interfaces", "fault", "none but lo", "Other hosts can't reach this one.")


def proxy(environ: Mapping[str, str]) -> Finding | None:
    """Show the proxy, without the password it may hold: only the hub is asked through it."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        if environ.get(name):
            place = environ[name].rpartition("@")[2]
            note = "Used for the hub; the hosts and workers of a job talk without it."
            return Finding("proxy", "ok", f"{name}: {place}", note)
    return None


def clock(synchronised: bool | None, several_hosts: bool) -> Finding:
    """Judge what the kernel says of its clock; None where it does not say."""
    if synchronised:
        return Finding("clock", "ok", "kept right by NTP")
    found = "not known" if synchronised is None else "not kept right by NTP, says the kernel"
    if not several_hosts:
        return Finding("clock", "ok", found, "Enough for one host.")
    return Finding("clock", "warning", found, "Start chronyd or ntpd on every host.")


def master_port(ports: Sequence[int], holders: Mapping[int, str], source: str) -> Finding:
    """Judge the ports of the master, which are free but for those in `holders`."""
    found = " and ".join(map(str, ports)) + f" ({source})"
    if not holders:
        return Finding("master port", "ok", f"{found}: free")
    taken = "; ".join(f"{port} is taken by {who}" for port, who in holders.items())
    return Finding("master port", "fault", taken, "End that, or pass another --master_port.")


def hccl_ports(ports: range, holders: Mapping[int, str], reserved: str, ephemeral: str) -> Finding:
    """Judge the ports on which HCCL meets; the rest as in /proc/sys/net/ipv4/ip_local_*."""
    name, span = "HCCL's ports", f"{ports[0]}-{ports[-1]}"
    if holders:
        taken = "; ".join(f"{port} is taken by {who}" for port, who in holders.items())
        remedy = "End that, or set HCCL_IF_BASE_PORT to another on every host."
        return Finding(name, "warning", taken, remedy)
    first, last = map(int, (ephemeral or "0 0").split())  # nothing is told in some containers
    kept = {port for part in reserved.split(",") if part for port in _span(part)}
    if any(first <= port <= last and port not in kept for port in ports):
        return Finding(
            name,
            "warning",
            f"{span} are free, but the kernel may give them to any client",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={span}",
        )
    return Finding(name, "ok", f"{span}: free, and kept free")


def space(name: str, place: Space) -> Finding:
    found = f"{place.path}: {place.free / GIB:.1f} GiB free"
    if place.refused is not None:
        found = f"{place.path}: {place.refused}"
        return Finding(name, "fault", found, "Name another folder, or get the right to write.")
    if place.free < NO_SPACE:
        return Finding(name, "fault", found, "Make room, or name another folder.")
    if place.free < LITTLE_SPACE:
        return Finding(name, "warning", found, "Checkpoints, pictures and models need room.")
    return Finding(name, "ok", found)


def limit(name: str, option: str, value: int, least: int) -> Finding:
    """Judge a soft limit, as `ulimit` shows it."""
    found = "unlimited" if value == UNLIMITED else str(value)
    if value == UNLIMITED or value >= least:
        return Finding(name, "ok", found)
    return Finding(name, "warning", found, f"ulimit {option} {least} in what starts the job.")


def shared_memory(size: int) -> Finding:
    if size >= LEAST_SHM:
        return Finding("/dev/shm", "ok", f"{size / GIB:.1f} GiB")
    return Finding(
        "/dev/shm",
        "warning",
        f"{size / 2**20:.0f} MiB",
        "Give a container more: docker run --shm-size=8g, an emptyDir of medium Memory in a pod.",
    )


def memory(size: int, source: str, workers: int) -> Finding:
    found = f"{size / GIB:.1f} GiB ({source}), {workers} worker{'s' * (workers != 1)}"
    if size >= workers * LEAST_MEMORY:
        return Finding("memory", "ok", found)
    return Finding(
        "memory",
        "warning",
        found,
        f"SDXL wants {LEAST_MEMORY // GIB} GiB a worker: raise the limit, or start fewer.",
    )


def cores(count: int, workers: int) -> Finding:
    found = f"{count} for {workers} worker{'s' * (workers != 1)}"
    if count >= workers:
        return Finding("cores", "ok", found)
    return Finding("cores", "warning", found, "Ask the scheduler for at least one core a worker.")


def variables(remarks: Sequence[str]) -> list[Finding]:
    """Turn remarks, `NAME=value: what it does. What to do.`, into findings."""
    if not remarks:
        return [Finding("variables", "ok", "none that bites")]
    return [Finding("variables", "warning", remark) for remark in remarks]


def leftover_table(path: Path, version: str) -> Finding:
    return Finding(
        str(path),
        "warning",
        f"a rank table, version {version}, that HCCL reads unasked",
        "If jobs end with EI0014, it is of another generation of NPU: remove it.",
    )


def _span(part: str) -> range:
    first, _, last = part.strip().partition("-")
    return range(int(first), int(last or first) + 1)


def _leads_back(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
