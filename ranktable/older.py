"""Rank tables in older layouts -> RankTable. Text in; called by reader.py and `ranktable convert`.

    group_list -> instance_list -> devices
      ModelArts:  an instance is a pod; no ranks at all, the order makes them
      2019:       an instance is a rank (`rank_id`, one device); a server stands once a rank

The trap: ModelArts lists its pods in any order. The number that ends a pod's name is the one that
the platform gives as VC_TASK_INDEX, and with it the host's place among the ranks.
"""

from __future__ import annotations

import json
import re

from . import hccl
from .check import VERSION
from .document import Located, load, objects, quoted
from .hccl import RankTable
from .topology import RankTableError


def convert(text: str, source: str) -> RankTable:
    """Read a table of any known layout; its faults are told with their places in this text."""
    document, found = load(text)
    if document is None or "group_list" not in document or "server_list" in document:
        return hccl.parse(text, source)
    instances = _instances(document, found)
    if found:
        raise hccl.refusal(source, found)
    restated, places = _restate(document, instances)
    try:
        return hccl.parse(json.dumps(restated), source)
    except RankTableError as err:
        told = PLACE.sub(lambda match: places.get(match[0], match[0]), str(err))
        raise RankTableError(told) from err


Instances = list[tuple[str, dict[str, object], list[Located]]]  # path, instance, its devices
PLACE = re.compile(r"server_list(\[\d+\](\.device\[\d+\](\.rank_id)?)?)?")


def _instances(document: dict[str, object], found: list[str]) -> Instances:
    """List the instances of the one group that has devices, in the order of their ranks."""
    groups = objects(document, "group_list", "", found)
    groups = [(path, group) for path, group in groups if group.get("device_count") != "0"]
    if len(groups) != 1:
        found.append(f"group_list: {len(groups)} groups with devices. Give one, that of the job.")
        return []
    path, group = groups[0]
    instances = [
        (where, instance, objects(instance, "devices", f"{where}.", found))
        for where, instance in objects(group, "instance_list", f"{path}.", found)
    ]
    found += _counts(path, group, instances)
    ranked = [where for where, instance, _ in instances if "rank_id" in instance]
    for where, instance, devices in instances if ranked else ():
        if "rank_id" not in instance:
            found.append(f"{where}.rank_id: missing, {ranked[0]} has one. Give each its rank.")
        elif len(devices) > 1:
            found.append(f"{where}.devices: {len(devices)} devices share a rank_id. Give one each.")
    return instances if ranked else _in_pod_order(instances)


def _counts(path: str, group: dict[str, object], instances: Instances) -> list[str]:
    """Compare what the group says of itself, text or number, with what it holds."""
    devices = sum(len(held) for _, _, held in instances)
    counted = {
        "instance_count": (len(instances), "instances"),
        "device_count": (devices, "devices"),
        "device_num": (devices, "devices"),
        "server_num": (len({str(i.get("server_id")) for _, i, _ in instances}), "servers"),
    }
    return [
        f"{path}.{key}: {quoted(str(group[key]))}, but the group holds {count} {what}. "
        "Correct it, or add what is missing."
        for key, (count, what) in counted.items()
        if key in group and str(group[key]) != str(count)
    ]


def _in_pod_order(instances: Instances) -> Instances:
    numbers = {
        path: int(match[1])
        for path, instance, _ in instances
        if (match := re.search(r"-(\d{1,9})$", str(instance.get("pod_name"))))
    }
    if len(set(numbers.values())) < len(instances):
        return instances
    return sorted(instances, key=lambda entry: numbers[entry[0]])


def _restate(
    document: dict[str, object], instances: Instances
) -> tuple[dict[str, object], dict[str, str]]:
    """Write it as version 1.0; the second map leads from places there to places here."""
    servers: list[dict[str, object]] = []
    held: dict[str, tuple[str, list[dict[str, object]]]] = {}
    places = {"server_list": "group_list"}
    rank = 0
    for path, instance, devices in instances:
        key = json.dumps(instance.get("server_id"))
        if key not in held:
            held[key] = f"server_list[{len(held)}]", []
            places[held[key][0]] = path
            named = {"server_id": instance["server_id"]} if "server_id" in instance else {}
            servers.append(named | {"device": held[key][1]})
        at, entries = held[key]
        for where, device in devices:
            there = f"{at}.device[{len(entries)}]"
            places |= {there: where, f"{there}.rank_id": f"{path}.rank_id"}
            entries.append({"rank_id": instance.get("rank_id", str(rank))} | device)
            rank += 1
    status = {"status": document["status"]} if "status" in document else {}
    head = {"version": VERSION, "server_count": str(len(servers)), "server_list": servers}
    return head | status, places
