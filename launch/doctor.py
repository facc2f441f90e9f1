"""`mindbooth doctor`: what works on this machine, what does not, and what to do about it.

The command: options in, report out. Exit status 1 if something is at fault, so that a batch script
can ask before a long job: `srun --ntasks-per-node=1 mindbooth doctor --folder DIR` has every host
look at every other. What is looked at stands in examination.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .examination import Report, examine
from .options import LaunchError, Parser

MEETING_SECONDS = 30.0
COLOURS = {"ok": "32", "warning": "33", "fault": "31"}


def main(argv: Sequence[str]) -> int:
    """Examine this machine, print the report, return 1 if something is at fault."""
    asked = _parser().parse_args(list(argv))
    if sys.platform != "linux":
        raise LaunchError(f"mindbooth doctor knows Linux; this is {sys.platform}.")
    if (asked.nnodes is None) != (asked.node_rank is None):
        raise LaunchError("--nnodes and --node_rank belong together: give both, or none.")
    if asked.nnodes is not None and not 0 <= asked.node_rank < asked.nnodes:
        raise LaunchError(
            f"--node_rank {asked.node_rank}: {asked.nnodes} hosts have the numbers 0 to "
            f"{asked.nnodes - 1}."
        )
    report = examine(
        dict(os.environ),
        folder=None if asked.folder is None else Path.cwd() / asked.folder.expanduser(),
        place=None if asked.nnodes is None else (asked.nnodes, asked.node_rank),
        wait_seconds=asked.wait_seconds,
    )
    print(as_json(report) if asked.json else as_text(report, coloured=sys.stdout.isatty()))
    return 1 if report.count("fault") else 0


def as_text(report: Report, *, coloured: bool) -> str:
    """Lay the report out: a line a finding, and below it what to do."""
    counts = ", ".join(
        f"{report.count(state)} {state}{'s' * (report.count(state) != 1)}"
        for state in ("warning", "fault")
    )
    name_width = max(len(one.name) for group in report.groups.values() for one in group)
    state_width = max(map(len, COLOURS))
    lines = [f"mindbooth doctor on {report.host}: {counts}"]
    for title, group in report.groups.items():
        lines += ["", title]
        for one in group:
            state = one.state.ljust(state_width)
            if coloured:
                state = f"\033[{COLOURS[one.state]}m{state}\033[0m"
            lines.append(f"  {state}  {one.name.ljust(name_width)}  {one.found}")
            if one.remedy:
                lines.append(f"  {'':{state_width}}  {'':{name_width}}  -> {one.remedy}")
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """Render the report for programs."""
    groups = {title: [one._asdict() for one in group] for title, group in report.groups.items()}
    return json.dumps({"host": report.host, "groups": groups}, indent=2)


def _parser() -> Parser:
    made = Parser(
        prog="mindbooth doctor",
        description="Tell what works on this machine, what does not, and what to do about it. "
        "With --folder, started on every host of a job, the hosts look at one another too.",
        allow_abbrev=False,
    )
    made.add_argument(
        "--folder", type=Path, metavar="DIR", help="shared folder of the job, such as --output_dir"
    )
    made.add_argument(
        "--nnodes", type=int, metavar="N", help="hosts (default: what the scheduler says)"
    )
    made.add_argument(
        "--node_rank", type=int, metavar="I", help="number of this host (default: the scheduler's)"
    )
    made.add_argument(
        "--wait_seconds",
        type=float,
        metavar="S",
        default=MEETING_SECONDS,
        help="how long to look for the other hosts (default: 30)",
    )
    made.add_argument("--json", action="store_true", help="print it as JSON")
    return made
