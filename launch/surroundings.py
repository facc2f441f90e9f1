"""What a launch stands on: this machine, what a scheduler says, the folders, where the hosts meet.

With `commands.py` the only file here that reads the process's environment, the machine and the
user's files.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mindbooth.ranktable import discover, hccl, reader

from . import hostlist, options, preflight, schedulers
from .allocation import Allocation, agree
from .devices import Machine
from .options import LaunchConfig, LaunchError
from .plan import AUTO_PORTS, LOOPBACK, TRAINER, Plan, Site, make_plan, port_for
from .rendezvous import AbsentError

LOOK_UP_SECONDS = 1.0
TABLE_SECONDS = 600.0  # a platform may still be writing its table when we start


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """All that was seen. key: what the launchers of this job have in common, and no others."""

    config: LaunchConfig
    machine: Machine
    allocation: Allocation
    output_dir: Path
    log_dir: Path
    site: Site
    key: str
    table_text: str | None

    def plan(
        self,
        *,
        attempt: int,
        job: str,
        site: Site | None = None,
        program: tuple[str, ...] = TRAINER,
        resume: bool = False,
    ) -> Plan:
        """Make the plan; `site` where more is known by now of the other hosts."""
        return make_plan(
            self.config,
            self.machine,
            site=site or self.site,
            output_dir=self.output_dir,
            log_dir=self.log_dir,
            attempt=attempt,
            job=job,
            table_text=self.table_text,
            program=program,
            resume=resume,
        )

    @property
    def port_source(self) -> str:
        if self.config.master_port is not None:
            return "--master_port"
        return f"which follows from {self.key}"


def look(
    config: LaunchConfig, environ: Mapping[str, str], *, pause: Callable[[float], None] | None
) -> Surroundings:
    """Look around.

    `pause`, for a launch: sleeps, while a name or a rank table that is still to come is waited
    for. Without it what isn't there is left open, as a plan may be made elsewhere.
    """
    hostname = socket.gethostname()
    found = schedulers.detect(environ, hostname=hostname, scheduler=config.scheduler)
    allocation = agree(
        found,
        nnodes=config.nnodes,
        node_rank=config.node_rank,
        master_addr=config.master_addr,
        nproc_per_node=config.nproc_per_node,
    )
    if config.nproc_per_node is None and config.devices is None:
        config = replace(config, nproc_per_node=allocation.devices_per_host)
    output_dir, log_dir = output_folders(config)
    key = allocation.job or str(output_dir)
    return Surroundings(
        config=config,
        machine=_machine(config, environ),
        allocation=allocation,
        output_dir=output_dir,
        log_dir=log_dir,
        site=_site(config, allocation, key, pause),
        key=key,
        table_text=_table(config, allocation, pause),
    )


def _machine(config: LaunchConfig, environ: Mapping[str, str]) -> Machine:
    needs_addresses = config.device_target != "CPU" and config.rank_table != "off"
    devices = discover.ask() if needs_addresses else discover.ask(hccn_conf=Path(os.devnull))
    super_pod_id = None
    if devices and needs_addresses:
        # Tools are asked, which takes a part of a second for each device.
        path = environ.get("PATH", "")
        devices = discover.addresses(devices, path=path)
        devices, super_pod_id = discover.super_pod(devices, path=path)
    return Machine(
        name=socket.gethostname(),
        devices=devices,
        super_pod_id=super_pod_id,
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        python=Path(sys.executable),
        environ=dict(environ),
    )


def _site(
    config: LaunchConfig, allocation: Allocation, key: str, pause: Callable[[float], None] | None
) -> Site:
    if allocation.nnodes == 1:
        return Site(
            master_port=config.master_port or free_port(key),
            platform_table=allocation.rank_table,
            source="" if allocation.scheduler == "none" else allocation.source,
        )
    named = allocation.master_addr or allocation.hosts[0]  # `agree` saw to one of them
    return Site(
        master_addr=_address(named, config, allocation, pause) if pause else _or_name(named),
        master_port=config.master_port or allocation.master_port or port_for(key),
        nnodes=allocation.nnodes,
        node_rank=allocation.node_rank,
        names=allocation.hosts,
        platform_table=allocation.rank_table,
        source=allocation.source,
    )


def _address(
    name: str, config: LaunchConfig, allocation: Allocation, pause: Callable[[float], None]
) -> str:
    """Look the master up. The name of a pod, as a scheduler gives it, may appear a little later."""
    by_hand = config.master_addr is not None
    source = "--master_addr" if by_hand else f"{allocation.source}:"
    patience = 0.0 if allocation.scheduler == "none" else config.rendezvous_seconds
    limit, told = time.monotonic() + patience, False
    while True:
        try:
            return preflight.resolve(name, several_hosts=True, source=source)
        except preflight.UnknownName as err:
            if allocation.scheduler == "none":
                raise
            if time.monotonic() > limit:
                raise AbsentError(
                    f"{source} no host has had the name {name} for {patience:g} s "
                    "(--rendezvous_seconds): host 0 has not come."
                ) from err
            if not told:
                print(f"mindbooth: waiting for an address of {name}", flush=True)
                told = True
            pause(LOOK_UP_SECONDS)


def _or_name(name: str) -> str:
    try:
        return preflight.resolve(name, several_hosts=True)
    except LaunchError:  # a plan may be made elsewhere
        return name


def _table(
    config: LaunchConfig, allocation: Allocation, pause: Callable[[float], None] | None
) -> str | None:
    """The content of --rank_table PATH.

    Only a platform's own file is waited for, as it may still be written; a user's is there and
    whole, or a mistake.
    """
    path = config.rank_table
    if not isinstance(path, Path) or config.device_target == "CPU":
        return None
    platform = (schedulers.MINDCLUSTER_TABLE, allocation.rank_table)
    if path in platform or path.parent in platform:
        if pause is not None:
            print(f"mindbooth: reading the rank table {path}, once it is complete", flush=True)
            return hccl.render(reader.read(path, wait_seconds=TABLE_SECONDS, pause=pause))
    elif not path.exists():
        raise LaunchError(f"--rank_table {path}: no such file. Give auto, off, or a file.")
    return hccl.render(reader.read(path))


def output_folders(config: LaunchConfig) -> tuple[Path, Path]:
    """Name the output folder and the folder of the attempts, both absolute."""
    flags = config.training_flags
    asked = options.output_dir(flags, yaml_options(options.config_file(flags)))
    output_dir = Path.cwd() / asked.expanduser()
    log_dir = output_dir / "launch"
    if config.log_dir is not None:
        log_dir = Path.cwd() / config.log_dir.expanduser()
    return output_dir, log_dir


def yaml_options(path: Path | None) -> Mapping[str, object]:
    if path is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8")) or {}
    except OSError as err:
        raise LaunchError(f"--config {path}: cannot be read ({err.strerror}).") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise LaunchError(f"--config {path}: no YAML ({' '.join(str(err).split())}).") from err
    if not isinstance(content, dict):
        raise LaunchError(f"--config {path}: holds no options. Write lines such as rank: 4.")
    return content


def hosts(config: LaunchConfig) -> tuple[tuple[str, ...], int | None]:
    """The hosts that are to be reached by ssh, and how many workers a hostfile gives each."""
    if config.hosts is not None:
        return hostlist.parse_hosts(config.hosts), None
    path = config.hostfile or Path()
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise LaunchError(f"--hostfile {path}: cannot be read ({err}).") from err
    lines = hostlist.parse_hostfile(text, str(path))
    slots = lines[0].slots  # the same in all lines
    if slots is not None and config.nproc_per_node not in (None, slots):
        raise LaunchError(
            f"--nproc_per_node {config.nproc_per_node}, but --hostfile {path} gives each host "
            f"{slots} slots. Make them agree, or leave --nproc_per_node out."
        )
    return tuple(line.name for line in lines), slots


def free_port(key: str) -> int:
    """Find a free port; the search starts where `key` says, so that plan and launch agree."""
    start = zlib.crc32(os.fsencode(key)) % len(AUTO_PORTS)
    for offset in range(len(AUTO_PORTS)):
        port = AUTO_PORTS[(start + offset) % len(AUTO_PORTS)]
        if preflight.holder(LOOPBACK, port) is None:
            return port
    raise LaunchError(f"no port from {AUTO_PORTS[0]} to {AUTO_PORTS[-1]} is free.")
