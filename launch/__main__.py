"""The front door: `mindbooth COMMAND ...`. Each command's module is imported only when it is used.

Mistakes that a user can put right end here as one line and status 2; a traceback is a bug.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from mindbooth.launch.options import LaunchError, nearest
from mindbooth.ranktable.topology import RankTableError


class Command(NamedTuple):
    module: str
    function: str
    about: str
    only_prints: bool = False  # and may end as soon as nobody reads on


COMMANDS = {
    "launch": Command(
        "mindbooth.launch.commands", "launch", "start workers, watch them, return their status"
    ),
    "plan": Command(
        "mindbooth.launch.commands",
        "plan",
        "print what launch would do, start nothing",
        only_prints=True,
    ),
    "ranktable": Command(
        "mindbooth.ranktable.cli",
        "main",
        "write, show, check, merge and convert rank tables",
        only_prints=True,
    ),
    "doctor": Command(
        "mindbooth.launch.doctor", "main", "what works on this machine, what not, what to do"
    ),
    "train": Command(
        "mindbooth.trainer.__main__", "main", "train in this process: one card, or --debug"
    ),
    "precompute": Command(
        "mindbooth.trainer.__main__",
        "precompute",
        "fill the cache with what a training needs, and stop",
    ),
    "cache": Command(
        "mindbooth.data.cli", "main", "what the cache holds; verify and prune it", only_prints=True
    ),
    "generate": Command(
        "mindbooth.trainer.generate", "main", "make pictures with adapters, with a refiner or not"
    ),
    "demo": Command(
        "mindbooth.launch.commands", "demo", "train a mini SDXL on five pictures, show the result"
    ),
}

HELP = """\
DreamBooth LoRA for Stable Diffusion XL on Ascend NPUs, and on the CPU.

usage: mindbooth COMMAND ...

{commands}

mindbooth COMMAND --help tells a command's options, mindbooth --version the version.
First steps:  mindbooth demo
              mindbooth plan   --nproc_per_node 2 -- --instance_data_dir dog ...
              mindbooth launch --nproc_per_node 2 -- --instance_data_dir dog ...
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name, None for this process's own."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except (LaunchError, RankTableError) as err:
        print(f"mindbooth: error: {err}", file=sys.stderr)
        return err.status if isinstance(err, LaunchError) else 2
    except PermissionError as err:
        print(f"mindbooth: error: {err.filename}: {err.strerror}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_help(), end="")
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(f"mindbooth {version('mindbooth')}")
        return 0
    command = COMMANDS.get(args[0])
    if command is None:
        guess = nearest(args[0], tuple(COMMANDS))
        advice = f"Did you mean {guess}?" if guess else f"There are {', '.join(COMMANDS)}."
        raise LaunchError(f"{args[0]!r} is no command of mindbooth. {advice}")
    function = getattr(import_module(command.module), command.function)
    try:
        status = int(function(args[1:]))
        sys.stdout.flush()
    except BrokenPipeError:
        if not command.only_prints:
            raise
        # What is still in the buffer would be complained of at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name.ljust(width)}  {command.about}" for name, command in COMMANDS.items())
    return HELP.format(commands="\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
