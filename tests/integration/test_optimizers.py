"""AdamW, Prodigy and learning rates against torch, prodigyopt and Hugging Face diffusers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]

SIZE, SCALE, MAX_GRAD_NORM = 211, 1024.0, 1.0
UPDATES = {"AdamW": 200, "Prodigy": 100}

WHOLE = [{"stop": SIZE, "rate": 1e-3, "weight_decay": 0.05}]
THREE = [
    {"stop": 120, "rate": 1e-3, "weight_decay": 0.05},
    {"stop": 170, "rate": 5e-3, "weight_decay": 0.2},
    {"stop": SIZE, "rate": 3e-4, "weight_decay": 0.0},
]
TWO_ALIKE = [
    {"stop": 150, "rate": 1.0, "weight_decay": 0.01},
    {"stop": SIZE, "rate": 1.0, "weight_decay": 0.1},
]


def case(
    optimizer: str, segments: list[dict[str, float]], schedule: str, **options: Any
) -> dict[str, Any]:
    return {
        "optimizer": optimizer,
        "segments": segments,
        "schedule": {"name": schedule, "warmup": 10, "updates": UPDATES[optimizer]},
        "max_grad_norm": MAX_GRAD_NORM,
        "options": {"betas": (0.9, 0.99), "eps": 1e-3, **options},
    }


ADAMW = {
    "one segment": case("AdamW", WHOLE, "cosine"),
    "three segments": case("AdamW", THREE, "cosine"),
    "great betas": case("AdamW", THREE, "constant", betas=(0.95, 0.999), eps=1e-8),
}
PRODIGY = {
    f"{decouple=} {bias=} {safeguard=} {beta3=}": case(
        "Prodigy",
        TWO_ALIKE,
        "constant_with_warmup",
        decouple=decouple,
        use_bias_correction=bias,
        safeguard_warmup=safeguard,
        beta3=beta3,
    )
    for decouple, bias, safeguard, beta3 in itertools.product(
        (True, False), (True, False), (True, False), (None, 0.98)
    )
}
CASES = ADAMW | PRODIGY

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


@pytest.fixture(scope="module")
def course() -> Arrays:
    """A start as LoRA's, half of it 0, and gradients that turn; some of them are clipped.

    The first update has rate 0, by the warm-up, and the second one's gradients are 0.
    """
    generator = np.random.default_rng(3)
    # Small, because Prodigy weighs p0 - p, of which fp32 leaves two digits while d is 1e-6: one
    # rounding that falls the other way in a number of 0.25 moves d by 1e-5.
    start = generator.standard_normal(SIZE) * 0.02
    start[::2] = 0
    updates = max(UPDATES.values())
    u = np.arange(updates)[:, None]
    direction = generator.standard_normal(SIZE) * np.exp(-u / 40)
    size = 0.6 * np.exp(0.5 * generator.standard_normal((updates, 1))) / np.sqrt(SIZE)
    gradients = (direction + generator.standard_normal((updates, SIZE))) * size
    gradients[1] = 0
    gradients[:, :5] = 0  # never moved but by weight decay
    return {"start": start.astype(np.float32), "gradients": gradients.astype(np.float32)}


@pytest.fixture(scope="module")
def torch_answers(torch_side: Any, course: Arrays) -> Arrays:
    return torch_side("optimizing", course, cases=list(CASES.values()), schedules=SCHEDULES)


def make_optimizer(name: str, start: np.ndarray, *, limit: float = 3e38) -> Any:
    from mindspore import Parameter, Tensor

    from mindbooth.trainer.optimizer import AdamW, Segment
    from mindbooth.trainer.prodigy import Prodigy

    options = dict(CASES[name]["options"])
    return {"AdamW": AdamW, "Prodigy": Prodigy}[CASES[name]["optimizer"]](
        Parameter(Tensor(start), name="master"),
        segments=[Segment(**segment) for segment in CASES[name]["segments"]],
        epsilon=options.pop("eps"),
        max_grad_norm=MAX_GRAD_NORM,
        limit=limit,
        **options,
    )


def wire(gradient: np.ndarray, *, loss: float = 0.25, stops: float = 0.0, dtype: Any = None) -> Any:
    """A reduced wire: gradients scaled by SCALE, the loss, and how many ranks ask for a stop."""
    from mindspore import Tensor

    flat = np.concatenate([gradient * np.float32(SCALE), [loss, stops]])
    return Tensor(flat.astype(dtype or np.float32))


def follow(name: str, course: Arrays, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """The masters (updates, P) after each update, and what the updates returned."""
    from mindbooth.trainer.rates import schedule

    optimizer = make_optimizer(name, course["start"])
    factor = schedule(**CASES[name]["schedule"], rate=CASES[name]["segments"][0]["rate"])
    masters, figures = [], []
    for u in range(CASES[name]["schedule"]["updates"]):
        knobs = optimizer.knobs(update=u, factor=factor(u), scale=SCALE)
        figures.append(optimizer.advance(wire(course["gradients"][u]), knobs, mode=mode).asnumpy())
        masters.append(optimizer.master.asnumpy().copy())
    return np.stack(masters), np.stack(figures)


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The greatest distance between rows, relative to the row."""
    distance, length = np.linalg.norm(ours - theirs, axis=-1), np.linalg.norm(theirs, axis=-1)
    assert (length > 0).all()
    return float((distance / length).max())


EACH = ("one segment", "three segments", next(iter(PRODIGY)))


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "pynative") for name in CASES), *((name, "graph") for name in EACH)]
)
def test_an_optimizer_moves_as_its_model_does(
    name: str, mode: str, cpu: object, course: Arrays, torch_answers: Arrays
) -> None:
    i = list(CASES).index(name)
    ours, figures = follow(name, course, mode)
    theirs, start = torch_answers[f"masters {i}"], course["start"]
    assert apart(ours, theirs) <= (1e-6 if name in ADAMW else 1e-5)
    half = len(theirs) // 2  # after it, the start is far enough for fp32 to tell how far
    assert apart(ours[half:] - start, theirs[half:] - start) <= 1e-5
    norms = torch_answers[f"norms {i}"]
    assert np.allclose(figures[:, 1], norms, rtol=1e-6, atol=0)
    assert 0 < (norms > MAX_GRAD_NORM).sum() < len(norms) / 2
    assert np.array_equal(figures[:, [0, 2, 3]], [[0.25, 1, 0]] * len(norms))
    if name in PRODIGY:
        d = torch_answers[f"d {i}"]
        assert np.allclose(figures[:, 4], d, rtol=1e-5, atol=0)
        assert d[-1] > 30 * d[0]


def advance(optimizer: Any, course: Arrays, updates: range) -> None:
    for u in updates:
        knobs = optimizer.knobs(update=u, factor=1.0, scale=SCALE)
        optimizer.advance(wire(course["gradients"][u]), knobs, mode="graph")


def everything(optimizer: Any) -> Arrays:
    return {"master": optimizer.master.asnumpy().copy(), **optimizer.state()}


def same(one: Arrays, other: Arrays) -> dict[str, bool]:
    assert list(one) == list(other)
    return {name: np.array_equal(one[name], other[name]) for name in one}


@pytest.mark.parametrize("name", EACH)
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
    name: str, cpu: object, course: Arrays, dtype: Any, limit: float, poison: float
) -> None:
    optimizer = make_optimizer(name, course["start"], limit=limit)
    advance(optimizer, course, range(4))
    before = everything(optimizer)
    gradient = course["gradients"][4].copy()
    gradient[17] = poison
    knobs = optimizer.knobs(update=4, factor=1.0, scale=SCALE)
    poisoned = wire(gradient, stops=1.0, dtype=dtype)
    applied, stops = optimizer.advance(poisoned, knobs, mode="graph").asnumpy()[2:4]
    assert (applied, stops) == (0, 1)
    assert all(same(before, everything(optimizer)).values())


@pytest.mark.parametrize("name", EACH)
def test_the_greatest_sound_gradient_is_applied(name: str, cpu: object, course: Arrays) -> None:
    optimizer = make_optimizer(name, course["start"], limit=65504.0)
    gradient = course["gradients"][5].copy()
    gradient[17] = 65472.0 / SCALE  # the fp16 number below 65504
    before = everything(optimizer)
    knobs = optimizer.knobs(update=0, factor=1.0, scale=SCALE)
    figures = optimizer.advance(wire(gradient, dtype=np.float16), knobs, mode="graph")
    assert figures.asnumpy()[2] == 1
    after = same(before, everything(optimizer))
    assert {k for k in after if after[k]} == ({"p0"} if name in PRODIGY else set())


@pytest.mark.parametrize("name", EACH)
def test_a_state_put_back_goes_on_with_the_same_bits(
    name: str, cpu: object, course: Arrays
) -> None:
    from mindspore import Tensor, ops

    straight = make_optimizer(name, course["start"])
    advance(straight, course, range(6))
    kept = everything(straight)
    other = make_optimizer(name, np.ones_like(course["start"]))
    ops.assign(other.master, Tensor(kept["master"]))
    other.load(kept)
    assert all(same(kept, everything(other)).values())
    for optimizer in (straight, other):
        advance(optimizer, course, range(6, 9))
    assert all(same(everything(straight), everything(other)).values())
    # What was kept is no window on the optimizer.
    assert {k for k, v in same(kept, everything(straight)).items() if v} <= {"p0"}


@pytest.mark.parametrize("i", range(len(SCHEDULES)), ids=[
    "{name}-{warmup}-{cycles}-{power}".format(**options) for options in SCHEDULES
])  # fmt: skip
def test_rates_are_those_of_diffusers(i: int, torch_answers: Arrays) -> None:
    from mindbooth.trainer.rates import schedule

    options = dict(SCHEDULES[i])
    factor = schedule(str(options.pop("name")), **options)  # type: ignore[arg-type]
    ours = [SCHEDULES[i]["rate"] * factor(u) for u in range(23)]  # type: ignore[operator]
    assert np.allclose(ours, torch_answers[f"rates {i}"], rtol=1e-9, atol=0)
