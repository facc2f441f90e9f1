"""The options of `mindbooth generate`: what they mean, and what is refused."""

from pathlib import Path

import pytest

from mindbooth.trainer.config import ConfigError
from mindbooth.trainer.generate_options import parse, parser

HELP = Path(__file__).parents[2] / "fixtures" / "generate_help.txt"
SOUND = ["--prompt", "a dog"]


def test_the_help_text_grows_by_decision_only() -> None:
    """After a change on purpose: `mindbooth generate --help > tests/fixtures/generate_help.txt`."""
    assert parser().format_help() == HELP.read_text()


def test_flags_that_are_repeated_add_up_and_a_lone_scale_is_for_all() -> None:
    asked = parse([*SOUND, "--prompt=a cat", "--lora", "a", "--lora", "b", "--lora_scale", "0.5"])
    assert asked.prompt == ["a dog", "a cat"]
    assert (asked.lora, asked.scales) == (["a", "b"], [0.5, 0.5])
    asked = parse([*SOUND, "--lora=a", "--lora=b", "--lora_scale=-1", "--lora_scale=2"])
    assert asked.scales == [-1.0, 2.0]
    assert parse([*SOUND, "--lora", "a"]).scales == [1.0]
    assert parse(SOUND).scales == []


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], 'Give --prompt "'),
        (["--promt", "a dog"], "There is no option --promt. The nearest is --prompt."),
        (["--prompt", "a", "dog"], "There is no option dog. A text of several words needs quotes."),
        ([*SOUND, "--seed", "x"], "--seed"),
        ([*SOUND, "--seed=-1"], "--seed -1 is not in 0..2**63 - 1."),
        ([*SOUND, "--num_images=0"], "--num_images 0 is not above 0."),
        ([*SOUND, "--height=100"], "--height 100 is no multiple of 8."),
        ([*SOUND, "--width=-8"], "--width -8 is not above 0."),
        ([*SOUND, "--mixed_precision=fp8"], "--mixed_precision"),
        ([*SOUND, *["--lora_scale=1"] * 2], "2 times --lora_scale for 0 times --lora"),
        ([*SOUND, *["--lora=a"] * 3, *["--lora_scale=1"] * 2], "2 times --lora_scale for 3 times"),
        ([*SOUND, "--refiner=r", "--refiner_strength=0"], "--refiner_strength 0.0 is not in (0, "),
        ([*SOUND, "--refiner=r", "--num_inference_steps=3"], "is less than one step"),
    ],
)
def test_a_mistake_is_told(argv: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--lora_scale=1"], "--lora_scale has no effect without --lora."),
        (["--refiner_strength=0.5"], "--refiner_strength has no effect without --refiner."),
        (["--negative_prompt=blur", "--guidance_scale=1"], "--negative_prompt has no effect"),
    ],
)
def test_an_option_without_effect_is_told(more: list[str], told: str) -> None:
    (line,) = parse([*SOUND, *more]).useless()
    assert line.startswith(told)
    assert parse([*SOUND, "--refiner=r", "--negative_prompt=blur"]).useless() == []
