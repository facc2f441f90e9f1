"""Lists of hosts as text -> names: `--hosts`, a hostfile, and what schedulers write.

Pure. `schedulers.py` and the ssh fan-out read their lists here. Names are strict, because they end
up in command lines: no name may look like an option or mean something to a shell.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address

from .options import LaunchError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
IPV6 = re.compile(r"\[([0-9A-Fa-f:.]+)\]")
COMMA_OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")
RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")
LINE = re.compile(r"(\[\S+?\]|[^\s:]+)(?::([0-9]+)|\s+slots\s*=\s*([0-9]+))?")
MOST_HOSTS = 65536  # n[1-999999999] is a slip of the finger


@dataclass(frozen=True, kw_only=True)
class HostLine:
    """One line of a hostfile. `slots` are the workers to start there, None where it names none."""

    name: str
    slots: int | None


def parse_name(text: str, source: str) -> str:
    """Accept one host name or address. An IPv6 address stands in brackets, and loses them here."""
    address = IPV6.fullmatch(text)
    if address is not None:
        try:
            return str(IPv6Address(address[1]))
        except AddressValueError:
            pass
    elif NAME.fullmatch(text):
        return text
    raise LaunchError(
        f"{source}: {text!r} is no host name. Names are of letters, digits, . _ and -, and begin "
        "with none of . and -; an IPv6 address stands in brackets."
    )


def parse_hosts(text: str, source: str = "--hosts") -> tuple[str, ...]:
    """Read a list in one line; brackets as in Slurm, where the first number's width is kept.

    >>> parse_hosts("n[1-2,07],gpu-a")
    ('n1', 'n2', 'n07', 'gpu-a')
    """
    names: list[str] = []
    for item in COMMA_OUTSIDE_BRACKETS.split(text):
        names += _expand(item.strip(), source)
        if len(names) > MOST_HOSTS:
            raise LaunchError(f"{source}: names more than {MOST_HOSTS} hosts.")
    _refuse_twice(names, source)
    return tuple(names)


def parse_hostfile(text: str, source: str) -> tuple[HostLine, ...]:
    """Read a line a host: `name`, `name slots=8` (Open MPI, DeepSpeed) or `name:8` (MPICH)."""
    lines: list[HostLine] = []
    wrong: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if content:
            try:
                lines.append(_line(content, f"{source}, line {number}"))
            except LaunchError as err:
                wrong.append(str(err))
    if wrong:
        raise LaunchError(" ".join(wrong))
    if not lines:
        raise LaunchError(f"{source}: names no host. Write one a line, as in: node-1 slots=8")
    _refuse_twice([line.name for line in lines], source)
    _refuse_uneven(lines, source)
    return tuple(lines)


def position(hosts: Sequence[str], name: str) -> int | None:
    """Find a host, by its whole name or by that before the first dot; None where unsure."""
    for wanted, names in ((name, list(hosts)), (_short(name), [_short(host) for host in hosts])):
        if names.count(wanted) == 1:
            return names.index(wanted)
    return None


def _short(name: str) -> str:
    """Before the first dot; an address has no such form."""
    return name if re.fullmatch(r"[0-9.]+", name) else name.partition(".")[0]


def shown(hosts: Sequence[str]) -> str:
    """Name the first hosts of many."""
    more = f" and {len(hosts) - 4} more" if len(hosts) > 4 else ""
    return ", ".join(hosts[:4]) + more


def _expand(item: str, source: str) -> list[str]:
    """Write out the brackets of one item, the last ones fastest."""
    if IPV6.fullmatch(item) and ":" in item:
        return [parse_name(item, source)]
    parts = re.split(r"\[([^\[\]]*)\]", item)  # literal, inside, literal, inside, ..., literal
    choices = [_range(part, item, source) if i % 2 else [part] for i, part in enumerate(parts)]
    if math.prod(map(len, choices)) > MOST_HOSTS:
        raise LaunchError(f"{source}: {item!r} is more than {MOST_HOSTS} hosts.")
    return [parse_name("".join(chosen), source) for chosen in itertools.product(*choices)]


def _range(inside: str, item: str, source: str) -> Sequence[str]:
    numbers: list[str] = []
    for part in inside.split(","):
        found = RANGE.fullmatch(part)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if found is None or low > high or high - low >= MOST_HOSTS:
            raise LaunchError(
                f"{source}: {part!r} in {item!r} is no range of numbers. Write [1-3,07], the lower "
                f"one first, at most {MOST_HOSTS} of them."
            )
        numbers += [f"{number:0{len(found[1])}d}" for number in range(low, high + 1)]
    return numbers


def _line(content: str, source: str) -> HostLine:
    found = LINE.fullmatch(content)
    if found is None:
        raise LaunchError(f"{source}: {content!r} is none of: name, name slots=8, name:8.")
    count = found[2] or found[3]
    if count is not None and int(count) == 0:
        raise LaunchError(f"{source}: {content!r} has no slots. Take the line out, or give some.")
    return HostLine(name=parse_name(found[1], source), slots=None if count is None else int(count))


def _refuse_twice(names: Sequence[str], source: str) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise LaunchError(
            f"{source}: {', '.join(twice)} stands there more than once. Name each host once."
        )


def _refuse_uneven(lines: Sequence[HostLine], source: str) -> None:
    if len({line.slots for line in lines}) > 1:
        told = ", ".join(f"{line.name} {line.slots or 'none'}" for line in lines)
        raise LaunchError(
            f"{source}: slots differ ({told}). Every host starts as many workers as the others: "
            "give all the same slots, or none."
        )
