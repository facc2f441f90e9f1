"""Noisy latents and velocities of diffusers' DDPMScheduler."""

import numpy as np
import torch
from diffusers import DDPMScheduler


def answer(
    arrays: dict[str, np.ndarray], configs: list[dict[str, object]]
) -> dict[str, np.ndarray]:
    """arrays: latents and noise (N, C, h, w), and "timesteps i" (N,) for scheduler i.

    To "noisy i" and "velocity i".
    """
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    found = {}
    for i, config in enumerate(configs):
        scheduler = DDPMScheduler.from_config(config)
        sample = given["latents"], given["noise"], given[f"timesteps {i}"]
        found[f"noisy {i}"] = scheduler.add_noise(*sample).numpy()
        found[f"velocity {i}"] = scheduler.get_velocity(*sample).numpy()
    return found
