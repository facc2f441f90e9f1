"""What HCCL would reject in a rank table, all of it at once: where, what was found, what to do.

HCCL itself stops at the first fault and says EI0004 or EI0014 in one worker's log. The rule that
surprises most: every value is a string, numbers included. Called by `hccl.parse`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

VERSION = "1.0"
COMPLETED = "completed"
LONGEST_SERVER_ID = 63
LAST_DEVICE_ID = 15
TEXT_KEYS = frozenset(
    [
        "version",
        "status",
        "server_count",
        "server_id",
        "host_ip",
        "host_nic_ip",
        "device_id",
        "device_ip",
        "rank_id",
    ]
)


def faults(text: str) -> list[str]:
    """List what is wrong with a table, each with its place in the JSON. Empty if it is good."""
    twice: list[str] = []
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _no_twins(pairs, twice))
    except json.JSONDecodeError as err:
        return [f"line {err.lineno}, column {err.colno}: not JSON ({err.msg}). Correct it there."]
    if not isinstance(document, dict):
        return [f"$: a rank table is an object, not {_kind(document)}. Start it with {{."]
    if document.get("version") in ("1.2", "2.0", 1.2, 2.0):
        return [
            f"version: {document['version']} belongs to another chip generation (1.2: super pods, "
            f"2.0: A5); this is read as {VERSION} only. Give a version {VERSION} table."
        ]
    found = [*twice, *_not_strings(document), *_head(document)]
    servers = _objects(document, "server_list", "", found)
    found += _server_ids(servers)
    devices = [
        (f"{where}.", device)
        for path, server in servers
        for where, device in _objects(server, "device", f"{path}.", found)
    ]
    found += _device_ids(devices)
    found += _addresses(devices, required=len(servers) > 1)
    found += _ranks(devices)
    found += _evenness(servers)
    return found


Located = tuple[str, dict[str, object]]  # where in the JSON, and the object there


def _no_twins(pairs: list[tuple[str, object]], twice: list[str]) -> dict[str, object]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            twice.append(f"{key}: stands {count} times in one object. Keep one.")
    return dict(pairs)


def _not_strings(value: object, path: str = "", key: str = "") -> Iterator[str]:
    """Walk the whole document: HCCL takes no number, no true, no null, anywhere."""
    if isinstance(value, (dict, list)):
        if key in TEXT_KEYS:
            yield f"{path}: {_kind(value)}. It must be a string."
        for name, item in _items(value):
            dot = "." if path and isinstance(value, dict) else ""
            yield from _not_strings(item, f"{path}{dot}{name}", name)
    elif not isinstance(value, str):
        shown = json.dumps(value)
        yield f'{path}: {shown} is {_kind(value)}, HCCL reads strings only. Write "{shown}".'


def _items(value: dict[str, object] | list[object]) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        return list(value.items())
    return [(f"[{index}]", item) for index, item in enumerate(value)]


def _head(document: dict[str, object]) -> Iterator[str]:
    version, status = document.get("version"), document.get("status")
    if version is None:
        yield f'version: missing, HCCL would read an older layout. Add "version": "{VERSION}".'
    elif isinstance(version, str) and version != VERSION:
        yield f'version: {version!r} is not known. Write "{VERSION}".'
    if status is None:
        yield f'status: missing, HCCL would wait for it. Add "status": "{COMPLETED}".'
    elif isinstance(status, str) and status != COMPLETED:
        yield (
            f"status: {status!r}, HCCL waits until it is {COMPLETED!r}. Wait for whoever writes "
            f'the table, or write "{COMPLETED}" if it is whole.'
        )
    servers, count = document.get("server_list"), document.get("server_count")
    if isinstance(servers, list):
        if count is None:
            yield f'server_count: missing. Add "server_count": "{len(servers)}".'
        elif isinstance(count, str) and count != str(len(servers)):
            yield (
                f"server_count: {count!r}, but server_list holds {len(servers)}. "
                f'Write "{len(servers)}", or add the missing servers.'
            )


def _objects(holder: dict[str, object], key: str, prefix: str, found: list[str]) -> list[Located]:
    """Return the objects of a list with their paths; report a list that is none, or empty."""
    value = holder.get(key)
    if not isinstance(value, list) or not value:
        what = "missing" if value is None else "empty" if value == [] else f"{_kind(value)}"
        found.append(f"{prefix}{key}: {what}. It must be a list of at least one object.")
        return []
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            found.append(f"{prefix}{key}[{index}]: {_kind(item)}. It must be an object.")
    return [
        (f"{prefix}{key}[{index}]", item)
        for index, item in enumerate(value)
        if isinstance(item, dict)
    ]


def _server_ids(servers: list[Located]) -> Iterator[str]:
    for path, server in servers:
        server_id = server.get("server_id")
        if server_id is None or server_id == "":
            yield f"{path}.server_id: missing or empty. Give the host's address or name."
        elif isinstance(server_id, str) and len(server_id) > LONGEST_SERVER_ID:
            yield (
                f"{path}.server_id: {len(server_id)} characters, HCCL takes "
                f"{LONGEST_SERVER_ID}. Shorten it."
            )
    yield from _repeated(
        ((f"{path}.server_id", server.get("server_id")) for path, server in servers),
        "Give each server its own.",
    )


def _device_ids(devices: list[Located]) -> Iterator[str]:
    for path, device in devices:
        value = device.get("device_id")
        if value is None:
            yield f"{path}device_id: missing. Give the N of /dev/davinciN."
        elif isinstance(value, str) and (not _decimal(value) or int(value) > LAST_DEVICE_ID):
            yield (
                f"{path}device_id: {value!r} is no device number from 0 to {LAST_DEVICE_ID}. "
                "Give the N of /dev/davinciN."
            )
    by_server: dict[str, list[tuple[str, object]]] = {}
    for path, device in devices:
        server = path.partition(".")[0]
        by_server.setdefault(server, []).append((f"{path}device_id", device.get("device_id")))
    for ids in by_server.values():
        yield from _repeated(ids, "Each device of a server stands once.")


def _addresses(devices: list[Located], required: bool) -> Iterator[str]:
    single: list[tuple[str, object]] = []
    counts: dict[str, int] = {}
    for path, device in devices:
        value = device.get("device_ip")
        if value is None or value == "":
            if required:
                yield (
                    f"{path}device_ip: missing, several servers need it. Fill in what "
                    f"hccn_tool -i {device.get('device_id', 'N')} -ip -g prints."
                )
        elif isinstance(value, str):
            parts = value.split(",")
            counts[path] = len(parts)
            for part in parts:
                if _is_address(part):
                    single.append((f"{path}device_ip", str(ipaddress.ip_address(part))))
                else:
                    yield f"{path}device_ip: {part!r} is no IP address. Correct it."
    yield from _repeated(single, "Each device has its own; ask hccn_tool -i N -ip -g.")
    if counts and len(set(counts.values())) > 1:
        usual = Counter(counts.values()).most_common(1)[0][0]
        for path, count in counts.items():
            if count != usual:
                yield (
                    f"{path}device_ip: {count} addresses, other devices have {usual}. "
                    "Give every device the same number."
                )


def _ranks(devices: list[Located]) -> Iterator[str]:
    ranks: list[int] = []
    for path, device in devices:
        value = device.get("rank_id")
        if value is None:
            yield f"{path}rank_id: missing. Give each device a rank from 0 to {len(devices) - 1}."
        elif isinstance(value, str):
            if not _decimal(value):
                yield f"{path}rank_id: {value!r} is no rank. Write a decimal number from 0."
            else:
                ranks.append(int(value))
                if int(value) >= len(devices):
                    yield (
                        f"{path}rank_id: {value!r}, but the table holds {len(devices)} devices. "
                        f"Ranks go from 0 to {len(devices) - 1}: renumber."
                    )
    yield from _repeated(
        ((f"{path}rank_id", device.get("rank_id")) for path, device in devices),
        "Ranks must be unique.",
    )
    missing = sorted(set(range(len(devices))) - set(ranks))
    if missing and len(ranks) == len(devices):
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        yield f"server_list: no device has rank {shown}. Ranks are 0 to {len(devices) - 1}."


def _evenness(servers: list[Located]) -> Iterator[str]:
    """Servers must be alike: as many devices, and host_ip on all of them or on none."""
    counts = {path: len(d) for path, s in servers if isinstance(d := s.get("device"), list) and d}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{path}: {count}" for path, count in counts.items())
        yield f"server_list: servers differ in number of devices ({listed}). Make them equal."
    without = [path for path, server in servers if "host_ip" not in server]
    if without and len(without) < len(servers):
        yield f"{without[0]}.host_ip: missing, other servers have it. Give it to all or to none."


def _repeated(values: Iterable[tuple[str, object]], remedy: str) -> Iterator[str]:
    first: dict[object, str] = {}
    for path, value in values:
        if not isinstance(value, str) or value == "":
            continue
        if value in first:
            yield f"{path}: {value!r} stands at {first[value]} already. {remedy}"
        else:
            first[value] = path


def _decimal(text: str) -> bool:
    return re.fullmatch(r"0|[1-9][0-9]{0,8}", text) is not None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    return (
        "a string"
        if isinstance(value, str)
        else "a list"
        if isinstance(value, list)
        else "an object"
    )
