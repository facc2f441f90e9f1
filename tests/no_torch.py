"""Keeps torch out of pytest's process, where MindSpore is: transformers and mindone would load it.

They look at the environment while they are imported. It is put back, because tests start other
processes where torch is wanted.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def no_torch() -> Iterator[None]:
    """For imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USE_TORCH", "0")
        patch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        patch.setenv("DIFFUSERS_NO_ADVISORY_WARNINGS", "1")
        yield


def import_transformers() -> None:
    with no_torch():
        importlib.import_module("transformers")
