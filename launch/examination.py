"""One look at this machine by the doctor: group after group, what was seen and what it means.

Puts machine_facts.py and peers.py, which look, together with the findings files, which judge.
"""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import metadata, version
from pathlib import Path

from . import findings, host_findings, machine_facts, npu_findings, preflight, schedulers, variables
from .allocation import Allocation, refuse_processes
from .findings import Finding, State
from .npu_findings import Seen
from .options import LaunchError
from .peers import Card, meet
from .plan import port_for

PACKAGE = "mindbooth"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings of one host, in groups."""

    host: str
    groups: Mapping[str, Sequence[Finding]]

    def count(self, state: State) -> int:
        return [one.state for group in self.groups.values() for one in group].count(state)


@dataclass(frozen=True, kw_only=True)
class Patient:
    """The machine and its place in a job, as far as each of several checks needs it."""

    name: str
    environ: Mapping[str, str]
    job: Allocation
    npus: Mapping[int, Seen]
    packages: Mapping[str, str]

    @property
    def several_hosts(self) -> bool:
        return self.job.nnodes > 1

    @property
    def workers(self) -> int:
        return len(self.npus) or 1


def examine(
    environ: Mapping[str, str],
    *,
    folder: Path | None,
    place: tuple[int, int] | None,
    wait_seconds: float,
) -> Report:
    """Look at everything; `place` is number of hosts and number of this one, as asked for."""
    name = socket.gethostname()
    job, place_found = _job(environ, name, place)
    npus, complaints = machine_facts.npus(environ.get("PATH", os.defpath))
    asked = metadata(PACKAGE).get_all("Requires-Dist") or []
    patient = Patient(
        name=name,
        environ=environ,
        job=job,
        npus=npus,
        packages=machine_facts.installed(asked) | {PACKAGE: version(PACKAGE)},
    )
    groups = {
        "versions": _versions(patient, asked),
        "devices": _devices(patient, complaints),
        "network": [place_found, *_network(patient)],
        "ports": _ports(patient, folder),
        "folders": _folders(environ, folder),
        "limits": _limits(patient),
        "environment": _environment(patient),
    }
    if patient.several_hosts:
        groups["hosts"] = _hosts(patient, folder, wait_seconds)
    return Report(host=name, groups={title: found for title, found in groups.items() if found})


def _job(
    environ: Mapping[str, str], name: str, place: tuple[int, int] | None
) -> tuple[Allocation, Finding]:
    """Find this host's place in a job: as asked for, as the scheduler says, or alone."""
    job = schedulers.detect(environ, hostname=name, scheduler="none")
    if place is not None:
        nnodes, node_rank = place
        source = f"--nnodes {nnodes} --node_rank {node_rank}"
        job = replace(job, nnodes=nnodes, node_rank=node_rank, hosts=(), source=source)
    else:
        try:
            job = schedulers.detect(environ, hostname=name)
            refuse_processes(job)
        except LaunchError as err:
            return job, Finding("job", "fault", str(err))
    if job.untold:
        missing = " and ".join(f"--{name}" for name in job.untold)
        remedy = "Pass --nnodes and --node_rank, or what concerns other hosts is left out."
        return job, Finding("job", "warning", f"{job.source} does not tell {missing}", remedy)
    return job, Finding("job", "ok", f"host {job.node_rank} of {job.nnodes} ({job.source})")


def _versions(patient: Patient, asked: Sequence[str]) -> list[Finding]:
    mindspore = patient.packages.get("mindspore")
    folder = Path(sys.executable).parent
    missing = [program for program in ("python", "msrun") if not (folder / program).exists()]
    found = [
        findings.python(platform.python_version(), metadata(PACKAGE)["Requires-Python"]),
        *findings.packages(asked, patient.packages),
        findings.programs(folder, missing),
    ]
    if patient.npus:
        environ = patient.environ
        sourced = any(environ.get(name) for name in machine_facts.CANN_VARIABLES)
        cann = machine_facts.cann_version(environ)
        found += [
            npu_findings.cann(cann, sourced=sourced, mindspore=mindspore),
            npu_findings.driver(machine_facts.driver_version(), mindspore=mindspore),
        ]
    return found


def _devices(patient: Patient, complaints: Sequence[str]) -> list[Finding]:
    if not patient.npus:
        return [Finding("NPUs", "ok", "no NPU here: CPU only")]
    return npu_findings.devices(patient.npus, complaints, several_hosts=patient.several_hosts)


def _network(patient: Patient) -> list[Finding]:
    several = patient.several_hosts
    own = preflight.own_addresses()
    address = machine_facts.address_of(patient.name)
    found = [
        findings.host_name(patient.name, address, own, several),
        findings.interfaces(preflight.interfaces(), several),
        findings.clock(machine_facts.clock_is_synchronised(), several),
    ]
    proxy = findings.proxy(patient.environ)
    return [*found, proxy] if proxy else found


def _ports(patient: Patient, folder: Path | None) -> list[Finding]:
    job, found = patient.job, []
    key = job.job or (str(folder) if folder else None)
    port = job.master_port or (port_for(key) if key else None)
    if not patient.several_hosts:
        found.append(Finding("master port", "ok", "any that is free"))
    elif job.node_rank == 0 and port is None:
        note = "Start it with --folder DIR, the job's --output_dir, and it is looked at."
        found.append(Finding("master port", "ok", "not known: it follows from that folder", note))
    elif job.node_rank == 0 and port is not None:
        source = job.source if job.master_port else f"follows from {key}"
        ports = (port, port + 1)
        found.append(findings.master_port(ports, machine_facts.holders(ports), source))
    if patient.npus:
        wanted = machine_facts.hccl_ports(patient.environ.get("HCCL_IF_BASE_PORT", ""))
        found.append(
            findings.hccl_ports(
                wanted,
                machine_facts.holders(wanted),
                reserved=machine_facts.kernel_ports("local_reserved_ports"),
                ephemeral=machine_facts.kernel_ports("local_port_range"),
            )
        )
    return found


def _folders(environ: Mapping[str, str], folder: Path | None) -> list[Finding]:
    places = {
        "output": folder or Path.cwd(),
        "cache": machine_facts.cache(environ),
        "temporary": Path(tempfile.gettempdir()),
    }
    return [findings.space(name, machine_facts.space(path)) for name, path in places.items()]


def _limits(patient: Patient) -> list[Finding]:
    soft = machine_facts.soft_limit
    locked = soft(resource.RLIMIT_MEMLOCK)
    return [
        findings.limit("open files", "-n", soft(resource.RLIMIT_NOFILE), findings.LEAST_FILES),
        findings.limit("processes", "-u", soft(resource.RLIMIT_NPROC), findings.LEAST_PROCESSES),
        findings.limit("locked KiB", "-l", locked // 1024, findings.LEAST_LOCKED),
        findings.shared_memory(machine_facts.shared_memory()),
        findings.memory(*machine_facts.memory(), workers=patient.workers),
        findings.cores(len(os.sched_getaffinity(0)), patient.workers),
    ]


def _environment(patient: Patient) -> list[Finding]:
    told = variables.remarks(
        patient.environ,
        target="Ascend" if patient.npus else "CPU",
        several_hosts=patient.several_hosts,
        interfaces=preflight.interfaces(),
    )
    found = findings.variables((*told, *variables.leftovers(patient.environ)))
    left = machine_facts.table_version()
    if left is not None and patient.npus:
        found.append(findings.leftover_table(machine_facts.LEFTOVER_TABLE, left))
    return found


def _hosts(patient: Patient, folder: Path | None, wait_seconds: float) -> list[Finding]:
    job = patient.job
    if folder is None:
        note = "Start it with --folder DIR on every host, and they look at one another."
        return [Finding("hosts", "ok", "not looked at", note)]
    card = Card(
        name=patient.name, address=machine_facts.address_of(patient.name), facts=_facts(patient)
    )
    try:
        meeting = meet(
            folder,
            card,
            nnodes=job.nnodes,
            node_rank=job.node_rank,
            wait_seconds=wait_seconds,
        )
    except OSError as err:
        told, remedy = err.strerror, "Name a folder that every host can write to."
        if not folder.exists():
            told, remedy = "it is not there", f"Make it once, on one host: mkdir -p {folder}"
        return [Finding("shared folder", "fault", f"{folder}: {told}", remedy)]
    return host_findings.hosts(
        meeting,
        card,
        folder=folder,
        nnodes=job.nnodes,
        node_rank=job.node_rank,
        waited_seconds=wait_seconds,
    )


def _facts(patient: Patient) -> dict[str, str]:
    """What must be the same on all hosts of a job."""
    names = ("mindbooth", "mindspore", "mindone", "transformers")
    facts = {name: patient.packages.get(name, "none") for name in names}
    facts["Python"] = ".".join(platform.python_version_tuple()[:2])
    facts["number of NPUs"] = str(len(patient.npus))
    facts["number of hosts"] = str(patient.job.nnodes)
    if patient.npus:
        facts["CANN"] = machine_facts.cann_version(patient.environ) or "none"
        facts["driver"] = machine_facts.driver_version() or "none"
        switches = sorted({one.tls for one in patient.npus.values() if one.tls is not None})
        facts["TLS switch"] = " and ".join(switches) or "not told"
    return facts
