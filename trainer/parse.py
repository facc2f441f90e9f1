"""Command line and YAML file -> TrainConfig. The only place that knows argparse.

The options themselves are declared in `config.py` and, where they do nothing here, in `known.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from .config import (
    AdapterConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    OutputConfig,
    PriorConfig,
    RunConfig,
    TrainConfig,
)
from .known import KnownConfig

GROUPS = (
    ModelConfig, DataConfig, PriorConfig, ObjectiveConfig, AdapterConfig, OptimConfig, OutputConfig,
    RunConfig, KnownConfig,
)  # fmt: skip

# Options that do something only beside another one; given without it, that is told.
ONLY_WITH = {
    "class_data_dir": "with_prior_preservation",
    "class_prompt": "with_prior_preservation",
    "num_class_images": "with_prior_preservation",
    "prior_loss_weight": "with_prior_preservation",
    "prior_generation_precision": "with_prior_preservation",
    "sample_batch_size": "with_prior_preservation",
    "text_encoder_lr": "train_text_encoder",
    "adam_weight_decay_text_encoder": "train_text_encoder",
    "caption_column": "dataset_name",
    "dataset_config_name": "dataset_name",
    "image_column": "dataset_name",
    "num_validation_images": "validation_prompt",
    "validation_epochs": "validation_prompt",
    "validation_steps": "validation_prompt",
    "hub_model_id": "push_to_hub",
    "hub_token": "push_to_hub",
}
# Options that another one takes the place of; given beside it, that is told.
BESIDE = {
    "num_train_epochs": "max_train_steps",
    "validation_epochs": "validation_steps",
    "mode": "debug",
}
PRODIGYS = (
    "prodigy_beta3", "prodigy_decouple", "prodigy_use_bias_correction", "prodigy_safeguard_warmup",
)  # fmt: skip


class _Words(yaml.SafeLoader):
    """YAML in which `no` is a word, as in --mixed_precision no; the flags' parser reads true."""


_Words.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Help(argparse.HelpFormatter):
    """Each option once, under the name that people know, with its default where it has one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name[2:]]
        return ", ".join(names) + self._value(action)

    def _value(self, action: argparse.Action) -> str:
        if action.nargs == 0 or isinstance(action.const, bool):
            return ""
        if action.choices:
            return f" {'|'.join(map(str, action.choices))}"
        word = {int: "N", float: "X"}.get(action.type, "TEXT")  # type: ignore[call-overload]
        return f" {word}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS, dataclasses.MISSING):
            return text
        return f"{text} Default: %(default)s."


class _Parser(HfArgumentParser):
    """Its errors are ours."""

    def _add_dataclass_arguments(self, dtype: Any) -> None:
        self.register("action", "each", _Each)
        super()._add_dataclass_arguments(dtype)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}. See --help.")


class _Each(argparse.Action):
    """One value each time that the flag is given. With several at once, as HfArgumentParser takes
    lists, a prompt without quotes would be as many prompts as it has words."""

    def __init__(self, *args: Any, nargs: object, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:  # fmt: skip
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), values])


PRECOMPUTE = "mindbooth precompute"


def parser(prog: str = "mindbooth train") -> HfArgumentParser:
    """The parser of all training flags."""
    about = "trains an adapter on a few pictures"
    if prog == PRECOMPUTE:
        about = "fills the cache with what a training with the same flags needs, and stops"
    return _Parser(
        GROUPS,
        prog=prog,
        allow_abbrev=False,
        formatter_class=lambda prog: _Help(prog, max_help_position=30, width=100),
        usage=f"{prog} --pretrained_model_name_or_path MODEL --instance_data_dir FOLDER\n"
        "         --instance_prompt TEXT [options]",
        description=f"DreamBooth LoRA for Stable Diffusion XL: {about}.",
        epilog="3 to 5 pictures, a prompt with a rare word such as sks, and some hundred updates "
        "are a good start; for SDXL --learning_rate 1e-4. Several cards: mindbooth launch.",
    )


def parse(argv: Sequence[str], prog: str = "mindbooth train") -> tuple[TrainConfig, list[str]]:
    """The options in `argv`, and the warnings that go with them. Raises ConfigError."""
    asked = parser(prog)
    known = {name for action in asked._actions for name in action.option_strings}
    _same_rank(argv)
    given = _names(argv)
    words = [*_from_file(argv, known, given), *argv]
    *groups, rest = asked.parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        flag = rest[0].split("=")[0]
        near = difflib.get_close_matches(flag, known, 1)
        hint = f"The nearest is {near[0]}." if near else "See --help."
        raise ConfigError(f"There is no option {flag}. {hint}")
    *parts, known_ones = groups
    names = (field.name for field in dataclasses.fields(TrainConfig))
    config = TrainConfig(**dict(zip(names, parts, strict=True)))
    return config, [*known_ones.warnings(), *_useless(config, given)]


def _useless(config: TrainConfig, given: set[str]) -> list[str]:
    """A line for each flag on the command line that has no effect beside the others."""
    flat = config.flat()
    told = [
        f"--{name} has no effect without --{other}."
        for name, other in ONLY_WITH.items()
        if name in given and not flat[other]
    ]
    told += [
        f"--{name} has no effect beside --{other}."
        for name, other in BESIDE.items()
        if name in given and flat[other] not in (None, False, "none")
    ]
    optim = config.optim
    for name, schedule in (("lr_num_cycles", "cosine_with_restarts"), ("lr_power", "polynomial")):
        if name in given and optim.lr_scheduler != schedule:
            told.append(f"--{name} has no effect without --lr_scheduler {schedule}.")
    if "lr_warmup_steps" in given and optim.lr_warmup_steps and optim.lr_scheduler == "constant":
        told.append(
            "--lr_warmup_steps has no effect with --lr_scheduler constant: give "
            "constant_with_warmup."
        )
    if not optim.uses_prodigy:
        told += [
            f"--{name} has no effect without --optimizer prodigy."
            for name in PRODIGYS
            if name in given or f"no_{name}" in given
        ]
    elif optim.learning_rate <= 0.1:
        told.append(
            f"--learning_rate {optim.learning_rate} is a factor on the step size that "
            "Prodigy finds by itself: 1 is usual."
        )
    if optim.uses_prodigy and "text_encoder_lr" in given:
        told.append("--text_encoder_lr has no effect with Prodigy, which takes --learning_rate.")
    run = config.run
    if "compile_cache" in given and (run.debug or run.mode != "graph"):
        told.append("--compile_cache has no effect in PyNative, which compiles no graphs.")
    return told


def _from_file(argv: Sequence[str], known: set[str], given: set[str]) -> list[str]:
    """The YAML file that --config names, as arguments: `1e-3` is then a number there too.

    What the command line gives itself is left out.
    """
    path = None
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            path = argv[i + 1]
        elif word.startswith("--config="):
            path = word.split("=", 1)[1]
    if path is None:
        return []
    try:
        found = yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), _Words) or {}
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"--config {path} can't be read: {err}.") from err
    except yaml.YAMLError as err:
        raise ConfigError(f"--config {path} is no YAML: {' '.join(str(err).split())}") from err
    if not isinstance(found, dict):
        raise ConfigError(f"--config {path} holds no options by name.")
    arguments = []
    for name, value in found.items():
        if name == "versions" or value is None:
            continue
        if f"--{name}" not in known:
            near = difflib.get_close_matches(f"--{name}", known, 1)
            hint = f" The nearest is {near[0][2:]}." if near else ""
            raise ConfigError(f"--config {path}: there is no option {name}.{hint}")
        if name not in given:
            each = value if isinstance(value, list) else [value]
            arguments += [f"--{name}={one}" for one in each]
    return arguments


def _names(argv: Sequence[str]) -> set[str]:
    """The options that a command line names: --instance-prompt=x is instance_prompt."""
    flags = (word.split("=")[0] for word in argv if word.startswith("--"))
    return {flag.removeprefix("--").replace("-", "_") for flag in flags}


def _same_rank(argv: Sequence[str]) -> None:
    """--rank and --lora_rank are one option: two values for it are a mistake."""
    given: dict[str, str] = {}
    for i, word in enumerate(argv):
        name, _, value = word.partition("=")
        if name in ("--rank", "--lora_rank", "--lora-rank"):
            given[name] = value or (argv[i + 1] if i + 1 < len(argv) else "")
    if len(set(given.values())) > 1:
        told = " and ".join(f"{name} {value}" for name, value in given.items())
        raise ConfigError(f"{told} are one option with two values: give one.")
