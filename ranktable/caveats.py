"""What is no fault of a rank table and still worth a word. Called by `check.warnings`.

HCCL writes most of this into one worker's log as a warning, or not at all; the table works until
something else changes: another way to start the workers, an older CANN, one variable more. Each
sentence says when it matters. The table has no faults when it comes here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from . import superpods
from .document import Servers

USUAL_DEVICE_COUNTS = (1, 2, 4, 8, 16)


def caveats(document: dict[str, object], servers: Servers) -> Iterator[str]:
    """Say each caveat of a faultless table, with its place in the JSON."""
    yield from _text_order(servers)
    yield from _worker_order(servers)
    yield from _super_pods(document, servers)
    yield from _host_ip(document, servers)
    yield from _no_addresses(servers)
    yield from _spare_cards(servers)
    count = len(servers[0][2])
    if count not in USUAL_DEVICE_COUNTS:
        yield (
            f"server_list: {count} devices a server. HCCL of older CANN takes 1, 2, 4, 8 or 16 "
            "only; try this table before you rely on it."
        )


def _text_order(servers: Servers) -> Iterator[str]:
    by_rank = sorted(servers, key=lambda entry: min(_rank(device) for _, device in entry[2]))
    for (_, former, _), (path, latter, _) in pairwise(by_rank):
        if str(former["server_id"]) > str(latter["server_id"]):
            yield (
                f"{path}.server_id: {latter['server_id']} has higher ranks than "
                f"{former['server_id']}, but as text it comes first. This matters where MindSpore "
                "deals out the ranks itself (msrun without --node_rank, or a table without msrun): "
                "it sorts hosts as text. mindbooth launch always says --node_rank."
            )
            return


def _worker_order(servers: Servers) -> Iterator[str]:
    """Compare with msrun: host by host, and on a host by ascending device_id."""
    by_rank = sorted(
        (_rank(device), number, int(str(device["device_id"])), path)
        for number, (_, _, devices) in enumerate(servers)
        for path, device in devices
    )
    for (_, server, device_id, _), (rank, next_server, next_id, path) in pairwise(by_rank):
        size = len(servers[next_server][2])
        if (server == next_server) != (rank % size != 0) or (
            server == next_server and device_id > next_id
        ):
            yield (
                f"{path}.rank_id: {rank} breaks the order of msrun, which numbers workers host by "
                "host, and on a host by ascending device_id. Renumber the table if msrun or "
                "mindbooth launch starts the workers."
            )
            return


def _super_pods(document: dict[str, object], servers: Servers) -> Iterator[str]:
    listed = superpods.LIST in document
    numbered = any("super_device_id" in device for _, _, held in servers for _, device in held)
    if document["version"] == superpods.VERSION:
        if not listed:
            yield (
                f"{superpods.LIST}: missing. HCCL then makes no use of the super pod's own links; "
                'add it, or write "version": "1.0" if the hosts are networked in the ordinary way.'
            )
    elif listed or numbered:
        name = superpods.LIST if listed else "super_device_id"
        yield (
            f"{name}: not read in a table of version 1.0. "
            f'Write "version": "{superpods.VERSION}" if the super pod\'s own links are to be used.'
        )


def _host_ip(document: dict[str, object], servers: Servers) -> Iterator[str]:
    path, server, _ = servers[0]
    if document["version"] != superpods.VERSION and "host_ip" in server:
        yield (
            f"{path}.host_ip: with it, HCCL of older CANN talks through the host's network card "
            "and reads no device_ip. Leave host_ip out of version 1.0 unless that is meant."
        )


def _no_addresses(servers: Servers) -> Iterator[str]:
    without = [
        path for _, _, held in servers for path, device in held if not device.get("device_ip")
    ]
    if without and len(servers) > 1:
        yield (
            f"{without[0]}.device_ip: missing ({len(without)} devices in all). It is needed as "
            "soon as HCCL_INTRA_ROCE_ENABLE=1 is set."
        )


def _spare_cards(servers: Servers) -> Iterator[str]:
    devices = [located for _, _, held in servers for located in held]
    known = {part for _, device in devices for part in str(device.get("device_ip", "")).split(",")}
    for path, device in devices:
        spare = device.get("backup_device_ip")
        if spare and not known.issuperset(str(spare).split(",")):
            yield (
                f"{path}.backup_device_ip: {spare} is the device_ip of no device here, so nobody "
                "can check that it is the other die of the same NPU."
            )
            return


def _rank(device: dict[str, object]) -> int:
    return int(str(device["rank_id"]))
