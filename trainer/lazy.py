"""mindone.transformers, of which little is needed here, without all of its model families.

Its package imports some 300 of them, and with these pandas, pyarrow and more: two thirds of the
time that it takes to load SDXL's UNet. `install()` puts packages in its place that import a module
when something out of it is asked for. For a name that is not in HOMES, the package does what it
would have done at first, so that nothing is missing. (A family that is imported as a module, by
its own path, may need that done before.)
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("mindone.transformers", "mindone.transformers.models")

# What mindone.diffusers and mindbooth take out of mindone.transformers, and the modules it is in.
HOMES = {
    "MSPreTrainedModel": "modeling_utils",
    "CLIPTextModel": "models.clip.modeling_clip",
    "CLIPTextModelWithProjection": "models.clip.modeling_clip",
    "CLIPVisionModelWithProjection": "models.clip.modeling_clip",
    "SiglipVisionModel": "models.siglip.modeling_siglip",
    "AutoModelForCausalLM": "models.auto.modeling_auto",
}


def install() -> None:
    """Puts the packages in place, unless they are imported already."""
    for name in PACKAGES:
        if name not in sys.modules:
            spec = find_spec(name)
            assert spec is not None
            module = module_from_spec(spec)
            if version := _version(spec):
                module.__version__ = version  # type: ignore[attr-defined]
            module.__class__ = _Lazy
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, module)


def _version(spec: ModuleSpec) -> str | None:
    """The package's own, which modules below it ask for, from its source."""
    found = re.search(r'^__version__ = "(.+)"', Path(spec.origin or "").read_text(), re.MULTILINE)
    return found[1] if found else None


class _Lazy(ModuleType):
    """A package that has not been executed, until a name is asked for that needs it."""

    __spec__: ModuleSpec

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ == PACKAGES[0] and name in HOMES:
            return getattr(importlib.import_module(f"{self.__name__}.{HOMES[name]}"), name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__.loader is not None
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it tells of models of other kinds
                self.__spec__.loader.exec_module(self)
        except BaseException:
            self.__class__ = _Lazy
            raise
        return getattr(self, name)
