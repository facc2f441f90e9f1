"""Validation pictures: the same seeds each time, shared out over ranks, shown where they are due.

The learning rate is 0, so that what differs between two pictures is not the adapter.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jobs
import numpy as np
import pytest
from PIL import Image

from mindbooth.trainer.validation import Made, Validation

if TYPE_CHECKING:
    from mindbooth.trainer.device import Comm

PROMPTS = ("a photo of sks cat", "sks cat in the snow")
FILES = [
    f"{name}-seed{seed}.png"
    for name in ("1-a-photo-of-sks-cat", "2-sks-cat-in-the-snow")
    for seed in (7, 8, 9)
]
CLOSE = 2  # levels of 255; batches of other sizes round differently
TITLE = 6 + 18  # rows of pixels


@pytest.fixture(scope="module")
def flags(tiny_pipeline: Path, photographs: Path, tmp_path_factory: Any) -> jobs.Flags:
    prompts = [f"--validation_prompt={prompt}" for prompt in PROMPTS]
    return prompts + jobs.training(
        tiny_pipeline,
        photographs,
        train_batch_size=1,
        max_train_steps=2,
        learning_rate="0",  # jobs.flags leaves a plain 0 out
        num_validation_images=3,
        validation_steps=1,
        report_to="all",
        output_dir="out",
        latent_cache_dir=tmp_path_factory.mktemp("cache"),
    )


@pytest.fixture(scope="module")
def alone(flags: jobs.Flags, tmp_path_factory: Any) -> Path:
    """What a run of one process leaves."""
    folder = tmp_path_factory.mktemp("alone")
    job = jobs.run([*jobs.MINDBOOTH, "train", *flags], folder, WANDB_MODE="offline")
    assert job.process.returncode == 0, job.told
    return Path(folder / "out")


@pytest.fixture(scope="module")
def together(alone: Path, flags: jobs.Flags, tmp_path_factory: Any) -> tuple[Path, str]:
    """What the same leaves with two workers, and what it tells."""
    folder = tmp_path_factory.mktemp("together")
    job = jobs.run([*jobs.launch(2), *flags], folder, WANDB_MODE="offline")
    assert job.process.returncode == 0, job.told
    return Path(folder / "out"), job.told


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_two_ranks_make_the_pictures_of_one_and_each_once(
    alone: Path, together: tuple[Path, str]
) -> None:
    """A picture that two ranks made would be twice as bright: they are summed up."""
    for name in ("update-000001.png", "update-000002.png", *(f"final/{file}" for file in FILES)):
        one, two = (pixels(folder / "samples" / name) for folder in (alone, together[0]))
        assert one.std() > 20, f"{name} is a blank"
        assert np.abs(one - two).max() <= CLOSE, name
    assert "pictures 3/3" in together[1]  # of 6, by rank 0


def test_what_pictures_take_is_no_part_of_an_update(together: tuple[Path, str]) -> None:
    """Ranks share their pictures by a collective, between the updates."""
    assert jobs.collectives(together[0]) == {1}


def test_a_seed_is_the_same_picture_each_time(alone: Path) -> None:
    first, last = (pixels(alone / f"samples/update-00000{update}.png") for update in (1, 2))
    assert np.array_equal(first[TITLE:], last[TITLE:])
    assert not np.array_equal(first[:TITLE], last[:TITLE])


def test_all_pictures_of_the_end_are_files_of_their_own_and_differ(alone: Path) -> None:
    assert sorted(path.name for path in (alone / "samples" / "final").iterdir()) == FILES
    found = [pixels(alone / "samples" / "final" / name) for name in FILES]
    assert all(picture.shape == (32, 32, 3) for picture in found)
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 10 for other in found[:i])


def test_tensorboard_shows_every_update_and_every_occasion(alone: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(alone / "logs")).Reload()
    for name in ("loss", "lr", "grad_norm", "loss_scale", "seconds"):
        shown = [(event.step, event.value) for event in found.Scalars(name)]
        told = [(line["step"], line[name]) for line in jobs.metrics(alone)]
        assert np.allclose(shown, told, rtol=1e-6), name
    for name in ("pictures/1-a-photo-of-sks-cat", "pictures/2-sks-cat-in-the-snow"):
        assert [event.step for event in found.Images(name)] == [1, 2]


def test_wandb_has_all_pictures(alone: Path, together: tuple[Path, str]) -> None:
    for folder in (alone, together[0]):
        pictures = (folder / "logs" / "wandb").glob("offline-run-*/files/media/images/**/*.png")
        assert len(list(pictures)) == 2 * len(FILES)


EPOCHS = {"validation_steps": None, "validation_epochs": 2}
STEPS = {"validation_steps": 3, "validation_epochs": 1}


@pytest.mark.parametrize(
    ("options", "due"),
    [(EPOCHS, [4, 8, 12]), (STEPS, [3, 6, 9, 12])],
    ids=["every other epoch of two updates", "every third update"],
)
def test_when_pictures_are_due(options: dict[str, Any], due: list[int]) -> None:
    def validation(prompts: list[str] | None) -> Validation:
        some = SimpleNamespace(validation_prompt=prompts, **options)
        run: Any = SimpleNamespace(
            config=SimpleNamespace(output=some),
            batching=SimpleNamespace(epoch=lambda update: update // 2),
        )
        nothing: Any = None
        return Validation(run, nothing, nothing, nothing)

    for prompts, expected in ((["x"], due), (None, [])):
        asked = validation(prompts)
        assert [done for done in range(1, 13) if asked.due(done - 1, done)] == expected


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A photo of sks dog, 4k!", "1-a-photo-of-sks-dog-4k"),
        ("../../etc/passwd", "1-etc-passwd"),
        ("\u72d7", "1"),
        ("word " * 40, "1-word-word-word-word-word-word-word-word"),
    ],
)
def test_names_of_prompts_suit_files(prompt: str, name: str) -> None:
    made = Made(update=1, prompts=(prompt,), seeds=(1,), pictures=((),), grid="g.png")
    assert made.names == (name,)


EDM = {
    "num_train_timesteps": 1000, "prediction_type": "v_prediction", "rho": 7.0, "sigma_data": 0.5,
    "sigma_max": 80.0, "sigma_min": 0.002,
}  # fmt: skip
NOISE = {
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000,
}  # fmt: skip
SCHEDULERS: dict[str, dict[str, object]] = {
    "EDMEulerScheduler": EDM,
    "EDMDPMSolverMultistepScheduler": EDM | {"solver_order": 2},
    "EulerDiscreteScheduler": NOISE,
    "EulerAncestralDiscreteScheduler": NOISE,
}
PLAYGROUND = {
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
}


@pytest.fixture(scope="module", params=SCHEDULERS)
def sampler(request: Any, cpu: "Comm", tiny_pipeline: Path, tmp_path_factory: Any) -> Any:
    """With the scheduler of that name; for EDM with a VAE that has a mean and a deviation too."""
    import json
    import shutil

    import mindspore as ms

    from mindbooth.trainer import sdxl
    from mindbooth.trainer.config import ModelConfig
    from mindbooth.trainer.sample import Sampler

    folder = tmp_path_factory.mktemp("model") / "m"
    shutil.copytree(tiny_pipeline, folder)
    changes = SCHEDULERS[request.param]
    scheduler = {"_class_name": request.param, **changes}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    if changes is not NOISE:
        vae = folder / "vae" / "config.json"
        vae.write_text(json.dumps(json.loads(vae.read_text()) | PLAYGROUND))
    model = sdxl.locate(ModelConfig(pretrained_model_name_or_path=str(folder)))
    return Sampler(model, sdxl.load_unet(model, ms.float32), ms.float32)


def embeddings(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "prompt_embeds": random.standard_normal((77, 64)).astype(np.float32),
        "pooled": random.standard_normal(32).astype(np.float32),
    }


def test_a_picture_does_not_depend_on_its_batch(sampler: Any) -> None:
    prompt, negative = embeddings(1), embeddings(2)
    made = {
        seeds: [
            np.asarray(picture).astype(int)
            for picture in sampler.pictures(prompt, negative, seeds, size=(32, 32), steps=3)
        ]
        for seeds in ((5,), (6,), (5, 6))
    }
    (five,), (six,), both = made.values()
    assert np.abs(five - six).max() > 10
    assert np.abs(np.stack([five, six]) - np.stack(both)).max() <= CLOSE


def test_latents_are_decoded_as_the_pipeline_does_it(sampler: Any) -> None:
    from mindspore import Tensor

    from mindbooth.trainer import sample

    pipeline, prompt, negative = sampler.pipeline, embeddings(1), embeddings(2)
    (ours,) = sampler.pictures(prompt, negative, [5], size=(32, 32), steps=3)
    random = sample.generator(5)
    given = {
        "latents": Tensor(random.standard_normal((1, 4, 16, 16)).astype(np.float32)),
        "prompt_embeds": Tensor(prompt["prompt_embeds"][None]),
        "pooled_prompt_embeds": Tensor(prompt["pooled"][None]),
        "negative_prompt_embeds": Tensor(negative["prompt_embeds"][None]),
        "negative_pooled_prompt_embeds": Tensor(negative["pooled"][None]),
    }
    (theirs,) = pipeline(
        **given, generator=random, height=32, width=32, num_inference_steps=3,
        guidance_scale=sample.GUIDANCE,
    )[0]  # fmt: skip
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= CLOSE
