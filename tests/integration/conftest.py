"""MindSpore in pytest's own process, torch in processes of its own: never both in one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from no_torch import import_transformers, no_torch

if TYPE_CHECKING:
    from mindbooth.trainer.device import Comm

import_transformers()  # before test modules do it

HERE = Path(__file__).parent
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def cpu() -> "Comm":
    """MindSpore on the CPU as a worker starts it, all alone."""
    from mindbooth.ranktable.placement import Placement
    from mindbooth.trainer import device

    with no_torch():
        return device.start(Placement.from_environ({}), target="CPU")


@pytest.fixture(scope="session")
def torch_side(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Arrays]:
    """Asks torch: `torch_side("question", arrays, option=...)`; see torch_side/__main__.py."""

    def ask(question: str, arrays: Arrays | None = None, **options: object) -> Arrays:
        folder = tmp_path_factory.mktemp(question)
        np.savez(folder / "in.npz", **(arrays or {}))
        run = subprocess.run(
            [sys.executable, HERE / "torch_side", question, "in.npz", "out.npz",
             json.dumps(options)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-4000:]
        with np.load(folder / "out.npz") as archive:
            return dict(archive)

    return ask
