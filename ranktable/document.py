"""The JSON of a rank table as an object with paths: read it, walk it, say where what is wrong.

Called by check.py, superpods.py and older.py. Nothing here knows the rules of a version; only that
HCCL takes text everywhere, numbers included. What a file says is quoted before it is shown: names
and values from outside may hold anything, control characters too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

DEEPEST = 8  # a table of version 1.2 goes down six levels
LONGEST_SHOWN = 80
NOT_PLAIN = "is not plain ASCII without spaces. Rename it."
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
        "super_device_id",
        "super_pod_id",
        "backup_device_ip",
        "device_port",
        "device_vnic_port",
        "backup_device_port",
        "host_port",
    ]
)

Located = tuple[str, dict[str, object]]  # where in the JSON, and the object there
Servers = list[tuple[str, dict[str, object], list[Located]]]  # path, server, its devices


def load(text: str) -> tuple[dict[str, object] | None, list[str]]:
    """Return the object, or None, and what is wrong with the text itself."""
    twice: list[str] = []
    try:
        document = json.loads(text, object_pairs_hook=lambda pairs: _no_twins(pairs, twice))
    except json.JSONDecodeError as err:
        return None, [f"line {err.lineno}, column {err.colno}: not JSON ({err.msg}). Correct it."]
    except (RecursionError, ValueError):
        return None, ["$: nested too deeply, or a number of thousands of digits. No table is that."]
    if not isinstance(document, dict):
        return None, [f"$: a rank table is an object, not {kind(document)}. Start it with {{."]
    return document, twice


def not_strings(value: object, path: str = "", key: str = "", depth: int = 0) -> Iterator[str]:
    """Walk the whole document: HCCL takes no number, no true, no null, anywhere."""
    if isinstance(value, (dict, list)):
        if key in TEXT_KEYS:
            yield f"{path}: {kind(value)}. It must be a string."
        if depth == DEEPEST:
            yield f"{path}: nested deeper than any rank table. Take it out."
            return
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            if not isinstance(item, str):
                where = f"[{name}]" if isinstance(name, int) else f".{_name(name)}"
                where = f"{path}{where}" if path else where.lstrip(".")
                yield from not_strings(item, where, str(name), depth + 1)
    else:
        shown = json.dumps(value)[:LONGEST_SHOWN]
        yield f'{path}: {shown} is {kind(value)}, HCCL reads strings only. Write "{shown}".'


def objects(holder: dict[str, object], key: str, prefix: str, found: list[str]) -> list[Located]:
    """Return the objects of a list with their paths; report a list that is none, or empty."""
    value = holder.get(key)
    if not isinstance(value, list) or not value:
        what = "missing" if value is None else "empty" if value == [] else kind(value)
        found.append(f"{prefix}{key}: {what}. It must be a list of at least one object.")
        return []
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            found.append(f"{prefix}{key}[{index}]: {kind(item)}. It must be an object.")
    return [
        (f"{prefix}{key}[{index}]", item)
        for index, item in enumerate(value)
        if isinstance(item, dict)
    ]


def repeated(values: Iterable[tuple[str, object]], remedy: str) -> Iterator[str]:
    """Report texts that stand more than once, each with the place where it stood first."""
    first: dict[str, str] = {}
    for path, value in values:
        if not isinstance(value, str) or value == "":
            continue
        if value in first:
            yield f"{path}: {quoted(value)} stands at {first[value]} already. {remedy}"
        else:
            first[value] = path


def uneven(sizes: Mapping[str, int]) -> str:
    """Show one of the usual size and those that differ from it, up to eight."""
    usual = Counter(sizes.values()).most_common(1)[0][0]
    normal = next(path for path, size in sizes.items() if size == usual)
    odd = [path for path, size in sizes.items() if size != usual]
    shown = ", ".join(f"{path}: {sizes[path]}" for path in [normal, *odd[:8]])
    return shown + (", ..." if len(odd) > 8 else "")


def decimal(text: str, highest: int) -> bool:
    """Tell whether it is a number from 0 to `highest`, written as HCCL's own tools write it."""
    return re.fullmatch(r"0|[1-9][0-9]{0,9}", text) is not None and int(text) <= highest


def plain(text: str) -> bool:
    """Tell whether an id can be shown, logged and handed on without surprise."""
    return re.fullmatch(r"[!-~]+", text) is not None


def quoted(text: str) -> str:
    """Show a text from outside on one line of bounded length."""
    return ascii(text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "...")


def kind(value: object) -> str:
    """Name the JSON type of a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def _no_twins(pairs: list[tuple[str, object]], twice: list[str]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                twice.append(f"{_name(key)}: stands {count} times in one object. Keep one.")
    return unique


def _name(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,40}", key, re.ASCII) else quoted(key)
