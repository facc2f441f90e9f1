"""The adapter's moving average on the tiny UNet: its numbers, and how it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

DECAY, UPDATES = 0.6, 25  # the decay is reached after 14 updates


@pytest.fixture(scope="module")
def adapter(cpu: object, tiny_pipeline: Path) -> Any:
    from mindbooth.trainer import lora, sdxl
    from mindbooth.trainer.config import ModelConfig

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(tiny_pipeline)))
    unet = sdxl.load_unet(model, sdxl.DTYPES["no"])
    lora.inject(unet, rank=2)
    return lora.Adapter({"unet": unet}, seed=5)


@pytest.fixture
def ema(adapter: Any) -> Any:
    """After two updates: the average is no longer the master."""
    from mindbooth.trainer.ema import Ema

    generator = np.random.default_rng(7)
    ema = Ema(adapter, DECAY)
    for done in (1, 2):
        adapter.load(generator.standard_normal(adapter.size) * 0.2)
        ema.update(done)
    return ema


def seen(adapter: Any) -> dict[str, np.ndarray]:
    """The master, every layer's own tensors as one vector, and what the UNet makes of them."""
    from mindspore import Tensor

    generator = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return Tensor(generator.standard_normal(shape).astype(np.float32))

    latents, text, pooled, sizes = (
        normal(1, 4, 16, 16), normal(1, 32, 64), normal(1, 32), normal(1, 6)
    )  # fmt: skip
    conditions = {"text_embeds": pooled, "time_ids": sizes}
    output = adapter.models["unet"](
        latents, Tensor([500.0]), text, added_cond_kwargs=conditions, return_dict=False
    )[0]
    return {
        "master": adapter.master.asnumpy().copy(),
        "layers": np.concatenate([p.asnumpy().ravel() for p in adapter.parameters]),
        "output": output.asnumpy().copy(),
    }


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, bool]:
    return {name: np.array_equal(one[name], other[name]) for name in one}


def test_the_average_is_that_of_diffusers(adapter: Any, torch_side: Any) -> None:
    from mindbooth.trainer.ema import Ema

    generator = np.random.default_rng(1)
    steps = generator.standard_normal((UPDATES + 1, adapter.size)) * 0.1
    start, *masters = np.cumsum(steps, axis=0).astype(np.float32)
    theirs = torch_side("averaging", {"start": start, "masters": np.stack(masters)}, decay=DECAY)
    adapter.load(start)
    ema = Ema(adapter, DECAY)
    assert np.array_equal(ema.state()["average"], start)
    for done, (master, average) in enumerate(zip(masters, theirs["averages"], strict=True), 1):
        adapter.load(master)
        ema.update(done)
        distance = np.linalg.norm(ema.state()["average"] - average)
        assert distance <= 1e-6 * np.linalg.norm(average)


def test_shown_is_the_average_and_afterwards_the_adapter_to_the_bit(adapter: Any, ema: Any) -> None:
    before, average = seen(adapter), ema.state()["average"]
    with ema.shown():
        shown = seen(adapter)
    assert np.array_equal(shown["master"], average)
    assert np.array_equal(shown["layers"], average)
    assert not any(same(shown, before).values())
    assert all(same(seen(adapter), before).values())
    adapter.load(average)
    assert all(same(seen(adapter), shown).values())


def test_the_adapter_comes_back_after_an_error_too(adapter: Any, ema: Any) -> None:
    before = seen(adapter)
    with pytest.raises(OSError, match="disk"), ema.shown():
        raise OSError("disk full")
    assert all(same(seen(adapter), before).values())


def test_an_average_put_back_goes_on_with_the_same_bits(adapter: Any, ema: Any) -> None:
    from mindbooth.trainer.ema import Ema

    kept = ema.state()
    adapter.load(adapter.master.asnumpy() + 1)
    other = Ema(adapter, DECAY)
    other.load(kept)
    assert all(same(other.state(), kept).values())
    for one in (ema, other):
        one.update(3)
    assert all(same(other.state(), ema.state()).values())
    assert not any(same(kept, ema.state()).values())
