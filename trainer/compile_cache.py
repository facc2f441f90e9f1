"""--compile_cache: the compiled step, kept for later runs by MindSpore's own compile cache.

By itself MindSpore (2.6, 2.7) takes the n-th graph of a process for the n-th one of an earlier
process if the start script is the same: a changed constant goes unnoticed, another batch size
crashes. So it only ever sees a folder of its own that is empty, or holds what was kept under a key
of all that determines the graphs of this run, in this order; graph_store.py keeps it.

MindSpore reads the folder's name once in a process and counts its graphs through: the cache is
switched on around one preparation only, and once in a process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import logging
import os
import platform
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest import mock

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common import api
from mindspore.ops import Primitive

import mindbooth.data
from mindbooth.data import cache
from mindbooth.data.batches import Batch

from . import STARTED, report
from .graph_store import Facts, GraphStore, key
from .run import Run
from .step import Step, inputs

log = logging.getLogger(__name__)

OFF = "off"
KEY = "key"
PATH = "MS_COMPILER_CACHE_PATH"
FORMAT = 1
# What MindSpore's compiler is told by; those that a version does not know are passed over.
CONTEXT = (
    "mode", "device_target", "max_call_depth", "deterministic", "jit_config", "jit_syntax_level",
    "enable_graph_kernel", "graph_kernel_flags", "precompile_only",
    "grad_for_scalar", "memory_optimize_level", "debug_level", "check_bprop", "save_graphs",
    "jit_enable_inplace_ops",
)  # fmt: skip
# Of the variables that begin with MS_, those that say who computes and where, but not what.
ELSEWHERE = (
    "MS_COMPILER_CACHE_", "MS_NODE_", "MS_ROLE", "MS_SCHED_", "MS_SERVER_", "MS_TOPO_",
    "MS_WORKER_", "MS_HCCL_", "MS_RECEIVE_", "MS_RECOVERY_", "MS_CLUSTER_", "MS_RDMA_",
)  # fmt: skip
# Attributes of a cell that MindSpore counts or caches by, and its parts, which are told by name.
PASSING = {
    "_cells", "_compile_cache", "_phase_cache", "_create_time", "_compile_phase", "_compiled",
    "compile_phase", "current_phase", "arguments_key", "_cell_init_args", "_id", "_init_flag",
    "_is_check_and_refresh", "_lazy_construct_sig", "_name_or_path", "name_or_path",
    "_exist_objs", "_exist_names",
    "_dynamic_shape_inputs", "_has_mutable_args_list", "instance_key", "_attr_synced",
    "init_tensor",  # of an embedding before it was loaded: random
    # Of a model's configuration: who saved it, and a list in the order of a set.
    "_diffusers_version", "transformers_version", "_use_default_values",
}  # fmt: skip
_used = False


def root(asked: str | None, environ: Mapping[str, str], *, target: str) -> Path | None:
    """Where graphs are kept, None for nowhere. asked: --compile_cache.

    By default beside the cache of latents; but on Ascend, where nobody has tried, only if asked.
    Nowhere where MindSpore was told by its own variable to keep graphs as it likes.
    """
    if environ.get("MS_COMPILER_CACHE_ENABLE"):
        return None
    if asked == OFF or (asked is None and target != "CPU"):
        return None
    if asked is not None:
        return Path(asked).expanduser()
    return cache.default_root(environ).with_name("mindbooth-graphs")


def prepare(run: Run, step: Step, batches: Sequence[Batch], environ: Mapping[str, str]) -> None:
    """Compiles the step for batches of these sizes, or takes what an earlier run has compiled."""
    config = run.config
    folder = root(config.run.compile_cache, environ, target=ms.get_context("device_target"))
    # Of one order, whichever sizes come first in this run.
    batches = sorted(batches, key=lambda batch: batch.noisy.shape)
    dropout = config.adapter.lora_dropout

    def compile_all() -> None:
        for batch in batches:
            step.prepare(batch)

    if folder is None or step.mode != "graph":
        compile_all()
        return
    options = {
        "adapter": dataclasses.asdict(dataclasses.replace(config.adapter, ema_decay=None)),
        "mixed_precision": config.optim.mixed_precision,
        "gradient_checkpointing": config.optim.gradient_checkpointing,
        # What is dropped is drawn from a seed that is a constant of the graph.
        "seed": ms.get_seed() if dropout else None,
    }
    shown = [inputs(batch, Tensor(1.0, ms.float32)) for batch in batches]
    try:
        found = facts(step.forward, shown, options, environ)
    except Exception as err:
        log.warning("--compile_cache: what the graph depends on can't be told: %s", err)
        compile_all()
        return
    compile_with(GraphStore(folder), found, compile_all, rank=run.comm.rank)


def compile_with(store: GraphStore, facts: Facts, compile_all: Callable[[], None], *,
                 rank: int) -> None:  # fmt: skip
    """Calls `compile_all`, with the graphs that are kept for these facts, or to keep them.

    rank: this process's, after which MindSpore names a folder. Whatever goes wrong with the store
    is told, and all is compiled as if nothing were kept.
    """
    global _used
    if _used:
        log.info("--compile_cache is for the first training of a process.")
        compile_all()
        return
    _used = True
    private = None
    try:
        private = Path(tempfile.mkdtemp(prefix="mindbooth-graphs-"))
        (private / KEY).write_text(key(facts))
        found = store.take(facts, private / "rank_0")
        if found and rank:
            shutil.copytree(private / "rank_0", private / f"rank_{rank}")
    except OSError as err:
        _warn(store, err)
        compile_all()  # and show MindSpore nothing, for it may be half of a graph
    else:
        _compile(store, facts, compile_all, private, found)
    finally:
        if private:
            shutil.rmtree(private, ignore_errors=True)


def _compile(store: GraphStore, facts: Facts, compile_all: Callable[[], None], private: Path,
             found: bool) -> None:  # fmt: skip
    before = _state(private)
    try:
        with _switched_on(private):
            compile_all()
    except Exception as err:
        if found:
            store.discard(facts, f"MindSpore can't load it ({str(err)[:200]!r})")
        compile_all()  # without the cache; an error of the compiler comes again
        return
    if found and _state(private) == before:
        log.info("The compiled graph is that of an earlier run.")
    elif found:
        store.discard(facts, "MindSpore compiled it anew")
    else:
        try:
            for made in private.glob("rank_*/graph_cache"):
                graphs = [path.read_bytes() for path in made.glob("*.mindir")]
                # MindSpore goes on in silence where the disk took only a part.
                if len(graphs) == len(facts["inputs"]) and all(map(is_whole, graphs)):
                    store.keep(facts, made.parent)
        except OSError as err:
            _warn(store, err)


def is_whole(message: bytes) -> bool:
    """Whether a protobuf message, which a MindIR file is, ends where a field of it ends."""
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        if tag & 7 == 0:
            _, at = _number(message, at)
        elif tag & 7 == 2:
            size, at = _number(message, at)
            at += size
        else:
            at += {1: 8, 5: 4}.get(tag & 7, len(message) + 1)
    return 0 < at == len(message)


def _number(message: bytes, at: int) -> tuple[int, int]:
    """The varint at this place, and the place behind it."""
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    return value, len(message) + 1


def _warn(store: GraphStore, err: OSError) -> None:
    log.warning("--compile_cache %s: %s; the run goes on without it.", store.root, err)


@contextlib.contextmanager
def _switched_on(folder: Path) -> Iterator[None]:
    """Inside, MindSpore takes the graphs that lie in `folder`, or leaves its own there."""
    # What MindSpore compares: instead of the start script and what that imports, our key.
    depends = [str(folder / KEY)]
    before = os.environ.get(PATH)
    os.environ[PATH] = str(folder)  # MindSpore can be told in no other way
    ms.set_context(enable_compile_cache=True)
    try:
        with mock.patch.object(api, "_get_compile_cache_dep_files", return_value=depends):
            yield
    finally:
        ms.set_context(enable_compile_cache=False)
        del os.environ[PATH]
        if before is not None:
            os.environ[PATH] = before


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != KEY]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def facts(cell: nn.Cell, inputs: Sequence[Sequence[Tensor]], options: Mapping[str, Any],
          environ: Mapping[str, str]) -> dict[str, Any]:  # fmt: skip
    """All that determines the graphs, in words that JSON has."""
    lines, modules = [], set()
    for name, part in cell.cells_and_names():
        lines.append(f"{name} {structure(part)}")
        modules |= {kind.__module__ for kind in type(part).__mro__}
    return {
        "format": FORMAT,
        "versions": report.versions(),
        "machine": platform.machine(),
        "context": {name: _context(name) for name in CONTEXT},
        "environment": {
            name: value
            for name, value in environ.items()
            if name.startswith("MS_") and not name.startswith(ELSEWHERE)
        },
        "options": dict(options),
        "inputs": [[[*x.shape, str(x.dtype)] for x in some] for some in inputs],
        "sources": _sources(modules),
        "cells": {"count": len(lines), "sha256": _digest("\n".join(lines).encode())},
        "launched": "MS_ROLE" in environ,
    }


def structure(part: nn.Cell) -> str:
    """A cell's class and attributes, constants by their content and weights by name and shape."""
    attributes = {k: v for k, v in vars(part).items() if k not in PASSING}
    return f"{type(part).__module__}.{type(part).__qualname__} {told(attributes)}"


def told(value: Any) -> str:
    """Equal where a graph would be equal that has this value as a constant."""
    if isinstance(value, Parameter):
        return f"Parameter({value.name}, {value.shape}, {value.dtype}, {value.requires_grad})"
    if isinstance(value, Tensor):
        return told(value.asnumpy())
    if isinstance(value, np.ndarray):
        content = _digest(np.ascontiguousarray(value).tobytes())
        return f"array({value.shape}, {value.dtype}, {content})"
    if isinstance(value, Mapping):
        kept = {str(k): told(v) for k, v in value.items() if k not in PASSING}
        return f"{{{', '.join(f'{k}: {kept[k]}' for k in sorted(kept))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(told, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"[{', '.join(sorted(map(told, value)))}]"
    if isinstance(value, Primitive):
        return f"{value.name} {told(value.attrs)}"
    if isinstance(value, (str, bytes, bool, int, float, complex, type(None), ms.Type, np.generic)):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, functools.partial):
        return f"partial {told([value.func, value.args, value.keywords])}"
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        inside = told([value.__defaults__, value.__kwdefaults__, *map(_named, held)])
        return f"{value.__module__}.{value.__qualname__} {inside}"
    if isinstance(value, (enum.Enum, range, slice)):
        return repr(value)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if name:
        return f"{getattr(value, '__module__', '')}.{name}"
    if hasattr(value, "to_dict"):
        inside = told(value.to_dict())
    else:
        inside = told({key: _named(held) for key, held in getattr(value, "__dict__", {}).items()})
    return f"{type(value).__module__}.{type(value).__qualname__} {inside}"


def _named(value: Any) -> Any:
    """What a function or an object holds on to: others by name, so that none is told in itself."""
    plain = (str, bytes, bool, int, float, complex, type(None), list, tuple, Mapping, np.ndarray)
    return (
        value if isinstance(value, plain) else getattr(value, "__qualname__", type(value).__name__)
    )


def _sources(modules: set[str]) -> str:
    """A digest of our own sources, and of the files that define the models' cells."""
    own = (Path(__file__).parent, Path(mindbooth.data.__file__ or "").parent)
    files = {path for folder in own for path in folder.glob("*.py")}
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            files.add(Path(file))
    parts = sorted((path.name, _digest(path.read_bytes())) for path in files)
    if any(path.stat().st_mtime > STARTED for path in files):
        parts.append(("changed since they were loaded", secrets.token_hex(16)))
    return _digest(repr(parts).encode())


def _context(name: str) -> str | None:
    try:
        return str(ms.get_context(name))
    except (ValueError, KeyError, AttributeError):
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
