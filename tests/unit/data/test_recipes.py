"""A key changes with everything that changes the bytes, and with nothing else."""

from collections.abc import Callable
from typing import Any

import pytest

from mindbooth.data.framing import Frame, frame
from mindbooth.data.recipes import (
    key,
    latents_encoding,
    latents_key,
    text_encoding,
    text_key,
)  # fmt: skip

FRAME = frame((100, 160), target=(64, 64), center_crop=True)
VAE_CONFIG = {"scaling_factor": 0.13025, "block_out_channels": [128, 256], "act_fn": "silu"}
PINNED = "0b773289f8f017d7eb522ad54498350f765a1086f0e3faae63826f386abf9dee"
LATENTS: dict[str, Any] = {
    "image_digest": "a" * 64,
    "frame": FRAME,
    "interpolation": "lanczos",
    "vae_digest": "b" * 64,
    "vae_config": VAE_CONFIG,
    "dtype": "float32",
}
TEXT: dict[str, Any] = {
    "prompt": "a photo of sks dog",
    "tokenizer_digests": ("c" * 64, "d" * 64),
    "encoder_digests": ("e" * 64, "f" * 64),
    "max_length": 77,
    "dtype": "float32",
}


def of_latents(*, image_digest: str, frame: Frame, **encoding: Any) -> str:
    return latents_key(latents_encoding(**encoding), image_digest=image_digest, frame=frame)


def of_text(*, prompt: str, **encoding: Any) -> str:
    return text_key(text_encoding(**encoding), prompt=prompt)


@pytest.mark.parametrize(
    ("key_of", "base", "change"),
    [
        (of_latents, LATENTS, {"image_digest": "0" * 64}),
        (of_latents, LATENTS, {"frame": FRAME._replace(left=FRAME.left + 1)}),
        (of_latents, LATENTS, {"frame": FRAME._replace(top=1)}),
        (of_latents, LATENTS, {"frame": FRAME._replace(flip=True)}),
        (of_latents, LATENTS, {"frame": FRAME._replace(resized=(65, 102))}),
        (of_latents, LATENTS, {"frame": FRAME._replace(size=(64, 56))}),
        (of_latents, LATENTS, {"frame": frame((100, 160), target=(56, 56), center_crop=True)}),
        (of_latents, LATENTS, {"interpolation": "bilinear"}),
        (of_latents, LATENTS, {"vae_digest": "0" * 64}),
        (of_latents, LATENTS, {"vae_config": {**VAE_CONFIG, "act_fn": "gelu"}}),
        (of_latents, LATENTS, {"dtype": "float16"}),
        (of_text, TEXT, {"prompt": "a photo of sks dog "}),
        (of_text, TEXT, {"prompt": "a photo of sks \N{DOG}"}),
        (of_text, TEXT, {"tokenizer_digests": ("d" * 64, "c" * 64)}),
        (of_text, TEXT, {"encoder_digests": ("e" * 64, "0" * 64)}),
        (of_text, TEXT, {"max_length": 40}),
        (of_text, TEXT, {"dtype": "float16"}),
    ],
)
def test_what_changes_the_bytes_changes_the_key(
    key_of: Callable[..., str], base: dict[str, Any], change: dict[str, Any]
) -> None:
    assert key_of(**base) == key_of(**base)
    assert key_of(**{**base, **change}) != key_of(**base)


@pytest.mark.parametrize(
    "config",
    [
        dict(reversed(VAE_CONFIG.items())),
        {**VAE_CONFIG, "block_out_channels": (128, 256)},
        {**VAE_CONFIG, "_name_or_path": "/models/moved", "_diffusers_version": "0.1"},
    ],
    ids=["order", "tuple", "path"],
)
def test_what_does_not_change_the_bytes_keeps_the_key(config: dict[str, Any]) -> None:
    assert of_latents(**{**LATENTS, "vae_config": config}) == of_latents(**LATENTS)


def test_keys_are_pinned() -> None:
    """Other keys would leave every cache out there unused: raise FORMAT only on purpose."""
    assert key({"kind": "x", "n": 1, "f": 0.5, "none": None, "list": ["\N{DOG}", True]}) == PINNED
    pinned = "7efb66b545204a7feda065b3bced6b3fc8218078513b00096705793ee8d576f4"
    assert of_latents(**LATENTS) == pinned


def test_not_a_number_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key({"scale": float("nan")})
