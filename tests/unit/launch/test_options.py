from pathlib import Path

import pytest

from mindbooth.launch import options
from mindbooth.launch.options import LaunchConfig, LaunchError

PARSER = options.parser("launch", "About.")


def parse(*argv: str) -> LaunchConfig:
    return options.parse(PARSER, argv)[0]


def test_nothing_asked_is_all_auto() -> None:
    assert parse() == LaunchConfig()


def test_every_option_is_read() -> None:
    assert parse(
        *("--job", "precompute", "--nproc_per_node", "2"),
        *("--devices=4,6", "--device_target", "Ascend"),
        *("--master_port", "8118", "--rank_table", "t.json", "--log_dir", "logs"),
        *("--grace_seconds", "1.5", "--", "--seed", "0", "--", "-x"),
    ) == LaunchConfig(
        job="precompute",
        nproc_per_node=2,
        devices=(4, 6),
        device_target="Ascend",
        master_port=8118,
        rank_table=Path("t.json"),
        log_dir=Path("logs"),
        grace_seconds=1.5,
        training_flags=("--seed", "0", "--", "-x"),
    )


@pytest.mark.parametrize("option", ["nproc_per_node", "device_target", "master_port", "rank_table"])
def test_auto_can_be_said(option: str) -> None:
    config = parse(f"--{option}=auto")
    assert getattr(config, option) in (None, Path("auto"))


def test_rank_table_takes_two_words_beside_a_path() -> None:
    assert parse("--rank_table", "auto").rank_table is None
    assert parse("--rank_table", "off").rank_table == "off"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("--nproc_per_node 0", "--nproc_per_node 0: at least one worker"),
        ("--nproc_per_node two", "--nproc_per_node: 'two' is not a number"),
        ("--nproc_per_node", "--nproc_per_node: expected one argument"),
        ("--nproc_per_nod 2", "Did you mean --nproc_per_node?"),
        ("--nproc 2", "--nproc is no option of mindbooth launch"),
        ("--seed=3", "--seed is no option of mindbooth launch. Training flags stand after a --"),
        ("train", "train is no option of mindbooth launch"),
        ("--devices 0;1", "--devices: '0;1' is no list of device numbers"),
        ("--devices 1,", "--devices: '1,' is no list of device numbers"),
        ("--devices 4,5,4", "--devices 4,5,4: 4 stands there twice"),
        ("--devices 5,4", "Write 4,5"),
        ("--devices 4,5 --nproc_per_node 3", "--nproc_per_node 3, but --devices 4,5 names 2"),
        ("--job trian", "--job: 'trian' is none of train, precompute"),
        ("--device_target GPU", "'GPU' is none of auto, Ascend, CPU"),
        ("--master_port 80", "ports go from 1024 to 65534"),
        ("--master_port 65535", "ports go from 1024 to 65534"),
        ("--grace_seconds -1", "--grace_seconds"),
        ("--grace_seconds=-1", "--grace_seconds -1.0: give 0 or more"),
        ("--grace_seconds nan", "give 0 or more"),
        ("--grace_seconds soon", "'soon' is not a number of seconds"),
        ("-- --device_target CPU", "Put it before the --"),
        ("-- --device-target=CPU", "Put it before the --"),
        ("-- --seed 0 --job precompute", "Put --job precompute before the --"),
        ("-- precompute --seed 0", "Put --job precompute before the --"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(argv: str, told: str) -> None:
    with pytest.raises(LaunchError) as caught:
        parse(*argv.split())
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "config", "expected"),
    [
        ("", {}, "lora-dreambooth-model"),
        ("--output_dir out", {}, "out"),
        ("--output_dir=out", {}, "out"),
        ("--output-dir=out", {}, "out"),
        ("--output_dir a --seed 0 --output_dir=b", {}, "b"),
        ("--output_dir", {}, "lora-dreambooth-model"),
        ("--instance_prompt --output_dir=x", {}, "x"),
        ("--seed 0", {"output_dir": "from-yaml", "seed": 1}, "from-yaml"),
        ("--output_dir flag", {"output_dir": "from-yaml"}, "flag"),
        ("--output_dirs x", {}, "lora-dreambooth-model"),
    ],
)
def test_the_output_folder_is_found(flags: str, config: dict[str, object], expected: str) -> None:
    assert options.output_dir(flags.split(), config) == Path(expected)


def test_an_output_folder_that_is_no_path_is_told() -> None:
    with pytest.raises(LaunchError, match="output_dir: 3"):
        options.output_dir((), {"output_dir": 3})


@pytest.mark.parametrize("flags", ["--config run.yaml", "--config=run.yaml"])
def test_the_config_file_is_found(flags: str) -> None:
    assert options.config_file(flags.split()) == Path("run.yaml")
    assert options.config_file(()) is None
