"""The options of `mindbooth launch` and `mindbooth plan`: declared once, in `LaunchConfig`.

The parser is derived from the dataclass. What stands after `--` belongs to the trainer and passes
on untouched; of it the launcher reads the output folder only (`output_dir`, `config_file`).
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

DeviceTarget = Literal["Ascend", "CPU"]
Job = Literal["train", "precompute"]
OUTPUT_DIR = "lora-dreambooth-model"
PORTS = range(1024, 65536)
LEASH = "--ssh_leash"  # given by a launcher that starts others by ssh


class LaunchError(ValueError):
    """What a user can put right, told in one line. `status`: the exit status it leads to."""

    status = 2


def _option(text: str, parse: Callable[[str], object], metavar: str, default: object) -> Any:
    return field(default=default, metadata={"help": text, "parse": parse, "metavar": metavar})


def _or_auto(parse: Callable[[str], object]) -> Callable[[str], object]:
    return lambda text: None if text == "auto" else parse(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number.")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of device numbers such as 0,1,2,3.")
    return tuple(int(part) for part in parts)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds.") from None


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(words)}.")
        return text

    return parse


def _table(text: str) -> object:
    return text if text == "off" else Path(text)


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """What was asked of the launcher; None where the launcher is to find out (`auto`)."""

    job: Job = _option(
        "what the workers do: train, or only fill the cache with what that training needs "
        "(default: train)",
        _one_of("train", "precompute"),
        "train|precompute",
        "train",
    )
    nproc_per_node: int | None = _option(
        "workers to start (auto: one for each NPU; on CPU one, which uses all cores)",
        _or_auto(_number),
        "auto|N",
        None,
    )
    devices: tuple[int, ...] | None = _option(
        "NPUs to use, by the N of /dev/davinciN, ascending (default: all)", _numbers, "0,1,..", None
    )
    device_target: DeviceTarget | None = _option(
        "what to train on (auto: Ascend where there is a /dev/davinciN, else CPU)",
        _or_auto(_one_of("auto", "Ascend", "CPU")),
        "auto|Ascend|CPU",
        None,
    )
    nnodes: int | None = _option(
        "hosts of the job, each with a launcher of its own (default: what the scheduler says, "
        "else this host alone)",
        _number,
        "N",
        None,
    )
    node_rank: int | None = _option(
        "this host's number, from 0 (default: what the scheduler says)", _number, "I", None
    )
    master_addr: str | None = _option(
        "address or name of host 0, as the other hosts reach it (default: what the scheduler says)",
        str,
        "HOST",
        None,
    )
    master_port: int | None = _option(
        "port on which the workers meet; launchers of several hosts talk on the one after it "
        "(auto: on one host a free one, on several the same everywhere, from the job's id)",
        _or_auto(_number),
        "auto|N",
        None,
    )
    hosts: str | None = _option(
        "start a launcher on each of these hosts by ssh: names such as a,b or n[1-4]",
        str,
        "a,b",
        None,
    )
    hostfile: Path | None = _option(
        "the same, from a file with a host in each line", Path, "FILE", None
    )
    scheduler: str | None = _option(
        "whose environment to read (auto: whichever is there; none: nobody's)",
        _or_auto(str),
        "auto|none|NAME",
        None,
    )
    rank_table: Path | Literal["off"] | None = _option(
        "HCCL rank table for the workers (auto: our own, where all of it was read from the "
        "machine; off: none; or a file)",
        _or_auto(_table),
        "auto|off|PATH",
        None,
    )
    log_dir: Path | None = _option(
        "where attempt-N/worker_R.log go (default: OUTPUT_DIR/launch)", Path, "DIR", None
    )
    max_restarts: int = _option(
        "start again so often after a failure, from the newest checkpoint (default: 0)",
        _number,
        "N",
        0,
    )
    grace_seconds: float = _option(
        "how long workers may take to save after TERM or Ctrl-C (default: 60)", _seconds, "S", 60.0
    )
    hang_seconds: float = _option(
        "after the first entry or update: so long without progress is a hang; every worker's "
        "stacks go into its log, and the job ends (default: 1800; 0: never)",
        _seconds,
        "S",
        1800.0,
    )
    rendezvous_seconds: float = _option(
        "how long the hosts of a job wait for one another (default: 600)", _seconds, "S", 600.0
    )
    ssh_leash: bool = False
    training_flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.nproc_per_node == 0:
            raise LaunchError("--nproc_per_node 0: at least one worker is needed.")
        if self.master_port is not None and self.master_port not in PORTS[:-1]:
            raise LaunchError(
                f"--master_port {self.master_port}: ports go from {PORTS[0]} to {PORTS[-2]}."
            )
        for name in ("grace_seconds", "hang_seconds", "rendezvous_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise LaunchError(f"--{name} {getattr(self, name)}: give 0 or more seconds.")
        if self.hosts is not None and self.hostfile is not None:
            raise LaunchError("--hosts and --hostfile were both given. Give one of them.")
        if self.by_ssh:
            self._check_ssh()
        if self.devices is not None:
            _check_devices(self.devices, self.nproc_per_node)
        self._check_flags()

    @property
    def by_ssh(self) -> bool:
        """Whether this launcher starts others by ssh, and no workers of its own."""
        return self.hosts is not None or self.hostfile is not None

    def _check_ssh(self) -> None:
        option = "--hosts" if self.hosts is not None else "--hostfile"
        for name in ("nnodes", "node_rank"):
            if getattr(self, name) is not None:
                raise LaunchError(f"{option} numbers the hosts itself. Leave --{name} out.")

    def _check_flags(self) -> None:
        names = flag_names(self.training_flags)
        if "--device_target" in names:
            raise LaunchError(
                "--device_target stands after --, but the launcher decides it for all workers. "
                "Put it before the --."
            )
        if "--job" in names or self.training_flags[:1] == ("precompute",):
            raise LaunchError(
                "what the workers do stands after --, but the launcher decides it for all. "
                "Put --job precompute before the --."
            )


def _check_devices(devices: tuple[int, ...], count: int | None) -> None:
    listed = ",".join(map(str, devices))
    twice = sorted({device for device in devices if devices.count(device) > 1})
    if twice:
        raise LaunchError(f"--devices {listed}: {twice[0]} stands there twice. Name each once.")
    if list(devices) != sorted(devices):
        raise LaunchError(
            f"--devices {listed}: Ascend reads such a list up to the first number out of order. "
            f"Write {','.join(map(str, sorted(devices)))}."
        )
    if count not in (None, len(devices)):
        raise LaunchError(
            f"--nproc_per_node {count}, but --devices {listed} names {len(devices)}. "
            "Make them agree, or leave --nproc_per_node out."
        )


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is raised as one line instead of printed with the usage."""

    def error(self, message: str) -> NoReturn:
        raise LaunchError(message.removeprefix("argument "))


def parser(command: str, about: str) -> Parser:
    """Build the parser of a command that takes launcher options."""
    made = Parser(
        prog=f"mindbooth {command}",
        usage=f"mindbooth {command} [options] -- [training flags]",
        description=about,
        epilog="Training flags: mindbooth train --help.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=100),
    )
    for option in fields(LaunchConfig):
        if option.metadata:
            made.add_argument(
                f"--{option.name}",
                type=option.metadata["parse"],
                metavar=option.metadata["metavar"],
                default=option.default,
                help=option.metadata["help"],
            )
    made.add_argument(LEASH, action="store_true", help=argparse.SUPPRESS)
    return made


def parse(made: Parser, argv: Sequence[str]) -> tuple[LaunchConfig, argparse.Namespace]:
    """Read a command line; the namespace holds what a command added to the parser itself."""
    ours, training_flags = split(argv)
    known, rest = made.parse_known_args(ours)
    if rest:
        raise LaunchError(_unknown(rest[0].partition("=")[0], made))
    values = {option.name: getattr(known, option.name) for option in fields(LaunchConfig)[:-1]}
    return LaunchConfig(**values, training_flags=training_flags), known


def split(argv: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cut at the first `--`.

    >>> split(["--devices", "0", "--", "--seed", "1"])
    (('--devices', '0'), ('--seed', '1'))
    """
    args = tuple(argv)
    cut = args.index("--") if "--" in args else len(args)
    return args[:cut], args[cut + 1 :]


def nearest(word: str, known: Sequence[str]) -> str | None:
    """Return the known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.6)), None)


def _unknown(flag: str, made: Parser) -> str:
    known = [name for action in made._actions for name in action.option_strings]
    guess = nearest(flag, known)
    advice = f"Did you mean {guess}? " if guess else ""
    return f"{flag} is no option of {made.prog}. {advice}Training flags stand after a --."


def flag_names(flags: Sequence[str]) -> tuple[str, ...]:
    """Name the long flags, the way the trainer reads them: --a-b is --a_b, values cut off."""
    return tuple(_name(flag) for flag in flags if flag.startswith("--"))


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """Find the last value of a training flag, as `--x V` or `--x=V`."""
    found = None
    for index, flag in enumerate(flags):
        if flag.startswith("--") and _name(flag) == name:
            _, equals, value = flag.partition("=")
            if equals:
                found = value
            elif index + 1 < len(flags):
                found = flags[index + 1]
    return found


def _name(flag: str) -> str:
    return flag.partition("=")[0].replace("-", "_").replace("__", "--", 1)


def config_file(flags: Sequence[str]) -> Path | None:
    """Name the YAML file of training flags, if one is given."""
    value = flag_value(flags, "--config")
    return None if value is None else Path(value)


def output_dir(flags: Sequence[str], config: Mapping[str, object]) -> Path:
    """Name the output folder: the flag, else the YAML file's key, else the trainer's default."""
    value = flag_value(flags, "--output_dir") or config.get("output_dir") or OUTPUT_DIR
    if not isinstance(value, str):
        raise LaunchError(f"output_dir: {value!r} in the --config file is no path.")
    return Path(value)
