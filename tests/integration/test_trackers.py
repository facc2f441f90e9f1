"""What TensorBoard and Weights & Biases show, read back from what they keep on the disk."""

import contextlib
import importlib.util
import io
import json
import logging
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from mindbooth.trainer.config import ConfigError
from mindbooth.trainer.parse import parse
from mindbooth.trainer.trackers import Trackers, check
from mindbooth.trainer.validation import Made

TOKEN = "hf_DoNotShowThis"
PROMPTS = ("a photo of sks cat", "\u72d7")
NAMES = ("pictures/1-a-photo-of-sks-cat", "pictures/2")
SEEDS = (7, 8, 9)
BLOCK = 32768


def run(folder: Path, report_to: str, rank: int = 0) -> Any:
    """As much of a run as Trackers asks for."""
    flags = ["--pretrained_model_name_or_path", "m", "--instance_data_dir", "i",
             "--instance_prompt", "a photo of sks cat", "--push_to_hub", "--hub_token", TOKEN,
             "--report_to", report_to]  # fmt: skip
    return SimpleNamespace(
        config=parse(flags)[0], output=folder, comm=SimpleNamespace(rank=rank, size=2)
    )


def made(update: int) -> Made:
    pictures = tuple(
        tuple(Image.new("RGB", (64, 64), (200 * row, 100, 50 + column)) for column in range(3))
        for row in range(2)
    )
    return Made(update=update, prompts=PROMPTS, seeds=SEEDS, pictures=pictures, grid="g.png")


def write(folder: Path, report_to: str, first: int, *losses: float) -> None:
    """Updates after `first`, with these losses, and pictures after the last one."""
    with Trackers(run(folder, report_to), first) as trackers:
        for update, loss in enumerate(losses, start=first + 1):
            trackers.figures(update, {"loss": loss, "lr": 1e-4})
        trackers.pictures(made(first + len(losses)))
        trackers.pictures(None)


def events(folder: Path) -> Any:
    # Not above: MindSpore must be the first to import protobuf.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "logs"), size_guidance={"scalars": 0}).Reload()


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(e.step, round(e.value, 4)) for e in events(folder).Scalars("loss")]


class TestTensorBoard:
    def test_figures_pictures_and_options_are_there(self, tmp_path: Path) -> None:
        write(tmp_path, "tensorboard", 0, 0.5, 0.25)
        found = events(tmp_path)
        assert losses(tmp_path) == [(1, 0.5), (2, 0.25)]
        assert [e.value for e in found.Scalars("lr")] == pytest.approx([1e-4, 1e-4])
        assert set(found.Tags()["images"]) == set(NAMES)
        for row, name in enumerate(NAMES):
            (shown,) = found.Images(name)
            colours = colours_of(shown.encoded_image_string)
            assert shown.step == 2
            assert {(200 * row, 100, 50 + column) for column in range(3)} <= colours
        text = found.Tensors("options/text_summary")[0].tensor_proto.string_val[0].decode()
        assert "    instance_prompt: a photo of sks cat\n" in text

    def test_a_resumed_run_continues_and_hides_what_it_does_again(self, tmp_path: Path) -> None:
        write(tmp_path, "tensorboard", 0, 0.5, 0.4, 0.3, 0.2)
        write(tmp_path, "tensorboard", 2, 0.31, 0.21, 0.11)
        assert losses(tmp_path) == [(1, 0.5), (2, 0.4), (3, 0.31), (4, 0.21), (5, 0.11)]
        assert [e.step for e in events(tmp_path).Images(NAMES[0])] == [5]

    def test_a_new_run_in_the_same_folder_hides_the_earlier_one(self, tmp_path: Path) -> None:
        write(tmp_path, "tensorboard", 0, 0.5, 0.4, 0.3)
        write(tmp_path, "tensorboard", 0, 0.6)
        assert losses(tmp_path) == [(1, 0.6)]

    def test_figures_can_be_seen_while_the_run_goes_on(self, tmp_path: Path) -> None:
        with Trackers(run(tmp_path, "tensorboard"), 0) as trackers:
            trackers.pictures(made(1))
            assert events(tmp_path).Images(NAMES[0])

    def test_torch_is_not_loaded(self, tmp_path: Path) -> None:
        assert importlib.util.find_spec("torch"), "not installed: nothing is shown here"
        write(tmp_path, "tensorboard", 0, 0.5)
        assert "torch" not in sys.modules

    def test_a_full_disk_is_told_once_and_ends_nothing_else(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            caplog.at_level(logging.WARNING),
            Trackers(run(tmp_path, "tensorboard"), 0) as trackers,
            largest_file(2000),
        ):
            for update in range(1, 4):
                trackers.pictures(made(update))
                trackers.figures(update, {"loss": 0.5})
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("tensorboard failed ([Errno 27] File too large)")


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files may not become larger inside: the nearest to a full disk that a process can have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def colours_of(content: bytes) -> set[tuple[int, ...]]:
    with Image.open(io.BytesIO(content)) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    return {tuple(map(int, pixel)) for pixel in np.unique(pixels, axis=0)}


class TestWandb:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setattr(sys, "argv", ["mindbooth train", "--hub_token", TOKEN])

    def test_figures_pictures_and_options_are_there(self, tmp_path: Path) -> None:
        write(tmp_path, "wandb", 0, 0.5, 0.25)
        (folder,) = wandb_runs(tmp_path)
        records = wandb_records(folder)
        (config,) = [options(r.run.config) for r in records if r.WhichOneof("record_type") == "run"]
        rows = [options(r.history) for r in records if r.WhichOneof("record_type") == "history"]
        assert config["instance_prompt"] == "a photo of sks cat"
        assert [(row["_step"], row["loss"]) for row in rows] == [(1, 0.5), (2, 0.25)]
        for row, name in enumerate(NAMES):
            assert rows[-1][f"{name}.captions"] == [
                f"{PROMPTS[row]} (seed {seed})" for seed in SEEDS
            ]
            for column, file in enumerate(rows[-1][f"{name}.filenames"]):
                colours = colours_of((folder / "files" / file).read_bytes())
                assert colours == {(200 * row, 100, 50 + column)}

    def test_a_resumed_run_is_the_same_run_there(self, tmp_path: Path) -> None:
        write(tmp_path, "wandb", 0, 0.5, 0.4)
        write(tmp_path, "wandb", 2, 0.3)
        first, second = (wandb_number(folder) for folder in wandb_runs(tmp_path))
        assert first == second

    def test_a_new_run_in_the_same_folder_is_another_one_there(self, tmp_path: Path) -> None:
        write(tmp_path, "wandb", 0, 0.5)
        write(tmp_path, "wandb", 0, 0.5)
        first, second = (wandb_number(folder) for folder in wandb_runs(tmp_path))
        assert first != second

    def test_no_token_of_the_command_line_gets_there(self, tmp_path: Path) -> None:
        write(tmp_path, "all", 0, 0.5)
        files = [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]
        assert {".wandb"} <= {path.suffix for path in files}
        assert not [path for path in files if TOKEN.encode() in path.read_bytes()]

    def test_stop_signals_stay_ours(self, tmp_path: Path) -> None:
        stops = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = [signal.getsignal(number) for number in stops]
        with Trackers(run(tmp_path, "wandb"), 0):
            assert [signal.getsignal(number) for number in stops] == before

    def test_training_goes_on_when_its_process_dies(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        import wandb

        with Trackers(run(tmp_path, "all"), 0) as trackers, caplog.at_level(logging.WARNING):
            trackers.figures(1, {"loss": 0.5})
            for pid in children("wandb-core"):
                os.kill(pid, signal.SIGKILL)
            for update in range(2, 200):
                trackers.figures(update, {"loss": 0.4})
        ours = [r.getMessage() for r in caplog.records if r.name.startswith("mindbooth")]
        assert [message.split(" (")[0] for message in ours] == ["wandb failed"]
        assert len(losses(tmp_path)) == 199
        with contextlib.suppress(ConnectionError):
            wandb.teardown()


def children(name: str) -> list[int]:
    """Processes of this name that this process has started."""
    return [p.pid for p in psutil.Process().children(recursive=True) if name in p.name()]


def wandb_runs(folder: Path) -> list[Path]:
    return sorted((folder / "logs" / "wandb").glob("offline-run-*"))


def wandb_number(folder: Path) -> str:
    """By which the server knows a run."""
    (number,) = {
        r.run.run_id for r in wandb_records(folder) if r.WhichOneof("record_type") == "run"
    }
    return str(number)


def wandb_records(folder: Path) -> list[Any]:
    """All that a run has kept for the server. Its file is a log as LevelDB writes them: blocks of
    32 KiB, in them pieces with a checksum, a length, and whether the record goes on."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # as at the end of a process: what is under way is written
    (path,) = folder.glob("*.wandb")
    content, at, found, parts = path.read_bytes(), 7, [], b""
    whole, last = 1, 4
    while at + 7 < len(content):
        if BLOCK - at % BLOCK < 7:  # no room for a piece's head: filled up
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (whole, last):
            found.append(Record.FromString(parts))
            parts = b""
    return found


def options(message: Any) -> dict[str, Any]:
    """Names and values of a record."""
    items = message.update if hasattr(message, "update") else message.item
    return {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("tensorboard", ("tensorboard",)),
        ("wandb", ("wandb",)),
        ("wandb, tensorboard,wandb", ("wandb", "tensorboard")),
        ("all", ("tensorboard", "wandb")),
        ("none", ()),
    ],
)
def test_what_is_asked_for(asked: str, found: tuple[str, ...]) -> None:
    assert check(run(Path(), asked).config.output) == found


@pytest.mark.parametrize("asked", ["comet_ml", "tensorboard,comet_ml", "", "all,wandb", "none,all"])
def test_a_tracker_that_there_is_not_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="There are tensorboard, wandb"):
        check(run(Path(), asked).config.output)


def test_without_wandb_all_is_tensorboard_and_wandb_tells_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert check(run(Path(), "all").config.output) == ("tensorboard",)
    with pytest.raises(ConfigError, match="`pip install wandb`"):
        check(run(Path(), "tensorboard,wandb").config.output)


def test_wandb_without_a_key_is_refused_and_asks_no_question(tmp_path: Path) -> None:
    program = "from mindbooth.trainer.trackers import check_login; check_login(('wandb',))"
    kept = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    asked = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, "HOME": str(tmp_path), "WANDB_MODE": "online"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "--report_to wandb: it did not start (it knows no API key). Log in with" in asked.stderr


def test_only_rank_0_writes(tmp_path: Path) -> None:
    with Trackers(run(tmp_path, "all", rank=1), 0) as trackers:
        trackers.figures(1, {"loss": 0.5})
        trackers.pictures(made(1))
    assert list(tmp_path.iterdir()) == []
