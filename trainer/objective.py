"""What the UNet is asked to predict, and how much each sample counts. Pure NumPy.

An objective turns a sample's latents, noise and a number u in [0, 1) into what the step needs:

    noisy input, timestep, target, weight        loss = weight * mean((UNet(noisy) - target)^2)

It runs on the host, in the thread that prepares batches. So every objective shares one graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mindbooth.data.batches import Objective

from .config import ConfigError


def alphas_cumprod(config: Mapping[str, Any]) -> np.ndarray:
    """The share of signal left at each training timestep, (T,) fp64, from a scheduler's config.

    Raises ConfigError for another noise schedule than a linear or scaled linear one.
    """
    steps = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
    if config.get("_class_name", "").startswith("EDM"):
        kind = "EDM"
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float64)
    elif kind == "linear":
        betas = np.linspace(start, end, steps)
    elif kind == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, steps) ** 2
    else:
        raise ConfigError(
            f"The model's noise schedule is {kind}; linear and scaled_linear ones can be trained."
        )
    signal = np.cumprod(1 - betas)
    return _zero_terminal(signal) if config.get("rescale_betas_zero_snr") else signal


def _zero_terminal(signal: np.ndarray) -> np.ndarray:
    """No signal left at the last timestep: algorithm 1 of https://arxiv.org/abs/2305.08891."""
    root = np.sqrt(signal)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def diffusion(config: Mapping[str, Any]) -> Objective:
    """The objective of the model's own noise schedule: DDPM, https://arxiv.org/abs/2006.11239.

    config: the scheduler's, as in scheduler_config.json. prediction_type "epsilon": the target is
    the noise; "v_prediction": the velocity of https://arxiv.org/abs/2202.00512.
    Raises ConfigError for another prediction type or noise schedule.
    """
    signal = alphas_cumprod(config)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"The model's scheduler predicts {prediction}; epsilon and v_prediction can be trained."
        )

    def at(
        latents: np.ndarray, noise: np.ndarray, u: float
    ) -> tuple[np.ndarray, float, np.ndarray, float]:
        t = int(u * len(signal))
        a, s = np.float32(signal[t] ** 0.5), np.float32((1 - signal[t]) ** 0.5)
        target = noise if prediction == "epsilon" else a * noise - s * latents
        return a * latents + s * noise, float(t), target, 1.0

    return at
