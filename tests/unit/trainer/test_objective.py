"""Targets, weights and noise levels; the numbers are compared with diffusers in
tests/integration/test_objectives.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mindbooth.data.batches import Objective
from mindbooth.trainer.config import ConfigError, ObjectiveConfig
from mindbooth.trainer.objective import alphas_cumprod, choose, diffusion, edm, euler, remarks

SDXL = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
V = {**SDXL, "prediction_type": "v_prediction"}
ZERO_TERMINAL = {"rescale_betas_zero_snr": True}
PLAYGROUND = {"_class_name": "EDMDPMSolverMultistepScheduler", "num_train_timesteps": 1000}
LATENTS, NOISE = np.full((4, 2, 2), 3.0, np.float32), np.full((4, 2, 2), -2.0, np.float32)
PLAIN, BY_EULER = ObjectiveConfig(), ObjectiveConfig(do_edm_style_training=True)
MIN_SNR = ObjectiveConfig(snr_gamma=5.0)
ENDS = (0.0, 0.3, 1 - 2**-53)


def normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 64, 64), dtype=np.float32)


def weights(at: Objective, steps: int = 1000) -> np.ndarray:
    """At each of the noise levels."""
    return np.array([at(LATENTS, NOISE, (i + 0.5) / steps)[3] for i in range(steps)])


def same(one: Objective, other: Objective) -> bool:
    answers = ((a(LATENTS, NOISE, u) for u in ENDS) for a in (one, other))
    return all(
        np.array_equal(a, b)
        for pair in zip(*answers, strict=True)
        for a, b in zip(*pair, strict=True)
    )


def test_u_from_0_to_1_covers_every_timestep_evenly() -> None:
    at = diffusion({**SDXL, "num_train_timesteps": 50})
    seen = Counter(at(LATENTS, NOISE, (i + 0.5) / 1000)[1] for i in range(1000))
    assert seen == {float(t): 20 for t in range(50)}


@pytest.mark.parametrize(("u", "t"), [(0.0, 0.0), (1 - 2**-53, 999.0), (0.5, 500.0)])
def test_the_ends_of_u_are_the_ends_of_the_timesteps(u: float, t: float) -> None:
    assert diffusion(SDXL)(LATENTS, NOISE, u)[1] == t


@pytest.mark.parametrize("at", [diffusion(SDXL), euler(V)], ids=["diffusion", "euler"])
def test_what_is_noisy_keeps_the_variance(at: Objective) -> None:
    latents, noise = normal(0), normal(1)
    for u in ENDS:
        assert abs(at(latents, noise, u)[0].var() - 1) < 0.05


@pytest.mark.parametrize("data", [0.5, 1.0])
def test_edm_brings_input_and_target_to_variance_1(data: float) -> None:
    latents, noise = normal(0) * np.float32(data), normal(1)
    for u in ENDS:
        noisy, _, target, _ = edm({**PLAYGROUND, "sigma_data": data})(latents, noise, u)
        assert abs(noisy.var() - 1) < 0.05
        assert abs(target.var() - 1) < 0.05


def test_signal_falls_from_almost_all_to_almost_none() -> None:
    signal = alphas_cumprod(SDXL)
    assert signal.shape == (1000,)
    assert (np.diff(signal) < 0).all()
    assert signal[0] > 0.999
    assert 0 < signal[-1] < 0.005


def test_rescaled_signal_ends_at_none() -> None:
    signal = alphas_cumprod({**SDXL, **ZERO_TERMINAL})
    assert signal[0] == pytest.approx(alphas_cumprod(SDXL)[0])
    assert signal[-1] == 0


def test_epsilon_is_the_default_and_its_target_the_noise() -> None:
    noisy, _, target, weight = diffusion(SDXL)(LATENTS, NOISE, 0.4)
    assert np.array_equal(target, NOISE)
    assert weight == 1.0
    assert noisy.dtype == target.dtype == np.float32


def test_velocity_and_noisy_latents_give_back_the_latents() -> None:
    noisy, t, velocity, _ = diffusion(V)(LATENTS, NOISE, 0.4)
    signal = alphas_cumprod(SDXL)[int(t)]
    assert np.allclose(signal**0.5 * noisy - (1 - signal) ** 0.5 * velocity, LATENTS, atol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "options", "name"),
    [
        (SDXL, PLAIN, "epsilon"),
        (V, PLAIN, "v_prediction"),
        (SDXL, MIN_SNR, "epsilon, min-SNR with gamma 5"),
        (V, BY_EULER, "EDM by Euler, v_prediction"),
        (PLAYGROUND, PLAIN, "EDM, epsilon"),
        (PLAYGROUND, BY_EULER, "EDM, epsilon"),
        ({**PLAYGROUND, "_class_name": "EDMEulerScheduler"}, PLAIN, "EDM, epsilon"),
    ],
)
def test_the_objective_follows_model_and_flags(
    scheduler: Mapping[str, Any], options: ObjectiveConfig, name: str
) -> None:
    assert choose(scheduler, options).name == name


@pytest.mark.parametrize("prediction", [SDXL, V])
def test_min_snr_weighs_instance_pictures_only(prediction: Mapping[str, Any]) -> None:
    found = choose(prediction, MIN_SNR)
    assert np.ptp(weights(found.instance)) > 0.5
    assert same(found.prior, diffusion(prediction))


@pytest.mark.parametrize("scheduler", [V, PLAYGROUND])
def test_edm_weighs_class_pictures_as_the_others(scheduler: Mapping[str, Any]) -> None:
    found = choose(scheduler, BY_EULER)
    assert np.ptp(weights(found.instance)) > 0.2
    assert same(found.prior, found.instance)


@pytest.mark.parametrize(("scheduler", "end"), [(SDXL, 1.0), (V, 0.0)])
def test_min_snr_has_a_finite_weight_without_any_signal(
    scheduler: Mapping[str, Any], end: float
) -> None:
    found = weights(choose({**scheduler, **ZERO_TERMINAL}, MIN_SNR).instance)
    assert np.isfinite(found).all()
    assert found[-1] == end
    assert abs(found[-2] - end) < 1e-4


@pytest.mark.parametrize("scheduler", [SDXL, V])
def test_a_huge_gamma_leaves_the_weights_that_come_with_the_latents(
    scheduler: Mapping[str, Any],
) -> None:
    signal = alphas_cumprod(SDXL)
    found = weights(choose(scheduler, ObjectiveConfig(snr_gamma=1e9)).instance)
    assert np.allclose(found, 1.0 if scheduler is SDXL else signal, rtol=1e-9)


def test_edm_style_training_of_a_model_that_predicts_noise_is_the_plain_loss() -> None:
    assert same(choose(SDXL, BY_EULER).instance, diffusion(SDXL))


@pytest.mark.parametrize("scheduler", [{**SDXL, **ZERO_TERMINAL}, {**V, **ZERO_TERMINAL}])
def test_edm_style_training_is_finite_without_any_signal(scheduler: Mapping[str, Any]) -> None:
    noisy, t, target, weight = euler(scheduler)(LATENTS, NOISE, ENDS[-1])
    assert t == 999
    assert np.isfinite([noisy.sum(), target.sum()]).all()
    assert weight > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prediction_type": "sample"}, "predicts sample; epsilon and v_prediction can"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2; linear and scaled_linear"),
        ({**PLAYGROUND, "prediction_type": "sample"}, "predicts sample"),
        ({**PLAYGROUND, "sigma_schedule": "beta"}, "sigma schedule is beta; karras and exp"),
    ],
)
@pytest.mark.parametrize("options", [PLAIN, BY_EULER])
def test_what_can_not_be_trained_is_refused(
    change: dict[str, str], told: str, options: ObjectiveConfig
) -> None:
    with pytest.raises(ConfigError, match=told):
        choose({**SDXL, **change}, options)


def test_min_snr_is_refused_for_a_model_made_in_edm() -> None:
    with pytest.raises(ConfigError, match="--snr_gamma 5 .*EDMDPMSolver.* Leave --snr_gamma out"):
        choose(PLAYGROUND, MIN_SNR)


@pytest.mark.parametrize(
    ("scheduler", "options", "variant", "told"),
    [
        (PLAYGROUND, PLAIN, "fp16", "--variant fp16"),
        (PLAYGROUND, BY_EULER, None, None),
        (SDXL, PLAIN, "fp16", None),
        (SDXL, BY_EULER, None, "--do_edm_style_training changes nothing"),
        (V, BY_EULER, "fp16", None),
    ],
)
def test_flags_that_do_little_or_harm_are_remarked_on(
    scheduler: Mapping[str, Any], options: ObjectiveConfig, variant: str | None, told: str | None
) -> None:
    found = remarks(scheduler, options, variant)
    assert [told in one for one in found] == [True] if told else found == ()
