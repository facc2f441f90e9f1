"""A random SDXL between the mini one and the full one, in which the work is shared out as in SDXL.

At 128 pixels its UNet has 50 million parameters; its VAE's encoder does 0.7 of the arithmetic of
the UNet's forward pass, and its text encoders a sixtieth of it, as SDXL's at 1024 pixels.
`python models.py FOLDER` writes it, and prints these proportions for both.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mindbooth.launch.unet import UNet, layers

MINI = Path(__file__).resolve().parent.parent / "examples" / "mini-sdxl" / "model"
RESOLUTION = 128
CHANGES: dict[str, dict[str, Any]] = {  # to the configurations of the mini SDXL
    "unet": {
        "sample_size": 16,
        "block_out_channels": [96, 192, 384],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [3, 6, 12],
        "norm_num_groups": 32,
    },
    "vae": {
        "sample_size": RESOLUTION,
        "block_out_channels": [24, 40, 88, 88],
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 8,
    },
    "text_encoder": {"num_hidden_layers": 4, "dtype": "float32"},
    "text_encoder_2": {"num_hidden_layers": 5, "dtype": "float32"},
}
SDXL: dict[str, dict[str, Any]] = {  # what the arithmetic depends on, of the published base model
    "unet": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
    },
    "vae": {"sample_size": 1024, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2},
    "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "text_encoder_2": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32},
}
TOKENS = {"mini": 32, "SDXL": 77}


def write(folder: Path) -> Path:
    """Fills FOLDER with the model in diffusers' layout, the same for all; or finds it filled."""
    if (folder / "model_index.json").exists():
        return folder
    from mindbooth.ranktable.placement import Placement
    from mindbooth.trainer import device

    device.start(Placement.from_environ({}), target="CPU")
    from mindone.diffusers import AutoencoderKL, UNet2DConditionModel
    from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection
    from transformers import CLIPTextConfig

    for part in ("scheduler", "tokenizer", "tokenizer_2"):
        shutil.copytree(MINI / part, folder / part, dirs_exist_ok=True)
    for part in CHANGES:
        config = configuration(part)
        kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
        if part in kinds:
            cell = kinds[part].from_config(config)
        elif part == "text_encoder":
            cell = CLIPTextModel(CLIPTextConfig(**config))
        else:
            cell = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        _randomize(cell)
        cell.save_pretrained(str(folder / part))
    shutil.copy(MINI / "model_index.json", folder)
    return folder


def configuration(part: str) -> dict[str, Any]:
    mini: dict[str, Any] = json.loads((MINI / part / "config.json").read_text())
    return mini | CHANGES[part]


def _randomize(cell: Any) -> None:
    """Values that keep activations near 1: matrices by their fan-in, norms 1, biases 0."""
    import mindspore as ms

    random = np.random.default_rng(0)
    for parameter in cell.get_parameters():
        shape = tuple(parameter.shape)
        if len(shape) > 1:
            values = random.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
        else:
            values = np.full(shape, float(parameter.name.endswith("weight")))
        parameter.set_data(ms.Tensor(values.astype(np.float32)))


def macs(parts: Mapping[str, Mapping[str, Any]], tokens: int) -> dict[str, float]:
    """Multiply-accumulates of one sample: the UNet's forward pass, the VAE's encoder, the text
    encoders."""
    texts = [parts["text_encoder"], parts["text_encoder_2"]]
    return {
        "unet": _unet(parts["unet"], tokens),
        "vae": _encoder(parts["vae"]),
        "text": sum(_clip(text, tokens) for text in texts),
    }


def _unet(unet: Mapping[str, Any], tokens: int) -> float:
    """Of an SDXL whose first level has no attention."""
    shape = UNet(
        channels=tuple(unet["block_out_channels"]),
        blocks=(0, *unet["transformer_layers_per_block"][1:]),
        resnets=unet["layers_per_block"],
        context=unet["cross_attention_dim"],
        tokens=tokens,
    )
    return sum(layer.flops for layer in layers(shape, unet["sample_size"] ** 2)) / 2


def _encoder(vae: Mapping[str, Any]) -> float:
    widths: Sequence[int] = vae["block_out_channels"]
    area, before = vae["sample_size"] ** 2, widths[0]
    total = 9 * 3 * area * before
    for level, width in enumerate(widths):
        for _ in range(vae["layers_per_block"]):
            total += _resnet(before, width, area)
            before = width
        if level < len(widths) - 1:
            area //= 4
            total += 9 * area * width**2
    attention = 4 * area * before**2 + 2 * area**2 * before
    return total + 2 * _resnet(before, before, area) + attention + 9 * 8 * area * before


def _resnet(before: int, width: int, area: int) -> int:
    return 9 * area * (before + width) * width + (area * before * width if before != width else 0)


def _clip(text: Mapping[str, Any], tokens: int) -> int:
    hidden = text["hidden_size"]
    layer = 4 * tokens * hidden**2 + 2 * tokens**2 * hidden
    return text["num_hidden_layers"] * (layer + 2 * tokens * hidden * text["intermediate_size"])


def main() -> int:
    ours = {part: configuration(part) for part in CHANGES}
    for name, parts, tokens in (("this", ours, TOKENS["mini"]), ("SDXL", SDXL, TOKENS["SDXL"])):
        found = macs(parts, tokens)
        shares = ", ".join(f"{k} {found[k] / found['unet']:.3f} of it" for k in ("vae", "text"))
        print(f"{name}: UNet's forward {found['unet'] / 1e9:.1f} G multiply-accumulates; {shares}")
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
