"""N cards compute what one card computes, with all that a sample can bring along."""

from pathlib import Path

import jobs
import pytest
from jobs import Flags

UPDATES = 6


@pytest.fixture(scope="module")
def folder(
    tiny_pipeline: Path, mini_sdxl: Path, photographs: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """Output folders: `one` of one card, `two` of two, `start` of neither."""
    folder = tmp_path_factory.mktemp("splits")
    common = jobs.training(
        tiny_pipeline,
        mini_sdxl / "instance",
        max_train_steps=UPDATES,
        allreduce_dtype="fp32",
        latent_cache_dir=folder / "cache",
        report_to="none",
        with_prior_preservation=True,
        class_data_dir=photographs,
        class_prompt="a photo of a cat",
        num_class_images=4,
        train_text_encoder=True,
        text_encoder_lr=1e-3,
        caption_dropout=0.3,
        noise_offset=0.1,
        snr_gamma=5,
        random_flip=True,
        ema_decay=0.9,
    )
    one: list[Flags] = [
        [*common, *jobs.flags(output_dir="one", train_batch_size=2)],
        [*common, *jobs.flags(output_dir="micro", train_batch_size=1,
                              gradient_accumulation_steps=2)],
        [*common, *jobs.flags(output_dir="start", learning_rate=0, text_encoder_lr=0,
                              max_train_steps=1)],
    ]  # fmt: skip
    for ended in jobs.several(one, folder):
        assert ended.status == 0, ended.err
    two = jobs.flags(output_dir="two", train_batch_size=1)
    job = jobs.run([*jobs.launch(2), *common, *two], folder)
    assert job.process.returncode == 0, job.told
    return folder


@pytest.mark.parametrize("name", ["two", "micro"])
def test_every_split_of_an_update_trains_the_same(folder: Path, name: str) -> None:
    split, one, start = (jobs.adapter(folder / output) for output in (name, "one", "start"))
    assert jobs.distance(split, one, start) < 1e-4


@pytest.mark.parametrize("name", ["two", "micro"])
def test_the_losses_are_the_same(folder: Path, name: str) -> None:
    losses = [[line["loss"] for line in jobs.metrics(folder / output)] for output in (name, "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_one_collective_an_update_whatever_is_trained(folder: Path) -> None:
    assert jobs.collectives(folder / "two") == {1}
