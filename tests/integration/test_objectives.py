"""Objectives against what diffusers' script makes of the same samples with its schedulers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mindbooth.trainer.config import ObjectiveConfig
from mindbooth.trainer.objective import choose

Arrays = dict[str, np.ndarray]

SDXL = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
FEW = {"num_train_timesteps": 8, "trained_betas": [0.01, 0.02, 0.05, 0.1, 0.1, 0.3, 0.3, 0.5]}
V = {"prediction_type": "v_prediction"}
BETAS = {
    "scaled linear": SDXL,
    "linear": {**SDXL, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "zero terminal": {**SDXL, "rescale_betas_zero_snr": True},
    "betas given": {**SDXL, **FEW},
}
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "num_train_timesteps": 1000}
SIGMAS = {
    "karras": {**EDM, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0},
    "exponential": {
        **EDM, "sigma_schedule": "exponential", "sigma_max": 120.0, "sigma_data": 1.0,
        "num_train_timesteps": 200,
    },
}  # fmt: skip


def case(scheduler: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"scheduler": scheduler, "edm": False, "gamma": None} | options


CASES = {
    f"{name}{', v' if change else ''}{told}": case({**scheduler, **change}, **options)
    for schedules, choices in (
        (BETAS, (("", {}), (", min-SNR", {"gamma": 5.0}), (", Euler", {"edm": True}))),
        (SIGMAS, ((", EDM", {}),)),
    )
    for name, scheduler in schedules.items()
    for change in ({}, V)
    for told, options in choices
}
# diffusers divides 0 by 0 at the last level; the limit is the loss without min-SNR.
UNDEFINED, LIMIT = ("zero terminal, min-SNR", 3), "zero terminal"


@pytest.fixture(scope="module")
def drawn() -> Arrays:
    """u reaches from the first to the last noise level."""
    generator = np.random.default_rng(11)
    shape = (24, 4, 6, 5)
    normals = {name: generator.standard_normal(shape) for name in ("latents", "noise", "predicted")}
    u = np.concatenate([[0.0, 0.001, 0.998, 0.999], generator.random(20)])
    return {name: array.astype(np.float32) for name, array in normals.items()} | {"u": u}


@pytest.fixture(scope="module")
def diffusers(drawn: Arrays, torch_side: Any) -> dict[str, Arrays]:
    """noisy, timestep and loss by the case's name."""
    cases = list(CASES.values())
    levels = {
        f"levels {i}": np.floor(drawn["u"] * one["scheduler"]["num_train_timesteps"]).astype(int)
        for i, one in enumerate(cases)
    }
    found = torch_side("noising", drawn | levels, cases=cases)
    return {
        name: {part: found[f"{part} {i}"] for part in ("noisy", "timestep", "loss")}
        for i, name in enumerate(CASES)
    }


def ours(name: str, drawn: Arrays) -> list[tuple[np.ndarray, float, np.ndarray, float]]:
    one = CASES[name]
    options = ObjectiveConfig(do_edm_style_training=one["edm"], snr_gamma=one["gamma"])
    at = choose(one["scheduler"], options).instance
    return [
        at(*sample) for sample in zip(drawn["latents"], drawn["noise"], drawn["u"], strict=True)
    ]


@pytest.mark.parametrize("name", CASES)
def test_inputs_and_timesteps_are_those_of_diffusers(
    name: str, drawn: Arrays, diffusers: dict[str, Arrays]
) -> None:
    theirs = diffusers[name]
    for k, (noisy, timestep, _, _) in enumerate(ours(name, drawn)):
        assert np.float32(timestep) == pytest.approx(theirs["timestep"][k], rel=1e-6, abs=1e-6)
        assert np.abs(noisy - theirs["noisy"][k]).max() < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_diffusers(
    name: str, drawn: Arrays, diffusers: dict[str, Arrays]
) -> None:
    # diffusers has 1 - alphas_cumprod from fp32: 2e-4 of the least, and so of the SNR there.
    rel = 3e-4 if CASES[name]["gamma"] else 5e-5
    for k, (_, _, target, weight) in enumerate(ours(name, drawn)):
        found = weight * np.mean((drawn["predicted"][k] - target) ** 2, dtype=np.float64)
        theirs = diffusers[LIMIT if (name, k) == UNDEFINED else name]["loss"][k]
        assert found == pytest.approx(theirs, rel=rel, abs=0), k
