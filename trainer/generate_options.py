"""The options of `mindbooth generate`: declared once, as a dataclass that argparse is made from."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from .config import ConfigError


def _flag(default: Any, text: str, **how: Any) -> Any:
    return field(default=default, metadata={"help": text, **how})


def _several(text: str, **how: Any) -> Any:
    """A flag that may be given several times; each time adds one value."""
    return field(default_factory=list, metadata={"help": text, "action": "append", **how})


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What was asked of `mindbooth generate`."""

    prompt: list[str] = _several("What to draw; again for another prompt.")
    lora: list[str] = _several(
        "An adapter: an --output_dir of a training, a .safetensors file, or a hub id. Again for "
        "another one: their effects add up. None: the model as it is."
    )
    lora_scale: list[float] = _several(
        "How strongly the adapter is applied, one for each --lora or one for all (default: 1).",
        type=float,
    )
    pretrained_model_name_or_path: str | None = _flag(
        None, "The SDXL model, a folder or a hub id (default: what the adapter's card names)."
    )
    pretrained_vae_model_name_or_path: str | None = _flag(
        None, "A better VAE than the model's own, e.g. madebyollin/sdxl-vae-fp16-fix."
    )
    refiner: str | None = _flag(
        None,
        "Refine each picture with this model, e.g. stabilityai/stable-diffusion-xl-refiner-1.0, "
        "and show both side by side.",
    )
    refiner_strength: float = _flag(
        0.3, "The last share of the steps, in (0, 1], that the refiner does again.", type=float
    )
    negative_prompt: str | None = _flag(None, "What not to draw.")
    num_images: int = _flag(1, "Pictures of each prompt; picture i has seed + i.", type=int)
    seed: int | None = _flag(
        None, "The seed decides all; the same one gives the same picture (default: drawn).",
        type=int,
    )  # fmt: skip
    num_inference_steps: int = _flag(25, "Steps from noise to picture.", type=int)
    guidance_scale: float = _flag(
        5.0, "How strictly the prompt is followed; 1 and less: without guidance.", type=float
    )
    height: int | None = _flag(None, "In pixels (default: the model's own).", type=int)
    width: int | None = _flag(None, "In pixels (default: the model's own).", type=int)
    mixed_precision: str | None = _flag(
        None, "What the model computes in (default: fp16, on a CPU fp32, which is `no`).",
        choices=("no", "fp16", "bf16"),
    )  # fmt: skip
    variant: str | None = _flag(
        None, 'Which weight files to take, e.g. "fp16" for *.fp16.safetensors.'
    )
    revision: str | None = _flag(None, "Revision of the model on the hub.")
    cache_dir: str | None = _flag(None, "Where the hub's downloads are kept.")
    device_target: str = _flag("auto", "What to compute on.", choices=("auto", "Ascend", "CPU"))
    output_dir: Path = _flag(
        Path("pictures"), "The folder for the pictures; nothing there is overwritten.", type=Path
    )

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ConfigError('What is to be drawn? Give --prompt "a photo of ...".')
        for name in ("num_images", "num_inference_steps", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} {value} is not above 0.")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and value % 8:
                raise ConfigError(f"--{name} {value} is no multiple of 8.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed} is not in 0..2**63 - 1.")
        if len(self.lora_scale) not in (0, 1, len(self.lora)):
            raise ConfigError(
                f"{len(self.lora_scale)} times --lora_scale for {len(self.lora)} times --lora: "
                "give one for each, or one for all."
            )
        if not 0 < self.refiner_strength <= 1:
            raise ConfigError(f"--refiner_strength {self.refiner_strength} is not in (0, 1].")
        if self.refiner and int(self.num_inference_steps * self.refiner_strength) < 1:
            raise ConfigError(
                f"--refiner_strength {self.refiner_strength} of --num_inference_steps "
                f"{self.num_inference_steps} is less than one step: give more of either."
            )

    @property
    def scales(self) -> list[float]:
        """A scale for each --lora."""
        if len(self.lora_scale) == len(self.lora):
            return self.lora_scale
        return (self.lora_scale or [1.0]) * len(self.lora)

    def useless(self) -> list[str]:
        """A line for each option that has no effect beside the others."""
        told = []
        if self.negative_prompt is not None and self.guidance_scale <= 1:
            told.append("--negative_prompt has no effect without guidance: --guidance_scale 5.")
        if self.lora_scale and not self.lora:
            told.append("--lora_scale has no effect without --lora.")
        if self.refiner_strength != 0.3 and self.refiner is None:
            told.append("--refiner_strength has no effect without --refiner.")
        return told


class _Parser(argparse.ArgumentParser):
    """Its errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}. See --help.")


def parser(prog: str = "mindbooth generate") -> argparse.ArgumentParser:
    """The parser of all options."""
    asked = _Parser(
        prog=prog,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=100),
        usage=f"{prog} --prompt TEXT [--lora ADAPTER] [options]",
        description="Makes pictures with SDXL: with one adapter, with several, or with none.",
        epilog='For example: mindbooth generate --lora lora-trained-xl --prompt "a sks dog in a '
        'bucket" --num_images 4 --seed 0. Each picture is a PNG that holds the options it was made '
        "with; several prompts, and a refiner, make a labelled grid too.",
    )
    words: dict[Any, str] = {int: "N", float: "X", Path: "DIR"}
    for option in dataclasses.fields(GenerateConfig):
        how = dict(option.metadata)
        text = how.pop("help")
        if option.default not in (dataclasses.MISSING, None):
            text += f" Default: {option.default}."
        if "choices" in how:
            how["metavar"] = "|".join(how["choices"])
        else:
            how["metavar"] = words.get(how.get("type"), "TEXT")
        asked.add_argument(f"--{option.name}", default=argparse.SUPPRESS, help=text, **how)
    return asked


def parse(argv: Sequence[str], prog: str = "mindbooth generate") -> GenerateConfig:
    """The options in `argv`. Raises ConfigError."""
    asked = parser(prog)
    given, rest = asked.parse_known_args(argv)
    if rest:
        flag = rest[0].split("=")[0]
        known = [f"--{option.name}" for option in dataclasses.fields(GenerateConfig)]
        near = difflib.get_close_matches(flag, known, 1)
        hint = f"The nearest is {near[0]}." if near else "A text of several words needs quotes."
        raise ConfigError(f"There is no option {flag}. {hint}")
    return GenerateConfig(**vars(given))
