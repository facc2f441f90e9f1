"""The whole main job on a model of SDXL's full size, on the CPU: `make rehearsal`.

Two msrun workers encode, train 2 updates in fp16 and export; two others go on from the checkpoint
after the first update, and must come to the same adapter. Then what was exported is compared with
what a LoRA of this UNet must hold, and the memory with a limit. The weights are random
(write_pipeline.py) and the pictures small, so it shows that it works and fits, and no more.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from mindbooth.launch import processes

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parent / "mini-sdxl" / "instance"
LORA = "pytorch_lora_weights.safetensors"
RANK = 4
WORKERS = 2
UPDATES = 2
LIMIT_GB = 20.0
TRAINING = {
    "instance_data_dir": PICTURES,
    "instance_prompt": "a photo of sks robot",
    "resolution": 64,
    "rank": RANK,
    "train_batch_size": 1,
    "max_train_steps": UPDATES,
    "checkpointing_steps": 1,
    "learning_rate": 1e-4,
    "mixed_precision": "fp16",
    "mode": "pynative",
    "report_to": "none",
    "profile": True,
    "seed": 0,
}
LOOK_SECONDS = 0.5
PROPORTIONAL = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
ALL = "all processes together"
PHASES = re.compile(r"^(?:INFO )?(phase +times.*\n(?:.*\d\n)+)", re.MULTILINE)
Shapes = dict[str, tuple[int, ...]]


def main() -> int:
    options = argparse.ArgumentParser(
        prog="make rehearsal",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--folder", type=Path, default=Path("rehearsal"), help="where all goes")
    options.add_argument("--model", type=Path, help="another pipeline than the full-size one")
    options.add_argument("--remove", action="store_true", help="at the end, remove the 7 GB model")
    asked = options.parse_args()
    folder = asked.folder.resolve()
    model = asked.model or folder / "model"
    began = time.monotonic()
    if not asked.model and not model.exists():
        print("Writing a pipeline of the full size, 7 GB:", flush=True)
        subprocess.run([sys.executable, HERE / "write_pipeline.py", model], check=True)
    written = time.monotonic()
    whole, resumed = folder / "whole", folder / "resumed"
    for old in (whole, resumed, folder / "cache"):
        shutil.rmtree(old, ignore_errors=True)
    flags = {"pretrained_model_name_or_path": model, "latent_cache_dir": folder / "cache"}
    peaks = [
        train(whole, **flags),
        train(resumed, **flags, resume_from_checkpoint=whole / "checkpoint-1"),
    ]
    trained = time.monotonic()
    print(f"\nwriting the model {written - began:.0f} s, both runs {trained - written:.0f} s")
    for output, peak in zip((whole, resumed), peaks, strict=True):
        tell(output, peak)
    wrong = list(faults(model, whole, resumed, peaks))
    for fault in wrong:
        print(f"WRONG: {fault}")
    if not wrong:
        print("All is as it should be.")
    if asked.remove and not asked.model:
        shutil.rmtree(model)
    return 1 if wrong else 0


def train(output: Path, **more: object) -> dict[str, int]:
    """`mindbooth launch`; the most memory, in bytes, that each rank took, and ALL."""
    command = [sys.executable, "-m", "mindbooth.launch", "launch", "--device_target", "CPU"]
    command += ["--nproc_per_node", str(WORKERS), "--", "--output_dir", str(output)]
    for name, value in {**TRAINING, **more}.items():
        command += [f"--{name}", str(value)]
    with watched(output / "launch" / "plan.json") as most:
        status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)
    return most


@contextmanager
def watched(plan: Path) -> Iterator[dict[str, int]]:
    """Inside the `with`, follows the memory of the job whose plan appears in this file.

    Pages that processes share, such as those of the model's files, are counted once in all.
    """
    most: dict[str, int] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            if plan.exists():
                now = taken(json.loads(plan.read_text())["job"])
                now[ALL] = sum(now.values())
                most.update({who: max(size, most.get(who, 0)) for who, size in now.items()})

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def taken(token: str) -> dict[str, int]:
    """Bytes that a job's workers and its scheduler take now, with the processes that they use."""
    sizes: dict[str, int] = {}
    for pid in processes.carriers(token):
        who = processes.member(processes.environ(pid), token)
        found = PROPORTIONAL.search(processes.read(pid, "smaps_rollup"))
        if who and found:
            sizes[str(who)] = sizes.get(str(who), 0) + int(found[1]) * 1024
    return sizes


def tell(output: Path, peaks: dict[str, int]) -> None:
    """Each worker's phases, and the most memory that it took."""
    print(f"\n{output}")
    for rank in range(WORKERS):
        print(f"\nrank {rank}, at the most {peaks[f'rank {rank}'] / 1e9:.2f} GB")
        print(phases(output, rank) or "(its log has no table of phases)")
    print(f"\n{ALL}, at the most {peaks[ALL] / 1e9:.2f} GB")


def phases(output: Path, rank: int) -> str:
    """The table of phases at the end of a worker's log."""
    log = output / "launch" / "attempt-1" / f"worker_{rank}.log"
    found = PHASES.search(log.read_text(errors="replace"))
    return found[1] if found else ""


def faults(
    model: Path, whole: Path, resumed: Path, peaks: list[dict[str, int]]
) -> Iterator[str]:  # fmt: skip
    """What is not as it should be."""
    expected = lora_shapes(json.loads((model / "unet" / "config.json").read_text()), RANK)
    for output in (whole, resumed):
        yield from faults_of_adapter(output / LORA, expected)
        if not all(phases(output, rank) for rank in range(WORKERS)):
            yield f"{output}: a worker's log has no table of phases."
    if (whole / LORA).read_bytes() != (resumed / LORA).read_bytes():
        yield "The resumed run came to another adapter than the one that ran through."
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    if [(x["step"], x["collectives"] - x["skipped"]) for x in lines] != [(1, 1), (2, 1)]:
        yield f"{whole / 'metrics.jsonl'} tells of other updates than 2 with 1 collective each."
    for peak in peaks:
        if peak[ALL] > LIMIT_GB * 1e9:
            yield f"{peak[ALL] / 1e9:.2f} GB are more than {LIMIT_GB:.0f} GB."


def faults_of_adapter(path: Path, expected: Shapes) -> Iterator[str]:
    """What is wrong with an exported file."""
    tensors = load_file(path)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    numbers = sum(tensor.size for tensor in tensors.values())
    print(f"{path}: {len(found):,} tensors, {numbers:,} parameters")
    if found != expected:
        odd = sorted(set(found.items()) ^ set(expected.items()))[:4]
        yield f"{path} is no LoRA of this UNet: {odd} ..."
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        yield f"{path} has numbers that are not finite."
    if not any(tensor.any() for name, tensor in tensors.items() if ".lora.up." in name):
        yield f"{path}: nothing was learned."


def lora_shapes(config: dict[str, Any], rank: int) -> Shapes:
    """The tensors of an SDXL LoRA file, by rule from the UNet's public configuration.

    Each transformer block has two attentions: attn1 within the picture, attn2 to the text, whose
    keys and values come from embeddings of another width.
    """
    shapes: Shapes = {}
    text = config["cross_attention_dim"]
    for attention, layers, width in attentions(config):
        for layer in range(layers):
            for name in ("attn1", "attn2"):
                for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                    of_text = name == "attn2" and projection in ("to_k", "to_v")
                    stem = f"unet.{attention}.transformer_blocks.{layer}.{name}.{projection}.lora"
                    shapes[f"{stem}.down.weight"] = (rank, text if of_text else width)
                    shapes[f"{stem}.up.weight"] = (width, rank)
    return shapes


def attentions(config: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """(name, transformer blocks, width) of each stack of transformer blocks in the UNet."""
    widths, layers = config["block_out_channels"], config["transformer_layers_per_block"]
    each = config["layers_per_block"]
    for i, kind in enumerate(config["down_block_types"]):
        if kind == "CrossAttnDownBlock2D":
            yield from (
                (f"down_blocks.{i}.attentions.{j}", layers[i], widths[i]) for j in range(each)
            )
    yield "mid_block.attentions.0", layers[-1], widths[-1]
    for i, kind in enumerate(config["up_block_types"]):
        if kind == "CrossAttnUpBlock2D":
            of = -1 - i
            yield from (
                (f"up_blocks.{i}.attentions.{j}", layers[of], widths[of]) for j in range(each + 1)
            )


if __name__ == "__main__":
    sys.exit(main())
