"""Fixtures for every test: folders that are made once a session. Don't write into them; copy."""

from pathlib import Path

import pytest
from photographs import write_photographs
from tiny_sdxl import write_tiny_pipeline


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SDXL of 32x32 pixels in diffusers' layout (tiny_sdxl.py)."""
    return write_tiny_pipeline(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs of several sizes, formats and EXIF orientations (photographs.py)."""
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def mini_sdxl() -> Path:
    """examples/mini-sdxl, with `model/` and `instance/`."""
    return Path(__file__).parents[1] / "examples" / "mini-sdxl"
