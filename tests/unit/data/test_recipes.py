"""A key changes with everything that changes the bytes, and with nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mindbooth.data.framing import frame
from mindbooth.data.recipes import Recipe, key, latents_recipe, text_recipe

FRAME = frame((100, 160), target=(64, 64), center_crop=True)
VAE_CONFIG = {"scaling_factor": 0.13025, "block_out_channels": [128, 256], "act_fn": "silu"}
PINNED = "38ee088c34d04301eba78476b830922401cce51c3181cd3904489c866eaea590"
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


@pytest.mark.parametrize(
    ("recipe", "base", "change"),
    [
        (latents_recipe, LATENTS, {"image_digest": "0" * 64}),
        (latents_recipe, LATENTS, {"frame": replace(FRAME, left=FRAME.left + 1)}),
        (latents_recipe, LATENTS, {"frame": replace(FRAME, top=1)}),
        (latents_recipe, LATENTS, {"frame": replace(FRAME, flip=True)}),
        (latents_recipe, LATENTS, {"frame": replace(FRAME, resized=(65, 102))}),
        (latents_recipe, LATENTS, {"frame": replace(FRAME, size=(64, 56))}),
        (latents_recipe, LATENTS, {"frame": frame((100, 160), target=(56, 56), center_crop=True)}),
        (latents_recipe, LATENTS, {"interpolation": "bilinear"}),
        (latents_recipe, LATENTS, {"vae_digest": "0" * 64}),
        (latents_recipe, LATENTS, {"vae_config": {**VAE_CONFIG, "act_fn": "gelu"}}),
        (latents_recipe, LATENTS, {"dtype": "float16"}),
        (text_recipe, TEXT, {"prompt": "a photo of sks dog "}),
        (text_recipe, TEXT, {"prompt": "a photo of sks \N{DOG}"}),
        (text_recipe, TEXT, {"tokenizer_digests": ("d" * 64, "c" * 64)}),
        (text_recipe, TEXT, {"encoder_digests": ("e" * 64, "0" * 64)}),
        (text_recipe, TEXT, {"max_length": 40}),
        (text_recipe, TEXT, {"dtype": "float16"}),
    ],
)
def test_what_changes_the_bytes_changes_the_key(
    recipe: Callable[..., Recipe], base: dict[str, Any], change: dict[str, Any]
) -> None:
    assert key(recipe(**base)) == key(recipe(**base))
    assert key(recipe(**{**base, **change})) != key(recipe(**base))


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
    assert key(latents_recipe(**{**LATENTS, "vae_config": config})) == key(
        latents_recipe(**LATENTS)
    )


def test_keys_are_pinned() -> None:
    """Other keys would leave every cache out there unused: raise FORMAT only on purpose."""
    assert key({"kind": "x", "n": 1, "f": 0.5, "none": None, "list": ["\N{DOG}", True]}) == PINNED


def test_not_a_number_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        key({"scale": float("nan")})
