"""The training options: declared once, as dataclasses, from which the command line is derived.

Names and defaults are those of the well-known train_dreambooth_lora_sdxl.py; options of our own
stand in `RunConfig`. `parse()` reads the arguments and, for --config, one YAML file.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from transformers import HfArgumentParser

from mindbooth.data import stream

from .rates import SCHEDULES


class ConfigError(ValueError):
    """A mistake in the options, told in one line; the program ends with status 2."""


def _option(default: Any, text: str, *aliases: str) -> Any:
    return field(default=default, metadata={"help": text, "aliases": list(aliases)})


def _required(text: str) -> Any:
    return field(metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is fine-tuned."""

    _argument_group_name = "model"

    pretrained_model_name_or_path: str = _required(
        "The SDXL model: a folder in diffusers' layout, or a model id of the Hugging Face hub."
    )
    pretrained_vae_model_name_or_path: str | None = _option(
        None, "A better VAE than the model's own, e.g. madebyollin/sdxl-vae-fp16-fix."
    )
    revision: str | None = _option(None, "Revision of the model on the hub.")
    variant: str | None = _option(
        None, 'Which weight files to take, e.g. "fp16" for *.fp16.safetensors.'
    )
    cache_dir: str | None = _option(None, "Where the hub's downloads are kept.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The pictures, and how they become training samples."""

    _argument_group_name = "data"

    instance_data_dir: str = _required("The folder with the subject's pictures.")
    instance_prompt: str = _required(
        'The caption of these pictures, with a rare word, e.g. "a photo of sks dog".'
    )
    resolution: int = _option(1024, "Pictures are resized and cropped to this many pixels square.")
    center_crop: bool = _option(
        False, "Crop from the centre, not from a place drawn for each picture."
    )
    random_flip: bool = _option(False, "Flip half of the samples left to right.")
    image_interpolation_mode: Literal[
        "lanczos", "bicubic", "bilinear", "box", "hamming", "nearest"
    ] = _option("lanczos", "How pictures are resized.")
    repeats: int = _option(1, "How many times each picture counts in an epoch.")
    latent_cache_dir: str | None = _option(
        None,
        "The cache of VAE latents and text embeddings, shared by all runs. Default: mindbooth "
        "under $XDG_CACHE_HOME or ~/.cache.",
    )

    def __post_init__(self) -> None:
        _positive(self, "resolution", "repeats")
        if self.resolution % 8:
            raise ConfigError(f"--resolution {self.resolution} is no multiple of 8.")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The adapter and how it is trained."""

    _argument_group_name = "training"

    rank: int = _option(4, "Rank of the LoRA matrices; alpha is the same.", "--lora_rank")
    train_batch_size: int = _option(4, "Samples a device takes at once.")
    gradient_accumulation_steps: int = _option(1, "Batches a device sums up for one update.")
    num_train_epochs: int = _option(1, "How often each picture is seen.")
    max_train_steps: int | None = _option(None, "Number of updates; overrides the epochs.")
    learning_rate: float = _option(1e-4, "The learning rate after the warm-up.")
    lr_scheduler: str = _option("constant", f"One of {', '.join(SCHEDULES)}.")
    lr_warmup_steps: int = _option(500, "Updates of warm-up; `constant` has none.")
    lr_num_cycles: int = _option(1, "Hard restarts of cosine_with_restarts.")
    lr_power: float = _option(1.0, "Power of polynomial.")
    optimizer: str = _option("AdamW", "AdamW, with the semantics of torch's.")
    adam_beta1: float = _option(0.9, "Decay of the first moment.")
    adam_beta2: float = _option(0.999, "Decay of the second moment.")
    adam_weight_decay: float = _option(1e-4, "Decoupled weight decay.")
    adam_epsilon: float = _option(1e-8, "Added to the root of the second moment.")
    max_grad_norm: float = _option(1.0, "Gradients are clipped to this norm.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = _option(
        None, "What the frozen models compute in: fp16, or fp32 with `no` (the default)."
    )
    seed: int | None = _option(None, "Seed of the run. Default: drawn, and written to config.yaml.")

    def __post_init__(self) -> None:
        _positive(
            self, "rank", "train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
            "max_train_steps", "max_grad_norm", "adam_epsilon", "lr_num_cycles",
        )  # fmt: skip
        if not self.learning_rate >= 0:
            raise ConfigError(f"--learning_rate {self.learning_rate} is below 0.")
        if self.optimizer.lower() != "adamw":
            raise ConfigError(f"--optimizer {self.optimizer}: there is AdamW.")
        if self.lr_scheduler not in SCHEDULES:
            raise ConfigError(
                f"--lr_scheduler {self.lr_scheduler}: there is {', '.join(SCHEDULES)}."
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed} is not in 0..2**63 - 1.")

    def updates(self, examples: int, samples_per_update: int) -> int:
        """How many updates the run has, where each takes so many samples over all devices."""
        if self.max_train_steps is not None:
            return self.max_train_steps
        return stream.updates(
            self.num_train_epochs, samples_per_update=samples_per_update, examples=examples
        )


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What the run leaves behind."""

    _argument_group_name = "output"

    output_dir: str = _option("lora-dreambooth-model", "Where everything is written.")
    validation_prompt: str | None = _option(
        None, "Make pictures of this prompt while training and at the end."
    )
    num_validation_images: int = _option(4, "How many pictures each time.")
    validation_epochs: int = _option(50, "Make them every so many epochs.")
    checkpointing_steps: int = _option(500, "Save a checkpoint every so many updates.")
    checkpoints_total_limit: int | None = _option(None, "Keep the newest so many checkpoints.")
    resume_from_checkpoint: str | None = _option(
        None, '"latest", or the path of a checkpoint-N folder: go on from there.'
    )

    def __post_init__(self) -> None:
        _positive(
            self, "num_validation_images", "validation_epochs", "checkpointing_steps",
            "checkpoints_total_limit",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how this process runs; no option here changes what is learned."""

    _argument_group_name = "run"

    config: str | None = _option(None, "A YAML file with options by name; flags override it.")
    distributed: bool = _option(False, "Join msrun's other workers (always done under msrun).")
    device_target: Literal["auto", "Ascend", "CPU"] = _option("auto", "What to compute on.")
    mode: Literal["graph", "pynative"] = _option(
        "graph", "Compile the UNet's forward and backward, or run them operator by operator."
    )
    allreduce_dtype: Literal["fp16", "fp32"] = _option("fp16", "What gradients travel in.")
    debug: bool = _option(
        False,
        "For a debugger: PyNative, one operator after the other, every layer checked for "
        "non-finite values, the first batch as pictures, a table of timings at the end.",
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a run."""

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    output: OutputConfig
    run: RunConfig

    def __post_init__(self) -> None:
        if self.optim.mixed_precision == "bf16":
            raise ConfigError("--mixed_precision bf16 is not there yet: use fp16 or no.")

    def flat(self) -> dict[str, Any]:
        """Every option by its flag's name, as config.yaml has it."""
        parts = (self.model, self.data, self.optim, self.output, self.run)
        flat = {k: v for part in parts for k, v in dataclasses.asdict(part).items()}
        del flat["config"]
        return flat


GROUPS = (ModelConfig, DataConfig, OptimConfig, OutputConfig, RunConfig)

# Flags of the well-known script that change nothing here, and why.
WITHOUT_EFFECT = {
    "dataloader_num_workers": "batches come from the cache, through one thread",
    "enable_xformers_memory_efficient_attention": "flash attention is on where Ascend has it",
    "enable_mindspore_data_sink": "the step is fed by a prefetching thread",
}


# Flags of the well-known script that are not there yet: told as such, and never ignored.
NOT_YET = {
    "adam_weight_decay_text_encoder", "allow_tf32", "caption_column", "class_data_dir",
    "class_prompt", "dataset_config_name", "dataset_name", "do_edm_style_training",
    "gradient_checkpointing", "hub_model_id", "hub_token", "image_column", "local_rank",
    "logging_dir", "lora_dropout", "num_class_images", "output_kohya_format",
    "prior_generation_precision", "prior_loss_weight", "prodigy_beta3", "prodigy_decouple",
    "prodigy_safeguard_warmup", "prodigy_use_bias_correction", "push_to_hub", "report_to",
    "sample_batch_size", "scale_lr", "snr_gamma", "text_encoder_lr", "train_text_encoder",
    "use_8bit_adam", "use_dora", "with_prior_preservation",
}  # fmt: skip


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

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}. See --help.")


def parser(prog: str = "mindbooth train") -> HfArgumentParser:
    """The parser of all training flags."""
    return _Parser(
        GROUPS,
        prog=prog,
        allow_abbrev=False,
        formatter_class=lambda prog: _Help(prog, max_help_position=30, width=100),
        usage=f"{prog} --pretrained_model_name_or_path MODEL --instance_data_dir FOLDER\n"
        "         --instance_prompt TEXT [options]",
        description="DreamBooth LoRA for Stable Diffusion XL: trains an adapter on a few pictures.",
        epilog="3 to 5 pictures, a prompt with a rare word such as sks, and some hundred updates "
        "are a good start; for SDXL --learning_rate 1e-4. Several cards: mindbooth launch.",
    )


def parse(argv: Sequence[str], prog: str = "mindbooth train") -> tuple[TrainConfig, list[str]]:
    """The options in `argv`, and the warnings that go with them. Raises ConfigError."""
    asked = parser(prog)
    known = {name for action in asked._actions for name in action.option_strings}
    given, warnings = _drop_without_effect(argv)
    _same_rank(given)
    argv = [*_from_file(given, known), *given]
    *groups, rest = asked.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        flag = rest[0].split("=")[0]
        if _plain(flag) in NOT_YET:
            raise ConfigError(f"{flag} of train_dreambooth_lora_sdxl.py is not there yet.")
        near = difflib.get_close_matches(flag, known, 1)
        hint = f"The nearest is {near[0]}." if near else "See --help."
        raise ConfigError(f"There is no option {flag}. {hint}")
    model, data, optim, output, run = groups
    config = TrainConfig(model=model, data=data, optim=optim, output=output, run=run)
    return config, warnings


def _from_file(argv: Sequence[str], known: set[str]) -> list[str]:
    """The YAML file that --config names, as arguments: `1e-3` is then a number there too."""
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
        if name == "versions" or name in WITHOUT_EFFECT or value is None:
            continue
        if f"--{name}" not in known:
            near = difflib.get_close_matches(f"--{name}", known, 1)
            hint = f" The nearest is {near[0][2:]}." if near else ""
            raise ConfigError(f"--config {path}: there is no option {name}.{hint}")
        arguments.append(f"--{name}={value}")
    return arguments


def _drop_without_effect(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    kept: list[str] = []
    warnings = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name = _plain(word.split("=")[0])
        if word.startswith("--") and name in WITHOUT_EFFECT:
            warnings.append(f"--{name} has no effect: {WITHOUT_EFFECT[name]}.")
            if "=" not in word and words and not words[0].startswith("--"):
                words.pop(0)
        else:
            kept.append(word)
    return kept, warnings


def _plain(flag: str) -> str:
    """An option's name: --instance-prompt is instance_prompt."""
    return flag.removeprefix("--").replace("-", "_")


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


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name} {value} is not above 0.")
