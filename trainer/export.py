"""The adapter as files that other tools load, and config.yaml.

    pytorch_lora_weights.safetensors, for diffusers and mindone
        unet.<layer>.lora.down.weight (A) and .lora.up.weight (B)
        text_encoder.<layer>.lora_linear_layer.down.weight and .up.weight; so in text_encoder_2
    pytorch_lora_weights_kohya.safetensors, for ComfyUI and A1111
        lora_unet_<layer with _ for .>.lora_down.weight, .lora_up.weight and .alpha (a number);
        lora_te1_ and lora_te2_ for the text encoders

Both hold the same numbers. Headers name rank and alpha, so that the strength needs no guessing.
Everything is written aside and renamed: a reader sees a whole file or none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save

from mindbooth.data.atomic import replace_file

from . import report
from .config import TrainConfig

NAME = "pytorch_lora_weights.safetensors"
KOHYA_NAME = "pytorch_lora_weights_kohya.safetensors"
# What a run leaves beside its checkpoints.
RESULTS = (NAME, KOHYA_NAME, "README.md", "config.yaml", "metrics.jsonl", "samples")
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}

Tensors = Mapping[str, np.ndarray]
Metadata = Mapping[str, Mapping[str, Any]]


def adapter(folder: Path, tensors: Tensors, metadata: Metadata) -> Path:
    """Writes the file for diffusers into `folder`.

    tensors: by the names of the run, "unet.<layer>.lora_A.weight". metadata: the peft configuration
    of each of their first words.
    """
    flat = {f"{k}.{name}": v for k, part in metadata.items() for name, v in part.items()}
    header = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(flat, indent=2, sort_keys=True, default=_plain),
    }
    return _write(folder / NAME, diffusers_names(tensors), header)


def kohya(folder: Path, tensors: Tensors, metadata: Metadata, config: TrainConfig) -> Path:
    """Writes the file for ComfyUI and A1111 into `folder`; the arguments are those of `adapter`."""
    header = kohya_header(metadata, config)
    return _write(folder / KOHYA_NAME, kohya_names(tensors, metadata), header)


def diffusers_names(tensors: Tensors) -> dict[str, np.ndarray]:
    """The tensors under the names that diffusers saves."""
    named = {}
    for name, tensor in tensors.items():
        inside = "lora" if name.startswith("unet.") else "lora_linear_layer"
        for ours, theirs in ((".lora_A.", "down"), (".lora_B.", "up")):
            name = name.replace(ours, f".{inside}.{theirs}.")
        named[name] = tensor
    return named


def kohya_names(tensors: Tensors, metadata: Metadata) -> dict[str, np.ndarray]:
    """The tensors under the names of kohya's trainer, and an alpha for each layer."""
    matrices = {"lora_A": "lora_down", "lora_B": "lora_up"}
    named = {}
    for name, tensor in tensors.items():
        path, matrix = name.removesuffix(".weight").rsplit(".", 1)
        part, layer = path.split(".", 1)
        module = KOHYA_PREFIXES[part] + layer.replace(".", "_")
        named[f"{module}.{matrices[matrix]}.weight"] = tensor
        named[f"{module}.alpha"] = np.array(metadata[part]["lora_alpha"], tensor.dtype)
    return named


def kohya_header(metadata: Metadata, config: TrainConfig) -> dict[str, str]:
    """What tools that read kohya's files look for: rank, alpha, kind of model, title, prompt."""
    unet = metadata["unet"]
    resolution = config.data.resolution
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(unet["r"]),
        "ss_network_alpha": str(unet["lora_alpha"]),
        "ss_base_model_version": "sdxl_base_v1-0",  # kohya's word for any SDXL
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": Path(config.output.output_dir).expanduser().resolve().name,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.trigger_phrase": config.data.instance_prompt,
    }


def config_file(path: Path, config: TrainConfig, seed: int) -> None:
    """Every option as it was resolved, and the versions; `--config` reads it again, and begins the
    same run anew, however its workers are started."""
    options = {**config.flat(), "seed": seed, "versions": report.versions()}
    del options["resume_from_checkpoint"], options["distributed"]
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    replace_file(path, text.encode())


def _write(path: Path, tensors: Tensors, header: dict[str, str]) -> Path:
    # safetensors takes the bytes as they lie; ascontiguousarray would make vectors of numbers.
    whole = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    replace_file(path, save(whole, metadata=header))
    return path


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
