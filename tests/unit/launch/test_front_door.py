"""`mindbooth` as a person calls it: what it prints, how it ends, what it does not import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindbooth.launch import options
from mindbooth.launch.__main__ import COMMANDS, main
from mindbooth.launch.preflight import holder as holder_of
from mindbooth.launch.surroundings import free_port

HELP = Path(__file__).with_name("help.txt")
QUICK = {
    "help": ["--help"],
    "plan": ["plan", "--device_target", "Ascend", "--nproc_per_node", "8", "--json"],
}


def test_help_teaches_each_command_on_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    assert list(COMMANDS) == [name for name in lines if name in COMMANDS]
    assert main([]) == 0
    assert capsys.readouterr().out == out


def test_the_options_of_launch_are_these() -> None:
    """A new option is a visible decision: it changes this file."""
    made = options.parser("launch", "Start workers with msrun and watch them to their end.")
    assert made.format_help() == HELP.read_text()


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("mindbooth ")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["lunch"], "'lunch' is no command of mindbooth. Did you mean launch?"),
        (
            ["xyzzy"],
            "There are launch, plan, ranktable, doctor, train, precompute, cache, generate, demo.",
        ),
        (["plan", "--nproc_per_node", "0"], "at least one worker"),
        (["plan", "--", "--config", "none.yaml"], "--config none.yaml: cannot be read"),
        (["launch", "--device_target", "Ascend", "--nproc_per_node", "2"], "no /dev/davinciN here"),
        (["launch", "--", "--output_dir", "/dev/null/x"], "--output_dir: cannot write in /dev/"),
        (["plan", "--device_target", "Ascend", "--rank_table", "none"], "no such file"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mindbooth: error: ")
    assert told in err
    assert err.count("\n") == 1


def plan_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    assert main(["plan", "--json", *argv]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_plan_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_json(capsys, "--nproc_per_node", "2")
    assert plan["output_dir"] == str(tmp_path / "lora-dreambooth-model")
    assert not list(tmp_path.iterdir())


def test_two_plans_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_json(capsys) == plan_json(capsys)


def test_the_output_folder_may_stand_in_the_config_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("output_dir: from-yaml\nrank: 4\n")
    assert plan_json(capsys, "--", "--config=run.yaml")["output_dir"] == str(tmp_path / "from-yaml")
    Path("run.yaml").write_text("- rank: [\n")
    assert main(["plan", "--", "--config=run.yaml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_older_attempt_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("logs", "attempt-4").mkdir(parents=True)
    plan = plan_json(capsys, "--log_dir", "logs")
    assert plan["attempt_dir"] == str(tmp_path / "logs" / "attempt-5")


def test_a_port_that_is_taken_is_passed_over() -> None:
    import socket

    port = free_port("key")
    assert free_port("key") == port
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        assert holder_of("127.0.0.1", port) is not None
        assert free_port("key") != port


@pytest.mark.parametrize("argv", QUICK.values(), ids=QUICK)
def test_nothing_heavy_is_imported(argv: list[str]) -> None:
    code = (
        "import sys; from mindbooth.launch.__main__ import main; main(sys.argv[1:]); "
        "print('\\n', *sorted(sys.modules))"
    )
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert "mindbooth.launch.options" in modules
    assert not modules & {"mindspore", "numpy", "transformers", "yaml", "mindbooth.trainer"}


@pytest.mark.parametrize("argv", QUICK.values(), ids=QUICK)
def test_it_answers_in_less_than_half_a_second(argv: list[str]) -> None:
    def seconds() -> float:
        """Of a processor, because others may be busy here."""
        start = os.times()
        command = [sys.executable, "-m", "mindbooth.launch", *argv]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=dict(os.environ))
        end = os.times()
        return sum(end[2:4]) - sum(start[2:4])  # the children's, user and system

    assert any(seconds() < 0.5 for _ in range(10))


@pytest.mark.parametrize("argv", [["plan", "--nproc_per_node", "2"], ["cache", "stat", "--json"]])
def test_a_command_that_prints_ends_quietly_when_nobody_reads_on(
    argv: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mindbooth").mkdir()
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "mindbooth.launch", *argv],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, "")
