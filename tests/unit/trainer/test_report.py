"""What a run tells: metrics that go on after a stop, progress lines, grids of pictures."""

import io
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mindbooth.trainer import report
from mindbooth.trainer.report import LEAST, Metrics, Progress


def run(folder: Path, rank: int = 0) -> Any:
    """As much of a run as Metrics asks for."""
    return SimpleNamespace(output=folder, comm=SimpleNamespace(rank=rank))


def steps(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def write(folder: Path, first: int, *numbers: int) -> None:
    with Metrics(run(folder), first) as metrics:
        for number in numbers:
            metrics.write(step=number, loss=0.5)


def test_a_line_is_to_be_seen_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with Metrics(run(tmp_path), 0) as metrics:
        metrics.write(step=1, loss=0.5)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.5}\n'


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open
    full = Path("/dev/full")
    monkeypatch.setattr(
        Path, "open", lambda path, *a, **k: opened(full if path.suffix else path, *a, **k)
    )
    monkeypatch.setattr("mindbooth.trainer.report.replace_file", lambda *_: None)
    write(tmp_path, 0, 1, 2, 3)
    (told,) = caplog.messages
    assert told.endswith("can't be written: No space left on device.")


def test_a_resumed_run_drops_what_it_does_again(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3, 4, 5)
    write(tmp_path, 3, 4, 5, 6)
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2, 3)
    write(tmp_path, 0, 1)
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize(
    "torn", [b'{"step": 3, "lo', b"\0\0\0\n", b'{"other": 1}\n', b'{"step": 9}']
)
def test_a_torn_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    write(tmp_path, 0, 1, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(torn)
    write(tmp_path, 2, 3)
    assert steps(tmp_path) == [1, 2, 3]


def test_a_line_whose_end_was_torn_off_is_kept(tmp_path: Path) -> None:
    write(tmp_path, 0, 1, 2)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(tmp_path, 2, 3)
    assert steps(tmp_path) == [1, 2, 3]


def test_only_rank_0_writes(tmp_path: Path) -> None:
    with Metrics(run(tmp_path, rank=1), 0) as metrics:
        metrics.write(step=1)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_in_a_log_file_the_last_unit_is_told_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Progress("update", 12, unit="update", done=9) as progress:
        for loss in ("0.3", "0.2", "0.1"):
            progress.advance(loss=loss)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("update 12/12, loss 0.1, ")
    assert caplog.messages[0].endswith("00:00 left")


def test_a_rank_that_shows_nothing_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        Progress("update", 1, unit="update", show=False) as progress,
    ):
        progress.advance()
    assert caplog.messages == []


def pictures(count: int, size: tuple[int, int] = (64, 64)) -> list[Image.Image]:
    return [Image.new("RGB", size, (40 * i + 20, 0, 0)) for i in range(count)]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 64), (128, 128)),
        ((128, 128), (128, 128)),
        ((100, 60), (300, 180)),
        ((32, 48), (128, 192)),
        ((1024, 768), (1024, 768)),
    ],
)
def test_small_pictures_are_enlarged_by_a_whole_factor(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    assert min(shown) >= LEAST
    one = report.grid([pictures(1, size)], ["x"])
    three = report.grid([pictures(3, size)] * 2, ["x", "y"])
    assert one.width == max(320, shown[0] + 12)
    assert three.width == max(320, 3 * (shown[0] + 6) + 6)
    line = 18 if shown[0] < 512 else 30
    assert one.height == 6 + shown[1] + 6 + line
    assert three.height == 6 + 2 * (shown[1] + 6 + line)


def test_every_picture_is_on_the_sheet_in_its_place() -> None:
    sheet = report.grid([pictures(3), pictures(2)], ["up", "down"])
    first, second = 6 + 18 + 64, 6 + 18 + 128 + 6 + 18 + 64
    columns = [6 + 64 + i * 134 for i in range(3)]
    assert [sheet.getpixel((x, first)) for x in columns] == [
        (20, 0, 0), (60, 0, 0), (100, 0, 0),
    ]  # fmt: skip
    assert [sheet.getpixel((x, second)) for x in columns] == [
        (20, 0, 0), (60, 0, 0), (255, 255, 255),
    ]  # fmt: skip


def test_title_columns_and_long_labels_get_lines_of_their_own() -> None:
    plain = report.grid([pictures(3)], ["x"]).height
    assert report.grid([pictures(3)], ["x"], title="after update 5").height == plain + 18
    assert report.grid([pictures(3)], ["x"], columns=["a", "b", "c"]).height == plain + 18
    assert report.grid([pictures(3)], ["a long prompt " * 12]).height >= plain + 2 * 18


@pytest.mark.parametrize(
    "label",
    ["W" * 300, "a very long prompt " * 20, "\u72d7" * 200, "\U0001f415 two\nlines\t" * 30],
    ids=["one word", "words", "Chinese", "emoji and newlines"],
)
def test_no_label_runs_over_the_edge(label: str) -> None:
    sheet = np.asarray(report.grid([pictures(3)], [label]).convert("L"))
    text = sheet[: -LEAST - 6]
    assert len(text) >= 3 * 18
    assert (text < 128).any()
    assert (text[:, -4:] == 255).all()


def test_a_file_of_a_picture_is_the_picture() -> None:
    (picture,) = pictures(1, (3, 2))
    with Image.open(io.BytesIO(report.png(picture))) as read:
        assert (read.format, read.size, read.tobytes()) == ("PNG", (3, 2), picture.tobytes())


def test_a_label_a_row_is_asked_for() -> None:
    with pytest.raises(ValueError, match="zip"):
        report.grid([pictures(1)] * 2, ["only one"])


def test_versions_name_what_a_result_depends_on() -> None:
    assert {"python", "mindspore", "mindone", "transformers", "numpy"} <= set(report.versions())
