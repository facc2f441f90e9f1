"""The options: what is understood, what is refused and how, and the help text, pinned."""

import re
from pathlib import Path

import pytest

from mindbooth.trainer.config import ConfigError
from mindbooth.trainer.export import config_file
from mindbooth.trainer.parse import parse, parser

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
        (["--validation_prompt", "a", "dog"], "no option dog"),  # without quotes
        (["--allow_tf32"], "--allow_tf32 is refused: TF32 is"),
        (["--use_8bit_adam"], "--use_8bit_adam is refused: bitsandbytes"),
        (["--use-dora"], "--use_dora is refused: mindone's peft has no DoRA"),
        (["--snr_gamma=5", "--do_edm_style_training"], "--snr_gamma and --do_edm_style_training"),
        (["--snr_gamma=0"], "--snr_gamma 0.0 is not above 0"),
        (["--noise_offset=-1"], "--noise_offset -1.0 is below 0"),
        (["--caption_dropout=1"], "--caption_dropout 1.0 is not in [0, 1)"),
        (["--lora_dropout=1"], "--lora_dropout 1.0 is not in [0, 1)"),
        (["--ema_decay=1.5"], "--ema_decay 1.5 is not in [0, 1)"),
        (["--text_encoder_lr=-1"], "--text_encoder_lr -1.0 is below 0"),
        (["--dataset_name=dogs"], "from --instance_data_dir or from --dataset_name; both"),
        (["--with_prior_preservation"], "--with_prior_preservation needs --class_data_dir"),
        (
            ["--with_prior_preservation", "--class_data_dir=dogs"],
            "--with_prior_preservation needs --class_prompt",
        ),
        (["--validation_prompt="], "--validation_prompt is empty"),
        (["--prior_loss_weight=-1"], "--prior_loss_weight -1.0 is below 0"),
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
        (["--learning_rate", "inf"], "--learning_rate inf is below 0, or no number"),
        (["--adam_beta1=1"], "--adam_beta1 1.0 is not in [0, 1)"),
        (["--prodigy_beta3=7"], "--prodigy_beta3 7.0 is not in [0, 1)"),
        (["--adam_weight_decay=-5"], "--adam_weight_decay -5.0 is below 0"),
        (["--gradient_checkpointing", "--lora_dropout=0.1"], "don't go together"),
        (["--lr_scheduler", "exponential"], "there is linear, cosine, "),
        (["--optimizer", "Lion"], "--optimizer Lion: there are AdamW and prodigy"),
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
        ["--local_rank", "3"],
    ],
)
def test_what_has_no_effect_is_taken_with_a_warning(argv: list[str]) -> None:
    config, warnings = parse([*REQUIRED, *argv])
    name = argv[0].split("=")[0].removeprefix("--").replace("-", "_")
    (warning,) = warnings
    assert warning.startswith(f"--{name} has no effect: ")
    assert warning.endswith(".")
    assert config.data.random_flip == ("--random_flip" in argv)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--class_prompt=a dog"], "--class_prompt has no effect without --with_prior_preserv"),
        (["--text-encoder-lr=1e-4"], "--text_encoder_lr has no effect without --train_text_enc"),
        (["--caption_column=text"], "--caption_column has no effect without --dataset_name"),
        (["--validation_steps=5"], "--validation_steps has no effect without --validation_prom"),
        (["--hub_token=x"], "--hub_token has no effect without --push_to_hub"),
        (["--prodigy_beta3=0.9"], "--prodigy_beta3 has no effect without --optimizer prodigy"),
        (["--no_prodigy_decouple"], "--prodigy_decouple has no effect without --optimizer prod"),
        (["--lr_power=2"], "--lr_power has no effect without --lr_scheduler polynomial"),
        (["--lr_num_cycles=2"], "--lr_num_cycles has no effect without --lr_scheduler cosine_w"),
        (["--lr_warmup_steps=9"], "--lr_warmup_steps has no effect with --lr_scheduler constant"),
        (
            ["--num_train_epochs=2", "--max_train_steps=9"],
            "--num_train_epochs has no effect beside --max_train_steps",
        ),
        (["--debug", "--mode=graph"], "--mode has no effect beside --debug"),
        (["--compile_cache=x", "--mode=pynative"], "--compile_cache has no effect in PyNative"),
        (["--optimizer=prodigy"], "--learning_rate 0.0001 is a factor on the step size"),
    ],
)
def test_what_has_no_effect_beside_the_others_is_told(argv: list[str], told: str) -> None:
    (warning,) = parse([*REQUIRED, *argv])[1]
    assert told in warning


def test_several_prompts_can_be_given_in_each_way(tmp_path: Path) -> None:
    wanted = ["a dog", "two dogs", "a cat"]
    file = tmp_path / "run.yaml"
    file.write_text("validation_prompt: [a dog, two dogs, a cat]")
    for argv in (
        [f"--validation_prompt={prompt}" for prompt in wanted],
        ["--config", str(file)],
    ):
        assert options(*argv)["validation_prompt"] == wanted
    assert options("--config", str(file), "--validation_prompt=x")["validation_prompt"] == ["x"]


def test_the_token_is_in_no_file(tmp_path: Path) -> None:
    config, _ = parse([*REQUIRED, "--push_to_hub", "--hub_token=hf_secret"])
    config_file(tmp_path / "config.yaml", config, 7)
    assert "hf_secret" not in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("argv", "rate"), [([], 1e-4), (["--scale_lr"], 8e-4), (["--scale_lr=no"], 1e-4)]
)
def test_scale_lr_multiplies_by_the_samples_of_an_update(argv: list[str], rate: float) -> None:
    assert parse([*REQUIRED, *argv])[0].optim.peak_rate(8) == pytest.approx(rate)


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
        ("validation_prompt: -5 degrees, sks dog", "validation_prompt", ["-5 degrees, sks dog"]),
        ("validation_prompt: 'a: b'", "validation_prompt", ["a: b"]),
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
        [
            "--validation_prompt=a",
            "--validation_prompt=b",
            "--optimizer=prodigy",
            "--learning_rate=1",
        ],
        ["--no_prodigy_decouple", "--optimizer=prodigy", "--learning_rate=1"],
    ],
)
def test_the_written_options_are_read_again(tmp_path: Path, argv: list[str]) -> None:
    config, _ = parse([*REQUIRED, *argv])
    path = tmp_path / "config.yaml"
    config_file(path, config, 7)
    again, warnings = parse(["--config", str(path)])
    assert again.flat() == {**config.flat(), "seed": 7, "resume_from_checkpoint": None}
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
