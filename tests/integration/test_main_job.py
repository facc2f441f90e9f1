"""The main job as people run it: real msrun, real all-reduce, a tiny pipeline, photographs.

Three groups (1, 2 and 4 workers) make all runs that these tests look at.
"""

from dataclasses import dataclass
from pathlib import Path

import jobs
import numpy as np
import pytest
from jobs import Job

UPDATES = 20
WIRES = ("fp32", "fp16")
# Ranks, batch, accumulation: four samples an update, all of them.
SPLITS = {"1x4x1": (1, 4, 1), "1x2x2": (1, 2, 2), "2x2x1": (2, 2, 1), "4x1x1": (4, 1, 1)}


def split(name: str, wire: str, **options: object) -> list[str]:
    _, batch, accumulation = SPLITS[name]
    return jobs.flags(
        train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        allreduce_dtype=wire,
        output_dir=f"{name} {wire}",
        **options,
    )


@dataclass(frozen=True)
class Runs:
    """The folder in which every run has its own, and how the groups ended."""

    folder: Path
    cache: Path
    first: Job
    cached: dict[str, int]
    alone: list[jobs.Ended]
    four: Job

    def adapter(self, name: str) -> np.ndarray:
        return jobs.adapter(self.folder / name)


@pytest.fixture(scope="module")
def runs(tiny_pipeline: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("jobs")
    cache = folder / "cache"
    common = jobs.training(
        tiny_pipeline,
        photographs,
        random_flip=True,
        max_train_steps=UPDATES,
        latent_cache_dir=cache,
    )
    # The first group finds an empty cache. The adapter after 5 updates is in a checkpoint.
    two = [
        split("2x2x1", "fp32", checkpointing_steps=5),
        split("2x2x1", "fp16"),
        [*split("2x2x1", "fp32", mode="graph", max_train_steps=5), "--output_dir", "graph"],
    ]
    first = jobs.several_launched(2, [*common, "--output_dir", "2x2x1 fp32"], two, folder)
    return folder
