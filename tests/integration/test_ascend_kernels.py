"""Every operator that our own code brings into the step has a kernel in MindSpore's Ascend plugin.

No NPU and no CANN is needed: the operators are listed by running and compiling the step on the CPU,
and the plugin, which is in MindSpore's wheel, is loaded and asked what it has registered. What that
does not prove is in docs/ascend.md.

PyNative calls an operator directly (pyboost), or runs it as a graph of one, which takes a kernel of
CANN (adapters). A graph that runs kernel by kernel takes aclnn's kernel, or else one of CANN.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobs import run

ASCEND = Path(__file__).parent / "ascend"
OPERATORS = ASCEND / "operators.py"
LAUNCH = """
import sys
from mindbooth.launch.commands import launch
sys.exit(launch(sys.argv[3:], program=tuple(sys.argv[1:3])))
"""
BEGIN = "---- our own operators from here ----"  # as in operators.py
CALLED = re.compile(r"Run Pyboost_(\w+) start|Begin execute native func (\w+)")
RUN_ALONE = re.compile(r"RunOp name:? (\w+)")
IN_GRAPH = re.compile(r"^ *%\d+\(\w+\) = (?:Prim[A-Za-z]*_)?(\w+)\(", re.MULTILINE)
# What a graph is made of beside operators: it launches nothing.
STRUCTURE = {"Depend", "Load", "MakeTuple", "Return", "TupleGetItem", "UpdateState"}
MADE_UP, CPU_ONLY = "MadeUp", "Cholesky"
CANN = re.compile(r"\b(?:acl|hal|Hccl|GEInit|_ZNK?2ge)\w*")
HEADERS = ("", "mindspore", "mindspore/core/include", "mindspore/ccsrc",
           "third_party", "third_party/robin_hood_hashing")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Operators:
    """Names of operators, by the way in which they are run."""

    called: set[str]
    run_alone: set[str]
    in_graph: set[str]


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> Operators:
    """Those of the step, with and without text encoders, with each optimizer."""
    folder = tmp_path_factory.mktemp("operators")
    with ThreadPoolExecutor() as pool:
        log, graphs = pool.submit(_log, folder / "pynative"), pool.submit(_graphs, folder / "graph")
    names = {name for pair in CALLED.findall(log.result()) for name in pair if name}
    return Operators(
        called=names,
        run_alone=set(RUN_ALONE.findall(log.result())),
        in_graph=set(IN_GRAPH.findall(graphs.result())) - STRUCTURE,
    )


@pytest.fixture(scope="module")
def registered(
    operators: Operators, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], set[str]]:
    """`registered("aclnn")`: the operators, of those asked for, in a registry of the plugin."""
    folder = tmp_path_factory.mktemp("plugin")
    spec = importlib.util.find_spec("mindspore")
    assert spec
    assert spec.origin
    package = Path(spec.origin).parent
    lib, ascend = package / "lib", package / "lib" / "plugin" / "ascend"
    if not ascend.is_dir():
        pytest.skip(f"MindSpore's wheel for this platform has no Ascend plugin: no {ascend}")
    if lacking := [tool for tool in ("gcc", "g++", "nm") if shutil.which(tool) is None]:
        pytest.skip(f"to load the plugin, a C++ compiler is needed: no {', '.join(lacking)}")
    _build_cann(lib, folder)
    _build_registries(package / "include", folder)
    names = operators.called | operators.run_alone | operators.in_graph | {MADE_UP, CPU_ONLY}
    job = run([sys.executable, ASCEND / "find.py", folder, *sorted(names)], folder / "find",
              LD_LIBRARY_PATH=f"{lib}:{ascend}")  # fmt: skip
    assert job.process.returncode == 0, job.told
    found = json.loads(job.out.splitlines()[-1])
    return lambda registry: set(found[registry])


def test_the_list_has_what_the_step_is_known_to_do(operators: Operators) -> None:
    forward, backward = {"Dense", "Cast", "Square"}, {"MatMulExt", "RealDiv"}
    everything = operators.called | operators.run_alone
    assert {"AllReduce", "Assign"} <= operators.run_alone
    assert forward | backward <= everything
    assert forward | backward <= operators.in_graph


def test_every_operator_that_pynative_calls_has_a_kernel(
    operators: Operators, registered: Callable[[str], set[str]]
) -> None:
    assert operators.called - registered("pyboost") == set()


def test_every_operator_that_pynative_runs_alone_has_a_kernel(
    operators: Operators, registered: Callable[[str], set[str]]
) -> None:
    assert operators.run_alone - registered("adapters") == set()


def test_every_operator_of_the_graph_has_a_kernel(
    operators: Operators, registered: Callable[[str], set[str]]
) -> None:
    assert operators.in_graph - registered("aclnn") - registered("adapters") == set()


@pytest.mark.parametrize("name", [MADE_UP, CPU_ONLY])
def test_an_operator_without_a_kernel_is_not_found(
    name: str, registered: Callable[[str], set[str]]
) -> None:
    assert all(name not in registered(each) for each in ("pyboost", "aclnn", "adapters"))


def _log(folder: Path) -> str:
    """MindSpore's debug log of the step in PyNative."""
    job = run(
        [sys.executable, "-c", LAUNCH, OPERATORS, "pynative", "--device_target", "CPU",
         "--nproc_per_node", "1", "--", "--output_dir", "out"],
        folder,
        GLOG_v="0",
    )  # fmt: skip
    assert job.process.returncode == 0, job.told
    log = folder / "out" / "launch" / "attempt-1" / "worker_0.log"
    return log.read_text(errors="replace").partition(BEGIN)[2]


def _graphs(folder: Path) -> str:
    """The graphs of the step as MindSpore hands them to a device's backend."""
    job = run([sys.executable, OPERATORS, "graph"], folder,
              MS_DEV_SAVE_GRAPHS="2", MS_DEV_SAVE_GRAPHS_PATH="saved")  # fmt: skip
    assert job.process.returncode == 0, job.told
    saved = list(folder.glob("saved/**/*_validate_*.ir"))
    assert len(saved) == 2, "one without text encoders, one with them"
    return "\n".join(path.read_text() for path in saved)


def _build_cann(lib: Path, folder: Path) -> None:
    """libhccl.so: what the plugin wants of CANN to be loaded, as functions that do nothing."""
    wanted: set[str] = set()
    for name in ("libmindspore_ops_ascend.so", "ascend/libmindspore_ascend_res_manager.so",
                 "ascend/libd_collective.so"):  # fmt: skip
        wanted |= set(CANN.findall(_output("nm", "-D", "-u", lib / "plugin" / name)))
    source = folder / "cann.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in sorted(wanted)))
    _output(
        "gcc",
        "-shared",
        "-fPIC",
        "-w",
        "-Wl,-soname,libhccl.so",
        "-o",
        folder / "libhccl.so",
        source,
    )


def _build_registries(include: Path, folder: Path) -> None:
    _output("g++", "-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=0", "-DENABLE_FAST_HASH_TABLE=1",
            *(f"-I{include / path}" for path in HEADERS), "-shared", "-fPIC",
            "-o", folder / "registries.so", ASCEND / "registries.cc")  # fmt: skip


def _output(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
