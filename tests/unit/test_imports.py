"""The import rule of the house: `launch -> ranktable <- trainer -> data`, and nothing else.

The checker reads the import statements of a source text, those inside functions too, so a file that
is never imported in a test is held to the rule as well. Each rule is shown a text that breaks it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "launch": {"ranktable"},
    "ranktable": set(),
    "data": set(),
    "trainer": {"ranktable", "data"},
}
MINDSPORE_SIDE = {"mindspore", "mindone", "transformers"}
TORCH_SIDE = {
    "torch",
    "torchvision",
    "diffusers",
    "peft",
    "prodigyopt",
    "skimage",
}  # of the tests only


def test_every_file_keeps_the_import_rule() -> None:
    sources = [(folder, path) for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py")]
    assert {folder for folder, _ in sources} == set(MAY_IMPORT)
    faults = [
        f"{path.relative_to(ROOT)}:{fault}"
        for folder, path in sources
        for fault in faults_of(path.read_text(encoding="utf-8"), folder=folder, name=path.name)
    ]
    assert faults == []


def test_importing_launch_ranktable_and_data_loads_nothing_heavy() -> None:
    modules = [
        f"mindbooth.{folder}" + (f".{path.stem}" if path.stem != "__init__" else "")
        for folder in ("launch", "ranktable", "data")
        for path in sorted((ROOT / folder).glob("*.py"))
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(sorted(set(sys.modules) & {MINDSPORE_SIDE | TORCH_SIDE!r}))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("launch", "import mindbooth.trainer"),
        ("launch", "from mindbooth.data.images import decode"),
        ("launch", "from mindbooth import trainer"),
        ("launch", "def late():\n    import mindspore"),
        ("launch", "import mindspore.ops as ops"),
        ("ranktable", "import numpy"),
        ("ranktable", "from mindbooth.launch import plan"),
        ("data", "from transformers import AutoTokenizer"),
        ("data", "from mindbooth.ranktable.topology import Cluster"),
        ("data", "from mindone.diffusers import AutoencoderKL"),
        ("data", "from ..ranktable import topology"),
        ("data", "from mindbooth.data.images import decode"),
        ("trainer", "from mindbooth.launch.plan import Plan"),
        ("trainer", "from .. import data"),
        ("trainer", "import torch"),
        ("trainer", "import logging\nlogging.basicConfig()"),
        ("trainer", "import os\nHOME = os.environ['HOME']"),
        ("trainer", "from os import getenv\nclass Options:\n    home = getenv('HOME')"),
        ("trainer", "import mindspore\nif True:\n    mindspore.set_context(mode=0)"),
    ],
)
def test_the_checker_sees_a_breach(folder: str, source: str) -> None:
    assert len(faults_of(source, folder=folder, name="images.py")) == 1


@pytest.mark.parametrize(
    ("folder", "name", "source"),
    [
        ("launch", "plan.py", "from mindbooth.ranktable.topology import Cluster\nimport argparse"),
        ("launch", "__main__.py", "from mindbooth.launch.plan import make_plan"),
        ("launch", "__main__.py", "def main(): ...\nif __name__ == '__main__':\n    main()"),
        ("launch", "devices.py", "class Machine:\n    environ: dict[str, str]"),
        ("ranktable", "hccl.py", "import json\nfrom .topology import Cluster"),
        ("data", "images.py", "import numpy as np\nfrom PIL import Image\nfrom . import buckets"),
        ("trainer", "loop.py", "import mindspore\nfrom mindbooth.data import batches"),
        (
            "trainer",
            "config.py",
            '"""Options."""\nimport os\ndef home(): return os.environ["HOME"]',
        ),
    ],
)
def test_the_checker_lets_the_design_pass(folder: str, name: str, source: str) -> None:
    assert list(faults_of(source, folder=folder, name=name)) == []


def faults_of(source: str, *, folder: str, name: str) -> list[str]:
    tree = ast.parse(source)
    found = [
        f"{line}: imports {module}: {why}"
        for line, module in imported(tree)
        if (why := breach(module, folder=folder, name=name))
    ]
    return found + [f"{line}: {what}" for line, what in work_at_import(tree)]


def imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import; relative ones keep their dots in front."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "mindbooth":
                yield from ((node.lineno, f"mindbooth.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def breach(module: str, *, folder: str, name: str) -> str | None:
    if module.startswith(".."):
        return "relative imports stay inside a folder"
    if module.startswith("."):
        return None
    top, _, rest = module.partition(".")
    if top == "mindbooth":
        room = rest.partition(".")[0]
        if room == folder:
            return None if name == "__main__.py" else "inside a folder imports are relative"
        return None if room in MAY_IMPORT[folder] else f"{folder} may not know {room}"
    if folder == "ranktable" and top not in sys.stdlib_module_names:
        return "ranktable is standard library only"
    if folder in ("launch", "data") and top in MINDSPORE_SIDE:
        return "MindSpore's side belongs to trainer"
    return "torch is what tests compare with" if top in TORCH_SIDE else None


def work_at_import(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Bare calls and reads of the environment that run when the file is imported."""
    for statement in run_at_import(tree.body):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            yield statement.lineno, "calls something at import"
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)) and reads_environment(
            statement.value
        ):
            yield statement.lineno, "reads the environment at import"


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if isinstance(statement, ast.If) and not is_main_guard(statement):
            yield from run_at_import(statement.body + statement.orelse)
        elif isinstance(statement, (ast.ClassDef, ast.With, ast.For, ast.Try)):
            yield from run_at_import(statement.body)


def is_main_guard(statement: ast.If) -> bool:
    return any(
        isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(statement.test)
    )


def reads_environment(value: ast.expr | None) -> bool:
    names = {"environ", "getenv"}
    return value is not None and any(
        (isinstance(node, ast.Attribute) and node.attr in names)
        or (isinstance(node, ast.Name) and node.id in names)
        for node in ast.walk(value)
    )
