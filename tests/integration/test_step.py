"""The fused step on the tiny SDXL: against diffusers and peft on torch, and its invariants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindbooth.data.batches import Batch

RANK, RATE = 3, 1e-3
WEIGHT_DECAY, MAX_GRAD_NORM = 1e-2, 1.0


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """Two samples each, with weights that differ."""
    return [random_batch(seed) for seed in range(5)]


def random_batch(seed: int) -> Batch:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    return Batch(
        samples=(2 * seed, 2 * seed + 1),
        noisy=normal(2, 4, 16, 16),
        timesteps=generator.integers(0, 1000, 2).astype(np.float32),
        target=normal(2, 4, 16, 16),
        weight=np.array([1.0, 0.25], np.float32),
        text=(normal(2, 32, 64), normal(2, 32)),
        time_ids=np.array([[32, 48, 0, 7, 32, 32], [32, 32, 0, 0, 32, 32]], np.float32),
    )


def one(batch: Batch, i: int) -> Batch:
    """One sample of a batch."""
    names = (f.name for f in fields(batch) if f.name != "text")
    cut = {name: getattr(batch, name)[i : i + 1] for name in names}
    return replace(batch, text=tuple(array[i : i + 1] for array in batch.text), **cut)


def load_unet(folder: Path, dtype: str = "no") -> Any:
    from mindbooth.trainer import sdxl
    from mindbooth.trainer.config import ModelConfig

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(folder)))
    return sdxl.load_unet(model, sdxl.DTYPES[dtype])


def make_step(
    folder: Path,
    comm: Any,
    *,
    mode: str = "pynative",
    wire: str = "fp32",
    dtype: str = "no",
    accumulation: int = 1,
    scale: float = 1024.0,
    nonzero: bool = False,
) -> Any:
    """A step with everything it needs. nonzero: B does not start at 0."""
    from mindbooth.trainer import lora, sdxl
    from mindbooth.trainer.optimizer import AdamW, Segment
    from mindbooth.trainer.step import LIMIT, LossScale, Step

    unet = load_unet(folder, dtype)
    lora.inject(unet, rank=RANK)
    adapter = lora.Adapter({"unet": unet}, seed=5)
    if nonzero:
        adapter.load(np.random.default_rng(1).standard_normal(adapter.size) * 0.2)
    optimizer = AdamW(
        adapter.master,
        segments=[Segment(stop=adapter.size, rate=RATE, weight_decay=WEIGHT_DECAY)],
        betas=(0.9, 0.999), epsilon=1e-8, max_grad_norm=MAX_GRAD_NORM, limit=LIMIT[wire],
    )  # fmt: skip
    return Step(
        adapter, optimizer, comm, accumulation=accumulation, dtype=sdxl.DTYPES[dtype],
        wire=wire, mode=mode, scale=LossScale(scale),
    )  # fmt: skip


def gradients(step: Any, batch: Batch) -> tuple[dict[str, np.ndarray], float]:
    """Unscaled gradients by the adapter's names, and the loss."""
    from mindspore import Tensor

    from mindbooth.trainer import device
    from mindbooth.trainer.step import inputs

    with device.mode(step.mode):
        parts = step.forward(*inputs(batch, Tensor(np.float32(64.0))))
    flat = np.concatenate([part.asnumpy().ravel() for part in parts])
    found = {
        p.name: flat[p.offset : p.offset + p.size].reshape(p.shape) / 64.0
        for p in step.adapter.pieces
    }
    return found, float(flat[-1])


def update(step: Any, batches: Sequence[Batch], number: int = 0) -> Any:
    return step(number, 1.0, list(batches), stop=False)


@pytest.fixture(scope="module", params=["fresh", "B not 0"])
def compared(
    request: pytest.FixtureRequest, cpu: Any, torch_side: Any, tiny_pipeline: Path,
    batches: list[Batch],
) -> dict[str, Any]:  # fmt: skip
    """One update by us and by torch."""
    from mindbooth.trainer import lora

    step = make_step(tiny_pipeline, cpu, nonzero=request.param == "B not 0")
    start = {name: array.copy() for name, array in step.adapter.arrays().items()}
    found, loss = gradients(step, batches[0])
    theirs = torch_side(
        "update",
        {
            f.name: getattr(batches[0], f.name)
            for f in fields(Batch)
            if f.name not in ("samples", "text")
        }
        | dict(zip(("prompt_embeds", "pooled"), batches[0].text, strict=True))
        | {f"adapter {name.removeprefix('unet.')}": array for name, array in start.items()},
        folder=str(tiny_pipeline),
        rank=RANK,
        targets=list(lora.TARGETS["unet"]),
        rate=RATE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
    )
    result = update(step, batches[:1])
    updated = step.adapter.arrays()
    return {
        "start": start, "gradients": found, "loss": loss, "result": result, "updated": updated,
        "torch": theirs,
    }  # fmt: skip


def test_loss_and_norm_are_those_of_torch(compared: dict[str, Any]) -> None:
    result, theirs = compared["result"], compared["torch"]
    assert result.applied
    assert result.loss == pytest.approx(theirs["loss"], rel=1e-5)
    assert result.grad_norm == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert result.grad_norm > 0


def test_every_gradient_is_that_of_torch(compared: dict[str, Any]) -> None:
    for name, ours in compared["gradients"].items():
        theirs = compared["torch"][f"gradient {name.removeprefix('unet.')}"]
        assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs), name


def test_the_updated_adapter_is_that_of_torch(compared: dict[str, Any]) -> None:
    ours, theirs, start = (
        np.concatenate([tensor.ravel() for tensor in tensors])
        for tensors in (
            compared["updated"].values(),
            [compared["torch"][f"updated {n.removeprefix('unet.')}"] for n in compared["updated"]],
            compared["start"].values(),
        )
    )
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs - start)


def test_the_loss_passes_an_fp32_wire_exactly(compared: dict[str, Any]) -> None:
    assert compared["result"].loss == compared["loss"]


def test_a_fresh_adapter_changes_no_output_bit(
    cpu: Any, tiny_pipeline: Path, batches: list[Batch]
) -> None:
    from mindbooth.trainer import lora

    unet = load_unet(tiny_pipeline)
    before = call(unet, batches[0])
    lora.inject(unet, rank=RANK)
    lora.Adapter({"unet": unet}, seed=5)
    assert np.array_equal(call(unet, batches[0]), before)


def test_dropout_is_drawn_anew_by_each_rank_and_is_off_for_pictures(
    cpu: Any, tiny_pipeline: Path, batches: list[Batch]
) -> None:
    from mindbooth.trainer import lora

    unets = {dropout: load_unet(tiny_pipeline) for dropout in (0.0, 0.5)}
    for dropout, unet in unets.items():
        lora.inject(unet, rank=RANK, dropout=dropout)
        adapter = lora.Adapter({"unet": unet}, seed=5)
        # torch's diffusers would go on dropping when it draws.
        assert adapter.metadata["unet"]["lora_dropout"] == 0
        adapter.load(np.random.default_rng(1).standard_normal(adapter.size) * 0.2)
    plain, dropping = (call(unet, batches[0]) for unet in unets.values())
    assert np.array_equal(dropping, plain)  # frozen models come in the state for pictures

    models = {"unet": unets[0.5]}
    lora.drop(models, on=True)
    seen = []
    for rank in (0, 1):
        lora.seed_dropout(7, 0, rank)
        seen += [call(unets[0.5], batches[0]) for _ in range(2)]
    assert len({output.tobytes() for output in (*seen, plain)}) == 5

    lora.drop(models, on=False)
    assert np.array_equal(call(unets[0.5], batches[0]), plain)


def call(unet: Any, batch: Batch) -> np.ndarray:
    from mindspore import Tensor

    conditions = {"text_embeds": Tensor(batch.text[1]), "time_ids": Tensor(batch.time_ids)}
    return np.asarray(
        unet(
            Tensor(batch.noisy),
            Tensor(batch.timesteps),
            Tensor(batch.text[0]),
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0].asnumpy()
    )


def test_updates_change_every_a_and_b_and_nothing_else(
    cpu: Any, tiny_pipeline: Path, batches: list[Batch]
) -> None:
    step = make_step(tiny_pipeline, cpu)

    def values() -> dict[str, np.ndarray]:
        parameters = step.forward.unet.parameters_and_names()
        return {name: parameter.asnumpy().copy() for name, parameter in parameters}

    before, output = values(), call(step.forward.unet, batches[0])
    for number in range(2):
        assert update(step, batches[:1], number).applied
    after = values()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert len(changed) == len(step.adapter.pieces)
    assert not np.array_equal(call(step.forward.unet, batches[0]), output)
    ours = {n.removeprefix("unet."): a for n, a in step.adapter.arrays().items()}
    for name in changed:
        assert np.array_equal(after[name], ours[name.replace(".default.", ".")])


@pytest.mark.parametrize("wire", ["fp32", "fp16"])
def test_two_micro_batches_of_one_are_one_of_two(
    cpu: Any, tiny_pipeline: Path, batches: list[Batch], wire: str
) -> None:
    whole = make_step(tiny_pipeline, cpu, wire=wire, nonzero=True)
    split = make_step(tiny_pipeline, cpu, wire=wire, nonzero=True, accumulation=2)
    start = whole.adapter.master.asnumpy().copy()
    for number in range(2):
        a = update(whole, [batches[number]], number)
        b = update(split, [one(batches[number], 0), one(batches[number], 1)], number)
        assert a.loss == pytest.approx(b.loss, rel=1e-6 if wire == "fp32" else 1e-3)
    ours, theirs = split.adapter.master.asnumpy(), whole.adapter.master.asnumpy()
    limit = {"fp32": 1e-4, "fp16": 2e-3}[wire]
    assert np.linalg.norm(ours - theirs) <= limit * np.linalg.norm(theirs - start)


def test_an_overflow_is_applied_nowhere_and_halves_the_scale(
    cpu: Any, tiny_pipeline: Path, batches: list[Batch]
) -> None:
    step = make_step(tiny_pipeline, cpu, wire="fp16", scale=2.0**24)
    start = step.adapter.master.asnumpy().copy()
    scales = []
    while not (result := update(step, batches[:1])).applied:
        scales.append(result.scale)
        assert np.array_equal(step.adapter.master.asnumpy(), start)
    assert scales == [2.0 ** (24 - i) for i in range(len(scales))]
    assert scales
    assert result.scale == scales[-1] / 2
    assert not np.array_equal(step.adapter.master.asnumpy(), start)


def test_a_stop_request_comes_out_of_the_update(
    cpu: Any, tiny_pipeline: Path, batches: list[Batch]
) -> None:
    step = make_step(tiny_pipeline, cpu)
    assert [step(u, 1.0, batches[:1], stop=bool(u)).stop for u in (0, 1)] == [False, True]


def test_graph_mode_trains_as_pynative_does(
    cpu: Any, tiny_pipeline: Path, batches: list[Batch]
) -> None:
    masters = []
    for mode in ("pynative", "graph"):
        step = make_step(tiny_pipeline, cpu, mode=mode)
        start = step.adapter.master.asnumpy().copy()
        step.prepare(batches[0])
        assert np.array_equal(step.adapter.master.asnumpy(), start)
        for number, batch in enumerate(batches):
            assert update(step, [batch], number).applied
        masters.append(step.adapter.master.asnumpy())
    theirs, ours = masters
    assert np.linalg.norm(ours - theirs) <= 1e-4 * np.linalg.norm(theirs - start)


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_each_way_to_the_layers_trains_the_same(
    cpu: Any, tiny_pipeline: Path, batches: list[Batch], mode: str
) -> None:
    """With batches of two sizes, which are two graphs."""
    from mindbooth.trainer import lora

    step = make_step(tiny_pipeline, cpu, mode=mode)
    adapter, optimizer = step.adapter, step.optimizer
    start, state = adapter.master.asnumpy().copy(), optimizer.state()
    found = []
    for way in lora.WAYS:
        adapter.ways = (way,)
        adapter.prove()
        adapter.load(start)
        optimizer.load(state)
        losses = []
        for number in range(2):
            for batch in (batches[0], one(batches[0], 0)):
                losses.append(update(step, [batch], number).loss)
        assert adapter.way == way
        found.append((losses, adapter.master.asnumpy().tolist()))
    assert len({loss for losses, _ in found for loss in losses}) == 4
    assert found[0] == found[1] == found[2]


def test_a_way_that_does_not_reach_the_layers_is_not_taken(cpu: Any, tiny_pipeline: Path) -> None:
    adapter = make_step(tiny_pipeline, cpu).adapter
    assert adapter.way == "memory"
    adapter._memory = [memory.copy() for memory in adapter._memory]  # as where devices have theirs
    adapter.prove()
    assert adapter.way == "views"
    adapter._views = [copied(view) for view in adapter._views]
    adapter.prove()
    assert adapter.way == "anew"


def copied(tensor: Any) -> Any:
    return type(tensor)(tensor.asnumpy().copy())


@pytest.mark.parametrize("mode", ["pynative", "graph"])
def test_gradients_in_half_precision_are_near(
    cpu: Any, tiny_pipeline: Path, batches: list[Batch], mode: str
) -> None:
    exact, loss = gradients(make_step(tiny_pipeline, cpu, nonzero=True), batches[0])
    step = make_step(tiny_pipeline, cpu, nonzero=True, mode=mode, dtype="fp16")
    half, half_loss = gradients(step, batches[0])
    assert half_loss == pytest.approx(loss, rel=1e-3)
    ours, theirs = (np.concatenate([g.ravel() for g in part.values()]) for part in (half, exact))
    assert 0 < np.linalg.norm(ours - theirs) <= 1e-2 * np.linalg.norm(theirs)
