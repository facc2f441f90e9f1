"""What HCCL would reject in a rank table, all of it at once: where, what was found, what to do.

HCCL itself stops at the first fault and says EI0004 or EI0014 in one worker's log. The rule that
surprises most: every value is a string, numbers included. Called by `hccl.parse` and by
`mindbooth ranktable check`. `faults` must be empty for a table to be used; `warnings` are for
people: what HCCL accepts, or only notes in its log, and still may not be what was meant.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator

from . import superpods
from .caveats import caveats
from .document import (
    NOT_PLAIN,
    Located,
    Servers,
    decimal,
    load,
    not_strings,
    objects,
    plain,
    quoted,
    repeated,
    uneven,
)

VERSION = "1.0"
COMPLETED = "completed"
LONGEST_SERVER_ID = 63
LAST_DEVICE_ID = 15
LAST_PORT = 65535
LARGEST_RANK = 10**9
PORTS = ("device_port", "device_vnic_port", "backup_device_port", "host_port")


def faults(text: str, *, addresses: bool | None = None) -> list[str]:
    """List what is wrong with a table, each with its place in the JSON. Empty if it is good.

    `addresses`: whether each device needs a device_ip. None asks the table itself: several servers
    need them, but not inside one super pod.
    """
    document, found = load(text)
    if document is None:
        return found
    other = _other_layout(document)
    if other:
        return [other]
    found += [*not_strings(document), *_head(document)]
    servers = _servers(document, found)
    devices = [located for _, _, held in servers for located in held]
    if addresses is None:
        addresses = len(servers) > 1 and (
            document.get("version") != superpods.VERSION or superpods.count(document) > 1
        )
    found += _server_ids(servers)
    found += _device_ids(servers)
    found += _addresses(devices, "device_ip", required=addresses)
    found += _addresses(devices, "backup_device_ip", required=False)
    found += _network(servers)
    found += _ranks(devices)
    found += _evenness(servers)
    if document.get("version") == superpods.VERSION:
        found += superpods.faults(document, servers)
    return found


def warnings(text: str) -> list[str]:
    """List what HCCL accepts and a person should know. Empty for a table with faults: they come
    first."""
    document, found = load(text)
    if document is None or faults(text, addresses=False):
        return []
    return list(caveats(document, _servers(document, found)))


def _servers(document: dict[str, object], found: list[str]) -> Servers:
    return [
        (path, server, objects(server, "device", f"{path}.", found))
        for path, server in objects(document, "server_list", "", found)
    ]


def _other_layout(document: dict[str, object]) -> str | None:
    """Name a table that is none of ours, instead of listing all that it lacks."""
    if document.get("version") in ("2.0", 2.0) or "rank_list" in document:
        return (
            "version: 2.0 is for chip generation A5 (Ascend 950); A2 reads 1.0, A3 reads 1.2, and "
            "this is about those two. Use the table as it is with HCCL, or give one for A2 or A3."
        )
    if "group_list" in document and "server_list" not in document:
        return (
            "group_list: an older layout (ModelArts, HCCL before version 1.0). "
            "Convert it with mindbooth ranktable convert."
        )
    return None


def _head(document: dict[str, object]) -> Iterator[str]:
    version, status = document.get("version"), document.get("status")
    if version is None:
        yield f'version: missing, HCCL would read an older layout. Add "version": "{VERSION}".'
    elif isinstance(version, str) and version not in (VERSION, superpods.VERSION):
        yield (
            f'version: {quoted(version)} is not known. Write "{VERSION}", or '
            f'"{superpods.VERSION}" for super pods.'
        )
    if status is None:
        yield f'status: missing, HCCL would wait for it. Add "status": "{COMPLETED}".'
    elif isinstance(status, str) and status != COMPLETED:
        yield (
            f"status: {quoted(status)}, HCCL waits until it is {COMPLETED!r}. Wait for whoever "
            f'writes the table, or write "{COMPLETED}" if it is whole.'
        )
    servers, count = document.get("server_list"), document.get("server_count")
    if isinstance(servers, list):
        if count is None:
            yield f'server_count: missing. Add "server_count": "{len(servers)}".'
        elif isinstance(count, str) and count != str(len(servers)):
            yield (
                f"server_count: {quoted(count)}, but server_list holds {len(servers)}. "
                f'Write "{len(servers)}", or add the missing servers.'
            )


def _server_ids(servers: Servers) -> Iterator[str]:
    for path, server, _ in servers:
        server_id = server.get("server_id")
        if server_id is None or server_id == "":
            yield f"{path}.server_id: missing or empty. Give the host's address or name."
        elif isinstance(server_id, str) and len(server_id) > LONGEST_SERVER_ID:
            yield (
                f"{path}.server_id: {len(server_id)} characters, HCCL takes "
                f"{LONGEST_SERVER_ID}. Shorten it."
            )
        elif isinstance(server_id, str) and not plain(server_id):
            yield f"{path}.server_id: {quoted(server_id)} {NOT_PLAIN}"
    yield from repeated(
        ((f"{path}.server_id", server.get("server_id")) for path, server, _ in servers),
        "Give each server its own.",
    )


def _device_ids(servers: Servers) -> Iterator[str]:
    for _, _, devices in servers:
        for path, device in devices:
            value = device.get("device_id")
            if value is None:
                yield f"{path}.device_id: missing. Give the N of /dev/davinciN."
            elif isinstance(value, str) and not decimal(value, LAST_DEVICE_ID):
                yield (
                    f"{path}.device_id: {quoted(value)} is no device number from 0 to "
                    f"{LAST_DEVICE_ID}. Give the N of /dev/davinciN."
                )
        yield from repeated(
            ((f"{path}.device_id", device.get("device_id")) for path, device in devices),
            "Each device of a server stands once.",
        )


def _addresses(devices: list[Located], key: str, required: bool) -> Iterator[str]:
    first: dict[bytes, str] = {}
    counts: dict[str, int] = {}
    for path, device in devices:
        value = device.get(key)
        if value is None or value == "":
            if required:
                yield (
                    f"{path}.{key}: missing, several servers need it. Fill in what "
                    "hccn_tool -i N -ip -g prints for this device."
                )
        elif isinstance(value, str):
            parts = value.split(",")
            counts[path] = len(parts)
            for part in parts:
                packed = address_bytes(part)
                if packed is None:
                    yield f"{path}.{key}: {quoted(part)} is no IP address. Correct it."
                elif packed in first:
                    yield (
                        f"{path}.{key}: {part!r} stands at {first[packed]}.{key} already. "
                        "Each device has its own; ask hccn_tool -i N -ip -g."
                    )
                else:
                    first[packed] = path
    if len(set(counts.values())) > 1:
        usual = Counter(counts.values()).most_common(1)[0][0]
        for path, count in counts.items():
            if count != usual:
                yield (
                    f"{path}.{key}: {count} addresses, other devices have {usual}. "
                    "Give every device the same number."
                )


def _network(servers: Servers) -> Iterator[str]:
    """Check what is optional: the host's own address, ports, the spare card of a device."""
    for server_path, server, devices in servers:
        host_ip = server.get("host_ip")
        if isinstance(host_ip, str) and address_bytes(host_ip) is None:
            yield f"{server_path}.host_ip: {quoted(host_ip)} is no IP address. Correct it."
        for path, device in devices:
            for key in PORTS:
                port = device.get(key)
                if isinstance(port, str) and (port == "0" or not decimal(port, LAST_PORT)):
                    yield (
                        f"{path}.{key}: {quoted(port)} is no port from 1 to {LAST_PORT}. "
                        "Correct it, or leave it out."
                    )
            spare = device.get("backup_device_ip")
            if isinstance(spare, str) and spare and spare == device.get("device_ip"):
                yield (
                    f"{path}.backup_device_ip: {quoted(spare)} is the device's own device_ip. "
                    "Give the address of the other die of the same NPU."
                )


def _ranks(devices: list[Located]) -> Iterator[str]:
    ranks: list[int] = []
    for path, device in devices:
        value = device.get("rank_id")
        if value is None:
            yield f"{path}.rank_id: missing. Give each device a rank from 0 to {len(devices) - 1}."
        elif isinstance(value, str):
            if not decimal(value, LARGEST_RANK):
                yield f"{path}.rank_id: {quoted(value)} is no rank. Write a decimal number from 0."
            else:
                ranks.append(int(value))
                if int(value) >= len(devices):
                    yield (
                        f"{path}.rank_id: {value!r}, but the table holds {len(devices)} devices. "
                        f"Ranks go from 0 to {len(devices) - 1}: renumber."
                    )
    yield from repeated(
        ((f"{path}.rank_id", device.get("rank_id")) for path, device in devices),
        "Ranks must be unique.",
    )
    missing = sorted(set(range(len(devices))) - set(ranks))
    if missing and len(ranks) == len(devices):
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        yield f"server_list: no device has rank {shown}. Ranks are 0 to {len(devices) - 1}."


def _evenness(servers: Servers) -> Iterator[str]:
    """Servers must be alike: as many devices, and host_ip on all of them or on none."""
    sizes = {path: len(devices) for path, _, devices in servers if devices}
    if len(set(sizes.values())) > 1:
        yield (
            f"server_list: servers differ in number of devices ({uneven(sizes)}). Make them equal."
        )
    without = [path for path, server, _ in servers if "host_ip" not in server]
    if without and len(without) < len(servers):
        yield f"{without[0]}.host_ip: missing, other servers have it. Give it to all or to none."


def address_bytes(text: str) -> bytes | None:
    """Return an address as its bytes, the same for every spelling; None if it is none."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return None
