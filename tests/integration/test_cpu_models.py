"""SDXL's models and pipelines on the CPU: nothing is missing, and the numbers are torch's.

The mini SDXL for numbers; the tiny random one where a graph is compiled or a picture is enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

PROMPT = "a red robot in the snow"
CLOSE = 1e-4  # absolute, fp32


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    """Inputs for 64 x 64 pixels and latents of 16 x 16."""
    generator = np.random.default_rng(7)
    return {
        "pixels": generator.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32),
        "latents": generator.standard_normal((1, 4, 16, 16)).astype(np.float32),
        "timestep": np.array([601.0], np.float32),
        "time_ids": np.array([[80, 64, 9, 0, 64, 64]], np.float32),
    }


@pytest.fixture(scope="module")
def torch_answers(
    torch_side: Any, mini_sdxl: Path, given: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = torch_side(
        "models", given, folder=str(mini_sdxl / "model"), prompt=PROMPT
    )
    return found


@pytest.fixture(scope="module")
def our_answers(cpu: object, mini_sdxl: Path, given: dict[str, np.ndarray]) -> dict[str, Any]:
    import mindspore as ms
    from mindone.diffusers import StableDiffusionXLPipeline
    from mindspore import Tensor

    from mindbooth.trainer import sdxl
    from mindbooth.trainer.config import ModelConfig

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(mini_sdxl / "model")))
    unet, vae = sdxl.load_unet(model, ms.float32), sdxl.load_vae(model)
    text = sdxl.TextEncoders(model, ms.float32).encode(PROMPT)
    moments = sdxl.moments(vae, given["pixels"][0])
    predicted = call_unet(unet, given, text)
    pipeline = StableDiffusionXLPipeline.from_pretrained(str(model.folder), unet=unet, vae=vae)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        PROMPT,
        latents=Tensor(given["latents"]),
        num_inference_steps=3,
        guidance_scale=3.0,
        height=64,
        width=64,
        output_type="np",
    )[0]
    decoded = vae.decode(Tensor(given["latents"]))[0].asnumpy()
    return {**text, **moments, "decoded": decoded, "predicted": predicted, "picture": picture}


def call_unet(unet: Any, given: dict[str, np.ndarray], text: dict[str, np.ndarray]) -> np.ndarray:
    """The UNet as the step calls it, in its own dtype."""
    from mindspore import Tensor

    output = unet(
        Tensor(given["latents"]).astype(unet.dtype),
        Tensor(given["timestep"]),
        Tensor(text["prompt_embeds"][None]).astype(unet.dtype),
        added_cond_kwargs={
            "text_embeds": Tensor(text["pooled"][None]).astype(unet.dtype),
            "time_ids": Tensor(given["time_ids"]),
        },
        return_dict=False,
    )[0]
    return np.asarray(output.asnumpy())


@pytest.mark.parametrize(
    "part", ["prompt_embeds", "pooled", "mean", "std", "decoded", "predicted", "picture"]
)
def test_each_part_computes_what_diffusers_computes(
    part: str, our_answers: dict[str, Any], torch_answers: dict[str, np.ndarray]
) -> None:
    assert our_answers[part].shape == torch_answers[part].shape
    assert np.abs(our_answers[part] - torch_answers[part]).max() < CLOSE


def test_the_unet_in_half_precision_is_near(
    cpu: object, mini_sdxl: Path, given: dict[str, np.ndarray], our_answers: dict[str, Any]
) -> None:
    import mindspore as ms

    from mindbooth.trainer import sdxl
    from mindbooth.trainer.config import ModelConfig

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(mini_sdxl / "model")))
    half = call_unet(sdxl.load_unet(model, ms.float16), given, our_answers)
    exact = our_answers["predicted"]
    assert half.dtype == np.float16
    assert 0 < np.linalg.norm(half - exact) < 5e-3 * np.linalg.norm(exact)


def test_a_picture_is_made_from_a_picture(cpu: object, tiny_pipeline: Path) -> None:
    from mindone.diffusers import StableDiffusionXLImg2ImgPipeline
    from PIL import Image

    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(str(tiny_pipeline))
    pipeline.set_progress_bar_config(disable=True)
    start = Image.new("RGB", (32, 32), "teal")

    def made(strength: float) -> np.ndarray:
        generator = np.random.default_rng(0)
        return np.asarray(
            pipeline(PROMPT, image=start, strength=strength, num_inference_steps=4,
                     output_type="np", generator=generator)[0][0]
        )  # fmt: skip

    little, much = made(0.25), made(1.0)
    assert little.shape == (32, 32, 3)
    assert np.isfinite(little).all()
    assert not np.allclose(little, much, atol=0.05)


def test_graph_mode_computes_what_pynative_computes(
    cpu: object, tiny_pipeline: Path, given: dict[str, np.ndarray]
) -> None:
    import mindspore as ms
    from mindspore import Tensor, nn

    from mindbooth.trainer import device, sdxl
    from mindbooth.trainer.config import ModelConfig

    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(tiny_pipeline)))
    unet, vae = sdxl.load_unet(model, ms.float32), sdxl.load_vae(model)
    encoders = sdxl.TextEncoders(model, ms.float32)

    class Decode(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def construct(self, latents):  # type: ignore[no-untyped-def]
            return self.vae.decode(latents, return_dict=False)[0]

    def answers() -> dict[str, np.ndarray]:
        text = encoders.encode(PROMPT)
        return {
            **text,
            "predicted": call_unet(unet, given, text),
            "decoded": Decode()(Tensor(given["latents"])).asnumpy(),
        }

    expected = answers()
    with device.mode("graph"):
        found = answers()
    for name, theirs in expected.items():
        assert np.abs(found[name] - theirs).max() < 1e-5, name
