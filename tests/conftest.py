"""Fixtures for every test: folders that are made once a session. Don't write into them; copy."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from photographs import write_photographs
from tiny_sdxl import write_tiny_pipeline


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is cached by default goes to a folder of the session, and not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


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
