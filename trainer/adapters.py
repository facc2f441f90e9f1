"""Adapters that were trained before: found on disk or on the hub, checked, put into a pipeline.

`mindbooth generate` uses it. mindone only warns of tensors that it has no place for and then draws
as if the adapter were not there; here such an adapter is an error, before anything is drawn.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mindspore import nn

from . import export, fetch, lora
from .config import ConfigError

log = logging.getLogger(__name__)

AXES = {"lora_A": 1, "lora_B": 0}  # which one is the layer's own: A takes its input, B its output


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA file. name: as the user gave it. base_model: what its card names, if it does."""

    name: str
    path: Path
    base_model: str | None


def find(name: str, cache_dir: str | None = None) -> Adapter:
    """The adapter in a folder, a file, or a repository of the hub. Raises ConfigError."""
    path = Path(name).expanduser()
    if not path.is_file():
        patterns = ["*.safetensors", "README.md"]
        path = _file(
            name, fetch.folder("--lora", name, allow=patterns, ignore=["*/*"], cache_dir=cache_dir)
        )
    keys = fetch.tensors("--lora", name, path)
    if any("dora_scale" in key or "lora_magnitude_vector" in key for key in keys):
        raise ConfigError(f"--lora {name} is a DoRA, which mindone can't apply: give a LoRA.")
    return Adapter(name=name, path=path, base_model=_base_model(path.parent / "README.md"))


def base_model(adapters: Sequence[Adapter], given: str | None) -> str:
    """The model to draw with: the given one, or that which the adapters' cards name."""
    named = [adapter for adapter in adapters if adapter.base_model is not None]
    for adapter in named:
        if given is not None and not _same(str(adapter.base_model), given):
            log.warning("--lora %s was trained on %s; it is used on %s.", adapter.name,
                        adapter.base_model, given)  # fmt: skip
    if given is not None:
        return given
    if not named:
        why = f"no card names that of {adapters[0].name}" if adapters else "there is no --lora"
        raise ConfigError(f"Which model? {why[0].upper()}{why[1:]}: give "
                          "--pretrained_model_name_or_path.")  # fmt: skip
    first, *others = named
    for other in others:
        if not _same(str(first.base_model), str(other.base_model)):
            raise ConfigError(
                f"--lora {first.name} was trained on {first.base_model}, --lora {other.name} on "
                f"{other.base_model}: give adapters of one model, or choose one with "
                "--pretrained_model_name_or_path."
            )
    return str(first.base_model)


def load(pipeline: Any, adapters: Sequence[Adapter], scales: Sequence[float]) -> None:
    """Puts the adapters into an SDXL pipeline, each with its scale. Raises ConfigError."""
    for adapter in adapters:
        _check(pipeline, adapter)
    names = [f"adapter_{number}" for number in range(len(adapters))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for name, adapter in zip(names, adapters, strict=True):
            pipeline.load_lora_weights(
                str(adapter.path.parent), weight_name=adapter.path.name, adapter_name=name
            )
    if names:
        pipeline.set_adapters(names, list(scales))


def misfits(tensors: Mapping[str, Any], layers: Mapping[str, nn.Cell]) -> list[str]:
    """The tensors, by peft's names, that no layer of a model takes."""
    wrong = []
    for key, tensor in tensors.items():
        layer, _, matrix = key.removesuffix(".weight").rpartition(".")
        weight = getattr(layers.get(layer), "weight", None)
        axis = AXES.get(matrix)
        if weight is None or axis is None or weight.shape[axis] != tensor.shape[axis]:
            wrong.append(f"{key} {tuple(tensor.shape)}")
    return wrong


def _check(pipeline: Any, adapter: Adapter) -> None:
    try:
        tensors = _by_model(pipeline, adapter)
    except ValueError as err:
        reason = " ".join(str(err).split())[:200]
        raise ConfigError(f"--lora {adapter.name} can't be read as an SDXL LoRA: {reason}") from err
    layers = {model: dict(getattr(pipeline, model).cells_and_names()) for model in lora.TARGETS}
    wrong = [
        f"{model}.{misfit}"
        for model, part in tensors.items()
        for misfit in misfits(part, layers.get(model, {}))
    ]
    count = sum(map(len, tensors.values()))
    if wrong or not count:
        example = f", e.g. {wrong[0]}" if wrong else ""
        card = f"Its card names {adapter.base_model}" if adapter.base_model else "It has no card"
        raise ConfigError(
            f"--lora {adapter.name} is not for this model: {len(wrong)} of its {count} tensors "
            f"have no place in it{example}. {card}."
        )


def _by_model(pipeline: Any, adapter: Adapter) -> dict[str, dict[str, Any]]:
    """An adapter's tensors by the word that their names begin with, then by peft's names.

    Raises ValueError.
    """
    from mindone.diffusers.utils import state_dict_utils

    found, _ = pipeline.lora_state_dict(
        str(adapter.path.parent), weight_name=adapter.path.name, use_safetensors=True,
        unet_config=pipeline.unet.config,
    )  # fmt: skip
    parts: dict[str, dict[str, Any]] = {}
    for key, tensor in found.items():
        model, _, name = key.partition(".")
        parts.setdefault(model, {})[name] = tensor
    for model, part in parts.items():
        if model == "unet":
            parts[model] = state_dict_utils.convert_unet_state_dict_to_peft(part)
        elif model in ("text_encoder", "text_encoder_2"):
            parts[model] = state_dict_utils.convert_all_state_dict_to_peft(part)
    return parts


def _file(name: str, folder: Path) -> Path:
    usual = folder / export.NAME
    every = [usual] if usual.is_file() else sorted(folder.glob("*.safetensors"))
    if len(every) != 1:
        found = ", ".join(path.name for path in every) or "none"
        raise ConfigError(f"--lora {name} has no {export.NAME}, and not exactly one other file "
                          f"*.safetensors ({found}): name the file itself.")  # fmt: skip
    return every[0]


def _base_model(card: Path) -> str | None:
    from huggingface_hub import RepoCard

    if not card.is_file():
        return None
    try:
        named = RepoCard.load(card).data.to_dict().get("base_model")
    except (OSError, ValueError, yaml.YAMLError) as err:
        log.warning("%s can't be read: %s", card, " ".join(str(err).split()))
        return None
    if isinstance(named, list) and len(named) == 1:  # the hub's cards may name several
        named = named[0]
    return named if isinstance(named, str) else None


def _same(one: str, other: str) -> bool:
    ours, theirs = (Path(name).expanduser() for name in (one, other))
    return one == other or (ours.is_dir() and theirs.is_dir() and ours.samefile(theirs))
