"""Several hosts' rank tables -> the one of the whole job, and how hosts exchange them in a folder.

`mindbooth launch` merges what the launchers send each other, `mindbooth ranktable merge` files,
and `hand_over` is for people who start msrun themselves: each host writes its part into a shared
folder and takes the others' from there. The trap of such a folder is what an earlier run left in
it: see `hand_over`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

from . import hccl
from .hccl import RankTable, TableServer
from .topology import RankTableError

FOLDER_MODE = 0o755
FILE_MODE = 0o644
RUN = "hand_over"  # the key, in a part of a table, of the run that wrote it; HCCL skips such keys
POLL_SECONDS = 0.2
POLL_SECONDS_PER_HOST = 0.002  # a thousand hosts ask a file server less often

Located = tuple[str, TableServer]  # the table's name, and one of its servers


def merge(tables: Sequence[RankTable], sources: Sequence[str]) -> RankTable:
    """Join tables in this order and number the ranks anew. `sources` name them in errors."""
    located = [
        (source, server)
        for table, source in zip(tables, sources, strict=True)
        for server in sorted(table.servers, key=_first_rank)
    ]
    found = [*_repeated(located), *_uneven(located)]
    if found:
        raise hccl.refusal("these rank tables do not make one", found)
    ranks = count()
    return RankTable(
        servers=tuple(
            replace(
                server,
                devices=tuple(
                    replace(device, rank_id=next(ranks))
                    for device in sorted(server.devices, key=lambda device: device.rank_id)
                ),
            )
            for _, server in located
        ),
        declared=next((table.declared for table in tables if table.declared), None),
    )


def digest(table: RankTable) -> str:
    """Name a table by its content, so that hosts can tell whether they hold the same one."""
    return hashlib.sha256(hccl.render(table).encode()).hexdigest()


def _first_rank(server: TableServer) -> int:
    return min(device.rank_id for device in server.devices)


def _repeated(located: Sequence[Located]) -> Iterator[str]:
    """Find names, addresses and numbers that must be unique in a job, and are not."""
    first: dict[tuple[str, ...], str] = {}
    for source, server in located:
        for key, what, remedy in _unique(server):
            if key in first:
                yield f"{what} stands in {first[key]} and in {source}. {remedy}"
            else:
                first[key] = source


def _unique(server: TableServer) -> Iterator[tuple[tuple[str, ...], str, str]]:
    name = server.server_id
    yield ("server", name), f"server_id {name!r}", "Give each host its own, and each table once."
    for device in server.devices:
        whose = f"of device {device.device_id} of {name!r}"
        for address in device.device_ip.split(",") if device.device_ip else ():
            what = f"device_ip {address} {whose}"
            yield ("address", address), what, "Ask hccn_tool -i N -ip -g on both hosts."
        if server.super_pod_id is not None and device.super_device_id is not None:
            number = str(device.super_device_id)
            what = f"super_device_id {number} {whose} in super pod {server.super_pod_id!r}"
            yield ("super", server.super_pod_id, number), what, "Ask npu-smi info -t spod-info."


def _uneven(located: Sequence[Located]) -> Iterator[str]:
    """Find what must be alike on all hosts, and is not."""
    servers = [server for _, server in located]
    alike = {
        "number of devices": [str(len(server.devices)) for server in servers],
        "host_ip": ["given" if server.host_ip else "none" for server in servers],
        "super pod": ["given" if server.super_pod_id else "none" for server in servers],
    }
    for what, values in alike.items():
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            listed = ", ".join(
                f"{values[i]} for {located[i][1].server_id!r} in {located[i][0]}"
                for i in (0, other)
            )
            yield f"{what}: {listed}. It must be alike for all hosts."


def hand_over(
    folder: Path,
    mine: RankTable,
    *,
    host_index: int,
    hosts: Sequence[str],
    wait_seconds: float,
) -> RankTable:
    """Write this host's part into a shared folder, wait for the other parts, return the whole.

    Each part holds a number of its own run, and once a host sees all parts it writes a seal, the
    hash of all of them. A host is done when the seals of all hosts equal its own: then every one of
    them has seen this very run's part, so none of them is a file of an earlier run, and all hold
    the same table. Nothing is deleted, as nobody knows when the last one has read it.
    """
    document = json.loads(hccl.render(mine)) | {RUN: secrets.token_hex(8)}
    publish(folder / _part(host_index), json.dumps(document, indent=2) + "\n")
    everyone = range(len(hosts))
    deadline = time.monotonic() + wait_seconds
    sealed = ""
    while True:
        parts = _read(folder, [_part(i) for i in everyone])
        seals = _read(folder, [_seal(i) for i in everyone])
        if len(parts) == len(hosts):
            seal = hashlib.sha256("".join(parts.values()).encode()).hexdigest()
            if seal != sealed:
                sealed = seal
                publish(folder / _seal(host_index), seal)
                seals[_seal(host_index)] = seal
            if len(seals) == len(hosts) and set(seals.values()) == {seal}:
                tables = [hccl.parse(text, str(folder / name)) for name, text in parts.items()]
                return merge(tables, hosts)
        if time.monotonic() > deadline:
            raise RankTableError(_missing(folder, hosts, parts, seals, sealed, wait_seconds))
        time.sleep(POLL_SECONDS + POLL_SECONDS_PER_HOST * len(hosts))


def _part(index: int) -> str:
    return f"host-{index}.json"


def _seal(index: int) -> str:
    return f"host-{index}.seal"


def _read(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the files that can be read now. One that cannot may be in the middle of a change."""
    found: dict[str, str] = {}
    with suppress(OSError):
        os.listdir(folder)  # so that NFS asks its server for what is new
    for name in names:
        with suppress(OSError):
            found[name] = (folder / name).read_text(encoding="utf-8", errors="replace")
    return found


def _missing(
    folder: Path,
    hosts: Sequence[str],
    parts: Mapping[str, str],
    seals: Mapping[str, str],
    sealed: str,
    wait_seconds: float,
) -> str:
    def listed(indices: Sequence[int]) -> str:
        return ", ".join(hosts[i] for i in indices)

    said = f"{folder}: {len(hosts)} hosts were to write their parts here within {wait_seconds:g} s"
    absent = [i for i in range(len(hosts)) if _part(i) not in parts]
    if absent:
        command = f"mindbooth ranktable write --folder {folder} --nnodes {len(hosts)} --node_rank"
        return (
            f"{said}, missing: {listed(absent)}. Run on {hosts[absent[0]]}: {command} "
            f"{absent[0]} (on each host its own number), and see that all mount the same folder."
        )
    others = [i for i in range(len(hosts)) if seals.get(_seal(i)) != sealed]
    return (
        f"{said}, but what {listed(others)} wrote is of another run. Start the command there too, "
        "and give each run a folder of its own."
    )


def publish(path: Path, text: str) -> None:
    """Write a file so that readers see the old one or the new one, never a part of it."""
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(descriptor, FILE_MODE)
                os.fsync(descriptor)
            os.replace(aside, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(aside)
    except OSError as err:
        raise RankTableError(f"{path}: cannot be written ({err.strerror}).") from err
