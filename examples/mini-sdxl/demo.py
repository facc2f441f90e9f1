"""The main job, small enough for a laptop: `mindbooth demo`, or `make demo`.

Trains a LoRA on five pictures of a toy robot with two msrun workers on the CPU, then makes pictures
with the same seeds before and after, scores them, and draws both and the loss curve into demo/.
Real parts throughout: what an NPU runs differs in --device_target, the model and the resolution.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scores import BACKGROUNDS, score

HERE = Path(__file__).resolve().parent
SUBJECT = "a photo of sks robot"
SCORED = [f"{SUBJECT} on a {colour} background" for colour in BACKGROUNDS]
SHOWN = [SCORED[0], f"{SUBJECT} in the snow", f"{SUBJECT} on the beach"]
SEEDS = range(4, 8)
STEPS = 25
GUIDANCE = 5.0

# Few, so that they can be read: everything else is the trainer's default.
TRAINING = {
    "pretrained_model_name_or_path": HERE / "model",
    "instance_data_dir": HERE / "instance",
    "instance_prompt": SUBJECT,
    "resolution": 64,
    "center_crop": True,
    "rank": 8,
    "train_batch_size": 2,
    "learning_rate": 2e-3,
    "max_train_steps": 300,
    "validation_prompt": SCORED[0],
    "validation_epochs": 80,
    "num_validation_images": 2,
    "seed": 0,
}


def main() -> int:
    options = argparse.ArgumentParser(prog="mindbooth demo", description=__doc__.split("\n\n")[1])
    options.add_argument("--output_dir", type=Path, default=Path("demo"), help="default: demo")
    options.add_argument("--nproc_per_node", type=int, default=2, help="workers; default: 2")
    asked, more = options.parse_known_args()
    more = [word for word in more if word != "--"]

    began = time.monotonic()
    status = train(asked.output_dir, asked.nproc_per_node, more)
    if status:
        return status
    trained = time.monotonic()
    metrics = read_metrics(asked.output_dir / "metrics.jsonl")
    draw_loss(metrics, asked.output_dir / "loss.png")
    before, after = before_and_after(asked.output_dir)
    draw_pictures(before, after, asked.output_dir / "before_after.png")
    scores = {"before": scored(before), "after": scored(after)}
    (asked.output_dir / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    tell(asked.output_dir, metrics, scores, trained - began, time.monotonic() - trained)
    return 0


def train(output: Path, workers: int, more: Sequence[str]) -> int:
    """`mindbooth launch` with the options above; its exit status."""
    command = [sys.executable, "-m", "mindbooth.launch", "launch", "--device_target", "CPU"]
    command += ["--nproc_per_node", str(workers), "--", "--output_dir", str(output)]
    for name, value in TRAINING.items():
        command += [f"--{name}", str(value)]
    launcher = subprocess.Popen([*command, *more])
    signal.signal(signal.SIGTERM, lambda *_: launcher.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal tells the launcher itself
    status = launcher.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return status


def before_and_after(lora: Path) -> tuple[dict[str, list[Image.Image]], ...]:
    """Pictures by prompt, without and with the LoRA, through mindone's pipeline."""
    from mindbooth.ranktable.placement import Placement
    from mindbooth.trainer.__main__ import hide_chatter, keep_torch_out

    keep_torch_out()
    hide_chatter()
    from mindbooth.trainer import device, report

    report.start()
    device.start(Placement.from_environ({}), target="CPU")
    from mindone.diffusers import StableDiffusionXLPipeline
    from mindone.diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipeline = StableDiffusionXLPipeline.from_pretrained(str(HERE / "model"))
    pipeline.set_progress_bar_config(desc="pictures before", mininterval=5)
    before = pictures(pipeline)
    pipeline.load_lora_weights(str(lora))
    pipeline.set_progress_bar_config(desc="pictures after", mininterval=5)
    return before, pictures(pipeline)


def pictures(pipeline: Any) -> dict[str, list[Image.Image]]:
    """One picture a seed for each prompt; all in one batch, which is quickest."""
    import mindspore as ms

    from mindbooth.trainer.sample import start_noise

    prompts = list(dict.fromkeys(SCORED + SHOWN))
    noise = np.stack([start_noise(seed, (4, 16, 16)) for seed in SEEDS])
    made = pipeline(
        [prompt for prompt in prompts for _ in SEEDS],
        latents=ms.Tensor(np.concatenate([noise] * len(prompts))),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
    )[0]
    count = len(SEEDS)
    return {prompt: made[i * count : (i + 1) * count] for i, prompt in enumerate(prompts)}


def scored(made: dict[str, list[Image.Image]]) -> dict[str, float]:
    """Mean subject and prompt score over all backgrounds and seeds."""
    pairs = [
        (picture, colour)
        for prompt, colour in zip(SCORED, BACKGROUNDS, strict=True)
        for picture in made[prompt]
    ]
    return {name: round(value, 3) for name, value in score(pairs).items()}


def draw_pictures(
    before: dict[str, list[Image.Image]], after: dict[str, list[Image.Image]], path: Path
) -> None:
    """The instance pictures, and for each prompt the same seeds before and after."""
    from mindbooth.trainer.report import grid

    instance = [thumbnail(file) for file in sorted((HERE / "instance").glob("*.png"))]
    rows = [instance, *([*before[prompt], *after[prompt]] for prompt in SHOWN)]
    labels = ["trained on", *(f'"{prompt}"   left: before, right: after' for prompt in SHOWN)]
    columns = [f"{when}, seed {seed}" for when in ("before", "after") for seed in SEEDS]
    grid(rows, labels, columns=columns).save(path)


def thumbnail(file: Path) -> Image.Image:
    """A picture fitted into 64 x 64 on white."""
    sheet = Image.new("RGB", (64, 64), "white")
    picture = Image.open(file).convert("RGB")
    picture.thumbnail(sheet.size)
    sheet.paste(picture, ((64 - picture.width) // 2, (64 - picture.height) // 2))
    return sheet


def draw_loss(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss against updates: each one, and the mean of 25 around it."""
    from matplotlib.figure import Figure

    loss = np.array([line["loss"] for line in metrics])
    steps = np.array([line["step"] for line in metrics])
    width = min(25, len(loss))
    smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, loss, color="0.8", linewidth=0.8, label="each update")
    axes.plot(
        steps[width // 2 :][: len(smooth)], smooth, color="tab:blue", label=f"mean of {width}"
    )
    axes.set(xlabel="update", ylabel="loss", ylim=(0, float(np.quantile(loss, 0.99)) * 1.1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tell(
    output: Path,
    metrics: Sequence[dict[str, Any]],
    scores: dict[str, dict[str, float]],
    training: float,
    drawing: float,
) -> None:
    """What came of it, and where to look."""
    collectives = sorted({line["collectives"] - line["skipped"] for line in metrics})
    median = float(np.median([line["seconds"] for line in metrics]))
    print(f"\n{len(metrics)} updates in {training:.0f} s, of {median:.2f} s each;", end=" ")
    print(f"collectives an update: {', '.join(map(str, collectives))}; pictures {drawing:.0f} s")
    print(f"{'':8}{'subject':>10}{'prompt':>10}")
    for when, values in scores.items():
        print(f"{when:8}{values['subject']:>10.3f}{values['prompt']:>10.3f}")
    print("(1 is a true picture; after a round trip through the VAE it scores 0.81)")
    print(f"pictures  {output / 'before_after.png'}")
    print(f"loss      {output / 'loss.png'}")
    print(f"LoRA      {output / 'pytorch_lora_weights.safetensors'}")


if __name__ == "__main__":
    sys.exit(main())
