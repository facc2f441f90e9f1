"""Captions of their own are trained with, wherever they stand: beside the pictures or in a dataset.

The same two pictures with the same captions are trained on four times, from text files, from
metadata.jsonl, and from two datasets; and once with the instance prompt alone.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jobs
import numpy as np
import pytest
from jobs import Ended, Flags

CAPTIONS = ["a red sks robot on a table", "sks robot, 海边"]
# Made in a process of its own: the library would load torch into one that has it.
MAKE_PARQUET = """
import json, sys
from datasets import Dataset, Features, Image, Value
rows = json.load(sys.stdin)
rows["picture"] = [{"bytes": open(path, "rb").read(), "path": None} for path in rows["picture"]]
kinds = Features({"picture": Image(), "says": Value("string")})
Dataset.from_dict(rows, features=kinds).to_parquet("rows.parquet")
"""
ASK_THE_HUB = """
from pathlib import Path
from mindbooth.data.hub_dataset import from_dataset
from_dataset("someone/dogs", caption="", keep=Path("keep"))
"""


@pytest.fixture(scope="module")
def pictures(mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    found = sorted((mini_sdxl / "instance").iterdir())[: len(CAPTIONS)]
    return [Path(shutil.copy(path, folder)) for path in found]


def with_texts(folder: Path, pictures: list[Path]) -> Flags:
    folder.mkdir()
    for picture, caption in zip(pictures, CAPTIONS, strict=True):
        shutil.copy(picture, folder)
        (folder / picture.with_suffix(".txt").name).write_text(f"{caption}\n", encoding="utf-8")
    return jobs.flags(instance_data_dir=folder)


def with_metadata(folder: Path, pictures: list[Path]) -> Flags:
    (folder / "pictures").mkdir(parents=True)
    lines = []
    for picture, caption in zip(pictures, CAPTIONS, strict=True):
        shutil.copy(picture, folder / "pictures")
        lines.append(json.dumps({"file_name": f"pictures/{picture.name}", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return jobs.flags(instance_data_dir=folder)


def as_imagefolder(folder: Path, pictures: list[Path]) -> Flags:
    with_metadata(folder, pictures)
    return jobs.flags(dataset_name=folder, caption_column="text")


def as_parquet(folder: Path, pictures: list[Path]) -> Flags:
    folder.mkdir()
    subprocess.run(
        [sys.executable, "-c", MAKE_PARQUET],
        cwd=folder,
        input=json.dumps({"picture": [str(path) for path in pictures], "says": CAPTIONS}),
        env={**os.environ, "USE_TORCH": "0"},
        text=True,
        check=True,
        timeout=60,
    )
    return jobs.flags(dataset_name=folder, image_column="picture", caption_column="says")


def with_the_prompt(folder: Path, pictures: list[Path]) -> Flags:
    return jobs.flags(instance_data_dir=pictures[0].parent)


CASES = (with_texts, with_metadata, as_imagefolder, as_parquet, with_the_prompt)
OWN = [case.__name__ for case in CASES[:-1]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("captions")


@pytest.fixture(scope="module")
def unreachable(base: Path) -> Iterator[jobs.Job]:
    """Asks a hub that does not answer; the library tries for half a minute, while we train."""
    asked = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(base / "home"), "USE_TORCH": "0"}
    with jobs.started([sys.executable, "-c", ASK_THE_HUB], base / "asking", **asked) as job:
        yield job


@pytest.fixture(scope="module")
def trained(
    unreachable: jobs.Job, base: Path, pictures: list[Path], tiny_pipeline: Path
) -> dict[str, Ended]:
    runs = []
    for case in CASES:
        usual = jobs.training(
            tiny_pipeline, pictures[0].parent,
            instance_data_dir=None, output_dir=base / f"out-{case.__name__}",
            latent_cache_dir=base / "cache", cache_dir=base / "hub", max_train_steps=2,
            train_batch_size=2,
        )  # fmt: skip
        runs.append([*usual, *case(base / case.__name__, pictures)])
    ended = jobs.several(runs, base / "cwd")
    return {case.__name__: end for case, end in zip(CASES, ended, strict=True)}


def adapter(base: Path, case: str) -> np.ndarray:
    return jobs.adapter(base / f"out-{case}")


@pytest.mark.parametrize("case", OWN)
def test_the_same_captions_from_anywhere_train_the_same_adapter(
    base: Path, trained: dict[str, Ended], case: str
) -> None:
    assert trained[case].status == 0, trained[case].err
    assert np.array_equal(adapter(base, case), adapter(base, OWN[0]))


def test_captions_of_their_own_train_another_adapter_than_the_prompt(
    base: Path, trained: dict[str, Ended]
) -> None:
    assert trained[with_the_prompt.__name__].status == 0, trained[with_the_prompt.__name__].err
    assert not np.array_equal(adapter(base, with_the_prompt.__name__), adapter(base, OWN[0]))


@pytest.mark.parametrize("case", OWN)
def test_the_log_tells_how_many_have_captions_of_their_own(
    trained: dict[str, Ended], case: str
) -> None:
    (line,) = [line for line in trained[case].err.splitlines() if "of their own" in line]
    assert "2 of 2 " in line


@pytest.mark.parametrize("case", OWN)
def test_what_is_in_the_cache_is_not_encoded_again_for_another_source(
    trained: dict[str, Ended], case: str
) -> None:
    assert ("Nothing to encode" in trained[case].err) == (case != OWN[0]), trained[case].err


def test_a_hub_that_does_not_answer_is_told_in_one_line(
    trained: dict[str, Ended], unreachable: jobs.Job
) -> None:
    assert unreachable.end(seconds=60) != 0
    told = unreachable.err.splitlines()
    assert told[-1].startswith(
        "mindbooth.data.errors.DataError: --dataset_name someone/dogs cannot be loaded "
        "(Couldn't reach 'someone/dogs' on the Hub"
    )
    assert "Retrying" not in unreachable.err
