"""--push_to_hub in real trainings, against a server here that answers as the hub does."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
from huggingface_hub import ModelCard
from jobs import Ended
from stand_in_hub import Hub, environ, serving

SECRET = "hf_S3cret"  # all tokens begin with it
MINE, READS = f"{SECRET}Mine", f"{SECRET}SomebodyElses"
PROMPT = "a photo of sks cat | 'in' a bucket"
KEPT = (
    "checkpoint-9/notes.txt", "logs/events", "launch/plan.json", "samples/first_batch.png",
    "samples/final/1-of-an-earlier-run-seed1.png",
)  # fmt: skip
REFUSED = {
    "no token": ({}, "--hub_token"),
    "an unknown token": ({"hub_token": f"{SECRET}Unknown", "hub_model_id": "me/new"}, "401"),
    "a token that is none": ({"hub_token": f"{SECRET} {SECRET}"}, "no token has"),
    "no right to make it": ({"hub_token": READS, "hub_model_id": "me/new"}, "403"),
    "no right to write there": ({"hub_token": READS, "hub_model_id": "me/there"}, "403"),
    "no name": ({"hub_token": MINE, "hub_model_id": "a dog"}, "a dog"),
}
LOST = {
    "lost before the files": ("/objects/batch", f"{SECRET}LosesFiles"),
    "lost before the commit": ("/commit/", f"{SECRET}LosesCommit"),
}


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """Trainings by what happened to their uploads. home: where a login would be kept."""

    hub: Hub
    folder: Path
    home: Path
    ended: dict[str, Ended]

    def output(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def pushed(
    tmp_path_factory: pytest.TempPathFactory, tiny_pipeline: Path, mini_sdxl: Path
) -> Iterator[Pushed]:
    folder = tmp_path_factory.mktemp("push")
    home = tmp_path_factory.mktemp("home")
    there = folder / "hub" / "me" / "there"
    there.mkdir(parents=True)
    hub = Hub(
        repositories={"me/there": there},
        root=folder / "hub",
        tokens={MINE: "me", READS: "else"},
    )
    for cut, token in LOST.values():
        hub.tokens[token] = "me"
        hub.cut[token] = cut
    options = {
        "latent_cache_dir": folder / "cache",
        "max_train_steps": 1,
        "train_batch_size": 1,
        "push_to_hub": True,
    }
    for name in KEPT:
        (folder / "good" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "good" / name).write_text("not for the hub")
    given = {
        "good": {
            "hub_token": MINE,
            "output_kohya_format": True,
            "validation_prompt": PROMPT,
            "num_validation_images": 1,
        },
        **{name: more for name, (more, _) in REFUSED.items()},
        **{
            name: {"hub_token": token, "hub_model_id": name.replace(" ", "-")}
            for name, (_, token) in LOST.items()
        },
    }
    with serving(hub):
        runs = [
            jobs.training(
                tiny_pipeline, mini_sdxl / "instance", output_dir=folder / name, **options, **more
            )
            for name, more in given.items()
        ]
        ended = jobs.several(runs, folder / "cwd", **environ(hub, home))
        hub.cut.clear()
        yield Pushed(hub=hub, folder=folder, home=home, ended=dict(zip(given, ended, strict=True)))


def test_the_hub_has_the_bytes_of_what_was_made(pushed: Pushed) -> None:
    assert pushed.ended["good"].status == 0, pushed.ended["good"].err
    made, there = contents(pushed.output("good")), contents(pushed.hub.repositories["me/good"])
    pictures = {name for name in made if name.startswith("samples/")} - {*KEPT}
    assert len(pictures) == 2, "the sheet, and the picture in it"
    assert there.keys() == pictures | {
        "README.md",
        "config.yaml",
        "pytorch_lora_weights.safetensors",
        "pytorch_lora_weights_kohya.safetensors",
    }
    assert not [name for name, content in there.items() if content != made[name]]


def test_the_card_shows_pictures_that_are_on_the_hub(pushed: Pushed) -> None:
    repository = pushed.hub.repositories["me/good"]
    [widget] = ModelCard.load(repository / "README.md").data.to_dict()["widget"]
    assert widget["text"] == PROMPT
    assert (repository / widget["output"]["url"]).is_file()


def test_checkpoints_logs_and_the_users_pictures_stay_here(pushed: Pushed) -> None:
    kept = contents(pushed.output("good")).keys()
    assert {*KEPT} <= kept | {name.removeprefix("earlier-1/") for name in kept}
    assert not {*KEPT} & contents(pushed.hub.repositories["me/good"]).keys()


def test_the_card_on_the_hub_says_how_to_load_it_from_there(pushed: Pushed) -> None:
    card = (pushed.hub.repositories["me/good"] / "README.md").read_text()
    assert "load_lora_weights('me/good'" in card


@pytest.mark.parametrize("case", REFUSED)
def test_who_may_not_write_is_told_before_anything_is_trained(pushed: Pushed, case: str) -> None:
    ended = pushed.ended[case]
    assert ended.status == 2, ended.err
    told = [line for line in ended.err.splitlines() if "error" in line]
    assert len(told) == 1
    assert REFUSED[case][1] in told[0]
    assert not pushed.output(case).exists()


@pytest.mark.parametrize("case", LOST)
def test_a_connection_lost_at_the_end_loses_nothing(pushed: Pushed, case: str) -> None:
    ended = pushed.ended[case]
    assert ended.status == 1, ended.err
    assert "Nothing is lost" in ended.err
    made = contents(pushed.output(case)).keys()
    assert {"README.md", "config.yaml", "pytorch_lora_weights.safetensors"} <= made
    repository = pushed.hub.repositories[f"me/{case.replace(' ', '-')}"]
    assert contents(repository) == {}


def test_the_command_that_is_told_uploads_it_again(pushed: Pushed) -> None:
    case = "lost before the commit"
    command = pushed.ended[case].err.split("To upload it again: hf ")[1].splitlines()[0]
    done = subprocess.run(
        f"{Path(sys.executable).parent / 'hf'} {command}",
        shell=True,
        env={**environ(pushed.hub, pushed.home), "HF_TOKEN": MINE},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert contents(pushed.hub.repositories["me/lost-before-the-commit"]) == {
        name: (pushed.output(case) / name).read_bytes()
        for name in ("README.md", "config.yaml", "pytorch_lora_weights.safetensors")
    }


def test_no_token_is_written_or_told(pushed: Pushed) -> None:
    written = [pushed.output(case) for case in ("good", *LOST)]
    files = [path for folder in written for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert not [case for case, end in pushed.ended.items() if SECRET in end.out + end.err]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
