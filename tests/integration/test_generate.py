"""`mindbooth generate`: the command with everything from a hub, then claim by claim.

The tiny random SDXL in fp32 and few steps; the claims share pytest's process.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jobs
import numpy as np
import pytest
import random_adapter
import stand_in_hub
from PIL import Image
from safetensors.numpy import load_file, save_file
from tiny_sdxl import WEIGHTS, write_tiny_refiner

from mindbooth.trainer import generate
from mindbooth.trainer.config import ConfigError
from mindbooth.trainer.generate_options import parse

PROMPT = "a red robot in the snow"
NAME = "a-red-robot-in-the-snow"
QUICK = ["--device_target=CPU", "--num_inference_steps=4"]
ROUNDING = 2  # of 255 levels


@pytest.fixture(scope="module")
def tiny_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_refiner(tmp_path_factory.mktemp("tiny") / "refiner")


@pytest.fixture(scope="module")
def loras(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters, in folders as a training leaves them: "all" of all three models,
    whose alpha is not its rank, and "unet" of the UNet alone. Their cards name the tiny SDXL."""
    folder = tmp_path_factory.mktemp("loras")
    write_adapter(folder / "all", random_adapter.tensors(2), alpha=1, base_model=tiny_pipeline)
    part = {k: v for k, v in random_adapter.tensors(3).items() if k.startswith("unet.")}
    write_adapter(folder / "unet", part, alpha=3, base_model=tiny_pipeline)
    return folder


def write_adapter(
    folder: Path, tensors: dict[str, np.ndarray], *, alpha: int, base_model: object
) -> Path:
    from mindbooth.trainer import export

    rank = next(tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name)
    metadata = {
        part: {
            "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": list(targets),
            "rank_pattern": {}, "alpha_pattern": {},
        }
        for part, targets in random_adapter.TARGETS.items()
        if any(name.startswith(f"{part}.") for name in tensors)
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\nbase_model: {base_model}\n---\n# A robot\n")
    return export.adapter(folder, tensors, metadata)


@pytest.fixture(autouse=True)
def other_packages_are_heard_again_after_a_test() -> Iterator[None]:
    levels = {log: log.level for log in map(logging.getLogger, ("mindone", "transformers"))}
    yield
    for log, level in levels.items():
        log.setLevel(level)


Make = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def make(cpu: object, tmp_path: Path) -> Make:
    """`make("--seed=1", ...)`: the pictures that came of it, by the files' names."""

    def make(*more: str, folder: str = "out") -> dict[str, np.ndarray]:
        argv = [f"--prompt={PROMPT}", *QUICK, f"--output_dir={tmp_path / folder}", *more]
        return {path.stem: pixels(path) for path in generate.run(parse(argv))}

    return make


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


@pytest.fixture(scope="module")
def commanded(
    tiny_pipeline: Path, tiny_refiner: Path, loras: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[jobs.Job, Path]:
    """The command, as a person gives it to whom all is on the hub; and where it was given."""
    base = tmp_path_factory.mktemp("hub")
    lora = base / "lora"
    shutil.copytree(loras / "all", lora)
    (lora / "README.md").write_text("---\nbase_model: someone/tiny\n---\n")
    hub = stand_in_hub.Hub(
        repositories={
            "someone/tiny": tiny_pipeline, "someone/lora": lora, "someone/refiner": tiny_refiner
        }
    )  # fmt: skip
    argv = ["--lora=someone/lora", f"--prompt={PROMPT}", "--prompt=一只狗", "--seed=5"]
    argv += ["--refiner=someone/refiner", "--refiner_strength=0.7", "--lora_scale=0.5", *QUICK]
    with stand_in_hub.serving(hub):
        environ = stand_in_hub.environ(hub, base / "home")
        job = jobs.run([*jobs.MINDBOOTH, "generate", *argv], base / "cwd", **environ)
    assert job.process.returncode == 0, job.told
    return job, base / "cwd"


def test_the_command_prints_the_files_and_little_else(commanded: tuple[jobs.Job, Path]) -> None:
    job, cwd = commanded
    made = sorted(str(path.relative_to(cwd)) for path in cwd.rglob("*.png"))
    assert sorted(job.out.splitlines()) == made
    names = [f"pictures/{name}-seed5{tail}.png" for name in (NAME, "一只狗")
             for tail in ("", "-refined")]  # fmt: skip
    assert made == sorted([*names, "pictures/all.png"])
    told = [line for line in job.err.splitlines() if line and "Fetching" not in line]
    # Each is told again where it takes long.
    words = list(dict.fromkeys(" ".join(line.split()[:2]) for line in told))
    assert words == ["INFO drawing", "INFO refining"]


def test_a_picture_holds_the_options_it_was_made_with(commanded: tuple[jobs.Job, Path]) -> None:
    _, cwd = commanded
    with Image.open(cwd / "pictures" / "一只狗-seed5-refined.png") as opened:
        told = opened.text
        assert opened.size == (32, 32)
    assert told.pop("software").startswith("mindbooth ")
    assert told == {
        "prompt": "一只狗",
        "seed": "5",
        "num_inference_steps": "4",
        "guidance_scale": "5.0",
        "pretrained_model_name_or_path": "someone/tiny",
        "lora": "someone/lora 0.5",
        "mixed_precision": "no",
        "refiner": "someone/refiner",
        "refiner_strength": "0.7",
    }


def test_one_picture_shows_each_without_and_with_the_refiner(
    commanded: tuple[jobs.Job, Path],
) -> None:
    """Beside each other, enlarged by whole factors, so that the pixels are still there."""
    _, cwd = commanded
    sheet = pixels(cwd / "pictures" / "all.png")
    for name in (f"{NAME}-seed5", "一只狗-seed5"):
        pair = [pixels(cwd / "pictures" / f"{name}{tail}.png") for tail in ("", "-refined")]
        assert difference(*pair) > 10 * ROUNDING
        places = [where(sheet, picture) for picture in pair]
        assert places[0][0] == places[1][0]
        assert places[0][1] < places[1][1]


def where(sheet: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """The place (y, x) of a picture in a sheet that shows it four times as large."""
    large = picture.repeat(4, axis=0).repeat(4, axis=1)
    height, width = large.shape[:2]
    for y, x in zip(*np.nonzero((sheet == large[0, 0]).all(axis=-1)), strict=True):
        if np.array_equal(sheet[y : y + height, x : x + width], large):
            return int(y), int(x)
    raise AssertionError("it is not there")


def test_a_seed_is_one_picture_in_any_company(make: Make, tiny_pipeline: Path) -> None:
    model = f"--pretrained_model_name_or_path={tiny_pipeline}"
    many = make(model, "--seed=6", "--num_images=3", "--prompt=a dog")
    alone = make(model, "--seed=7", folder="alone")
    assert alone.keys() == {f"{NAME}-seed7"}
    assert difference(many[f"{NAME}-seed7"], alone[f"{NAME}-seed7"]) == 0
    others = {name for name in many if name != "all"} - alone.keys()
    assert len(others) == 5
    assert all(difference(many[name], alone[f"{NAME}-seed7"]) > 50 for name in others)


def test_a_second_run_overwrites_nothing(make: Make, tiny_pipeline: Path) -> None:
    model = f"--pretrained_model_name_or_path={tiny_pipeline}"
    first = make(model, "--seed=1")
    second = make(model, "--seed=1", "--guidance_scale=1")
    assert (list(first), list(second)) == ([f"{NAME}-seed1"], [f"{NAME}-seed1-2"])
    assert difference(first[f"{NAME}-seed1"], second[f"{NAME}-seed1-2"]) > 0


def test_size_and_negative_prompt_are_heeded(make: Make, tiny_pipeline: Path) -> None:
    usual = [f"--pretrained_model_name_or_path={tiny_pipeline}", "--seed=1", "--height=24",
             "--width=40"]  # fmt: skip
    (one,), (other,) = (make(*usual, *more).values() for more in ([], ["--negative_prompt=a cat"]))
    assert one.shape == (24, 40, 3)
    assert difference(one, other) > ROUNDING


@pytest.mark.parametrize(
    "scales", [{"all": 1.0}, {"all": 0.5, "unet": 1.5}], ids=["one", "several"]
)
def test_adapters_do_what_their_matrices_added_to_the_weights_do(
    scales: dict[str, float], make: Make, loras: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    merged = Path(shutil.copytree(tiny_pipeline, tmp_path / "merged"))
    for name, scale in scales.items():
        add(merged, random_adapter_of(loras / name), scale=scale)
    flags = [word for name, scale in scales.items()
             for word in (f"--lora={loras / name}", f"--lora_scale={scale}")]  # fmt: skip
    (expected,) = make(f"--pretrained_model_name_or_path={merged}", "--seed=2").values()
    (bare,) = make(f"--pretrained_model_name_or_path={tiny_pipeline}", "--seed=2").values()
    (adapted,) = make(*flags, "--seed=2").values()
    assert difference(adapted, expected) <= ROUNDING
    assert difference(adapted, bare) > 10 * ROUNDING


def random_adapter_of(folder: Path) -> tuple[dict[str, np.ndarray], float]:
    """Its tensors by peft's names, and alpha / rank."""
    if folder.name == "all":
        return random_adapter.tensors(2), 1 / 2
    tensors = random_adapter.tensors(3)
    return {name: tensor for name, tensor in tensors.items() if name.startswith("unet.")}, 1.0


def add(model: Path, adapter: tuple[dict[str, np.ndarray], float], *, scale: float) -> None:
    """Adds scale * alpha / rank * B A to a pipeline's weights."""
    tensors, factor = adapter
    for part in ("unet", "text_encoder", "text_encoder_2"):
        weights = load_file(model / part / WEIGHTS[part])
        for name, down in tensors.items():
            of, _, layer = name.removesuffix(".lora_A.weight").partition(".")
            if of == part and name.endswith(".lora_A.weight"):
                up = tensors[name.replace("lora_A", "lora_B")]
                weights[f"{layer}.weight"] += (scale * factor * up @ down).astype(np.float32)
        save_file(weights, model / part / WEIGHTS[part], metadata={"format": "pt"})


def test_kohyas_file_draws_what_diffusers_file_draws(
    make: Make, loras: Path, tiny_pipeline: Path, tmp_path: Path
) -> None:
    from mindbooth.trainer import export

    names = export.kohya_names(
        random_adapter.tensors(2), {part: {"lora_alpha": 1} for part in random_adapter.TARGETS}
    )
    save_file(names, tmp_path / "kohya.safetensors")
    model = f"--pretrained_model_name_or_path={tiny_pipeline}"
    (ours,) = make(f"--lora={loras / 'all'}", "--seed=3").values()
    (kohyas,) = make(f"--lora={tmp_path / 'kohya.safetensors'}", model, "--seed=3").values()
    assert difference(ours, kohyas) <= ROUNDING


def test_an_adapter_of_another_model_is_warned_about_where_the_model_was_chosen(
    make: Make, loras: Path, tiny_pipeline: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_adapter(tmp_path / "lora", random_adapter.tensors(1), alpha=1, base_model="other/model")
    make(f"--lora={tmp_path / 'lora'}", f"--pretrained_model_name_or_path={tiny_pipeline}")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "lora was trained on other/model; it is used on" in warning


def test_a_prompt_that_is_too_long_is_warned_about(
    make: Make, tiny_pipeline: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = " ".join(["a photo of a cat"] * 8) + " with a red hat"
    make(f"--pretrained_model_name_or_path={tiny_pipeline}", f"--prompt={prompt}")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "red hat" in warning


# Each case: what is wrong, made in a folder of its own; and words that must be told.
Case = Callable[[Path, Path, Path], tuple[list[str], list[str]]]


def no_such_lora(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    return [f"--lora={own / 'dgo'}"], [f"--lora {own / 'dgo'}", "no such folder"]


def folder_without_an_adapter(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    return [f"--lora={own}"], [f"--lora {own}", "pytorch_lora_weights.safetensors"]


def truncated_adapter(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    path = write_adapter(own / "lora", random_adapter.tensors(1), alpha=1, base_model=tiny)
    path.write_bytes(path.read_bytes()[:-100])
    return [f"--lora={own / 'lora'}"], [str(path), "can't be read"]


def adapter_of_a_wider_model(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    wider = {
        name: tensor.repeat(2, axis=1 if "lora_A" in name else 0)
        for name, tensor in random_adapter.tensors(1).items()
    }
    write_adapter(own / "lora", wider, alpha=1, base_model=tiny)
    return [f"--lora={own / 'lora'}"], ["lora is not for this model", "96 of its 96 tensors"]


def adapter_of_a_model_with_other_layers(
    own: Path, tiny: Path, refiner: Path
) -> tuple[list[str], list[str]]:
    other = {
        name.replace("down_blocks.1", "down_blocks.2"): tensor
        for name, tensor in random_adapter.tensors(1).items()
    }
    write_adapter(own / "lora", other, alpha=1, base_model=tiny)
    return [f"--lora={own / 'lora'}"], ["lora is not for this model", "unet.down_blocks.2."]


def adapter_of_another_kind_of_model(
    own: Path, tiny: Path, refiner: Path
) -> tuple[list[str], list[str]]:
    matrix = np.ones((4, 4), np.float32)
    save_file({"transformer.blocks.0.to_q.lora_A.weight": matrix}, own / "flux.safetensors")
    return [f"--lora={own / 'flux.safetensors'}", f"--pretrained_model_name_or_path={tiny}"], [
        "1 of its 1 tensors", "transformer.blocks.0.to_q",
    ]  # fmt: skip


def adapter_of_a_text_encoder_that_is_none(
    own: Path, tiny: Path, refiner: Path
) -> tuple[list[str], list[str]]:
    matrix = np.ones((4, 4), np.float32)
    save_file({"text_encoder.lora.layers.0.weight": matrix}, own / "odd.safetensors")
    return [f"--lora={own / 'odd.safetensors'}", f"--pretrained_model_name_or_path={tiny}"], [
        "can't be read as an SDXL LoRA",
    ]  # fmt: skip


def whole_model_instead_of_an_adapter(
    own: Path, tiny: Path, refiner: Path
) -> tuple[list[str], list[str]]:
    path = tiny / "vae" / WEIGHTS["vae"]
    return [f"--lora={path}", f"--pretrained_model_name_or_path={tiny}"], ["not for this model"]


def dora(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    save_file({"a.dora_scale": np.ones(4, np.float32)}, own / "dora.safetensors")
    return [f"--lora={own / 'dora.safetensors'}"], ["is a DoRA"]


def no_model_named(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    write_adapter(own / "lora", random_adapter.tensors(1), alpha=1, base_model=tiny)
    (own / "lora" / "README.md").unlink()
    return [f"--lora={own / 'lora'}"], ["No card names that of", "--pretrained_model_name_or_path"]


def nothing_named(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    return [], ["Which model?", "--pretrained_model_name_or_path"]


def adapters_of_two_models(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    for name in ("one", "other"):
        write_adapter(own / name, random_adapter.tensors(1), alpha=1, base_model=f"some/{name}")
    return [f"--lora={own / 'one'}", f"--lora={own / 'other'}"], ["some/one", "some/other"]


def cards_model_that_is_gone(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    write_adapter(own / "lora", random_adapter.tensors(1), alpha=1, base_model="/gone/sdxl")
    return [f"--lora={own / 'lora'}"], ["/gone/sdxl", "card names it"]


def model_as_its_own_refiner(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    return [f"--pretrained_model_name_or_path={tiny}", f"--refiner={tiny}"], [
        f"--refiner {tiny} is no refiner", "StableDiffusionXLPipeline",
    ]  # fmt: skip


def folder_that_is_no_refiner(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    return [f"--pretrained_model_name_or_path={tiny}", f"--refiner={own}"], ["no folder unet"]


def refiner_of_other_latents(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    other = Path(shutil.copytree(refiner, own / "refiner"))
    config = other / "vae" / "config.json"
    config.write_text(
        config.read_text().replace('"scaling_factor": 0.57816', '"scaling_factor": 1')
    )
    return [f"--pretrained_model_name_or_path={tiny}", f"--refiner={other}"], ["latents of", "0.57"]


def truncated_refiner(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    other = Path(shutil.copytree(refiner, own / "refiner"))
    weights = other / "unet" / WEIGHTS["unet"]
    weights.write_bytes(weights.read_bytes()[:-100])
    return [f"--pretrained_model_name_or_path={tiny}", f"--refiner={other}"], [str(weights)]


def output_in_the_place_of_a_file(
    own: Path, tiny: Path, refiner: Path
) -> tuple[list[str], list[str]]:
    (own / "taken").write_text("mine")
    model = f"--pretrained_model_name_or_path={tiny}"
    return [model, f"--output_dir={own / 'taken' / 'out'}"], [f"--output_dir {own / 'taken'}"]


def bf16_on_a_cpu(own: Path, tiny: Path, refiner: Path) -> tuple[list[str], list[str]]:
    return [f"--pretrained_model_name_or_path={tiny}", "--mixed_precision=bf16"], ["bf16"]


@pytest.mark.parametrize(
    "case",
    [
        no_such_lora,
        folder_without_an_adapter,
        truncated_adapter,
        adapter_of_a_wider_model,
        adapter_of_a_model_with_other_layers,
        adapter_of_another_kind_of_model,
        adapter_of_a_text_encoder_that_is_none,
        whole_model_instead_of_an_adapter,
        dora,
        no_model_named,
        nothing_named,
        adapters_of_two_models,
        cards_model_that_is_gone,
        model_as_its_own_refiner,
        folder_that_is_no_refiner,
        refiner_of_other_latents,
        truncated_refiner,
        output_in_the_place_of_a_file,
        bf16_on_a_cpu,
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_drawn(
    case: Case, cpu: object, tiny_pipeline: Path, tiny_refiner: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    more, words = case(own, tiny_pipeline, tiny_refiner)
    argv = [f"--prompt={PROMPT}", *QUICK, f"--output_dir={tmp_path / 'out'}", *more]
    with pytest.raises(ConfigError) as caught:
        generate.run(parse(argv))
    told = str(caught.value)
    assert "\n" not in told
    assert not [word for word in words if word not in told], told
    assert not list(tmp_path.rglob("*.png"))


def test_the_command_ends_with_one_line_and_status_2(tmp_path: Path) -> None:
    job = jobs.run([*jobs.MINDBOOTH, "generate", "--prompt=a dog", "--lora=./none"], tmp_path / "x")
    assert job.process.returncode == 2
    assert job.err == (
        "mindbooth: error: --lora ./none: there is no such folder, and it is no hub id (a/b).\n"
    )
    assert job.out == ""


BOTH = """
import runpy, sys
for script, arguments in {runs}:
    sys.argv[1:] = arguments
    runpy.run_path(script, run_name="__main__")
"""


def test_the_examples_draw_what_the_command_draws(
    make: Make, loras: Path, tiny_refiner: Path, tmp_path: Path
) -> None:
    """But for rounding: they decode in fp16. Both in one process, which saves the start-up."""
    examples = Path(__file__).parents[2] / "examples" / "inference"
    usual = [str(loras / "all"), PROMPT, "--steps=4", "--seed=9"]
    refiner = f"--refiner={tiny_refiner}"
    runs = [(f"{examples}/picture.py", usual), (f"{examples}/refined.py", [*usual, refiner])]
    command = [sys.executable, "-c", BOTH.format(runs=runs)]
    job = jobs.run(command, tmp_path / "cwd")
    assert job.process.returncode == 0, job.told
    made = make(f"--lora={loras / 'all'}", "--seed=9", "--mixed_precision=fp16", refiner)
    for name, tail in (("picture", ""), ("refined", "-refined")):
        theirs = pixels(tmp_path / "cwd" / f"{name}.png")
        assert difference(theirs, made[f"{NAME}-seed9{tail}"]) <= ROUNDING
