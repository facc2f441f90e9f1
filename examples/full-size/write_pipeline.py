"""Writes a pipeline of SDXL's full size with random weights: `write_pipeline.py FOLDER`.

The names, shapes and configurations are those of the public SDXL base 1.0; the weights are random
fp16 numbers, scaled so that activations stay near 1. The tokenizers are the mini SDXL's, whose ids
fit into the full vocabulary. 7 GB, written as it is made: a few hundred MB of memory are enough.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MINI = Path(__file__).resolve().parents[1] / "mini-sdxl" / "model"
TOKENS = 77
TEXT = {"max_position_embeddings": TOKENS, "vocab_size": 49408}
CHANGES: dict[str, dict[str, Any]] = {  # to the configurations of the mini SDXL
    "unet": {
        "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10],
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": TEXT
    | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
    },
    "text_encoder_2": TEXT
    | {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
}
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
# What PyTorch, and so every file, calls by another name than mindone's cells do.
RENAMED = {"embedding_table": "weight", "gamma": "weight", "beta": "bias"}
Shapes = dict[str, tuple[int, ...]]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path, help="where to; it must not be there yet")
    folder = options.parse_args().folder
    if folder.exists():
        print(f"{folder} is there already: remove it, or give another name.", file=sys.stderr)
        return 2
    write(folder)
    return 0


def write(folder: Path) -> None:
    """Makes `folder`; it appears under this name when it is complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shutil.copy(MINI / "model_index.json", partial)
    shutil.copytree(MINI / "scheduler", partial / "scheduler")
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(MINI / part, partial / part)
        _change(partial / part / "tokenizer_config.json", {"model_max_length": TOKENS})
    for part, shapes in parts().items():
        (partial / part).mkdir()
        shutil.copy(MINI / part / "config.json", partial / part)
        _change(partial / part / "config.json", CHANGES[part])
        path = partial / part / WEIGHTS[part]
        write_weights(path, shapes)
        numbers = sum(math.prod(shape) for shape in shapes.values())
        size = path.stat().st_size / 1e9
        print(f"{part:<16}{numbers:>14,} parameters{size:>7.2f} GB", flush=True)
    os.replace(partial, folder)


def parts() -> dict[str, Shapes]:
    """Names and shapes of each part's weights, from mindone's cells, built without any values."""
    os.environ["USE_TORCH"] = "0"  # transformers would load torch, if it is there
    from mindbooth.ranktable.placement import Placement
    from mindbooth.trainer import device

    device.start(Placement.from_environ({}), target="CPU")
    from mindone.diffusers import AutoencoderKL, UNet2DConditionModel
    from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection
    from mindspore.nn import no_init_parameters
    from transformers import CLIPTextConfig

    configs = {
        part: json.loads((MINI / part / "config.json").read_text()) | CHANGES[part]
        for part in WEIGHTS
    }
    with no_init_parameters():
        cells = {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**configs["text_encoder_2"])
            ),
        }
    return {part: dict(_named(cell)) for part, cell in cells.items()}


def _named(cell: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for parameter in cell.get_parameters():
        stem, _, last = parameter.name.rpartition(".")
        yield f"{stem}.{RENAMED.get(last, last)}", tuple(parameter.shape)


def write_weights(path: Path, shapes: Shapes) -> None:
    """A safetensors file of random fp16 numbers, tensor by tensor.

    The format: the header's length (8 bytes, little endian), a JSON header that tells where in the
    rest each tensor lies, and the tensors.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            file.write(random_weight(name, shape).tobytes())


def random_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """fp16 values that keep activations near 1: matrices by their fan-in, norms near 1, biases
    small. The same for the same name."""
    generator = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    values = generator.standard_normal(shape, np.float32)
    if len(shape) > 1:
        values /= math.sqrt(math.prod(shape[1:]))
    elif name.endswith(".weight"):  # the only weights with one axis are those of norms
        values = 1 + 0.1 * values
    else:
        values *= 0.02
    return values.astype(np.float16)


def _change(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
