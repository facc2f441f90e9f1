"""Figures of benchmarks, their table, and how `make bench` takes what scripts leave."""

import dataclasses
import json
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench
import figures
from figures import Figure

SECONDS = st.floats(min_value=1e-3, max_value=1e3)


def figure(value: float = 2.0, **changes: object) -> Figure:
    made = figures.of("updates", [value], "1/s", how="python benchmarks/step.py")
    return dataclasses.replace(made, **changes)


def test_value_is_the_median_and_the_spread_is_all_of_it() -> None:
    made = figures.of("start", [3.0, 9.0, 1.0], "s", how="")
    assert (made.value, made.low, made.high, made.unit) == (3.0, 1.0, 9.0, "s")


def test_a_ratio_is_of_medians_and_its_spread_that_of_pairs() -> None:
    made = figures.ratio("ratio", [2.0, 9.0, 4.0], [1.0, 3.0, 8.0], how="")
    assert (made.value, made.low, made.high) == (4.0 / 3.0, 0.5, 3.0)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=9))
def test_a_ratio_lies_within_its_spread(pairs: list[tuple[float, float]]) -> None:
    made = figures.ratio("ratio", [a for a, _ in pairs], [b for _, b in pairs], how="")
    assert made.low * (1 - 1e-9) <= made.value <= made.high * (1 + 1e-9)


def test_turns_of_different_number_make_no_ratio() -> None:
    with pytest.raises(ValueError, match="zip"):
        figures.ratio("ratio", [1.0, 2.0], [1.0], how="")


@pytest.mark.parametrize(
    ("value", "better", "met"),
    [
        (1.3, "lower", True),
        (1.31, "lower", False),
        (1.3, "higher", True),
        (1.29, "higher", False),
        (float("nan"), "lower", False),
        (float("nan"), "higher", False),
    ],
)
def test_a_bar_is_met_where_it_is_reached(value: float, better: str, met: bool) -> None:
    made = figure(value, bar=1.3, better=better)
    assert made.met is met
    assert figures.status([figure(), made]) == int(not met)


def test_without_a_bar_nothing_is_met_or_missed() -> None:
    assert figure(better="lower").met is None
    assert figures.status([figure()]) == 0


def test_a_bar_needs_a_direction() -> None:
    with pytest.raises(ValueError, match="neither higher nor lower"):
        figure(bar=1.0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = [figure(bar=1.0, better="higher"), figure(0.1)]
    figures.write(tmp_path / "new" / "some.json", made)
    assert figures.read(tmp_path / "new" / "some.json") == made
    names = {"figure", "value", "unit", "low", "high", "bar", "better", "how"}
    assert set(json.loads((tmp_path / "new" / "some.json").read_text())[0]) == names


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["benchmarks/start.py"], "python benchmarks/start.py"),
        (["start.py", "--json", "x.json", "--quick"], "python start.py --quick"),
        (["start.py", "--repeats", "2", "--json=x.json"], "python start.py --repeats 2"),
        (["start.py", "--only", "a b"], "python start.py --only 'a b'"),
    ],
)
def test_a_command_is_told_from_the_root(
    argv: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(figures.ROOT)
    assert figures.command(argv) == shown


def test_a_script_of_elsewhere_is_told_without_its_folder(tmp_path: Path) -> None:
    assert figures.command([str(tmp_path / "mine.py")]) == "python mine.py"


@pytest.mark.parametrize(
    ("x", "shown"),
    [(1.0, "1"), (1.3049, "1.3"), (0.00123456, "0.00123"), (99.96, "100"), (12345.6, "12346")],
)
def test_numbers_have_three_digits(x: float, shown: str) -> None:
    assert figures.number(x) == shown


def test_the_table_says_what_was_met_missed_and_failed() -> None:
    made = [
        figure(1.5, low=1.4, high=1.6, bar=1.4, better="higher"),
        figure(1.5, bar=1.1, better="lower"),
        figure(1.5),
    ]
    rows = figures.as_text(made, {"sync": "exit status 7"}).splitlines()[1:]
    assert [re.split(r"  +", row) for row in rows] == [
        ["updates", "1.5 1/s (1.4 to 1.6)", "at least 1.4", "met"],
        ["updates", "1.5 1/s", "at most 1.1", "missed"],
        ["updates", "1.5 1/s"],
        ["sync", "exit status 7", "failed"],
    ]


def test_markdown_has_the_command_and_as_many_cells_in_each_line() -> None:
    lines = figures.as_markdown([figure(figure="a | b")], {"sync": "gone"}).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(figures.HEADS) + 2}
    assert lines[2].startswith("| a \\| b | 2 1/s |")
    assert "`python benchmarks/step.py`" in lines[2]


def test_the_machine_is_told_without_its_name_and_paths() -> None:
    told = figures.machine()
    assert told["cores"].isdigit()
    assert told["python"].count(".") == 2
    assert told["mindspore"]
    for fact in told.values():
        assert socket.gethostname() not in fact.split()
        assert str(Path.home()) not in fact
        assert str(figures.ROOT) not in fact


def script(folder: Path, body: str) -> bench.Script:
    """A benchmark: `body` has `write(value)`, which writes a figure whose bar is 1 or more."""
    path = folder / "script.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(figures.__file__).parent)!r})\n"
        "from pathlib import Path\nimport figures\n"
        "def write(value):\n"
        "    one = figures.of('one', [value], 'x', bar=1.0, better='higher')\n"
        "    figures.write(Path(sys.argv[sys.argv.index('--json') + 1]), [one])\n"
        f"{body}\n"
    )
    return bench.Script(str(path), "", full=("--full",), quick=("--quick",))


@pytest.mark.parametrize(("value", "status"), [(1.5, 0), (0.5, 1)])
def test_a_script_that_ran_has_figures_whether_they_meet_their_bar_or_not(
    tmp_path: Path, value: float, status: int
) -> None:
    ran = script(tmp_path, f"write({value})\nsys.exit({status})")
    found = bench.run(ran, tmp_path / "x.json", quick=False)
    assert isinstance(found, list)
    assert [one.value for one in found] == [value]
    assert found[0].how == "python script.py --full"
    report = bench.Report(machine={}, quick=False)
    report.add("ran", found)
    assert report.status == status


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("raise RuntimeError", "exit status 1, no figures (FileNotFoundError)"),
        ("write(1.5)\nsys.exit(1)", "exit status 1"),
        ("write(0.5)", "exit status 0"),
        ("write(1.5)\nPath(sys.argv[2]).write_text('{')", "no figures (JSONDecodeError)"),
    ],
)
def test_a_script_that_failed_is_told(tmp_path: Path, body: str, why: str) -> None:
    kept = tmp_path / "x.json"
    figures.write(kept, [figure()])  # of an earlier run
    found = bench.run(script(tmp_path, body), kept, quick=True)
    assert isinstance(found, str)
    assert found.endswith(why)


def test_a_report_keeps_all_that_is_known(tmp_path: Path) -> None:
    report = bench.Report(machine={"cores": "2"}, quick=True)
    report.add("step", [figure(0.5, bar=1.0, better="higher")])
    report.add("sync", "exit status 7")
    report.write(tmp_path)
    whole = json.loads((tmp_path / "bench.json").read_text())
    assert whole["machine"] == {"cores": "2"}
    assert [(one["benchmark"], one["met"]) for one in whole["figures"]] == [("step", False)]
    assert whole["failed"] == {"sync": "exit status 7"}
    told = (tmp_path / "bench.md").read_text()
    assert "| cores | 2 |" in told
    assert "missed" in told
    assert "quick run" in told
    assert report.status == 1


def test_every_listed_script_is_there() -> None:
    assert [
        one.file for one in bench.SCRIPTS.values() if not (bench.HERE / one.file).is_file()
    ] == []
