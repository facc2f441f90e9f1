"""What people get wrong: one clear line, status 2, and nothing left behind.

Most cases share one process, in which the trainer's own main() is called for each; some are done
by the commands themselves, alone and launched.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
from jobs import Ended, Flags, Job

NOWHERE = "http://127.0.0.1:9"  # the hub, for those without a network


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a case may put what is wrong. Model and pictures are sound, and not to be changed."""

    model: Path
    pictures: Path
    own: Path

    def copied_model(self) -> Path:
        return Path(shutil.copytree(self.model, self.own / "model"))

    def copied_pictures(self) -> Path:
        return Path(shutil.copytree(self.pictures, self.own / "pictures"))


# Each case changes options of a sound command line and says which words a person must read.
Case = Callable[[Folders], tuple[dict[str, object], list[str]]]


def no_such_folder(on: Folders) -> tuple[dict[str, object], list[str]]:
    return {"instance_data_dir": on.own / "dgo"}, [f"{on.own}/dgo", "does not exist"]


def empty_folder(on: Folders) -> tuple[dict[str, object], list[str]]:
    (on.own / "dog").mkdir()
    return {"instance_data_dir": on.own / "dog"}, [f"{on.own}/dog", "is empty"]


def no_picture_in_the_folder(on: Folders) -> tuple[dict[str, object], list[str]]:
    (on.own / "dog").mkdir()
    (on.own / "dog" / "notes.txt").write_text("soon")
    return {"instance_data_dir": on.own / "dog"}, ["no picture in", "notes.txt"]


def truncated_picture(on: Folders) -> tuple[dict[str, object], list[str]]:
    pictures = on.copied_pictures()
    last = sorted(pictures.iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-2000])
    return {"instance_data_dir": pictures}, [str(last), "truncated"]


def not_a_picture(on: Folders) -> tuple[dict[str, object], list[str]]:
    pictures = on.copied_pictures()
    (pictures / "zebra.png").write_text("this is text")
    return {"instance_data_dir": pictures}, [f"{pictures}/zebra.png"]


def output_in_the_place_of_a_file(on: Folders) -> tuple[dict[str, object], list[str]]:
    (on.own / "taken").write_text("mine")
    return {"output_dir": on.own / "taken" / "out"}, [f"--output_dir {on.own}/taken/out"]


def unknown_flag(on: Folders) -> tuple[dict[str, object], list[str]]:
    return {"instance_data_dri": "dog"}, ["--instance_data_dri", "--instance_data_dir"]


def no_such_model(on: Folders) -> tuple[dict[str, object], list[str]]:
    return {"pretrained_model_name_or_path": "./sdxl"}, ["--pretrained_model_name_or_path ./sdxl"]


def model_without_unet(on: Folders) -> tuple[dict[str, object], list[str]]:
    model = on.copied_model()
    shutil.rmtree(model / "unet")
    return {"pretrained_model_name_or_path": model}, [str(model), "no folder unet"]


def model_without_unet_weights(on: Folders) -> tuple[dict[str, object], list[str]]:
    model = on.copied_model()
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    return {"pretrained_model_name_or_path": model}, [f"{model}/unet", "*.safetensors"]


def truncated_weights(on: Folders) -> tuple[dict[str, object], list[str]]:
    weights = on.copied_model() / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return {"pretrained_model_name_or_path": on.own / "model"}, [str(weights.parent)]


def unet_config_that_is_no_json(on: Folders) -> tuple[dict[str, object], list[str]]:
    model = on.copied_model()
    (model / "unet" / "config.json").write_text('{"sample_size": 16,')
    return {"pretrained_model_name_or_path": model}, [f"{model}/unet/config.json"]


def hub_id_without_network(on: Folders) -> tuple[dict[str, object], list[str]]:
    """May be a mistake, or an outage that passes."""
    name = "stabilityai/stable-difusion-xl-base-1.0"
    return {"pretrained_model_name_or_path": name}, [f"--pretrained_model_name_or_path {name}"]


def resolution_that_the_vae_cannot_halve(on: Folders) -> tuple[dict[str, object], list[str]]:
    return {"resolution": 100}, ["--resolution 100", "8"]


def checkpoint_that_is_not_there(on: Folders) -> tuple[dict[str, object], list[str]]:
    return {"resume_from_checkpoint": "checkpoint-7"}, ["--resume_from_checkpoint checkpoint-7"]


def cache_in_the_place_of_a_file(on: Folders) -> tuple[dict[str, object], list[str]]:
    (on.own / "taken").write_text("mine")
    return {"latent_cache_dir": on.own / "taken"}, [f"{on.own}/taken", "--latent_cache_dir"]


def text_encoder_config_that_is_no_json(on: Folders) -> tuple[dict[str, object], list[str]]:
    model = on.copied_model()
    (model / "text_encoder" / "config.json").write_text("")
    return {"pretrained_model_name_or_path": model}, [f"{model}/text_encoder/config.json"]


def tokenizer_without_vocabulary(on: Folders) -> tuple[dict[str, object], list[str]]:
    model = on.copied_model()
    (model / "tokenizer_2" / "vocab.json").unlink()
    return {"pretrained_model_name_or_path": model}, [f"{model}/tokenizer_2"]


def model_without_index(on: Folders) -> tuple[dict[str, object], list[str]]:
    model = on.copied_model()
    (model / "model_index.json").unlink()
    changes = {"pretrained_model_name_or_path": model, "validation_prompt": "a dog"}
    return changes, [f"{model}", "model_index.json"]


def number_that_is_none(on: Folders) -> tuple[dict[str, object], list[str]]:
    return {"train_batch_size": "four"}, ["--train_batch_size", "'four'"]


def bf16_on_a_cpu(on: Folders) -> tuple[dict[str, object], list[str]]:
    return {"mixed_precision": "bf16"}, ["--mixed_precision bf16", "Use fp16"]


def class_pictures_among_the_subjects(on: Folders) -> tuple[dict[str, object], list[str]]:
    pictures = on.copied_pictures()
    changes = {
        "instance_data_dir": pictures,
        "with_prior_preservation": True,
        "class_data_dir": pictures,
        "class_prompt": "a photo of a cat",
    }
    return changes, [f"--class_data_dir {pictures}", "Give another folder"]


def tracker_that_there_is_not(on: Folders) -> tuple[dict[str, object], list[str]]:
    return {"report_to": "comet_ml"}, ["--report_to comet_ml", "tensorboard"]


def min_snr_for_a_model_made_in_edm(on: Folders) -> tuple[dict[str, object], list[str]]:
    model = on.copied_model()
    scheduler = model / "scheduler" / "scheduler_config.json"
    scheduler.write_text('{"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"}')
    changes = {"pretrained_model_name_or_path": model, "snr_gamma": 5}
    return changes, ["--snr_gamma 5", "EDM"]


CASES = (
    bf16_on_a_cpu,
    class_pictures_among_the_subjects,
    tracker_that_there_is_not,
    min_snr_for_a_model_made_in_edm,
    no_such_folder,
    empty_folder,
    no_picture_in_the_folder,
    truncated_picture,
    not_a_picture,
    output_in_the_place_of_a_file,
    unknown_flag,
    no_such_model,
    model_without_unet,
    model_without_unet_weights,
    truncated_weights,
    unet_config_that_is_no_json,
    hub_id_without_network,
    resolution_that_the_vae_cannot_halve,
    checkpoint_that_is_not_there,
    cache_in_the_place_of_a_file,
    text_encoder_config_that_is_no_json,
    tokenizer_without_vocabulary,
    model_without_index,
    number_that_is_none,
)


def long_prompt(on: Folders) -> tuple[dict[str, object], list[str]]:
    """No mistake: it is trained with what the tokenizer takes."""
    words = ["a photo of sks dog", *["and a photo of a cat"] * 20, "with a red hat at the sea"]
    return {"instance_prompt": " ".join(words)}, ["32 tokens", "with a red hat at the sea"]


@pytest.fixture(scope="module")
def sound(
    tiny_pipeline: Path, mini_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Folders:
    """Two pictures and a model that nothing is wrong with."""
    own = tmp_path_factory.mktemp("sound")
    (own / "pictures").mkdir()
    for picture in sorted((mini_sdxl / "instance").iterdir())[:2]:
        shutil.copy(picture, own / "pictures")
    return Folders(model=tiny_pipeline, pictures=own / "pictures", own=own)


def prepare(case: Case, sound: Folders, own: Path) -> tuple[Flags, list[str]]:
    """The command line of a case, which writes to `own`/out, and the words it must give."""
    changes, words = case(Folders(model=sound.model, pictures=sound.pictures, own=own))
    usual = {"output_dir": own / "out", "latent_cache_dir": own / "cache", "max_train_steps": 1}
    return jobs.training(sound.model, sound.pictures, **usual | changes), words


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A case and what came of it. before, after: all files that were there."""

    ended: Ended
    words: list[str]
    before: dict[str, int]
    after: dict[str, int]


@pytest.fixture(scope="module")
def tried(sound: Folders, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tried]:
    base = tmp_path_factory.mktemp("cases")
    for case in (*CASES, long_prompt):
        (base / case.__name__).mkdir()
    given = {
        case.__name__: prepare(case, sound, base / case.__name__) for case in (*CASES, long_prompt)
    }
    before = {name: jobs.files(base / name) for name in given}
    ended = jobs.several([flags for flags, _ in given.values()], base / "cwd", HF_ENDPOINT=NOWHERE)
    return {
        name: Tried(ended=end, words=words, before=before[name], after=jobs.files(base / name))
        for (name, (_, words)), end in zip(given.items(), ended, strict=True)
    }


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_a_mistake_is_one_line_and_status_2(tried: dict[str, Tried], case: str) -> None:
    ended = tried[case].ended
    assert ended.status == (1 if case == hub_id_without_network.__name__ else 2), ended.err
    assert ended.out == ""
    assert ended.err.startswith("mindbooth: error: ")
    assert ended.err.count("\n") == 1, ended.err
    missing = [word for word in tried[case].words if word not in ended.err]
    assert not missing, ended.err


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_a_mistake_leaves_nothing_in_the_output_folder(tried: dict[str, Tried], case: str) -> None:
    seen = tried[case]
    new = {name for name, time in seen.after.items() if seen.before.get(name) != time}
    assert not [name for name in new if not name.startswith("cache/")]


def test_a_prompt_that_is_too_long_is_warned_about_and_trained_on(
    tried: dict[str, Tried],
) -> None:
    seen = tried[long_prompt.__name__]
    assert seen.ended.status == 0, seen.ended.err
    (warning,) = [line for line in seen.ended.err.splitlines() if "WARNING " in line]
    assert all(word in warning for word in seen.words), warning
    assert "sks" not in warning  # only what was cut
    assert f"out/{jobs.LORA}" in seen.after


@pytest.mark.parametrize("case", [no_such_folder, truncated_picture, unknown_flag])
def test_launched_a_mistake_is_shown_once_and_leaves_nothing(
    case: Case, sound: Folders, tmp_path: Path
) -> None:
    """Found by both ranks, by one of them, and before they join."""
    flags, words = prepare(case, sound, tmp_path)
    job = jobs.run([*jobs.launch(2), *flags], tmp_path / "cwd")
    assert_one_line(job, words)
    assert "error" not in job.out.lower()
    assert not (tmp_path / "out").exists()


def test_the_command_itself_ends_with_one_line_and_status_2(sound: Folders, tmp_path: Path) -> None:
    flags, words = prepare(truncated_picture, sound, tmp_path)
    job = jobs.run([*jobs.MINDBOOTH, "train", *flags], tmp_path / "cwd")
    assert_one_line(job, words)
    assert job.out == ""
    assert not (tmp_path / "out").exists()


def assert_one_line(job: Job, words: list[str]) -> None:
    assert job.process.returncode == 2, job.told
    assert job.err.startswith("mindbooth: error: "), job.err
    assert job.err.count("\n") == 1, job.err
    assert all(word in job.err for word in words), job.err
