"""Checkpoints on disk: whole or not there, found, read, thinned out; damaged ones told."""

import errno
import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindbooth.trainer import checkpoint
from mindbooth.trainer.checkpoint import MANIFEST, TENSORS, State
from mindbooth.trainer.config import ConfigError

STATE = State(
    update=5,
    seed=2**63 - 1,
    samples_per_update=8,
    loss_scale=2.0**15,
    sound_updates=3,
    adapter="0123456789abcdef",
    optimizer="AdamW",
)
TENSOR = "unet.mid_block.attentions.0.to_q.lora_A.weight"


def write(folder: Path, update: int = 5, value: float = 0.5) -> Path:
    vectors = {name: np.full(6, value, np.float32) for name in ("master", "m", "v")}
    tensors = {TENSOR: np.full((2, 3), value, np.float32)}
    state = replace(STATE, update=update)
    return checkpoint.write(folder, state, vectors, tensors, {"unet": {"r": 2}})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path)
    state, vectors = checkpoint.load(path)
    assert path == tmp_path / "checkpoint-5"
    assert state == STATE
    assert {name: vector.tolist() for name, vector in vectors.items()} == {
        name: [0.5] * 6 for name in ("master", "m", "v")
    }


def test_it_holds_the_adapter_for_other_programs(tmp_path: Path) -> None:
    tensors = load_file(write(tmp_path) / "pytorch_lora_weights.safetensors")
    assert list(tensors) == ["unet.mid_block.attentions.0.to_q.lora.down.weight"]


def test_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    write(tmp_path)
    assert os.listdir(tmp_path) == ["checkpoint-5"]


def test_an_update_written_again_replaces_the_former(tmp_path: Path) -> None:
    write(tmp_path, value=0.25)
    _, vectors = checkpoint.load(write(tmp_path, value=0.75))
    assert vectors["m"].tolist() == [0.75] * 6


def test_the_latest_is_the_one_with_the_greatest_number(tmp_path: Path) -> None:
    for update in (10, 9, 100):
        write(tmp_path, update)
    assert checkpoint.find("latest", tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("lacking", [MANIFEST, TENSORS])
def test_an_incomplete_folder_is_passed_over(tmp_path: Path, lacking: str) -> None:
    write(tmp_path, 3)
    (write(tmp_path, 4) / lacking).unlink()
    assert checkpoint.find("latest", tmp_path) == tmp_path / "checkpoint-3"


@pytest.mark.parametrize("name", ["checkpoint-final", "checkpoint-7.bak", "checkpoint-"])
def test_a_checkpoint_that_a_person_renamed_is_left_alone(tmp_path: Path, name: str) -> None:
    write(tmp_path, 9).rename(tmp_path / name)
    assert checkpoint.find("latest", tmp_path) is None
    write(tmp_path, 3)
    checkpoint.rotate(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "checkpoint-3"])


def test_there_may_be_no_latest(tmp_path: Path) -> None:
    assert checkpoint.find("latest", tmp_path) is None
    assert checkpoint.find("latest", tmp_path / "missing") is None
    assert checkpoint.resumable("latest", tmp_path) is None
    assert checkpoint.resumable(None, tmp_path) is None


def test_a_checkpoint_is_given_by_name_or_path(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert checkpoint.find("checkpoint-5", tmp_path) == path
    assert checkpoint.find(str(path), tmp_path / "elsewhere") == path
    resumed = checkpoint.resumable("checkpoint-5", tmp_path)
    assert resumed is not None
    assert (resumed.path, resumed.state) == (path, STATE)


@pytest.mark.parametrize("asked", ["checkpoint-6", "/no/such/folder", "."])
def test_a_checkpoint_that_is_not_there_is_told(tmp_path: Path, asked: str) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match="there is no complete checkpoint"):
        checkpoint.find(asked, tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (MANIFEST, b""),
        (MANIFEST, b"{"),
        (MANIFEST, b"[]"),
        (MANIFEST, b"{}"),
        (MANIFEST, b"\xff\xfe"),
        (MANIFEST, json.dumps({"update": 5, "of": "another version"}).encode()),
        (TENSORS, b""),
        (TENSORS, b"\x08\0\0\0\0\0\0\0{}"),
        (TENSORS, None),  # cut short
    ],
)
def test_a_damaged_checkpoint_is_told(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = write(tmp_path)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-1] if content is None else content)
    with pytest.raises(ConfigError, match="checkpoint-5 can't be read"):
        checkpoint.resumable("latest", tmp_path)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for update in (2, 10, 9):
        write(tmp_path, update)
    checkpoint.rotate(tmp_path, 2)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-10", "checkpoint-9"]
    checkpoint.rotate(tmp_path, 5)
    assert len(os.listdir(tmp_path)) == 2


def test_only_complete_checkpoints_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-of-mine").mkdir()
    for update in (1, 2):
        write(tmp_path, update)
    checkpoint.rotate(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-2", "checkpoint-of-mine"]


def test_checkpoints_of_an_earlier_run_are_set_aside(tmp_path: Path) -> None:
    for update in (4, 8):
        write(tmp_path, update)
        checkpoint.set_aside(tmp_path, None)
    checkpoint.set_aside(tmp_path, None)
    assert checkpoint.find("latest", tmp_path) is None
    found = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob(MANIFEST))
    assert found == ["earlier-1/checkpoint-4", "earlier-2/checkpoint-8"]


def test_what_an_earlier_run_made_is_set_aside_with_its_checkpoints(tmp_path: Path) -> None:
    write(tmp_path, 4)
    (tmp_path / "samples" / "final").mkdir(parents=True)
    for name in ("pytorch_lora_weights_kohya.safetensors", "config.yaml", "samples/final/1.png"):
        (tmp_path / name).touch()
    (tmp_path / "mine.txt").touch()
    checkpoint.set_aside(tmp_path, checkpoint.resumable("latest", tmp_path))
    assert not (tmp_path / "earlier-1").exists()
    checkpoint.set_aside(tmp_path, None)
    assert sorted(os.listdir(tmp_path)) == ["earlier-1", "mine.txt"]
    assert sorted(os.listdir(tmp_path / "earlier-1")) == [
        "checkpoint-4", "config.yaml", "pytorch_lora_weights_kohya.safetensors", "samples",
    ]  # fmt: skip


def test_a_run_that_goes_on_from_elsewhere_leaves_nothing_here_to_mix_with(tmp_path: Path) -> None:
    elsewhere = write(tmp_path / "elsewhere", 300)
    for update in (100, 200):
        write(tmp_path / "out", update)
    checkpoint.set_aside(tmp_path / "out", checkpoint.resumable(str(elsewhere), tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == ["earlier-1"]
    assert sorted(os.listdir(tmp_path / "out" / "earlier-1")) == [
        "checkpoint-100", "checkpoint-200",
    ]  # fmt: skip


def test_a_checkpoint_that_cannot_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for update in (1, 2):
        write(tmp_path, update)

    def busy(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr(checkpoint.shutil, "rmtree", busy)
    checkpoint.rotate(tmp_path, 1)
    assert "checkpoint-1 can't be removed: Directory not empty." in caplog.text
    monkeypatch.undo()
    assert checkpoint.find("latest", tmp_path) == tmp_path / "checkpoint-2"
    checkpoint.clean(tmp_path)
    assert os.listdir(tmp_path) == ["checkpoint-2"]


def test_a_run_that_goes_on_from_an_earlier_one_leaves_no_later_one_to_mix_with(
    tmp_path: Path,
) -> None:
    for update in (5, 10, 20):
        write(tmp_path, update)
    checkpoint.set_aside(tmp_path, checkpoint.resumable("checkpoint-5", tmp_path))
    write(tmp_path, 10, value=0.75)
    checkpoint.rotate(tmp_path, 2)
    assert checkpoint.find("latest", tmp_path) == tmp_path / "checkpoint-10"
    _, vectors = checkpoint.load(tmp_path / "checkpoint-10")
    assert vectors["m"].tolist() == [0.75] * 6
    assert (tmp_path / "earlier-1" / "checkpoint-20" / MANIFEST).exists()


def test_a_checkpoint_whose_replacing_was_cut_short_is_found(tmp_path: Path) -> None:
    """As a kill between the two renames leaves it."""
    write(tmp_path).rename(tmp_path / ".checkpoint-5.old")
    resumed = checkpoint.resumable("latest", tmp_path)
    assert resumed is not None
    assert (resumed.path, resumed.state) == (tmp_path / "checkpoint-5", STATE)


class Deadly(Mapping[str, np.ndarray]):
    """Vectors; who reads them is killed. The adapter is written by then."""

    def __getitem__(self, name: str) -> np.ndarray:
        raise AssertionError(name)

    def __iter__(self) -> Iterator[str]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield "never"

    def __len__(self) -> int:
        return 1


def test_a_kill_in_the_middle_leaves_the_former_the_latest(tmp_path: Path) -> None:
    write(tmp_path, 5)
    child = os.fork()
    if child == 0:
        tensors = {TENSOR: np.ones((2, 3), np.float32)}
        try:
            checkpoint.write(tmp_path, replace(STATE, update=6), Deadly(), tensors, {})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = [path for path in tmp_path.iterdir() if path.name != "checkpoint-5"]
    assert [(path / "pytorch_lora_weights.safetensors").is_file() for path in left] == [True]
    resumed = checkpoint.resumable("latest", tmp_path)
    assert resumed is not None
    assert resumed.state.update == 5
    assert checkpoint.load(write(tmp_path, 6))[0].update == 6
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-5", "checkpoint-6"]
