"""The options of `mindbooth ranktable`, and the help that explains them. Called by cli.py."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .topology import RankTableError

STDOUT = Path("-")
WAIT_SECONDS = 600.0

ABOUT = """\
A rank table tells HCCL which rank sits on which NPU. mindbooth launch writes its own; these
commands are for tables that you write for msrun, merge, or were given."""
EXAMPLES = """\
one host        mindbooth ranktable write -o table.json
two hosts       mindbooth ranktable write --folder /shared/job-42 --nnodes 2 --node_rank 0 \\
                    -o table.json     (on the other one the same with --node_rank 1)
before a start  mindbooth ranktable check table.json && mindbooth ranktable show table.json
on ModelArts    mindbooth ranktable convert /user/config --wait_seconds 600 -o table.json

Exit status: 0; 2 for a table with faults and for a mistake in the options."""


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is raised as one line instead of printed with the usage."""

    def error(self, message: str) -> NoReturn:
        raise RankTableError(
            f"{message.removeprefix('argument ')}. {self.prog} --help tells what it takes."
        )


def parser() -> Parser:
    """Build the parser of all five commands; `command` in what it returns is the one given."""
    made = Parser(
        prog="mindbooth ranktable",
        description=ABOUT,
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100),
    )
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, about: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}. {more}",
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(
                prog, max_help_position=30, width=100
            ),
        )

    write = command(
        "write",
        "write the table of this host, or with --folder that of a job on several",
        "It holds the devices of /dev/davinci* that ASCEND_RT_VISIBLE_DEVICES lets through, their "
        "addresses from /etc/hccn.conf, else from hccn_tool, and on Atlas A3 their super pod.",
    )
    _write(write)
    show = command("show", "draw a table: ranks, hosts, devices, addresses")
    show.add_argument("file", type=Path, metavar="FILE")
    look = command(
        "check",
        "tell all faults of a table at once, and what is no fault but odd",
        "Each with its place in the JSON and what to do. HCCL itself stops at the first, in a log.",
    )
    look.add_argument("files", type=Path, metavar="FILE", nargs="+")
    join = command(
        "merge",
        "join the tables of several hosts",
        "Ranks are numbered anew in the order of the files, which must be that of msrun's "
        "--node_rank. Hosts, addresses and numbers that clash are told, and nothing is written.",
    )
    join.add_argument("files", type=Path, metavar="FILE", nargs="+")
    convert = command(
        "convert",
        "write a table of an older layout as HCCL reads it today",
        "Known are those of ModelArts (a file, or its folder /user/config), MindCluster and 2019.",
    )
    convert.add_argument("file", type=Path, metavar="OLD")
    convert.add_argument(
        "--wait_seconds",
        type=_seconds,
        metavar="S",
        default=0.0,
        help="how long to wait until the platform has completed it (default: 0)",
    )
    for writing in (write, join, convert):
        writing.add_argument(
            "-o",
            "--output",
            type=Path,
            metavar="FILE",
            default=STDOUT,
            help="where to write the table (default: -, standard output)",
        )
    return made


def _write(write: argparse.ArgumentParser) -> None:
    write.add_argument(
        "--devices", type=_numbers, metavar="LIST", help="only these, the N of /dev/davinciN: 4,5"
    )
    write.add_argument(
        "--server_id", metavar="ID", help="what the table calls this host (default: its name)"
    )
    write.add_argument(
        "--super_pod",
        choices=("auto", "off"),
        default="auto",
        help="off leaves the super pod out, for Atlas A3 hosts in an ordinary network",
    )
    write.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where hosts hand their parts to each other: shared, and another for each run",
    )
    write.add_argument("--nnodes", type=_number, metavar="N", help="with --folder: how many hosts")
    write.add_argument(
        "--node_rank", type=_number, metavar="I", help="with --folder: which one this is, from 0"
    )
    write.add_argument(
        "--wait_seconds",
        type=_seconds,
        metavar="S",
        help=f"with --folder: how long to wait for the others (default: {WAIT_SECONDS:g})",
    )


def listed(numbers: Sequence[int]) -> str:
    """Write numbers the way that --devices takes them."""
    return ",".join(map(str, numbers))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [_number(part) for part in text.split(",")]
    if numbers != sorted(set(numbers)):
        raise argparse.ArgumentTypeError(
            f"{text} names a device twice or out of order, but workers sit in ascending order; "
            f"write {listed(sorted(set(numbers)))}"
        )
    return tuple(numbers)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
