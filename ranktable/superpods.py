"""What version 1.2 adds to a rank table: super pods (Atlas A3). Called by check.py.

Servers of a super pod reach each other without their network cards, so device_ip is needed between
super pods only. A device has a number of its own in its pod, `super_device_id` (npu-smi: SDID).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .document import NOT_PLAIN, Located, Servers, decimal, objects, plain, quoted, repeated, uneven

VERSION = "1.2"
LAST_SUPER_DEVICE_ID = 2**32 - 2  # HCCL's mark for "none" is 2**32 - 1
LIST = "super_pod_list"


def count(document: Mapping[str, object]) -> int:
    """Count the super pods; 0 where the table speaks of none, or is of another version."""
    pods = document.get(LIST)
    return len(pods) if document.get("version") == VERSION and isinstance(pods, list) else 0


def faults(document: dict[str, object], servers: Servers) -> list[str]:
    """List what is wrong with the super pods of a version 1.2 table."""
    found: list[str] = []
    pod_of: dict[str, str] = {}
    listed = LIST in document
    if listed:
        pods = objects(document, LIST, "", found)
        found += _pod_ids(pods)
        members = {path: objects(pod, "server_list", f"{path}.", found) for path, pod in pods}
        pod_of = {
            str(member.get("server_id")): path
            for path, held in members.items()
            for _, member in held
        }
        found += _members(members, servers, pod_of)
        found += _evenness(members)
    found += _device_numbers(servers, pod_of, listed)
    return found


def _pod_ids(pods: list[Located]) -> Iterator[str]:
    for path, pod in pods:
        pod_id = pod.get("super_pod_id")
        if pod_id is None or pod_id == "":
            yield f"{path}.super_pod_id: missing or empty. Give the super pod a name or number."
        elif isinstance(pod_id, str) and not plain(pod_id):
            yield f"{path}.super_pod_id: {quoted(pod_id)} {NOT_PLAIN}"
    yield from repeated(
        ((f"{path}.super_pod_id", pod.get("super_pod_id")) for path, pod in pods),
        "Give each super pod its own.",
    )


def _members(
    members: Mapping[str, list[Located]], servers: Servers, pod_of: Mapping[str, str]
) -> Iterator[str]:
    known = {str(server.get("server_id")) for _, server, _ in servers}
    placed = [entry for held in members.values() for entry in held]
    for path, member in placed:
        server_id = member.get("server_id")
        if server_id is None or server_id == "":
            yield f"{path}.server_id: missing or empty. Give that of an entry of server_list."
        elif isinstance(server_id, str) and server_id not in known:
            yield (
                f"{path}.server_id: {quoted(server_id)} is not in server_list. "
                "Take it out, or add the server there."
            )
    yield from repeated(
        ((f"{path}.server_id", member.get("server_id")) for path, member in placed),
        "A server stands in one super pod, once.",
    )
    for path, server, _ in servers:
        server_id = server.get("server_id")
        if isinstance(server_id, str) and server_id and server_id not in pod_of:
            yield f"{path}.server_id: {quoted(server_id)} is in no super pod. Add it to one."


def _evenness(members: Mapping[str, list[Located]]) -> Iterator[str]:
    sizes = {path: len(held) for path, held in members.items() if held}
    if len(set(sizes.values())) > 1:
        yield (
            f"{LIST}: super pods differ in number of servers ({uneven(sizes)}). Make them equal, "
            "or leave the table out (--rank_table off)."
        )


def _device_numbers(servers: Servers, pod_of: Mapping[str, str], listed: bool) -> Iterator[str]:
    by_pod: dict[str, list[tuple[str, object]]] = {}
    for _, server, devices in servers:
        pod = pod_of.get(str(server.get("server_id")), "")
        for path, device in devices:
            value = device.get("super_device_id")
            if value is None:
                if listed:
                    yield (
                        f"{path}.super_device_id: missing, {LIST} needs it. Give the SDID that "
                        "npu-smi info -t spod-info -i NPU -c CHIP prints."
                    )
            elif isinstance(value, str) and not decimal(value, LAST_SUPER_DEVICE_ID):
                yield (
                    f"{path}.super_device_id: {quoted(value)} is no number from 0 to "
                    f"{LAST_SUPER_DEVICE_ID}. Give the device's SDID."
                )
            by_pod.setdefault(pod, []).append((f"{path}.super_device_id", value))
    for pod, numbers in by_pod.items():
        if pod:
            yield from repeated(numbers, "Each device of a super pod has its own.")
