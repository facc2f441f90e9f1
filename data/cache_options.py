"""The options of `mindbooth cache`, and the help that explains them. Called by cli.py."""

import argparse
import math
import re
from pathlib import Path
from typing import NoReturn

from .errors import DataError
from .needs import KEYS

ABOUT = """\
The cache holds what the VAE and the text encoders made of pictures and prompts; all runs share it.
These commands tell what is in it, check it, and make room. Runs may be using it meanwhile."""
EXAMPLES = f"""\
what is in it       mindbooth cache stat
after a crash       mindbooth cache verify
make room           mindbooth cache prune --max_size 50GB --dry_run
tidy up             mindbooth cache prune --older_than 30d --unneeded_by runs

runs is a folder that holds the output folders of runs; each left its keys there, in {KEYS}.
Exit status: 0; 1 if verify found damage, or something could not be read, set aside or removed;
2 for a mistake in the options, and where there is no cache."""

_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is raised as one line instead of printed with the usage."""

    def error(self, message: str) -> NoReturn:
        raise DataError(
            f"{message.removeprefix('argument ')}. {self.prog} --help tells what it takes."
        )


def parser(default: Path) -> Parser:
    """`command` in what it returns is the one given. default: the cache if none is named."""
    made = Parser(
        prog="mindbooth cache",
        description=ABOUT,
        epilog=EXAMPLES,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100),
    )
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, about: str, more: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}. {more}",
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.HelpFormatter(
                prog, max_help_position=30, width=100
            ),
        )
        added.add_argument(
            "--latent_cache_dir",
            type=path,
            metavar="DIR",
            default=default,
            help=f"the cache (default: {str(default).replace('%', '%%')})",
        )
        return added

    stat = command(
        "stat",
        "tell what is in it, how much, how old, and who is at work",
        "Of each entry only the front is read: that its values are sound, verify tells.",
    )
    stat.add_argument("--json", action="store_true", help="print it as JSON")
    command(
        "verify",
        "read every entry and set damaged ones aside",
        "They are named, renamed to *.damaged, and encoded again by the run that needs them. What "
        "dead processes left is removed: half-written files, claims and marks; half-written files "
        "of an unknown writer after an hour, or when nobody is at work. Files that are not of "
        "mindbooth are named and left. "
        "Exit status: 0 if all is sound; 1 if something was damaged, or could not be read, set "
        "aside or removed.",
    )
    prune = command(
        "prune",
        "remove entries that nobody needs any longer, and all that was set aside as damaged",
        "Of several options, entries go that all of them let go; without any, only what was set "
        "aside does. What runs need that are at work now stays, and what is being encoded. What a "
        "later run needs all the same it encodes again.",
    )
    prune.add_argument(
        "--older_than",
        type=seconds,
        metavar="TIME",
        help="entries not used for so long: 30d, also s, m, h, w. Used is when it was last written "
        "or read; on a file system mounted with noatime reading does not count, with relatime "
        "(usual) to within a day",
    )
    prune.add_argument(
        "--max_size",
        type=size,
        metavar="SIZE",
        help="the entries used longest ago, until all together have this size: 50GB, also kB, MB, "
        "TB (powers of 1000), GiB (of 1024)",
    )
    prune.add_argument(
        "--unneeded_by",
        type=path,
        metavar="FOLDER",
        help=f"entries that no run needs whose output lies in FOLDER or below it; by the {KEYS} "
        "that each run leaves there",
    )
    prune.add_argument("--dry_run", action="store_true", help="tell what would go, remove nothing")
    return made


def path(text: str) -> Path:
    """~ stands for the home folder, which a shell does not replace behind an equals sign."""
    return Path(text).expanduser()


def seconds(text: str) -> float:
    """
    >>> seconds("30d"), seconds("1.5h")
    (2592000.0, 5400.0)
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([smhdw])", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 30d, 12h or 2w")
    return float(match[1]) * _PER_UNIT[match[2]]


def size(text: str) -> int:
    """
    >>> size("50GB"), size("1.5 KiB"), size("0")
    (50000000000, 1536, 0)
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([kmgt]?)(i?)(b?)", text.lower(), re.ASCII)
    if match is None or (match[3] and not match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 50GB, 800MB or 1TiB")
    return math.floor(float(match[1]) * math.pow(1024 if match[3] else 1000, _POWERS[match[2]]))
