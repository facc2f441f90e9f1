"""Class images from a tiny model: the same ones on one rank and on three, and after a kill."""

import gc
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jobs
import numpy as np
import pytest
from jobs import Flags
from PIL import Image
from safetensors.numpy import load_file, save_file

from mindbooth.data.errors import DataError
from mindbooth.data.meeting import Meeting

if TYPE_CHECKING:
    from mindbooth.trainer.device import Comm

WORKER = Path(__file__).parent / "workers" / "prior.py"
COUNT = 5
NAMES = [f"class-0000{number}.png" for number in range(COUNT)]
CLOSE = 2  # levels of 255; batches of other sizes round differently
Fill = Callable[..., None]


@pytest.fixture(scope="module")
def options(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Flags]:
    empty, cache = tmp_path_factory.mktemp("instance"), tmp_path_factory.mktemp("cache")

    def flags(folder: Path, **changed: object) -> Flags:
        usual: dict[str, object] = {
            "with_prior_preservation": True,
            "class_data_dir": folder,
            "class_prompt": "a photo of a cat",
            "num_class_images": COUNT,
            "latent_cache_dir": cache,
        }
        model = changed.pop("pretrained_model_name_or_path", tiny_pipeline)
        return jobs.training(Path(str(model)), empty, **usual | changed)

    return flags


@pytest.fixture(scope="module")
def fill(cpu: "Comm", options: Callable[..., Flags]) -> Fill:
    """Makes what is missing in a folder, on one rank in pytest's own process."""
    import mindspore as ms

    from mindbooth.trainer import prior, sdxl
    from mindbooth.trainer.parse import parse

    meeting = Meeting.alone()

    def in_this_process(folder: Path, **changed: object) -> None:
        config, _ = parse(options(folder, **changed))
        prior.fill(config, sdxl.locate(config.model), cpu, meeting, ms.float32)

    return in_this_process


@pytest.fixture(scope="module")
def undisturbed(fill: Fill, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of one rank, made in batches of 4."""
    folder = tmp_path_factory.mktemp("undisturbed") / "class"
    fill(folder, sample_batch_size=4)
    return folder


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Files of a folder with pictures of the user's own, and the networks in memory, before and
    after one was made beside them."""

    before: dict[str, int]
    after: dict[str, int]
    cells_before: int
    cells_after: int


@pytest.fixture(scope="module")
def beside_own(undisturbed: Path, fill: Fill, tmp_path_factory: pytest.TempPathFactory) -> Beside:
    from mindspore import nn

    def cells() -> int:
        gc.collect()
        # By its type: to ask a dead weak proxy for its class is a ReferenceError.
        return sum(issubclass(type(found), nn.Cell) for found in gc.get_objects())

    folder = tmp_path_factory.mktemp("beside")
    for number in range(COUNT - 1):
        shutil.copy(undisturbed / NAMES[0], folder / f"mine{number}.png")
    before, cells_before = jobs.files(folder), cells()
    fill(folder)
    return Beside(
        before=before,
        after=jobs.files(folder),
        cells_before=cells_before,
        cells_after=cells(),
    )


@contextmanager
def three_ranks(flags: Flags, cwd: Path) -> Iterator[jobs.Job]:
    launch = [*jobs.launch(3)[len(jobs.MINDBOOTH) :], *flags]
    with jobs.started([sys.executable, WORKER, *launch], cwd) as job:
        yield job


def pictures(folder: Path) -> np.ndarray:
    """(N, H, W, 3) levels of 0..255, in the order of the names."""
    found = [Image.open(path) for path in sorted(folder.iterdir())]
    return np.stack([np.asarray(picture, np.int16) for picture in found])


def test_one_rank_makes_as_many_as_asked_of_the_size_of_the_training(undisturbed: Path) -> None:
    assert list(jobs.files(undisturbed)) == NAMES
    made = pictures(undisturbed)
    assert made.shape == (COUNT, 32, 32, 3)
    apart = [np.abs(a - b).mean() for i, a in enumerate(made) for b in made[:i]]
    assert min(apart) > CLOSE, "each has a seed of its own"


def test_three_ranks_make_the_same_files_as_one(
    undisturbed: Path, options: Callable[..., Flags], tmp_path: Path
) -> None:
    folder = tmp_path / "class"
    with three_ranks(options(folder, sample_batch_size=2), tmp_path) as job:
        assert job.end() == 0, job.told
    assert list(jobs.files(folder)) == NAMES
    assert np.abs(pictures(folder) - pictures(undisturbed)).max() <= CLOSE


def test_a_kill_loses_nothing_that_was_finished_and_the_rest_is_made_after_it(
    undisturbed: Path, fill: Fill, options: Callable[..., Flags], tmp_path: Path
) -> None:
    folder = tmp_path / "class"
    flags = options(folder, sample_batch_size=1)
    with jobs.started([sys.executable, WORKER, *flags], tmp_path) as job:
        job.until(lambda: (folder / NAMES[0]).exists())
        job.process.kill()
        job.end()
    left = {name: time for name, time in jobs.files(folder).items() if name in NAMES}
    assert 1 <= len(left) < COUNT
    fill(folder, sample_batch_size=4)
    after = jobs.files(folder)
    assert [name for name in after if not name.startswith(".")] == NAMES
    assert {name: after[name] for name in left} == left, "these were not made again"
    assert np.abs(pictures(folder) - pictures(undisturbed)).max() <= CLOSE


def test_the_users_pictures_count_and_are_kept(beside_own: Beside) -> None:
    made = beside_own.after.items() - beside_own.before.items()
    assert [name for name, _ in made] == [NAMES[0]]
    assert beside_own.before.items() < beside_own.after.items()


def test_the_models_leave_memory(beside_own: Beside) -> None:
    assert beside_own.cells_after == beside_own.cells_before


def test_where_nothing_is_missing_no_model_is_read(
    undisturbed: Path, fill: Fill, tiny_pipeline: Path, tmp_path: Path
) -> None:
    model = tmp_path / tiny_pipeline.name
    shutil.copytree(tiny_pipeline, model)
    for weights in model.rglob("*.safetensors"):
        save_file({"none": np.zeros(1, np.float32)}, weights)
    before = jobs.files(undisturbed)
    fill(undisturbed, pretrained_model_name_or_path=model)  # ends with an error if one is read
    assert jobs.files(undisturbed) == before


def test_another_class_prompt_is_told_and_nothing_is_made_again(
    undisturbed: Path, fill: Fill, caplog: pytest.LogCaptureFixture
) -> None:
    before = jobs.files(undisturbed)
    with caplog.at_level(logging.WARNING, "mindbooth"):
        fill(undisturbed, class_prompt="a photo of a dog")
    assert "5 of the class images in" in caplog.text
    assert "prompt 'a photo of a cat' (now 'a photo of a dog')" in caplog.text
    assert jobs.files(undisturbed) == before


def test_a_model_that_overflows_is_told_instead_of_black_pictures(
    fill: Fill, tiny_pipeline: Path, tmp_path: Path
) -> None:
    model, folder = tmp_path / "model", tmp_path / "class"
    shutil.copytree(tiny_pipeline, model)
    unet = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(unet)
    save_file(weights | {"conv_out.bias": np.full(4, np.inf, np.float32)}, unet)
    with pytest.raises(DataError, match=r"all black class image.*--prior_generation_precision"):
        fill(folder, pretrained_model_name_or_path=model)
    assert list(folder.iterdir()) == []
