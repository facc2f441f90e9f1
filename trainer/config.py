"""The training options: declared once, as dataclasses; `parse.py` makes the command line of them.

Names and defaults are those of the well-known train_dreambooth_lora_sdxl.py (mindone's, and where
that lacks one, Hugging Face diffusers'); options of our own say so in docs/flags.md.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mindbooth.data import stream

from .rates import SCHEDULES

Precision = Literal["no", "fp16", "bf16"]


class ConfigError(ValueError):
    """A mistake in the options, told in one line; the program ends with status 2."""


def option(default: Any, text: str, *aliases: str) -> Any:
    """A field that is a flag: its default, and its line of --help."""
    return field(default=default, metadata={"help": text, "aliases": list(aliases)})


def _required(text: str) -> Any:
    return field(metadata={"help": text})


def _several(text: str) -> Any:
    """A flag that may be given several times."""
    return field(default=None, metadata={"help": text, "aliases": [], "action": "each"})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is fine-tuned."""

    _argument_group_name = "model"

    pretrained_model_name_or_path: str = _required(
        "The SDXL model: a folder in diffusers' layout, or a model id of the Hugging Face hub."
    )
    pretrained_vae_model_name_or_path: str | None = option(
        None, "A better VAE than the model's own, e.g. madebyollin/sdxl-vae-fp16-fix."
    )
    revision: str | None = option(None, "Revision of the model on the hub.")
    variant: str | None = option(
        None, 'Which weight files to take, e.g. "fp16" for *.fp16.safetensors.'
    )
    cache_dir: str | None = option(None, "Where the hub's downloads are kept.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The pictures, their captions, and how they become training samples."""

    _argument_group_name = "data"

    instance_data_dir: str | None = option(
        None,
        "The folder with the subject's pictures. A picture's own caption stands in a .txt file "
        "beside it or in metadata.jsonl.",
    )
    instance_prompt: str = _required(
        'The caption of these pictures, with a rare word, e.g. "a photo of sks dog".'
    )
    dataset_name: str | None = option(
        None, "Instead of a folder: a dataset of the Hugging Face hub, or a local one."
    )
    dataset_config_name: str | None = option(None, "Which configuration of that dataset.")
    image_column: str = option("image", "The dataset's column with pictures.")
    caption_column: str | None = option(
        None, "The dataset's column with captions. Default: all have --instance_prompt."
    )
    caption_dropout: float = option(
        0.0, "The share of samples that are trained with the empty prompt, in [0, 1)."
    )
    resolution: int = option(1024, "Pictures are resized and cropped to this many pixels square.")
    center_crop: bool = option(
        False, "Crop from the centre, not from a place drawn for each picture."
    )
    random_flip: bool = option(False, "Flip half of the samples left to right.")
    image_interpolation_mode: Literal[
        "lanczos", "bicubic", "bilinear", "box", "hamming", "nearest"
    ] = option("lanczos", "How pictures are resized.")
    crop_variants: int = option(
        1, "How many random crops of each picture are encoded; each sample has one of them."
    )
    buckets: bool = option(
        False,
        "Keep the shapes of pictures: each goes to the nearest of SDXL's sizes, scaled to "
        "--resolution, and a batch holds one size.",
    )
    min_image_size: int | None = option(
        None,
        "Name pictures whose shorter side has fewer pixels. Default: those that are enlarged.",
    )
    repeats: int = option(1, "How many times each picture counts in an epoch.")
    latent_cache_dir: str | None = option(
        None,
        "The cache of VAE latents and text embeddings, shared by all runs. Default: mindbooth "
        "under $XDG_CACHE_HOME or ~/.cache.",
    )
    latent_cache_readonly: list[str] | None = _several(
        "Another cache that is read where that one lacks an entry, and never written to, such as "
        "one that many users share; may be given again."
    )
    cache_scope: Literal["auto", "shared", "host"] = option(
        "auto",
        "Which ranks share the work of encoding: those that see one cache folder (auto), all, or "
        "those of a host.",
    )

    def __post_init__(self) -> None:
        _positive(self, "resolution", "repeats", "crop_variants", "min_image_size")
        if self.resolution % 8:
            raise ConfigError(f"--resolution {self.resolution} is no multiple of 8.")
        if (self.instance_data_dir is None) == (self.dataset_name is None):
            both = "both" if self.dataset_name else "neither"
            raise ConfigError(
                f"The pictures come from --instance_data_dir or from --dataset_name; {both} was "
                "given."
            )
        if self.center_crop and self.crop_variants > 1:
            raise ConfigError(
                f"--center_crop and --crop_variants {self.crop_variants} don't go together: there "
                "is one crop from the centre. Leave one out."
            )
        if not 0 <= self.caption_dropout < 1:
            raise ConfigError(f"--caption_dropout {self.caption_dropout} is not in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Prior preservation: pictures of the class keep the model from forgetting it."""

    _argument_group_name = "prior preservation"

    with_prior_preservation: bool = option(
        False, "Train on pictures of the class too, so that not every dog becomes yours."
    )
    class_data_dir: str | None = option(
        None, "The folder with them; what is missing there is made by the model."
    )
    class_prompt: str | None = option(None, 'Their caption, e.g. "a photo of a dog".')
    num_class_images: int = option(100, "How many there must be.")
    prior_loss_weight: float = option(1.0, "The weight of their loss.")
    sample_batch_size: int = option(4, "How many a device makes at once.")
    prior_generation_precision: Literal["no", "fp32", "fp16", "bf16"] | None = option(
        None, "What the model computes in when it makes them. Default: that of --mixed_precision."
    )

    def __post_init__(self) -> None:
        _positive(self, "num_class_images", "sample_batch_size")
        if not self.prior_loss_weight >= 0:
            raise ConfigError(f"--prior_loss_weight {self.prior_loss_weight} is below 0.")
        for name in ("class_data_dir", "class_prompt"):
            if self.with_prior_preservation and not getattr(self, name):
                raise ConfigError(f"--with_prior_preservation needs --{name}.")

    @property
    def folder(self) -> Path:
        """That of the class images."""
        return Path(self.class_data_dir or "").expanduser()


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the UNet is asked to predict, and how much each sample counts."""

    _argument_group_name = "objective"

    do_edm_style_training: bool = option(
        False,
        "Train in the formulation of EDM (https://arxiv.org/abs/2206.00364). Done in any case "
        "with models made in it, such as Playground v2.5.",
    )
    snr_gamma: float | None = option(
        None, "Weigh samples by min-SNR (https://arxiv.org/abs/2303.09556); 5.0 is usual."
    )
    noise_offset: float = option(
        0.0, "Noise added to a channel as a whole, for very dark and very bright pictures."
    )

    def __post_init__(self) -> None:
        _positive(self, "snr_gamma")
        if not self.noise_offset >= 0:
            raise ConfigError(f"--noise_offset {self.noise_offset} is below 0.")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The adapter: what is trained."""

    _argument_group_name = "adapter"

    rank: int = option(4, "Rank of the LoRA matrices; alpha is the same.", "--lora_rank")
    lora_dropout: float = option(0.0, "Share of a LoRA layer's inputs that are zeroed, in [0, 1).")
    train_text_encoder: bool = option(False, "Train LoRA on both text encoders too.")
    ema_decay: float | None = option(
        None,
        "Keep a moving average of the adapter, e.g. 0.999; it is what is exported and shown.",
    )

    def __post_init__(self) -> None:
        _positive(self, "rank")
        for name in ("lora_dropout", "ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"--{name} {value} is not in [0, 1).")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How it is trained."""

    _argument_group_name = "training"

    train_batch_size: int = option(4, "Samples a device takes at once.")
    gradient_accumulation_steps: int = option(1, "Batches a device sums up for one update.")
    num_train_epochs: int = option(1, "How often each picture is seen.")
    max_train_steps: int | None = option(None, "Number of updates; overrides the epochs.")
    learning_rate: float = option(1e-4, "The learning rate after the warm-up.")
    text_encoder_lr: float = option(5e-6, "The text encoders' learning rate.")
    scale_lr: bool = option(
        False, "Multiply --learning_rate by the number of samples of an update."
    )
    lr_scheduler: str = option("constant", f"One of {', '.join(SCHEDULES)}.")
    lr_warmup_steps: int = option(500, "Updates of warm-up; `constant` has none.")
    lr_num_cycles: int = option(1, "Hard restarts of cosine_with_restarts.")
    lr_power: float = option(1.0, "Power of polynomial.")
    optimizer: str = option(
        "AdamW", "AdamW, with the semantics of torch's, or prodigy (with --learning_rate 1)."
    )
    adam_beta1: float = option(0.9, "Decay of the first moment.")
    adam_beta2: float = option(0.999, "Decay of the second moment.")
    adam_weight_decay: float = option(1e-4, "Decoupled weight decay.")
    adam_weight_decay_text_encoder: float = option(1e-3, "That of the text encoders.")
    adam_epsilon: float = option(1e-8, "Added to the root of the second moment.")
    prodigy_beta3: float | None = option(
        None, "Decay of Prodigy's step size estimate. Default: the root of --adam_beta2."
    )
    prodigy_decouple: bool = option(True, "Decoupled weight decay in Prodigy.")
    prodigy_use_bias_correction: bool = option(True, "Bias correction in Prodigy.")
    prodigy_safeguard_warmup: bool = option(
        True, "Keep the warm-up out of Prodigy's step size estimate."
    )
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm.")
    gradient_checkpointing: bool = option(
        False, "Compute activations again in the backward pass: less memory, more time."
    )
    mixed_precision: Precision | None = option(
        None, "What the frozen models compute in: fp16, bf16, or fp32 with `no` (the default)."
    )
    seed: int | None = option(None, "Seed of the run. Default: drawn, and written to config.yaml.")

    def __post_init__(self) -> None:
        _positive(
            self, "train_batch_size", "gradient_accumulation_steps", "num_train_epochs",
            "max_train_steps", "max_grad_norm", "adam_epsilon", "lr_num_cycles",
        )  # fmt: skip
        for name in ("adam_beta1", "adam_beta2", "prodigy_beta3"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"--{name} {value} is not in [0, 1).")
        for name in (
            "learning_rate", "text_encoder_lr", "adam_weight_decay",
            "adam_weight_decay_text_encoder", "lr_warmup_steps",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"--{name} {getattr(self, name)} is below 0, or no number.")
        if self.optimizer.lower() not in ("adamw", "prodigy"):
            raise ConfigError(f"--optimizer {self.optimizer}: there are AdamW and prodigy.")
        if self.lr_scheduler not in SCHEDULES:
            raise ConfigError(
                f"--lr_scheduler {self.lr_scheduler}: there is {', '.join(SCHEDULES)}."
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"--seed {self.seed} is not in 0..2**63 - 1.")

    @property
    def uses_prodigy(self) -> bool:
        """Whether the optimizer is Prodigy, and not AdamW."""
        return self.optimizer.lower() == "prodigy"

    def updates(self, examples: int, samples_per_update: int) -> int:
        """How many updates the run has, where each takes so many samples over all devices."""
        if self.max_train_steps is not None:
            return self.max_train_steps
        return stream.updates(
            self.num_train_epochs, samples_per_update=samples_per_update, examples=examples
        )

    def peak_rate(self, samples_per_update: int) -> float:
        """The learning rate after the warm-up: multiplied by G with --scale_lr."""
        return self.learning_rate * (samples_per_update if self.scale_lr else 1)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What the run leaves behind."""

    _argument_group_name = "output"

    output_dir: str = option("lora-dreambooth-model", "Where everything is written.")
    output_kohya_format: bool = option(
        False, "Also write the adapter under the names that ComfyUI and A1111 load."
    )
    validation_prompt: list[str] | None = _several(
        "Make pictures of this prompt while training and at the end; may be given again."
    )
    num_validation_images: int = option(4, "How many pictures of each prompt.")
    validation_epochs: int = option(50, "Make them every so many epochs.")
    validation_steps: int | None = option(
        None, "Make them every so many updates instead of by epochs."
    )
    checkpointing_steps: int = option(500, "Save a checkpoint every so many updates.")
    checkpoints_total_limit: int | None = option(None, "Keep the newest so many checkpoints.")
    resume_from_checkpoint: str | None = option(
        None, '"latest", or the path of a checkpoint-N folder: go on from there.'
    )
    report_to: str = option(
        "tensorboard", "Where figures and pictures are shown: tensorboard, wandb, all, or none."
    )
    logging_dir: str = option("logs", "The folder for that, within --output_dir.")
    push_to_hub: bool = option(False, "Upload adapter, card and pictures to the hub at the end.")
    hub_model_id: str | None = option(
        None, "The repository there. Default: the name of --output_dir."
    )
    hub_token: str | None = option(
        None, "The token to write with; better kept in HF_TOKEN, or by hf auth login."
    )

    def __post_init__(self) -> None:
        _positive(
            self, "num_validation_images", "validation_epochs", "validation_steps",
            "checkpointing_steps", "checkpoints_total_limit",
        )  # fmt: skip
        if not all(prompt.strip() for prompt in self.validation_prompt or ()):
            raise ConfigError("--validation_prompt is empty: give a prompt, or leave it out.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how this process runs; no option here changes what is learned."""

    _argument_group_name = "run"

    config: str | None = option(None, "A YAML file with options by name; flags override it.")
    distributed: bool = option(False, "Join msrun's other workers (always done under msrun).")
    device_target: Literal["auto", "Ascend", "CPU"] = option("auto", "What to compute on.")
    mode: Literal["graph", "pynative"] = option(
        "graph", "Compile the forward and backward pass, or run it operator by operator."
    )
    compile_cache: str | None = option(
        None,
        "Where compiled graphs are kept for later runs, or `off`. Default: mindbooth-graphs under "
        "$XDG_CACHE_HOME or ~/.cache on a CPU, and off on Ascend.",
    )
    allreduce_dtype: Literal["fp16", "fp32"] = option("fp16", "What gradients travel in.")
    profile: bool = option(
        False,
        "Every rank tells how long each phase and each part of an update took, and how much "
        "memory, and writes a trace to profile/ in --output_dir; on Ascend with MindSpore's "
        "profiler over three updates.",
    )
    debug: bool = option(
        False,
        "For a debugger: PyNative, one operator after the other, every layer checked for "
        "non-finite values, the first batch as pictures, and --profile.",
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All options of a run."""

    model: ModelConfig
    data: DataConfig
    prior: PriorConfig
    objective: ObjectiveConfig
    adapter: AdapterConfig
    optim: OptimConfig
    output: OutputConfig
    run: RunConfig

    def __post_init__(self) -> None:
        if self.objective.do_edm_style_training and self.objective.snr_gamma is not None:
            raise ConfigError(
                "--snr_gamma and --do_edm_style_training don't go together: EDM weighs noise "
                "levels itself. Leave one out."
            )
        if self.optim.gradient_checkpointing and self.adapter.lora_dropout:
            raise ConfigError(
                "--gradient_checkpointing and --lora_dropout don't go together: MindSpore may drop "
                "other inputs when it computes a layer again. Leave one out."
            )

    def flat(self) -> dict[str, Any]:
        """Every option by its flag's name, as config.yaml has it; no secret among them."""
        parts = (getattr(self, part.name) for part in dataclasses.fields(self))
        flat = {k: v for part in parts for k, v in dataclasses.asdict(part).items()}
        del flat["config"], flat["hub_token"]
        return flat


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} {value} is not above 0.")
