"""Loss and gradients of whole batches, cache to adapter, against diffusers' script on torch: fp32,
the same weights, latents, noise, timesteps and texts; every objective, prior preservation, and
text encoders in training.

Each side makes its own inputs of the raw latents and noise, ours by `Source`, `choose` and
`Forward`, theirs by diffusers' schedulers (torch_side/script.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_sdxl import random_weight

from mindbooth.data.batches import (
    Arrays,
    Batch,
    Embedded,
    Item,
    Reader,
    Side,
    Source,
    Tokenized,
    Variant,
)
from mindbooth.data.cache import Store
from mindbooth.data.framing import Frame
from mindbooth.data.recipes import key
from mindbooth.data.stream import Purpose, Stream
from mindbooth.trainer.config import ObjectiveConfig
from mindbooth.trainer.objective import choose

RANK, SEED, LATENT = 3, 11, (4, 16, 16)
LOSS, GRADIENT = 1e-5, 1e-4  # how far off each may be, relative
BETAS = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "num_train_timesteps": 1000}
V = {"prediction_type": "v_prediction"}
SUBJECT = ("a photo of sks robot", "sks robot on a hill", "a photo of sks robot")
CLASS = ("a photo of a robot",) * 2


def case(scheduler: dict[str, Any], batch: int = 2, **options: Any) -> dict[str, Any]:
    """As torch_side/parity.py has it, and how many samples the batch has."""
    chosen = {"edm": False, "gamma": None, "prior": None, "text": False} | options
    return {"scheduler": scheduler, "batch": batch, **chosen}


CASES = {
    "epsilon": case(BETAS),
    "v_prediction": case({**BETAS, **V}),
    "min-SNR": case(BETAS, gamma=5.0),
    "v_prediction, min-SNR": case({**BETAS, **V}, gamma=5.0),
    "Euler": case(BETAS, edm=True),
    "Euler, v_prediction": case({**BETAS, **V}, edm=True),
    "EDM": case(EDM),
    "EDM, v_prediction": case({**EDM, **V}),
    "prior, batch 1": case(BETAS, batch=1, prior=1.0),
    "prior, batch 3": case(BETAS, batch=3, prior=0.6),
    "prior, batch 3, min-SNR": case({**BETAS, **V}, batch=3, prior=0.6, gamma=5.0),
    "prior, batch 3, EDM": case(EDM, batch=3, prior=0.6),
    "text encoders": case(BETAS, text=True),
    "text encoders, prior": case(BETAS, prior=0.6, text=True),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A cache of random latents and embeddings for all pictures and captions."""
    store = Store(tmp_path_factory.mktemp("cache"))
    generator = np.random.default_rng(SEED)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    for i in range(len(SUBJECT + CLASS)):
        store.publish(
            key({"picture": i}), {"mean": normal(*LATENT), "std": normal(*LATENT)}, note={}
        )
    for caption in sorted(set(SUBJECT + CLASS)):
        entry = {"prompt_embeds": normal(32, 64), "pooled": normal(32)}
        store.publish(key({"caption": caption}), entry, note={})
    return store


@pytest.fixture(scope="module")
def ids(tiny_pipeline: Path) -> dict[str, Arrays]:
    """Both tokenizers' ids of each caption."""
    from mindbooth.trainer import sdxl
    from mindbooth.trainer.config import ModelConfig

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(tiny_pipeline)))
    tokenizers = sdxl.load_tokenizers(model)
    return {caption: sdxl.tokens(tokenizers, caption) for caption in SUBJECT + CLASS}


def framed(height: int, top: int) -> Frame:
    return Frame((height, 50), (height, 50), False, top, 3, (32, 32))


def source(one: dict[str, Any], store: Store, ids: dict[str, Arrays]) -> Source:
    options = ObjectiveConfig(do_edm_style_training=one["edm"], snr_gamma=one["gamma"])
    aims = choose(one["scheduler"], options)
    items = [
        Item(
            variants=(Variant(key({"picture": i}), framed(40 + i, i), f"{i}.png", "0" * 64),),
            text=caption if one["text"] else key({"caption": caption}),
        )
        for i, caption in enumerate(SUBJECT + CLASS)
    ]
    subject, others = items[: len(SUBJECT)], items[len(SUBJECT) :]
    sides = [Side(stream=Stream.of(SEED, len(subject)), items=subject, objective=aims.instance)]
    if one["prior"] is not None:
        stream = Stream.of(SEED, len(others), partners=True)
        sides.append(Side(stream=stream, items=others, objective=aims.prior, weight=one["prior"]))
    read = Reader(store=store, repair={}.__getitem__)  # nothing goes missing
    texts = Tokenized(ids=ids.__getitem__) if one["text"] else Embedded(read=read)
    return Source(read=read, sides=tuple(sides), texts=texts, scale=0.7, shift=0.1)


def raw(one: dict[str, Any], store: Store, ids: dict[str, Arrays]) -> dict[str, np.ndarray]:
    """What torch gets: a row a picture, those of the class in the second half."""
    given = source(one, store, ids)
    rows = []
    for side in given.sides:
        for k in range(one["batch"]):
            u = side.stream.generator(k, Purpose.TIMESTEP).random()
            text = side.item(k).text
            row = {
                "latents": given.latents(side, k),
                "noise": side.normal(k, Purpose.NOISE, LATENT),
                "levels": np.int64(u * one["scheduler"]["num_train_timesteps"]),
                "time_ids": np.array(given.variant(side, k).frame.time_ids, np.float32),
            }
            if one["text"]:
                row["ids_1"], row["ids_2"] = ids[text]
            else:
                row |= store.read(text)
            rows.append(row)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def theirs(
    torch_side: Any, tiny_pipeline: Path, store: Store, ids: dict[str, Arrays]
) -> dict[str, np.ndarray]:
    from mindbooth.trainer import lora

    given = {
        f"{name}/{part}": array
        for name, one in CASES.items()
        for part, array in raw(one, store, ids).items()
    }
    found: dict[str, np.ndarray] = torch_side(
        "parity",
        given,
        folder=str(tiny_pipeline),
        rank=RANK,
        targets={name: list(targets) for name, targets in lora.TARGETS.items()},
        cases=CASES,
    )
    return found


@pytest.fixture(scope="module")
def forwards(cpu: object, tiny_pipeline: Path) -> dict[bool, Any]:
    """The step's Forward without and with text encoders in training."""
    import mindspore as ms

    from mindbooth.trainer import lora, sdxl
    from mindbooth.trainer.config import ModelConfig
    from mindbooth.trainer.step import Forward

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(tiny_pipeline)))
    found = {}
    for text in (False, True):
        models = {"unet": sdxl.load_unet(model, ms.float32)}
        if text:
            encoders = sdxl.TextEncoders(model, ms.float32).encoders
            models |= dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=True))
        for name, one in models.items():
            lora.inject(one, rank=RANK, targets=lora.TARGETS[name])
        adapter = lora.Adapter(models, seed=0)
        adapter.load(
            np.concatenate([random_weight(p.name, p.shape).ravel() for p in adapter.pieces])
        )
        found[text] = Forward(adapter, ms.float32), adapter
    return found


@pytest.fixture(scope="module", params=CASES)
def compared(
    request: pytest.FixtureRequest, forwards: dict[bool, Any], theirs: dict[str, np.ndarray],
    store: Store, ids: dict[str, Arrays],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    """Ours and theirs of one case: "loss", and "gradient of TENSOR" for each."""
    name = request.param
    batch = source(CASES[name], store, ids).assemble(range(CASES[name]["batch"]))
    ours = loss_and_gradients(*forwards[CASES[name]["text"]], batch)
    cut = len(name) + 1
    return ours, {n[cut:]: array for n, array in theirs.items() if n.startswith(f"{name}/")}


def loss_and_gradients(forward: Any, adapter: Any, batch: Batch) -> dict[str, np.ndarray]:
    from mindspore import Tensor

    from mindbooth.trainer import device

    scale = np.float32(64)
    names = ("noisy", "timesteps", "target", "weight", "time_ids")
    given = (*(getattr(batch, name) for name in names), scale, *batch.text)
    with device.mode("pynative"):
        parts = forward(*(Tensor(array) for array in given))
    flat = np.concatenate([part.asnumpy().ravel() for part in parts])
    gradients = {
        f"gradient of {p.name}": flat[p.offset : p.offset + p.size].reshape(p.shape) / scale
        for p in adapter.pieces
    }
    return {"loss": flat[-1], **gradients}


def test_the_loss_is_that_of_the_known_script(compared: Any) -> None:
    ours, theirs = compared
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS)


def test_every_gradient_is_that_of_the_known_script(compared: Any) -> None:
    ours, theirs = compared
    assert ours.keys() == theirs.keys()
    for name in ours:
        norm = np.linalg.norm(theirs[name])
        assert np.linalg.norm(ours[name] - theirs[name]) <= GRADIENT * norm, name
        # Of the first text encoder, the last layer's output is not used.
        assert norm > 0 or "text_encoder.text_model.encoder.layers.1" in name
