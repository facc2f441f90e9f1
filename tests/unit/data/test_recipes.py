"""A key changes with everything that changes the bytes, and with nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mindbooth.data.framing import Frame, frame
from mindbooth.data.recipes import (
    key,
    latents_encoding,
    latents_recipe,
    text_encoding,
    text_recipe,
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


def latents_key(*, image_digest: str, frame: Frame, **encoding: Any) -> str:
    return key(latents_recipe(latents_encoding(**encoding), image_digest=image_digest, frame=frame))


def text_key(*, prompt: str, **encoding: Any) -> str:
    return key(text_recipe(text_encoding(**encoding), prompt=prompt))


@pytest.mark.parametrize(
    ("key_of", "base", "change"),
    [
        (latents_key, LATENTS, {"image_digest": "0" * 64}),
        (latents_key, LATENTS, {"frame": replace(FRAME, left=FRAME.left + 1)}),
        (latents_key, LATENTS, {"frame": replace(FRAME, top=1)}),
        (latents_key, LATENTS, {"frame": replace(FRAME, flip=True)}),
        (latents_key, LATENTS, {"frame": replace(FRAME, resized=(65, 102))}),
        (latents_key, LATENTS, {"frame": replace(FRAME, size=(64, 56))}),
        (latents_key, LATENTS, {"frame": frame((100, 160), target=(56, 56), center_crop=True)}),
        (latents_key, LATENTS, {"interpolation": "bilinear"}),
        (latents_key, LATENTS, {"vae_digest": "0" * 64}),
        (latents_key, LATENTS, {"vae_config": {**VAE_CONFIG, "act_fn": "gelu"}}),
        (latents_key, LATENTS, {"dtype": "float16"}),
        (text_key, TEXT, {"prompt": "a photo of sks dog "}),
        (text_key, TEXT, {"prompt": "a photo of sks \N{DOG}"}),
        (text_key, TEXT, {"tokenizer_digests": ("d" * 64, "c" * 64)}),
        (text_key, TEXT, {"encoder_digests": ("e" * 64, "0" * 64)}),
        (text_key, TEXT, {"max_length": 40}),
        (text_key, TEXT, {"dtype": "float16"}),
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
    assert latents_key(**{**LATENTS, "vae_config": config}) == latents_key(**LATENTS)


def test_keys_are_pinned() -> None:
    """Other keys would leave every cache out there unused: raise FORMAT only on purpose."""
    assert key({"kind": "x", "n": 1, "f": 0.5, "none": None, "list": ["\N{DOG}", True]}) == PINNED


def test_not_a_number_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key({"scale": float("nan")})
