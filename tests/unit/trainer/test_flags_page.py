"""docs/flags.md against the parser: every flag, its default, and what is said of it."""

import re
from pathlib import Path

import pytest

from mindbooth.trainer.config import ConfigError
from mindbooth.trainer.parse import parse, parser

PAGE = Path(__file__).parents[3] / "docs" / "flags.md"
ROW = re.compile(r"\| `--(\w+)` \| (.*?) \|(?: (same|better|no effect|refused) \|)?", re.MULTILINE)
ROWS = {name: (default, here) for name, default, here in ROW.findall(PAGE.read_text("utf-8"))}
REQUIRED = [
    "--pretrained_model_name_or_path=a/model",
    "--instance_data_dir=dog",
    "--instance_prompt=a photo of sks dog",
]

# The flags of mindone's script and of diffusers' at once, as their parsers had them, with the
# defaults; where the two differ, mindone's. `...`: required.
KNOWN: dict[str, object] = {
    "pretrained_model_name_or_path": ..., "pretrained_vae_model_name_or_path": None,
    "revision": None, "variant": None, "dataset_name": None, "dataset_config_name": None,
    "instance_data_dir": None, "cache_dir": None, "image_column": "image", "caption_column": None,
    "repeats": 1, "class_data_dir": None, "instance_prompt": ..., "class_prompt": None,
    "validation_prompt": None, "num_validation_images": 4, "validation_epochs": 50,
    "do_edm_style_training": False, "with_prior_preservation": False, "prior_loss_weight": 1.0,
    "num_class_images": 100, "output_dir": "lora-dreambooth-model", "output_kohya_format": False,
    "seed": None, "resolution": 1024, "center_crop": False, "random_flip": False,
    "train_text_encoder": False, "train_batch_size": 4, "sample_batch_size": 4,
    "num_train_epochs": 1, "max_train_steps": None, "checkpointing_steps": 500,
    "checkpoints_total_limit": None, "resume_from_checkpoint": None,
    "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "learning_rate": 1e-4,
    "text_encoder_lr": 5e-6, "scale_lr": False, "lr_scheduler": "constant", "snr_gamma": None,
    "lr_warmup_steps": 500, "lr_num_cycles": 1, "lr_power": 1.0, "dataloader_num_workers": 1,
    "optimizer": "AdamW", "use_8bit_adam": False, "adam_beta1": 0.9, "adam_beta2": 0.999,
    "prodigy_beta3": None, "prodigy_decouple": True, "adam_weight_decay": 1e-4,
    "adam_weight_decay_text_encoder": 1e-3, "adam_epsilon": 1e-8,
    "prodigy_use_bias_correction": True, "prodigy_safeguard_warmup": True, "max_grad_norm": 1.0,
    "push_to_hub": False, "hub_token": None, "hub_model_id": None, "logging_dir": "logs",
    "allow_tf32": False, "report_to": "tensorboard", "mixed_precision": None,
    "prior_generation_precision": None, "local_rank": -1,
    "enable_xformers_memory_efficient_attention": False, "rank": 4, "lora_dropout": 0.0,
    "use_dora": False, "image_interpolation_mode": "lanczos", "lora_rank": 4, "distributed": False,
    "enable_mindspore_data_sink": False, "noise_offset": 0.0,
}  # fmt: skip


def parsed() -> dict[str, object]:
    """Every flag of ours, under each of its names, with its default."""
    found: dict[str, object] = {}
    for action in parser()._actions:
        for flag in action.option_strings:
            if flag.startswith("--") and "-" not in flag[2:] and not flag.startswith("--no_"):
                found[flag[2:]] = ... if action.required else action.default
    del found["help"]
    return found


def shown(default: object) -> str:
    return {...: "required", None: ""}.get(default, str(default))  # type: ignore[call-overload]


def test_every_known_flag_is_parsed_with_its_default() -> None:
    ours = parsed()
    assert {name: ours.get(name, "absent") for name in KNOWN} == KNOWN


def test_the_page_has_every_flag_of_ours_and_no_other() -> None:
    assert set(ROWS) == set(parsed())


def test_the_page_tells_the_defaults() -> None:
    assert {n: ROWS[n][0] for n in ROWS} == {n: shown(value) for n, value in parsed().items()}


def test_the_page_says_of_each_known_flag_what_became_of_it() -> None:
    assert {name for name, (_, here) in ROWS.items() if here} == set(KNOWN)


@pytest.mark.parametrize("name", [name for name in KNOWN if isinstance(KNOWN[name], (bool, int))])
def test_what_is_refused_is_refused_and_what_has_no_effect_is_told(name: str) -> None:
    default, here = KNOWN[name], ROWS[name][1]
    argv = [*REQUIRED, f"--{name}" if isinstance(default, bool) else f"--{name}=8"]
    if here == "refused":
        with pytest.raises(ConfigError, match=f"--{name} is refused: "):
            parse(argv)
    elif name != "with_prior_preservation":  # which needs others
        told = [line for line in parse(argv)[1] if f"--{name} has no effect: " in line]
        assert bool(told) == (here == "no effect")
