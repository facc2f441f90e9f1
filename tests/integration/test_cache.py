"""The cache under real trainings: encoded once by all together, damaged, lost, full, read-only.

Runs of one random pipeline and of the mini SDXL's pictures; what a run learned is compared with a
run that nothing happened to, bit for bit.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import jobs
import numpy as np
import pytest
from entries import damages
from jobs import Flags, Job
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file

UPDATES = 4
ENTRIES = 11  # five pictures, flipped and not, and a prompt
MANY = 40  # crops of a picture, or as many as differ


@dataclass(frozen=True, kw_only=True)
class Given:
    """model, pictures; cache: with all entries; straight: what a run with it learned."""

    model: Path
    pictures: Path
    cache: Path
    straight: np.ndarray

    def flags(self, **options: object) -> Flags:
        usual: dict[str, object] = {
            "max_train_steps": UPDATES,
            "random_flip": True,
            "report_to": "none",
            "output_dir": "out",
            "latent_cache_dir": self.cache,
        }
        return jobs.training(self.model, self.pictures, **usual | options)


@pytest.fixture(scope="module")
def given(tiny_pipeline: Path, mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("cache")
    bare = Given(model=tiny_pipeline, pictures=mini_sdxl / "instance", cache=folder / "cache",
                 straight=np.zeros(0))  # fmt: skip
    job = jobs.run([*jobs.MINDBOOTH, "train", *bare.flags()], folder)
    assert job.process.returncode == 0, job.told
    assert encoded(job) == ENTRIES
    straight = jobs.adapter(folder / "out")
    return Given(model=bare.model, pictures=bare.pictures, cache=bare.cache, straight=straight)


def encoded(job: Job) -> int:
    """How many entries a job says that it made."""
    made = re.search(r"Encoded (\d+) of \d+ entries", job.told)
    assert made or "Nothing to encode" in job.told, job.told
    return int(made[1]) if made else 0


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("??/*.safetensors"))


def precompute(given: Given, cache: Path, workers: int, name: str, *, crops: int = 4) -> list[str]:
    flags = given.flags(latent_cache_dir=cache, output_dir=name, crop_variants=crops)
    command = jobs.launch(workers)
    return [*command[: len(jobs.MINDBOOTH) + 1], "--job", "precompute",
            *command[len(jobs.MINDBOOTH) + 1 :], *flags]  # fmt: skip


def test_each_entry_is_encoded_once_over_ranks(given: Given, tmp_path: Path) -> None:
    job = jobs.run(precompute(given, tmp_path / "cache", 4, "out"), tmp_path)
    assert job.process.returncode == 0, job.told
    assert encoded(job) == len(entries(tmp_path / "cache")) > 20


@contextmanager
def two_at_work(given: Given, folder: Path) -> Iterator[tuple[tuple[Job, Path], tuple[Job, Path]]]:
    """Jobs of two ranks that fill one cache, started together. Whichever begins to encode stands
    still until the other one does; that comes first in what is given."""
    outputs = [folder / f"out-{i}" for i in (0, 1)]
    commands = [precompute(given, folder / "cache", 2, one.name, crops=MANY) for one in outputs]

    def encodes(output: Path) -> bool:
        beat = output / "launch" / "attempt-1" / "heartbeat_0"
        return beat.exists() and b'"encoding"' in beat.read_bytes()

    with jobs.started(commands[0], folder) as one, jobs.started(commands[1], folder) as other:
        both = [(one, outputs[0]), (other, outputs[1])]
        one.until(lambda: entries(folder / "cache") and any(map(encodes, outputs)))
        both.sort(key=lambda job: not encodes(job[1]))
        first, second = both
        stopped = jobs.workers(first[1]).values()
        assert len(stopped) == 2, first[0].told
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        there = len(entries(folder / "cache"))
        second[0].until(lambda: len(entries(folder / "cache")) > there)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        yield first, second


@pytest.fixture(scope="module")
def fresh(given: Given, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every entry, as a job makes it that nobody disturbs."""
    folder = tmp_path_factory.mktemp("fresh")
    job = jobs.run(precompute(given, folder / "cache", 1, "out", crops=MANY), folder)
    assert job.process.returncode == 0, job.told
    return contents(folder / "cache")


def contents(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in entries(cache)}


def test_each_entry_is_encoded_once_over_jobs(
    given: Given, fresh: dict[str, bytes], tmp_path: Path
) -> None:
    with two_at_work(given, tmp_path) as started:
        for job, _ in started:
            assert job.end() == 0, job.told
    made = [encoded(job) for job, _ in started]
    assert min(made) > 0
    assert sum(made) == len(fresh)
    assert contents(tmp_path / "cache") == fresh


@pytest.mark.parametrize("whom", ["a rank", "a job"])
def test_whoever_is_killed_while_encoding_every_entry_is_right(
    given: Given, fresh: dict[str, bytes], tmp_path: Path, whom: str
) -> None:
    cache = tmp_path / "cache"
    with two_at_work(given, tmp_path) as ((first, output), (second, _)):
        dead = jobs.left(output) | {first.process.pid}
        if whom == "a rank":
            dead = {jobs.workers(output)[1]}
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        assert len(entries(cache)) < len(fresh), "too late: all is done"
        assert first.end() != 0
        assert second.end() == 0, second.told
    assert contents(cache) == fresh
    verify = jobs.run([*jobs.MINDBOOTH, "cache", "verify", "--latent_cache_dir", cache], tmp_path)
    assert verify.process.returncode == 0, verify.told
    assert not [path for path in cache.rglob("*") if path.suffix in (".part", ".claim")]


def another_picture(given: Given) -> None:
    path = sorted(given.pictures.glob("*.png"))[-1]
    with Image.open(path) as picture:
        ImageOps.invert(picture.convert("RGB")).save(path)


def another_text_encoder(given: Given) -> None:
    path = given.model / "text_encoder" / "model.safetensors"
    weights = {name: 2 * weight for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "np"})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (another_picture, r"the picture .*\.png was changed during the run"),
        (another_text_encoder, "the model .* was changed during the run"),
    ],
)
def test_what_changes_while_others_are_encoded_is_not_taken_for_what_it_was(
    given: Given, fresh: dict[str, bytes], tmp_path: Path,
    change: Callable[[Given], None], told: str,
) -> None:  # fmt: skip
    own = replace(given, model=tmp_path / "model", pictures=tmp_path / "pictures")
    shutil.copytree(given.model, own.model)
    shutil.copytree(given.pictures, own.pictures)
    cache = tmp_path / "cache"
    with jobs.started(precompute(own, cache, 1, "out", crops=MANY), tmp_path) as job:
        job.until(lambda: entries(cache))
        (worker,) = jobs.workers(tmp_path / "out").values()
        os.kill(worker, signal.SIGSTOP)
        change(own)
        os.kill(worker, signal.SIGCONT)
        assert job.end() == 2, job.told
    assert re.search(told, job.told), job.told
    made = contents(cache)
    assert made.items() < fresh.items()


def test_what_was_precomputed_is_not_encoded_again(given: Given, tmp_path: Path) -> None:
    job = jobs.run(
        [*jobs.MINDBOOTH, "precompute", *given.flags(latent_cache_dir="cache")], tmp_path
    )
    assert job.process.returncode == 0, job.told
    assert encoded(job) == ENTRIES
    assert not (tmp_path / "out").exists()
    job = jobs.run([*jobs.MINDBOOTH, "train", *given.flags(latent_cache_dir="cache")], tmp_path)
    assert job.process.returncode == 0, job.told
    assert encoded(job) == 0
    assert np.array_equal(jobs.adapter(tmp_path / "out"), given.straight)


def test_ranks_of_a_host_scope_fill_a_cache_alone(given: Given, tmp_path: Path) -> None:
    flags = given.flags(latent_cache_dir="cache", cache_scope="host")
    job = jobs.run([*jobs.launch(2), *flags], tmp_path)
    assert job.process.returncode == 0, job.told
    assert encoded(job) == ENTRIES


def test_a_hundred_damages_are_told_and_encoded_again(given: Given, tmp_path: Path) -> None:
    """Each entry of a cache is damaged in another way; the training is as with a sound one."""
    many = damages()
    for number in range(len(many)):
        picture = Image.effect_noise((64, 64), 20 + number).convert("RGB")
        (tmp_path / "pictures").mkdir(exist_ok=True)
        picture.save(tmp_path / "pictures" / f"{number:03d}.png")
    flags = replace(given, pictures=tmp_path / "pictures").flags(
        latent_cache_dir="cache", random_flip=None, resolution=64, train_batch_size=len(many) // 4
    )  # four updates see every picture
    command = [*jobs.MINDBOOTH, "train", *flags]
    sound = jobs.run(command, tmp_path)
    assert sound.process.returncode == 0, sound.told
    straight = jobs.adapter(tmp_path / "out")

    latents = [path for path in entries(tmp_path / "cache") if b"mean" in path.read_bytes()[:2000]]
    for path, damage in zip(latents, many.values(), strict=True):
        damage(path)
    job = jobs.run(command, tmp_path)
    assert job.process.returncode == 0, job.told
    assert encoded(job) == len(many)
    missed = [name for path, name in zip(latents, many, strict=True)
              if f"{path.relative_to(tmp_path)} is damaged" not in job.err + job.out]  # fmt: skip
    # What is no file, and no folder, is taken for an entry that is not there.
    assert all(name.startswith(("a link to", "a named pipe", "a socket")) for name in missed)
    assert np.array_equal(jobs.adapter(tmp_path / "out"), straight)


@pytest.mark.parametrize(
    ("harm", "mode"),
    [
        ("deleted", "pynative"),
        ("damaged", "graph"),
        pytest.param("deleted", "graph", marks=pytest.mark.slow),
        pytest.param("damaged", "pynative", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_with_the_same_numbers_when_its_cache_is(
    given: Given, tmp_path: Path, harm: str, mode: str
) -> None:
    cache = Path(shutil.copytree(given.cache, tmp_path / "cache"))
    flags = given.flags(latent_cache_dir=cache, mode=mode, max_train_steps=30)
    command = [*jobs.MINDBOOTH, "train", *flags, "--output_dir"]
    sound = jobs.run([*command, "sound"], tmp_path)
    assert sound.process.returncode == 0, sound.told
    with jobs.started([*command, "out"], tmp_path) as job:
        job.until_updates(tmp_path / "out", 2)
        if harm == "deleted":
            shutil.rmtree(cache)
        for path in entries(cache):
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert job.end() == 0, job.told
    assert jobs.updates(tmp_path / "out") == 30
    assert np.array_equal(jobs.adapter(tmp_path / "out"), jobs.adapter(tmp_path / "sound"))
    assert ("is damaged" in job.out + job.err) == (harm == "damaged")
    assert entries(cache), "what was encoded again is kept"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own. For root."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_told_with_its_folder(given: Given, tmp_path: Path, workers: int) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        (disk / "filler").write_bytes(bytes(52 * 1024))
        job = jobs.run([*jobs.launch(workers), *given.flags(latent_cache_dir=disk)], tmp_path)
        assert job.process.returncode == 2, job.told
        assert f"cache folder {disk}" in job.told
        assert "the disk is full" in job.told
        assert not list(disk.rglob("*.part"))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_full_cache_can_be_read_only_and_lie_below_a_private_one(
    given: Given, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "64m") as disk:
        shutil.copytree(given.cache, disk / "cache")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        flags = given.flags(latent_cache_dir=disk / "cache")
        job = jobs.run([*jobs.launch(2), *flags], tmp_path)
        assert job.process.returncode == 0, job.told
        assert encoded(job) == 0

        job = jobs.run([*jobs.MINDBOOTH, "train", *flags, "--instance_prompt=other"], tmp_path)
        assert job.process.returncode == 2, job.told
        assert "--latent_cache_readonly" in job.told

        private = given.flags(latent_cache_dir="own", latent_cache_readonly=disk / "cache")
        command = [*jobs.MINDBOOTH, "train", *private, "--instance_prompt=other"]
        job = jobs.run(command, tmp_path)
        assert job.process.returncode == 0, job.told
        assert encoded(job) == 1
        assert len(entries(tmp_path / "own")) == 1


def test_what_a_run_needs_that_is_at_work_is_kept_by_prune(given: Given, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(given.cache, cache)
    prune = [*jobs.MINDBOOTH, "cache", "prune", "--max_size", "0", "--latent_cache_dir", cache]
    flags = given.flags(latent_cache_dir=cache, max_train_steps=10**6)
    with jobs.started([*jobs.MINDBOOTH, "train", *flags], tmp_path) as job:
        job.until(lambda: jobs.updates(tmp_path / "out"))
        done = jobs.run(prune, tmp_path)
        assert f"in use now, so they stay anyway: {ENTRIES} entries" in done.out, done.told
        assert len(entries(cache)) == ENTRIES
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.end() == 75, job.told
    assert jobs.run(prune, tmp_path).process.returncode == 0
    assert not entries(cache)


def test_what_runs_need_is_kept_by_prune(given: Given, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(given.cache, tmp_path / "cache"))
    for name, prompt in (("runs/one", "one"), ("gone", "two")):
        flags = given.flags(
            latent_cache_dir=cache, output_dir=name, instance_prompt=prompt, max_train_steps=1
        )
        job = jobs.run([*jobs.MINDBOOTH, "train", *flags], tmp_path)
        assert job.process.returncode == 0, job.told
    assert len(entries(cache)) == ENTRIES + 2
    command = [*jobs.MINDBOOTH, "cache", "prune", "--latent_cache_dir", cache, "--unneeded_by"]
    job = jobs.run([*command, tmp_path / "runs"], tmp_path)
    assert job.process.returncode == 0, job.told
    assert len(entries(cache)) == ENTRIES
    job = jobs.run([*jobs.MINDBOOTH, "train", *flags], tmp_path)
    assert encoded(job) == 1


@pytest.fixture(scope="module")
def shapes(
    tiny_pipeline: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Adapters of one, two and four workers on pictures of several shapes, and of their class."""
    folder = tmp_path_factory.mktemp("shapes")
    shutil.copytree(photographs, folder / "class")
    common = jobs.training(
        tiny_pipeline, photographs, buckets=True, crop_variants=2, random_flip=True,
        max_train_steps=8, latent_cache_dir=folder / "cache", report_to="none",
        allreduce_dtype="fp32", resolution=64, checkpointing_steps=4,
        with_prior_preservation=True, class_data_dir=folder / "class", class_prompt="a cat",
        num_class_images=6,
    )  # fmt: skip
    for workers, splits in ((1, ((4, 1), (1, 4))), (2, ((2, 1),)), (4, ((1, 1),))):
        runs = [
            jobs.flags(train_batch_size=batch, gradient_accumulation_steps=accumulation,
                       output_dir=f"{workers}x{batch}x{accumulation}")
            for batch, accumulation in splits
        ]  # fmt: skip
        if workers == 1:
            runs.append(jobs.flags(train_batch_size=4, mode="graph", output_dir="graph"))
        if workers == 2:
            shutil.copytree(folder / "1x4x1" / "checkpoint-4", folder / "resumed" / "checkpoint-4")
            runs.append(
                jobs.flags(
                    train_batch_size=2, output_dir="resumed", resume_from_checkpoint="latest"
                )
            )
        job = jobs.several_launched(workers, common, runs, folder)
        assert job.process.returncode == 0, job.told
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2x2x1", "4x1x1"])
def test_one_collective_an_update_of_pictures_of_several_shapes(shapes: Path, name: str) -> None:
    assert jobs.collectives(shapes / name) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1x1x4", "2x2x1", "4x1x1", "graph", "resumed"])
def test_buckets_learn_the_same_on_any_cards_compiled_and_resumed(shapes: Path, name: str) -> None:
    one, other = (jobs.adapter(shapes / folder) for folder in ("1x4x1", name))
    assert jobs.learned(shapes / name) > 1e-3
    assert np.linalg.norm(one - other) <= 1e-4 * np.linalg.norm(one)


def test_latents_of_several_shapes_are_in_the_cache(shapes: Path) -> None:
    from safetensors.numpy import load_file

    latents = [load_file(path) for path in entries(shapes / "cache")]
    sizes = {entry["mean"].shape for entry in latents if "mean" in entry}
    assert len(sizes) > 1, sizes
