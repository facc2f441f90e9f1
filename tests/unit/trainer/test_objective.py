"""Targets and noise schedules; the numbers are compared with diffusers in test_numbers.py."""

from collections import Counter

import numpy as np
import pytest

from mindbooth.trainer.config import ConfigError
from mindbooth.trainer.objective import alphas_cumprod, diffusion

SDXL = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
LATENTS, NOISE = np.full((4, 2, 2), 3.0, np.float32), np.full((4, 2, 2), -2.0, np.float32)


def test_u_from_0_to_1_covers_every_timestep_evenly() -> None:
    at = diffusion({**SDXL, "num_train_timesteps": 50})
    seen = Counter(at(LATENTS, NOISE, (i + 0.5) / 1000)[1] for i in range(1000))
    assert seen == {float(t): 20 for t in range(50)}


@pytest.mark.parametrize(("u", "t"), [(0.0, 0.0), (1 - 2**-53, 999.0), (0.5, 500.0)])
def test_the_ends_of_u_are_the_ends_of_the_timesteps(u: float, t: float) -> None:
    assert diffusion(SDXL)(LATENTS, NOISE, u)[1] == t


def test_what_is_noisy_keeps_the_variance() -> None:
    generator = np.random.default_rng(0)
    latents, noise = (generator.standard_normal((4, 64, 64), dtype=np.float32) for _ in range(2))
    for u in (0.0, 0.3, 0.999):
        assert abs(diffusion(SDXL)(latents, noise, u)[0].var() - 1) < 0.02


def test_signal_falls_from_almost_all_to_almost_none() -> None:
    signal = alphas_cumprod(SDXL)
    assert signal.shape == (1000,)
    assert (np.diff(signal) < 0).all()
    assert signal[0] > 0.999
    assert 0 < signal[-1] < 0.005


def test_rescaled_signal_ends_at_none() -> None:
    signal = alphas_cumprod({**SDXL, "rescale_betas_zero_snr": True})
    assert signal[0] == pytest.approx(alphas_cumprod(SDXL)[0])
    assert signal[-1] == 0


def test_epsilon_is_the_default_and_its_target_the_noise() -> None:
    noisy, _, target, weight = diffusion(SDXL)(LATENTS, NOISE, 0.4)
    assert target is NOISE
    assert weight == 1.0
    assert noisy.dtype == np.float32


def test_velocity_and_noisy_latents_give_back_the_latents() -> None:
    at = diffusion({**SDXL, "prediction_type": "v_prediction"})
    noisy, t, velocity, _ = at(LATENTS, NOISE, 0.4)
    signal = alphas_cumprod(SDXL)[int(t)]
    assert np.allclose(signal**0.5 * noisy - (1 - signal) ** 0.5 * velocity, LATENTS, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prediction_type": "sample"}, "sample"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
        ({"_class_name": "EDMEulerScheduler"}, "EDM"),
    ],
)
def test_what_can_not_be_trained_is_refused(change: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        diffusion({**SDXL, **change})
