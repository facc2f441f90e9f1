"""A tiny SDXL pipeline with random weights, in diffusers' layout: quick to compile, no torch.

Two UNet levels (one with attention), a VAE that halves the picture, text encoders 32 wide; native
size 32 px. Tokenizers and scheduler are those of examples/mini-sdxl. The refiner to it has, as
SDXL's own, no first text encoder and an aesthetic score among its five conditions on size. The
names and shapes of the weights were recorded from diffusers: `python tests/tiny_sdxl.py` does it
again.
"""

import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

MINI = Path(__file__).parents[1] / "examples" / "mini-sdxl" / "model"
SHAPES = Path(__file__).parent / "fixtures" / "tiny_sdxl_shapes.json"
RESOLUTION = 32
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 32,
    "dtype": "float32",
}
CHANGES: dict[str, dict[str, object]] = {  # to the configs of the mini SDXL
    "unet": {
        "sample_size": 16,
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1],
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 64,
        "norm_num_groups": 8,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    },
    "vae": {
        "sample_size": RESOLUTION,
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
    },
    "text_encoder": TEXT,
    "text_encoder_2": TEXT,
}
CHANGES["refiner_unet"] = CHANGES["unet"] | {
    "cross_attention_dim": 32,
    "projection_class_embeddings_input_dim": 32 + 5 * 8,
}
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}


def write_tiny_pipeline(folder: Path, *, seed: int = 0) -> Path:
    """Fill FOLDER (made if missing) and return it; equal seeds give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(MINI / "model_index.json", folder)
    for part in ("scheduler", "tokenizer", "tokenizer_2"):
        shutil.copytree(MINI / part, folder / part)
    for part in WEIGHTS:
        write_part(folder, part, seed)
    return folder


def write_tiny_refiner(folder: Path, *, seed: int = 0) -> Path:
    """The refiner to `write_tiny_pipeline`: its VAE and second text encoder, a UNet of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    index = json.loads((MINI / "model_index.json").read_text()) | {
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "force_zeros_for_empty_prompt": False,
        "requires_aesthetics_score": True,
        "text_encoder": [None, None],
        "tokenizer": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    for part in ("scheduler", "tokenizer_2"):
        shutil.copytree(MINI / part, folder / part)
    for part in ("vae", "text_encoder_2"):
        write_part(folder, part, seed)
    write_part(folder, "unet", seed, recorded="refiner_unet")
    return folder


def write_part(folder: Path, part: str, seed: int, recorded: str = "") -> None:
    """Config and weights of one of WEIGHTS. recorded: its name in the record, where it has two."""
    recorded = recorded or part
    (folder / part).mkdir()
    (folder / part / "config.json").write_text(json.dumps(config(recorded), indent=2))
    values = {
        name: random_weight(f"{seed}/{recorded}/{name}", tuple(shape))
        for name, shape in json.loads(SHAPES.read_text())[recorded].items()
    }
    save_file(values, folder / part / WEIGHTS[part], metadata={"format": "pt"})


def config(recorded: str) -> dict[str, object]:
    part = recorded.removeprefix("refiner_")
    mini: dict[str, object] = json.loads((MINI / part / "config.json").read_text())
    return mini | CHANGES[recorded]


def random_weight(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values that keep activations near 1: matrices by their fan-in, norms near 1, biases small."""
    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if len(shape) > 1:
        values /= math.sqrt(math.prod(shape[1:]))
    elif key.endswith(".weight"):  # the only weights with one axis are those of norms
        values = 1 + 0.1 * values
    else:
        values *= 0.02
    return values.astype(np.float32)


def record_shapes() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    parts = {
        "unet": UNet2DConditionModel.from_config(config("unet")),
        "refiner_unet": UNet2DConditionModel.from_config(config("refiner_unet")),
        "vae": AutoencoderKL.from_config(config("vae")),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**config("text_encoder"))),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**config("text_encoder_2"))),
    }
    shapes = {
        part: {name: list(value.shape) for name, value in network.state_dict().items()}
        for part, network in parts.items()
    }
    lines = [
        f'"{part}": {{\n'
        + ",\n".join(f'  "{name}": {shape}' for name, shape in sorted(shapes[part].items()))
        + "\n}"
        for part in sorted(shapes)
    ]
    SHAPES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    record_shapes()
