"""What diffusers' DreamBooth script makes of samples, by diffusers' own schedulers.

A case is {"scheduler": its config, "edm": --do_edm_style_training, "gamma": --snr_gamma or None}.
Noise levels are counted as our objectives count them.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler
from diffusers.training_utils import compute_snr

Tensor = torch.Tensor


def losses(
    case: dict[str, Any],
    latents: Tensor,
    noise: Tensor,
    levels: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Each sample's loss (N,), and what min-SNR multiplies it with, (N,).

    latents, noise (N, C, h, w); levels (N,), whole; predict: (noisy, timesteps) -> prediction.
    """
    config = case["scheduler"]
    made_in_edm = config["_class_name"].startswith("EDM")
    if made_in_edm or case["edm"]:
        kind = EDMEulerScheduler if made_in_edm else EulerDiscreteScheduler
        each = in_edm(kind.from_config(config), latents, noise, levels, predict)
        return each.mean(dim=(1, 2, 3)), torch.ones(len(each))
    scheduler = DDPMScheduler.from_config(config)
    predicted = predict(scheduler.add_noise(latents, noise, levels), levels)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, levels) if velocity else noise
    each = torch.nn.functional.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))
    if case["gamma"] is None:
        return each, torch.ones(len(each))
    snr = compute_snr(scheduler, levels)
    return each, snr.clamp(max=case["gamma"]) / (snr + 1 if velocity else snr)


def in_edm(
    scheduler: EDMEulerScheduler | EulerDiscreteScheduler,
    latents: Tensor,
    noise: Tensor,
    levels: Tensor,
    predict: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The weighted squared error (N, C, h, w) of the latents as predicted."""
    by_euler = isinstance(scheduler, EulerDiscreteScheduler)
    if by_euler:  # whose timesteps fall, while ours rise
        levels = scheduler.config.num_train_timesteps - 1 - levels
    timesteps = scheduler.timesteps[levels]
    sigmas = scheduler.sigmas[levels].reshape(-1, 1, 1, 1)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if not by_euler:
        output = predict(scheduler.precondition_inputs(noisy, sigmas), timesteps)
        return (scheduler.precondition_outputs(noisy, output, sigmas) - latents) ** 2
    output = predict(noisy / (sigmas**2 + 1) ** 0.5, timesteps)
    if scheduler.config.prediction_type == "epsilon":
        denoised = noisy - sigmas * output
    else:
        denoised = noisy / (sigmas**2 + 1) - output * sigmas / (sigmas**2 + 1) ** 0.5
    return (denoised - latents) ** 2 / sigmas**2
