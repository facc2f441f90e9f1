"""Finds and loads SDXL's parts: UNet, VAE, text encoders, tokenizers, noise schedule.

`locate()` turns a folder or a hub id into local folders and checks that all parts are there,
before anything large is read. Each `load_*` reads one part, frozen, and in the dtype that it is to
compute in. mindone is imported only when something is loaded: it takes seconds, and on CPU it must
come after `cpu_ops.install()`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from safetensors import SafetensorError, safe_open

from . import fetch
from .config import ConfigError, ModelConfig

log = logging.getLogger(__name__)

DTYPES = {
    None: ms.float32, "no": ms.float32, "fp32": ms.float32, "fp16": ms.float16, "bf16": ms.bfloat16,
}  # fmt: skip
NAMES = {ms.float32: "fp32", ms.float16: "fp16", ms.bfloat16: "bf16"}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
WEIGHTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where a model's parts lie.

    name: as the user gave it, for the model card. vae: the folder of the VAE in use. variant: the
    infix of the weight files, e.g. "fp16"; the separate VAE has none.
    """

    name: str
    folder: Path
    vae: Path
    variant: str | None
    vae_variant: str | None

    def weights(self, part: str) -> list[Path]:
        """The safetensors files of one of WEIGHTS."""
        if part == "vae":
            return _weights(self.vae, self.vae_variant)
        return _weights(self.folder / part, self.variant)

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of "vae" or "scheduler" or another part, from its JSON file."""
        folder = self.vae if part == "vae" else self.folder / part
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return _read_json(folder / name)


def locate(config: ModelConfig) -> Model:
    """The model's folders; downloaded first if it is a hub id. Raises ConfigError."""
    flag = "--pretrained_model_name_or_path"
    name = config.pretrained_model_name_or_path
    folder = _folder(flag, name, config, [f"{part}/*" for part in PARTS])
    lacking = [part for part in PARTS if not (folder / part).is_dir()]
    if lacking:
        raise ConfigError(
            f"{flag} {name} has no folder {', '.join(lacking)}: it is not an SDXL model in "
            f"diffusers' layout. Found: {_inside(folder)}."
        )
    vae, vae_variant = folder / "vae", config.variant
    if config.pretrained_vae_model_name_or_path is not None:
        flag = "--pretrained_vae_model_name_or_path"
        given = config.pretrained_vae_model_name_or_path
        vae, vae_variant = _folder(flag, given, config, ["*", "vae/*"]), None
        vae = vae / "vae" if (vae / "vae").is_dir() else vae
    model = Model(
        name=name, folder=folder, vae=vae, variant=config.variant, vae_variant=vae_variant
    )
    for part in WEIGHTS:
        for path in model.weights(part):
            _check_weights(path)
    for part in (*WEIGHTS, "scheduler"):
        model.config(part)
    return model


def load_unet(model: Model, dtype: ms.Type) -> nn.Cell:
    """The denoiser."""
    from mindone.diffusers import UNet2DConditionModel

    return _load(UNet2DConditionModel, model.folder / "unet", model.variant, dtype)


def load_vae(model: Model) -> nn.Cell:
    """The VAE, in fp32: SDXL's own overflows in fp16."""
    from mindone.diffusers import AutoencoderKL

    return _load(AutoencoderKL, model.vae, model.vae_variant, ms.float32)


def bare_pipeline(model: Model, unet: nn.Cell) -> Any:
    """StableDiffusionXLPipeline of a loaded UNet, the VAE and the scheduler, without text encoders:
    it takes embeddings."""
    from mindone import diffusers

    scheduler = getattr(diffusers, model.config("scheduler")["_class_name"])
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=load_vae(model),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=scheduler.from_pretrained(str(model.folder), subfolder="scheduler"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def zeros_for_empty_prompt(model: Model) -> bool:
    """Whether the pipeline's empty prompt is zeros rather than the embedding of ""."""
    index = _read_json(model.folder / "model_index.json")
    return bool(index.get("force_zeros_for_empty_prompt", True))


class TextEncoders:
    """Both tokenizers and both CLIP text encoders, frozen but for an adapter they may have."""

    def __init__(self, model: Model, dtype: ms.Type) -> None:
        from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection

        self.tokenizers = load_tokenizers(model)
        self.encoders = [
            _load(kind, model.folder / part, model.variant, dtype)
            for kind, part in (
                (CLIPTextModel, "text_encoder"),
                (CLIPTextModelWithProjection, "text_encoder_2"),
            )
        ]

    def encode(self, prompt: str) -> dict[str, np.ndarray]:
        """prompt_embeds (L, D1 + D2): both encoders' last hidden states but one, side by side;
        pooled (P,): the second encoder's projected text embedding. fp32."""
        states = []
        for ids, encoder in zip(tokens(self.tokenizers, prompt), self.encoders, strict=True):
            output = encoder(Tensor(ids[None]), output_hidden_states=True, return_dict=False)
            states.append(output[-1][-2].astype(ms.float32).asnumpy()[0])
            pooled = output[0].astype(ms.float32).asnumpy()[0]
        return {"prompt_embeds": np.concatenate(states, axis=-1), "pooled": pooled}


def load_tokenizers(model: Model) -> list[Any]:
    """Both tokenizers. Raises ConfigError."""
    from transformers import CLIPTokenizer

    tokenizers = []
    for part in ("tokenizer", "tokenizer_2"):
        try:
            tokenizers.append(CLIPTokenizer.from_pretrained(str(model.folder), subfolder=part))
        except (OSError, TypeError, ValueError) as err:
            raise _damaged(model.folder / part, err) from err
    return tokenizers


def tokens(tokenizers: Sequence[Any], prompt: str) -> tuple[np.ndarray, ...]:
    """Each tokenizer's ids of the prompt, (L,) int32, cut or filled up to L."""
    return tuple(
        tokenizer(
            prompt,
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="np",
        ).input_ids[0].astype(np.int32)
        for tokenizer in tokenizers
    )  # fmt: skip


def too_long(tokenizer: Any, prompt: str) -> str | None:
    """The end of the prompt that the tokenizer has no room for, or None."""
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    room = tokenizer.model_max_length - 1  # the end-of-text token needs the last place
    if len(ids) <= room + 1:
        return None
    return str(tokenizer.decode(ids[room:-1], clean_up_tokenization_spaces=False))


def token_counter(tokenizer: Any) -> Callable[[str], int]:
    """How many tokens a text takes, with those at its two ends.

    A tenth of a millisecond for each new word, next to nothing for a known one: no token of CLIP's
    reaches across a blank, so words are counted one by one, and each only once.
    """

    @functools.cache
    def of_word(word: str) -> int:
        return len(tokenizer.tokenize(word))

    return lambda text: sum(map(of_word, text.split())) + 2


def moments(vae: nn.Cell, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """mean and std, each (C, h, w), of the VAE's posterior for pixels (3, H, W) in [-1, 1]."""
    output = vae.encode(Tensor(pixels[None].astype(np.float32)))[0].asnumpy()
    mean, logvar = np.split(output[0].astype(np.float32), 2)
    return {"mean": mean, "std": np.exp(0.5 * np.clip(logvar, -30.0, 20.0))}


def latent_scale(vae_config: dict[str, Any]) -> tuple[Any, Any]:
    """(scale, shift): the UNet's latents are (z - shift) * scale. Playground's VAE, which has a
    mean and a standard deviation a channel, is scaled by these as diffusers does it."""
    factor = float(vae_config["scaling_factor"])
    mean, std = vae_config.get("latents_mean"), vae_config.get("latents_std")
    if mean is None or std is None:
        return factor, 0.0
    column = (-1, 1, 1)
    return factor / np.asarray(std).reshape(column), np.asarray(mean).reshape(column)


def _folder(flag: str, name: str, config: ModelConfig, patterns: Sequence[str]) -> Path:
    suffixes = ("json", "txt", "safetensors")
    model = "vae" not in flag  # --variant and --revision are the model's
    # Other precisions and other programs' files, such as unet/model.onnx, are left on the hub.
    other = [] if model and config.variant else ["*.fp16.*", "*.bf16.*", "*.non_ema.*"]
    return fetch.folder(
        flag,
        name,
        allow=[*(f"{p}.{suffix}" for p in patterns for suffix in suffixes), "model_index.json"],
        ignore=[*other, "*openvino*", "*onnx*", "*flax*"],
        cache_dir=config.cache_dir,
        revision=config.revision if model else None,
    )


def _weights(folder: Path, variant: str | None) -> list[Path]:
    # Some repositories hold the same weights a second time, for other programs.
    named = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    every = named or sorted(folder.glob("*.safetensors"))
    infix = [path.name.removesuffix(".safetensors").partition(".")[2] for path in every]
    # "model.fp16.safetensors", or in several files "model.fp16-00001-of-00002.safetensors"
    found = [p for p, i in zip(every, infix, strict=True) if i.split("-")[0] == (variant or "")]
    if not found:
        wanted = f"*.{variant}.safetensors" if variant else "*.safetensors"
        raise ConfigError(f"No weights {wanted} in {folder}. Found: {_inside(folder)}.")
    return found


def _check_weights(path: Path) -> None:
    """Reads the header, which tells how long the file must be."""
    try:
        with safe_open(path, "np"):
            pass
    except (OSError, SafetensorError) as err:
        raise _damaged(path, err) from err


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise _damaged(path, err) from err
    if not isinstance(found, dict):
        raise _damaged(path, TypeError("no options by name"))
    return found


def _damaged(path: Path, err: Exception) -> ConfigError:
    reason = " ".join(str(getattr(err, "strerror", None) or err).split())
    return ConfigError(f"{path} can't be read ({reason}): copy or download the model again.")


def _inside(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(names[:12]) or "nothing") + more


def _load(kind: Any, folder: Path, variant: str | None, dtype: ms.Type) -> nn.Cell:
    # mindone.diffusers and mindone.transformers have different names for the dtype.
    word = "dtype" if kind.__name__.startswith("CLIP") else "mindspore_dtype"
    if word == "mindspore_dtype":
        kind = _lean(kind, dtype)
    with _no_bars():
        cell = kind.from_pretrained(str(folder), variant=variant, **{word: dtype})
    if dtype == ms.float32 and hasattr(cell, "set_flash_attention_force_cast_dtype"):
        # On Ascend, mindone would run fp32 attention in fp16, where SDXL's own VAE overflows.
        cell.set_flash_attention_force_cast_dtype(None)
    cell.set_train(False)
    for parameter in cell.get_parameters():
        parameter.requires_grad = False
    return cell


def _lean(kind: Any, dtype: ms.Type) -> Any:
    """`kind`, whose cells have their dtype before weights are read.

    mindone reads fp16 weights into fp32 cells and changes them afterwards: for SDXL's UNet that
    takes 16 GB, most of which MindSpore keeps, instead of 5.
    """

    class Lean(kind):
        @classmethod
        def from_config(cls, config: Any, **options: Any) -> Any:
            return kind.from_config(config, **options).to(dtype)

    return Lean


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """mindone's own bars for reading files are off inside."""
    from mindone.diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.enable_progress_bar()
