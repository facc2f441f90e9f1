"""Optimizer, learning rates and objectives against torch and Hugging Face diffusers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]

SIZE, UPDATES = 211, 12
ADAMW = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.05, "max_grad_norm": 5.0}
SCALE = 1024.0
SCHEDULES = [
    {"name": name, "rate": 3e-4, "warmup": warmup, "updates": 23, "cycles": cycles, "power": power}
    for name, cycles, power in (
        ("linear", 1, 1.0),
        ("cosine", 1, 1.0),
        ("cosine_with_restarts", 1, 1.0),
        ("cosine_with_restarts", 3, 1.0),
        ("polynomial", 1, 1.0),
        ("polynomial", 1, 2.5),
        ("constant", 1, 1.0),
        ("constant_with_warmup", 1, 1.0),
    )
    for warmup in (0, 5, 30)
]
SDXL = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
SCHEDULERS: list[dict[str, Any]] = [
    SDXL,
    {**SDXL, "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {**SDXL, "rescale_betas_zero_snr": True},
    {
        **SDXL,
        "num_train_timesteps": 8,
        "trained_betas": [0.01, 0.02, 0.05, 0.1, 0.1, 0.3, 0.3, 0.5],
    },
]


@pytest.fixture(scope="module")
def course() -> Arrays:
    """A start, and gradients that are clipped in some updates and not in others."""
    generator = np.random.default_rng(3)
    size = np.geomspace(1e-3, 1e1, UPDATES)[:, None] / np.sqrt(SIZE)
    gradients = generator.standard_normal((UPDATES, SIZE)) * size
    gradients[:, :5] = 0  # never moved but by weight decay
    return {
        "start": generator.standard_normal(SIZE).astype(np.float32),
        "gradients": gradients.astype(np.float32),
        "rates": np.linspace(1e-3, 1e-2, UPDATES).astype(np.float32),
    }


@pytest.fixture(scope="module")
def torch_answers(torch_side: Any, course: Arrays) -> Arrays:
    return torch_side("optimizing", course, adamw=ADAMW, schedules=SCHEDULES)


def make_optimizer(start: np.ndarray, *, limit: float = 3e38) -> Any:
    from mindspore import Parameter, Tensor

    from mindbooth.trainer.optimizer import AdamW

    return AdamW(
        Parameter(Tensor(start), name="master"),
        betas=(0.8, 0.95),
        epsilon=1e-6,
        weight_decay=0.05,
        max_grad_norm=5.0,
        limit=limit,
    )


def wire(gradient: np.ndarray, *, loss: float = 0.25, stops: float = 0.0, dtype: Any = None) -> Any:
    """A reduced wire: gradients scaled by SCALE, the loss, and how many ranks ask for a stop."""
    from mindspore import Tensor

    flat = np.concatenate([gradient * np.float32(SCALE), [loss, stops]])
    return Tensor(flat.astype(dtype or np.float32))


def test_adamw_moves_as_that_of_torch_does(
    cpu: object, course: Arrays, torch_answers: Arrays
) -> None:
    optimizer = make_optimizer(course["start"])
    norms = []
    for update, (gradient, rate) in enumerate(
        zip(course["gradients"], course["rates"], strict=True)
    ):
        knobs = optimizer.knobs(update=update, rate=float(rate), scale=SCALE)
        loss, norm, applied, stops = optimizer(wire(gradient), knobs).asnumpy().tolist()
        assert (loss, applied, stops) == (0.25, 1.0, 0.0)
        norms.append(norm)
        ours, theirs = optimizer.master.asnumpy(), torch_answers["masters"][update]
        assert np.linalg.norm(ours - theirs) <= 1e-6 * np.linalg.norm(theirs)
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs - course["start"])
    assert np.allclose(norms, torch_answers["norms"], rtol=1e-6)
    assert 0 < sum(norm > 5.0 for norm in norms) < UPDATES


@pytest.mark.parametrize(
    ("dtype", "limit", "poison"),
    [
        (np.float32, 3e38, np.inf),
        (np.float32, 3e38, -np.inf),
        (np.float32, 3e38, np.nan),
        (np.float16, 65504.0, np.inf),
        (np.float16, 65504.0, 65504.0 / SCALE),  # a chip that saturates instead of overflowing
        (np.float16, 65504.0, -65504.0 / SCALE),
    ],
)
def test_an_overflow_changes_nothing(
    cpu: object, course: Arrays, dtype: Any, limit: float, poison: float
) -> None:
    optimizer = make_optimizer(course["start"], limit=limit)
    gradient = course["gradients"][5].copy()
    optimizer(
        wire(gradient, dtype=dtype), optimizer.knobs(update=0, rate=1e-3, scale=SCALE)
    ).asnumpy()
    before = {"master": optimizer.master.asnumpy().copy(), **optimizer.moments()}
    gradient[17] = poison
    knobs = optimizer.knobs(update=1, rate=1e-3, scale=SCALE)
    applied, stops = optimizer(wire(gradient, stops=1.0, dtype=dtype), knobs).asnumpy()[2:]
    after = {"master": optimizer.master.asnumpy(), **optimizer.moments()}
    assert (applied, stops) == (0, 1)
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_the_greatest_sound_gradient_is_applied(cpu: object, course: Arrays) -> None:
    optimizer = make_optimizer(course["start"], limit=65504.0)
    gradient = course["gradients"][5].copy()
    gradient[17] = 65472.0 / SCALE  # the fp16 number below 65504
    knobs = optimizer.knobs(update=0, rate=1e-3, scale=SCALE)
    assert optimizer(wire(gradient, dtype=np.float16), knobs).asnumpy()[2] == 1


def test_moments_are_put_back(cpu: object, course: Arrays) -> None:
    from mindspore import Tensor, ops

    optimizer, other = (make_optimizer(course["start"]) for _ in range(2))
    knobs = [optimizer.knobs(update=u, rate=1e-3, scale=SCALE) for u in (0, 1)]
    optimizer(wire(course["gradients"][3]), knobs[0]).asnumpy()
    ops.assign(other.master, Tensor(optimizer.master.asnumpy()))
    other.load(**optimizer.moments())
    for one in (optimizer, other):
        one(wire(course["gradients"][4]), knobs[1]).asnumpy()
    assert np.array_equal(optimizer.master.asnumpy(), other.master.asnumpy())


@pytest.mark.parametrize("i", range(len(SCHEDULES)), ids=[
    "{name}-{warmup}-{cycles}-{power}".format(**options) for options in SCHEDULES
])  # fmt: skip
def test_rates_are_those_of_diffusers(i: int, torch_answers: Arrays) -> None:
    from mindbooth.trainer.rates import schedule

    options = dict(SCHEDULES[i])
    at = schedule(str(options.pop("name")), **options)  # type: ignore[arg-type]
    assert np.allclose([at(u) for u in range(23)], torch_answers[f"rates {i}"], rtol=1e-9, atol=0)


@pytest.fixture(scope="module")
def drawn() -> Arrays:
    generator = np.random.default_rng(11)
    shape = (24, 4, 6, 5)
    return {
        "latents": generator.standard_normal(shape).astype(np.float32),
        "noise": generator.standard_normal(shape).astype(np.float32),
        "u": generator.random(24),
    }


@pytest.fixture(scope="module")
def diffusers_answers(drawn: Arrays, torch_side: Any) -> Arrays:
    timesteps = {f"timesteps {i}": whole(drawn["u"], config) for i, config in enumerate(SCHEDULERS)}
    return torch_side("noising", drawn | timesteps, configs=SCHEDULERS)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("i", range(len(SCHEDULERS)))
def test_noise_and_targets_are_those_of_diffusers(
    i: int, prediction: str, drawn: Arrays, diffusers_answers: Arrays
) -> None:
    from mindbooth.trainer import objective

    at = objective.diffusion({**SCHEDULERS[i], "prediction_type": prediction})
    targets = drawn["noise"] if prediction == "epsilon" else diffusers_answers[f"velocity {i}"]
    for k, t in enumerate(whole(drawn["u"], SCHEDULERS[i])):
        noisy, timestep, target, weight = at(drawn["latents"][k], drawn["noise"][k], drawn["u"][k])
        assert (timestep, weight) == (t, 1.0)
        assert np.abs(noisy - diffusers_answers[f"noisy {i}"][k]).max() < 5e-6
        assert np.abs(target - targets[k]).max() < 5e-6


def whole(u: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """The timesteps that numbers in [0, 1) stand for."""
    return np.floor(u * config["num_train_timesteps"]).astype(np.int64)
