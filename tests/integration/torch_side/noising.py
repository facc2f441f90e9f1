"""Inputs, timesteps and losses as diffusers' script has them, for predictions that are given."""

from typing import Any

import numpy as np
import torch
from script import losses


def answer(arrays: dict[str, np.ndarray], cases: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """arrays: latents, noise, predicted (N, C, h, w), and "levels i" (N,) for case i (script.py).

    To "noisy i", "timestep i" and "loss i" (N,).
    """
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    found = {}
    for i, case in enumerate(cases):

        def predict(noisy: torch.Tensor, timesteps: torch.Tensor, i: int = i) -> torch.Tensor:
            found[f"noisy {i}"], found[f"timestep {i}"] = noisy.numpy(), timesteps.numpy()
            return given["predicted"]

        each, weight = losses(case, given["latents"], given["noise"], given[f"levels {i}"], predict)
        found[f"loss {i}"] = (each * weight).numpy()
    return found
