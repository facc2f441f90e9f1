"""The options: what is understood, what is refused and how, and the help text, pinned."""

import re
from pathlib import Path

import pytest

from mindbooth.trainer.config import WITHOUT_EFFECT, ConfigError, parse, parser
from mindbooth.trainer.export import config_file

HELP = Path(__file__).parents[2] / "fixtures" / "train_help.txt"
REQUIRED = [
    "--pretrained_model_name_or_path=a/model",
    "--instance_data_dir=dog",
    "--instance_prompt=a photo of sks dog",
]


def options(*argv: str) -> dict[str, object]:
    return parse([*REQUIRED, *argv])[0].flat()


def test_the_help_text_grows_by_decision_only() -> None:
    """After a change on purpose: `mindbooth train --help > tests/fixtures/train_help.txt`."""
    assert parser().format_help() == HELP.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("revision", None),
        ("variant", None),
        ("pretrained_vae_model_name_or_path", None),
        ("resolution", 1024),
        ("center_crop", False),
        ("random_flip", False),
        ("repeats", 1),
        ("rank", 4),
        ("train_batch_size", 4),
        ("gradient_accumulation_steps", 1),
        ("num_train_epochs", 1),
        ("max_train_steps", None),
        ("learning_rate", 1e-4),
        ("lr_scheduler", "constant"),
        ("lr_warmup_steps", 500),
        ("lr_num_cycles", 1),
        ("lr_power", 1.0),
        ("optimizer", "AdamW"),
        ("adam_beta1", 0.9),
        ("adam_beta2", 0.999),
        ("adam_weight_decay", 1e-4),
        ("adam_epsilon", 1e-8),
        ("max_grad_norm", 1.0),
        ("mixed_precision", None),
        ("seed", None),
        ("output_dir", "lora-dreambooth-model"),
        ("validation_prompt", None),
        ("num_validation_images", 4),
        ("validation_epochs", 50),
        ("checkpointing_steps", 500),
        ("checkpoints_total_limit", None),
        ("resume_from_checkpoint", None),
    ],
)
def test_defaults_are_those_of_the_well_known_script(name: str, default: object) -> None:
    assert options()[name] == default


def test_the_well_known_command_is_understood() -> None:
    config, warnings = parse(
        [
            "--pretrained_model_name_or_path=stabilityai/stable-diffusion-xl-base-1.0",
            "--pretrained_vae_model_name_or_path=madebyollin/sdxl-vae-fp16-fix",
            "--instance_data_dir=dog",
            "--output_dir=lora-trained-xl",
            "--mixed_precision=fp16",
            "--instance_prompt=a photo of sks dog",
            "--resolution=1024",
            "--train_batch_size=1",
            "--gradient_accumulation_steps=4",
            "--learning_rate=1e-5",
            "--lr_scheduler=constant",
            "--lr_warmup_steps=0",
            "--max_train_steps=500",
            "--validation_prompt=A photo of sks dog in a bucket",
            "--validation_epochs=25",
            "--seed=0",
            "--distributed",
        ]
    )
    assert warnings == []
    assert config.model.pretrained_vae_model_name_or_path == "madebyollin/sdxl-vae-fp16-fix"
    assert config.data.instance_prompt == "a photo of sks dog"
    assert (config.optim.learning_rate, config.optim.mixed_precision) == (1e-5, "fp16")
    assert (config.optim.seed, config.optim.max_train_steps) == (0, 500)
    assert config.output.output_dir == "lora-trained-xl"
    assert config.run.distributed


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--resolutoin", "512"], "no option --resolutoin. The nearest is --resolution."),
        (["--learning_rat=1e-4"], "The nearest is --learning_rate."),
        (["--learning", "1"], "no option --learning"),  # no abbreviations
        (["--frobnicate"], "no option --frobnicate. See --help."),
        (["dog"], "no option dog"),
        (["--train_text_encoder"], "--train_text_encoder of train_dreambooth_lora_sdxl.py"),
        (["--snr-gamma=5"], "--snr-gamma of train_dreambooth_lora_sdxl.py is not there yet"),
        (["--resolution", "big"], "invalid int value: 'big'"),
        (["--resolution", "500"], "--resolution 500"),
        (["--resolution", "0"], "--resolution 0 is not above 0"),
        (["--train_batch_size", "-1"], "--train_batch_size -1 is not above 0"),
        (["--rank", "0"], "--rank 0 is not above 0"),
        (["--rank", "4", "--lora_rank", "8"], "--rank 4 and --lora_rank 8 are one option"),
        (["--rank=4", "--lora_rank=8"], "are one option with two values"),
        (["--max_train_steps", "0"], "--max_train_steps 0 is not above 0"),
        (["--learning_rate", "nan"], "--learning_rate nan"),
        (["--learning_rate", "-0.0001"], "--learning_rate -0.0001 is below 0"),
        (["--lr_scheduler", "exponential"], "there is linear, cosine, "),
        (["--optimizer", "prodigy"], "--optimizer prodigy: there is AdamW"),
        (["--mixed_precision", "bf16"], "--mixed_precision bf16 is not there yet"),
        (["--mixed_precision", "fp8"], "invalid choice: 'fp8'"),
        (["--seed", "-1"], "--seed -1 is not in 0..2**63 - 1"),
        (["--seed", str(2**63)], "is not in 0..2**63 - 1"),
        (["--device_target", "GPU"], "invalid choice: 'GPU'"),
        (["--center_crop=perhaps"], "perhaps"),
        (["--config", "no/such.yaml"], "--config no/such.yaml can't be read"),
    ],
)
def test_a_mistake_is_told_in_one_line(argv: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        options(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", REQUIRED)
def test_what_is_required_is_told_if_missing(missing: str) -> None:
    with pytest.raises(ConfigError, match=missing.split("=")[0]):
        parse([word for word in REQUIRED if word != missing])


@pytest.mark.parametrize(
    "argv",
    [
        ["--rank", "16"],
        ["--lora_rank", "16"],
        ["--lora_rank=16"],
        ["--rank", "16", "--lora_rank", "16"],
    ],
)
def test_both_names_of_the_rank_are_one_option(argv: list[str]) -> None:
    assert options(*argv)["rank"] == 16


@pytest.mark.parametrize("value", ["", "=True", "=true"])
def test_a_switch_is_turned_on(value: str) -> None:
    assert options(f"--random_flip{value}")["random_flip"] is True


def test_a_switch_is_turned_off() -> None:
    assert options("--random_flip", "False")["random_flip"] is False


@pytest.mark.parametrize(
    "argv",
    [
        ["--dataloader_num_workers", "0"],
        ["--dataloader_num_workers=8"],
        ["--dataloader-num-workers", "2"],
        ["--enable_xformers_memory_efficient_attention"],
        ["--enable_mindspore_data_sink", "--random_flip"],
    ],
)
def test_what_has_no_effect_is_taken_with_a_warning(argv: list[str]) -> None:
    config, warnings = parse([*REQUIRED, *argv])
    name = argv[0].split("=")[0].removeprefix("--").replace("-", "_")
    assert len(warnings) == 1
    assert f"--{name} has no effect: {WITHOUT_EFFECT[name]}" in warnings[0]
    assert config.data.random_flip == ("--random_flip" in argv)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 1e-3", "learning_rate", 1e-3),  # a string, for YAML
        ("learning_rate: 0.001", "learning_rate", 1e-3),
        ("resolution: 512", "resolution", 512),
        ("random_flip: true", "random_flip", True),
        ("random_flip: yes", "random_flip", True),
        ("random_flip: false", "random_flip", False),
        ("mixed_precision: fp16", "mixed_precision", "fp16"),
        ("mixed_precision: no", "mixed_precision", "no"),  # false, for YAML
        ("mixed_precision: 'no'", "mixed_precision", "no"),
        ("validation_prompt:", "validation_prompt", None),
        ("seed: null", "seed", None),
        ("validation_prompt: -5 degrees, sks dog", "validation_prompt", "-5 degrees, sks dog"),
        ("validation_prompt: 'a: b'", "validation_prompt", "a: b"),
        ("lora_rank: 8", "rank", 8),
        ("", "rank", 4),
    ],
)
def test_a_file_gives_options(tmp_path: Path, text: str, name: str, value: object) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert options("--config", str(file))[name] == value
    assert options(f"--config={file}")[name] == value


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("rank: 8\nresolution: 512\ninstance_prompt: a photo of sks cat\n")
    found = options("--config", str(file), "--lora_rank", "16", "--resolution=64")
    assert (found["rank"], found["resolution"]) == (16, 64)
    assert found["instance_prompt"] == "a photo of sks dog"


def test_a_file_may_hold_what_is_required(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("\n".join(word.removeprefix("--").replace("=", ": ") for word in REQUIRED))
    assert parse(["--config", str(file)])[0].flat() == options()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- rank: 4", "holds no options by name"),
        ("rank: [", "is no YAML"),
        ("rnak: 8", "there is no option rnak. The nearest is rank."),
        ("learning_rate: fast", "invalid float value: 'fast'"),
        ("rank: 0", "--rank 0 is not above 0"),
    ],
)
def test_a_mistake_in_the_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        options("--config", str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--mixed_precision=no", "--seed=3", "--center_crop", "--device_target=CPU"],
        ["--validation_prompt=--ärger: \"no\" 'yes' #1, 1e-3", "--learning_rate=1e-05"],
        ["--validation_prompt=no", "--variant=null", "--revision=1e3", "--lr_power=2.5"],
        ["--resume_from_checkpoint=latest", "--max_train_steps=7", "--mode=pynative"],
    ],
)
def test_the_written_options_are_read_again(tmp_path: Path, argv: list[str]) -> None:
    config, _ = parse([*REQUIRED, *argv])
    path = tmp_path / "config.yaml"
    config_file(path, config, 7)
    again, warnings = parse(["--config", str(path)])
    assert again.flat() == {**config.flat(), "seed": 7}
    assert warnings == []


@pytest.mark.parametrize(
    ("argv", "examples", "samples_per_update", "updates"),
    [
        (["--max_train_steps=500"], 5, 4, 500),
        ([], 5, 4, 2),
        (["--num_train_epochs=4"], 5, 4, 5),
        (["--num_train_epochs=3"], 5, 16, 1),
    ],
)
def test_epochs_become_updates(
    argv: list[str], examples: int, samples_per_update: int, updates: int
) -> None:
    optim = parse([*REQUIRED, *argv])[0].optim
    assert optim.updates(examples, samples_per_update) == updates
