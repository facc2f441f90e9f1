"""setup.sh up to the point where pip would start: what it finds, refuses, keeps and says."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIM = "#!/bin/sh\necho 'shim: no such version' >&2\nexit 127\n"
TOOLS = [
    *["bash", "sh", "cat", "cksum", "sed", "tr", "sort", "paste", "head", "dirname", "grep"],
    *["awk", "rm", "mkdir", "flock"],
]
INPUTS = ("constraints.txt", "setup.cfg", "pyproject.toml")
FULL_DISK = "#!/bin/sh\necho 'Filesystem 1024-blocks Used Available'\necho 'disk 9 9 2000000'\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "my checkout"
    folder.mkdir()
    for name in ("setup.sh", *INPUTS):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH on which every python is a shim that fails, and the disk is nearly full."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("python3.11", "python3.10", "python3", "python"):
        write_program(folder / name, SHIM)
    write_program(folder / "df", FULL_DISK)
    for name in TOOLS:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def test_without_a_python_it_says_what_to_install_in_one_line(
    checkout: Path, programs: Path
) -> None:
    status, told = run_setup(checkout, programs)
    assert status == 1
    assert len(told) == 1
    assert "needs Python 3.10 or 3.11" in told[0]
    assert "install python3.11" in told[0]


def test_a_failing_shim_does_not_hide_a_python_that_works(checkout: Path, programs: Path) -> None:
    write_program(programs / "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    status, told = run_setup(checkout, programs)
    assert (status, len(told)) == (1, 1)
    assert "needs 5 GB of disk" in told[0]  # it came as far as the disk


def test_a_full_disk_is_told_with_both_numbers(checkout: Path, programs: Path) -> None:
    status, told = run_setup(checkout, programs, "dev,compare", PYTHON=sys.executable)
    assert status == 1
    assert told == [f"setup: needs 6 GB of disk in {checkout.resolve()}, 2 GB are free."]
    assert not (checkout / ".venv").exists()


def test_a_python_that_was_asked_for_but_does_not_run_is_named(
    checkout: Path, programs: Path
) -> None:
    status, told = run_setup(checkout, programs, PYTHON="/nowhere/python3.11")
    assert (status, len(told)) == (1, 1)
    assert "PYTHON=/nowhere/python3.11" in told[0]


@pytest.mark.parametrize("extras", ["", "dev", "compare,dev"])
def test_nothing_changed_is_nothing_to_do(checkout: Path, programs: Path, extras: str) -> None:
    make_installed(checkout, extras="compare,dev")
    assert run_setup(checkout, programs, extras) == (0, [])


@pytest.mark.parametrize("changed", INPUTS)
def test_a_changed_input_is_noticed(checkout: Path, programs: Path, changed: str) -> None:
    make_installed(checkout, extras="")
    with (checkout / changed).open("a") as file:
        file.write("\n# another line\n")
    status, told = run_setup(checkout, programs)
    assert told[0] == "setup: bringing .venv up to date."
    assert status == 1  # this .venv has no pip
    assert (checkout / ".venv" / "bin" / "python").exists()


def test_a_moved_checkout_gets_a_venv_of_its_own(checkout: Path, programs: Path) -> None:
    make_installed(checkout, extras="")
    moved = checkout.rename(checkout.with_name("moved"))
    _, told = run_setup(moved, programs, PYTHON=sys.executable)
    assert told[0] == "setup: .venv was made for another folder: making it anew."


def test_an_interrupted_set_up_starts_over(checkout: Path, programs: Path) -> None:
    make_installed(checkout, extras="")
    (checkout / ".venv" / "unfinished").touch()
    _, told = run_setup(checkout, programs, PYTHON=sys.executable)
    assert told[0] == "setup: .venv was left unfinished: making it anew."


def make_installed(checkout: Path, *, extras: str) -> None:
    """A .venv as setup.sh leaves it, but with nothing in it."""
    venv.create(checkout / ".venv", with_pip=False)
    inputs = b"".join((checkout / name).read_bytes() for name in INPUTS)
    digest = subprocess.run(["cksum"], input=inputs, capture_output=True, check=True).stdout
    (checkout / ".venv" / "mindbooth-setup").write_bytes(digest + extras.encode() + b"\n")


def run_setup(
    checkout: Path, programs: Path, *arguments: str, **environment: str
) -> tuple[int, list[str]]:
    run = subprocess.run(
        ["bash", str(checkout / "setup.sh"), *arguments],
        env={"PATH": str(programs), "HOME": str(programs), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.stdout == ""
    return run.returncode, [line for line in run.stderr.splitlines() if line.startswith("setup:")]


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
