"""An adapter of random numbers for all three models of the tiny SDXL, without running any.

Its layers are the models' own, by the names that Hugging Face's libraries gave their weights
(tiny_sdxl.py recorded them).
"""

import json

import numpy as np
import tiny_sdxl

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
TARGETS = {
    "unet": ("to_q", "to_k", "to_v", "to_out.0"),
    "text_encoder": PROJECTIONS,
    "text_encoder_2": PROJECTIONS,
}


def layers(part: str) -> dict[str, tuple[int, int]]:
    """All layers of a model that have a matrix, and its shape: (outputs, inputs)."""
    shapes = json.loads(tiny_sdxl.SHAPES.read_text())[part]
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }


def tensors(rank: int) -> dict[str, np.ndarray]:
    """By the names of a run: "unet.<layer>.lora_A.weight"."""
    made = {}
    for part, targets in TARGETS.items():
        for layer, (outputs, inputs) in layers(part).items():
            if layer.endswith(tuple(f".{target}" for target in targets)):
                for matrix, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                    name = f"{part}.{layer}.lora_{matrix}.weight"
                    made[name] = tiny_sdxl.random_weight(name, shape)
    return made
