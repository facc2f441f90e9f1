"""`mindbooth train --debug`: breakpoints, pictures of what is trained on, timings, NaNs by name."""

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import jobs
import numpy as np
from jobs import Flags
from PIL import Image
from safetensors.numpy import load_file, save_file

CHECKOUT = Path(__file__).parents[2]
ROOMS = ("launch", "ranktable", "data", "trainer")
LIMIT_SECONDS = 120


class Session:
    """A command at a terminal of its own, and somebody who reads and types there."""

    def __init__(self, command: Flags, cwd: Path, **environ: str) -> None:
        self.told = ""
        self.terminal, end = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environ},
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
        os.close(end)

    def read_until(self, words: str | None) -> str:
        """What is shown from here to `words`, or to the end of the program."""
        shown, limit = "", time.monotonic() + LIMIT_SECONDS
        while words is None or words not in shown:
            ready, _, _ = select.select([self.terminal], [], [], limit - time.monotonic())
            assert ready, f"no {words!r} in: {shown}"
            try:
                piece = os.read(self.terminal, 4096).decode(errors="replace")
            except OSError:  # the other end is closed
                piece = ""
            if not piece:
                assert words is None, f"no {words!r} in: {shown}"
                break
            shown += piece
        self.told += shown
        return shown

    def type(self, line: str) -> None:
        os.write(self.terminal, line.encode() + b"\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


def checkout_with_a_breakpoint(folder: Path, line: str) -> Path:
    """A copy of the code, as somebody changed it who wants to look around before `line`."""
    package = folder / "mindbooth"
    for room in ROOMS:
        shutil.copytree(CHECKOUT / room, package / room)
    loop = package / "trainer" / "loop.py"
    before, found, after = loop.read_text().partition(line)
    assert found, f"no longer in loop.py: {line!r}"
    indent = line[: len(line) - len(line.lstrip())]
    loop.write_text(f"{before}{indent}breakpoint()\n{found}{after}")
    return folder


def test_a_breakpoint_in_the_loop_opens_the_debugger_at_the_terminal(
    tiny_pipeline: Path, photographs: Path, tmp_path: Path
) -> None:
    line = '                with phases("updates"):'
    code = checkout_with_a_breakpoint(tmp_path / "code", line)
    flags = jobs.training(
        tiny_pipeline,
        photographs,
        debug=True,
        mode="graph",
        max_train_steps=2,
        train_batch_size=2,
        output_dir="out",
        latent_cache_dir=tmp_path / "cache",
    )
    session = Session(
        [*jobs.MINDBOOTH, "train", *flags], tmp_path, PYTHONPATH=str(code), TERM="dumb"
    )
    try:
        assert 'with phases("updates"):' in session.read_until("(Pdb) ")
        session.type("p step.mode, update, adapter.size")
        assert "('pynative', 0, 9216)" in session.read_until("(Pdb) ")
        session.type("continue")
        session.read_until("(Pdb) ")
        session.type("p update, done")
        assert "(1, 1)" in session.read_until("(Pdb) ")
        session.type("continue")
        end = session.read_until(None)
        assert session.process.wait(LIMIT_SECONDS) == 0, session.told
    finally:
        session.close()
    output = tmp_path / "out"
    assert jobs.updates(output) == 2
    assert_timings(end)
    assert_first_batch(output)


def assert_timings(shown: str) -> None:
    """A table of the phases: times, seconds, seconds each, and memory at the end and at most."""
    rows = [line.strip() for line in shown.splitlines()]
    (head,) = [row for row in rows if "times   seconds      each" in row]
    assert head.endswith("  host end GB  host peak GB")
    for phase in ("look at the input", "encode", "load the models", "updates"):
        (row,) = [row for row in rows if row.startswith(f"{phase} ")]
        times, seconds, _, end, peak = map(float, row.removeprefix(phase).split())
        assert times > 0
        assert seconds > 0
        assert 0.1 < end <= peak < 16, row


def assert_first_batch(output: Path) -> None:
    with Image.open(output / "samples" / "first_batch.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 200  # pictures, not a blank


def test_the_first_layer_with_a_nan_is_named(
    tiny_pipeline: Path, mini_sdxl: Path, tmp_path: Path
) -> None:
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"
    model = Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors[f"{layer}.weight"][0, 0] = np.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    flags = jobs.training(
        model,
        mini_sdxl / "instance",
        debug=True,
        max_train_steps=2,
        output_dir="out",
        latent_cache_dir=tmp_path / "cache",
    )
    job = jobs.run([*jobs.MINDBOOTH, "train", *flags], tmp_path / "cwd")
    assert job.process.returncode == 1, job.told
    assert f"The output of layer unet.{layer} is not finite." in job.err.splitlines()[-1]
    assert not (tmp_path / "cwd" / "out" / jobs.LORA).exists()
