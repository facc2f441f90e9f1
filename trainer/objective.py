"""What the UNet is asked to predict, and how much each sample counts. Pure NumPy.

An objective turns a sample's latents, noise and a number u in [0, 1) into what the step needs:

    noisy input, timestep, target, weight        loss = weight * mean((UNet(noisy) - target)^2)

It runs on the host, in the thread that prepares batches. So every objective shares one graph.
x latents, n noise, s the standard deviation of the noise (sigma), F what the UNet predicts,
T noise levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindbooth.data.batches import Floats, Objective

from .config import ConfigError, ObjectiveConfig

Doubles = NDArray[np.float64]

# Where nothing is left of the signal, EulerDiscreteScheduler takes this for its share.
LEAST_SIGNAL = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """Those of a run. prior: of class pictures. name: for the log."""

    instance: Objective
    prior: Objective
    name: str


@dataclass(frozen=True, kw_only=True)
class Levels:
    """An objective as numbers for each noise level, (T,): u falls on each equally often.

    input and target: how much of the latents is in it, and how much of the noise.
    """

    timestep: Doubles
    input: tuple[Doubles, Doubles]
    target: tuple[Doubles, Doubles]
    weight: Doubles

    def __call__(
        self, latents: Floats, noise: Floats, u: float
    ) -> tuple[Floats, float, Floats, float]:
        i = int(u * len(self.timestep))
        noisy, target = (
            np.float32(of_latents[i]) * latents + np.float32(of_noise[i]) * noise
            for of_latents, of_noise in (self.input, self.target)
        )
        return noisy, float(self.timestep[i]), target, float(self.weight[i])


def choose(scheduler: Mapping[str, Any], options: ObjectiveConfig) -> Objectives:
    """The objectives for a model whose scheduler_config.json this is.

    Class pictures have no min-SNR weights: they count as the well-known scripts count them.
    Raises ConfigError for a model that can't be trained, and for min-SNR with EDM.
    """
    prediction, gamma = _prediction(scheduler), options.snr_gamma
    if _is_edm(scheduler):
        if gamma is not None:
            raise ConfigError(
                f"--snr_gamma {gamma:g} weighs noise levels, and so does EDM, in which this model "
                f"was made ({scheduler['_class_name']}). Leave --snr_gamma out."
            )
        levels = edm(scheduler)
        return Objectives(instance=levels, prior=levels, name=f"EDM, {prediction}")
    if options.do_edm_style_training:
        levels = euler(scheduler)
        return Objectives(instance=levels, prior=levels, name=f"EDM by Euler, {prediction}")
    levels = diffusion(scheduler)
    if gamma is None:
        return Objectives(instance=levels, prior=levels, name=prediction)
    return Objectives(
        instance=min_snr(levels, gamma, prediction),
        prior=levels,
        name=f"{prediction}, min-SNR with gamma {gamma:g}",
    )


def remarks(
    scheduler: Mapping[str, Any], options: ObjectiveConfig, variant: str | None
) -> tuple[str, ...]:
    """What the user should be told about flags that do little for this model, or harm."""
    if _is_edm(scheduler):
        if variant is None:
            return ()
        return (
            f"--variant {variant} with a model made in EDM: for training Playground v2.5, no "
            "variant is recommended. Leave it out.",
        )
    if options.do_edm_style_training and _prediction(scheduler) == "epsilon":
        return (
            "--do_edm_style_training changes nothing for a model that predicts the noise: the "
            "loss is the same in both formulations.",
        )
    return ()


def diffusion(scheduler: Mapping[str, Any]) -> Levels:
    """The model's own noise schedule, as in DDPM, https://arxiv.org/abs/2006.11239.

    The input is a x + b n, with a^2 the share of signal and a^2 + b^2 = 1. Targets: epsilon, n;
    v_prediction, a n - b x (https://arxiv.org/abs/2202.00512).
    """
    return _variance_preserving(alphas_cumprod(scheduler), _prediction(scheduler))


def euler(scheduler: Mapping[str, Any]) -> Levels:
    """EDM's loss at the noise levels of the model's own schedule (EulerDiscreteScheduler).

    The UNet sees (x + s n) / sqrt(s^2 + 1) with s = b / a, and that is a x + b n, the input of
    `diffusion`. Its prediction is turned into one of the latents, and the loss weighed by 1 / s^2:

        epsilon       D = (x + s n) - s F                      D - x = -s (F - n)
        v_prediction  D = (x + s n) / (s^2 + 1) - b F          D - x = -b (F - (a n - b x))

    So targets are those of `diffusion`, and what is left of the weight is 1, and b^2 / s^2 = a^2.
    """
    signal = np.maximum(alphas_cumprod(scheduler), LEAST_SIGNAL)
    prediction = _prediction(scheduler)
    levels = _variance_preserving(signal, prediction)
    return levels if prediction == "epsilon" else replace(levels, weight=signal)


def edm(scheduler: Mapping[str, Any]) -> Levels:
    """The loss of a model made in EDM, https://arxiv.org/abs/2206.00364, table 1 (d: sigma_data).

    The UNet sees (x + s n) / sqrt(s^2 + d^2) and log(s) / 4. The latents are predicted by

        D = (x + s n) d^2 / (s^2 + d^2) + c F        c = s d / sqrt(s^2 + d^2)

    so D - x = c (F - (s x - d^2 n) / (d sqrt(s^2 + d^2))). With v_prediction, c has a minus, and so
    has the target. Noise levels are drawn evenly over the schedule, and weighed by c^2 alone.
    """
    s, d = _sigmas(scheduler), float(scheduler.get("sigma_data", 0.5))
    width = np.sqrt(s**2 + d**2)
    sign = 1.0 if _prediction(scheduler) == "epsilon" else -1.0
    return Levels(
        timestep=0.25 * np.log(s),
        input=(1 / width, s / width),
        target=(sign * s / (d * width), -sign * d / width),
        weight=(s * d / width) ** 2,
    )


def min_snr(levels: Levels, gamma: float, prediction: str) -> Levels:
    """Min-SNR weights, https://arxiv.org/abs/2303.09556: min(snr, gamma) / snr for epsilon, and
    min(snr, gamma) / (snr + 1) for v_prediction.

    Without any signal they are 1, the limit, and 0.
    """
    snr = (levels.input[0] / levels.input[1]) ** 2
    if prediction == "epsilon":
        return replace(levels, weight=gamma / np.maximum(snr, gamma))
    return replace(levels, weight=np.minimum(snr, gamma) / (snr + 1))


def alphas_cumprod(config: Mapping[str, Any]) -> Doubles:
    """The share of signal left at each training timestep, (T,), from a scheduler's config.

    Raises ConfigError for another noise schedule than a linear or scaled linear one.
    """
    steps = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
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
    signal: Doubles = np.cumprod(1 - betas)
    return _zero_terminal(signal) if config.get("rescale_betas_zero_snr") else signal


def _zero_terminal(signal: Doubles) -> Doubles:
    """No signal left at the last timestep: algorithm 1 of https://arxiv.org/abs/2305.08891."""
    root = np.sqrt(signal)
    rescaled: Doubles = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return rescaled


def _variance_preserving(signal: Doubles, prediction: str) -> Levels:
    a, b = np.sqrt(signal), np.sqrt(1 - signal)
    nothing, one = np.zeros_like(signal), np.ones_like(signal)
    return Levels(
        timestep=np.arange(len(signal), dtype=np.float64),
        input=(a, b),
        target=(nothing, one) if prediction == "epsilon" else (-b, a),
        weight=one,
    )


def _sigmas(config: Mapping[str, Any]) -> Doubles:
    """EDMEulerScheduler's noise levels, (T,), from sigma_max to the last above sigma_min."""
    steps = config.get("num_train_timesteps", 1000)
    least, most = config.get("sigma_min", 0.002), config.get("sigma_max", 80.0)
    kind = config.get("sigma_schedule", "karras")
    ramp = np.arange(steps) / steps
    if kind == "karras":
        root = 1 / config.get("rho", 7.0)
        sigmas: Doubles = (most**root + ramp * (least**root - most**root)) ** (1 / root)
        return sigmas
    if kind == "exponential":
        return np.exp(np.log(most) + ramp * (np.log(least) - np.log(most)))
    raise ConfigError(
        f"The model's sigma schedule is {kind}; karras and exponential ones can be trained."
    )


def _is_edm(config: Mapping[str, Any]) -> bool:
    return str(config.get("_class_name", "")).startswith("EDM")


def _prediction(config: Mapping[str, Any]) -> str:
    prediction = str(config.get("prediction_type", "epsilon"))
    if prediction not in ("epsilon", "v_prediction"):
        raise ConfigError(
            f"The model's scheduler predicts {prediction}; epsilon and v_prediction can be trained."
        )
    return prediction
