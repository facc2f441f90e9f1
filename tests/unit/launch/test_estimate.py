"""The estimate of `mindbooth plan`: its arithmetic against real files and known figures."""

import ast
import json
import math
import struct
from dataclasses import fields, replace
from pathlib import Path

import pytest

from mindbooth.launch import estimate
from mindbooth.launch.__main__ import main
from mindbooth.launch.estimate import (
    MOST_SHARE,
    NPU,
    SHOWN,
    Link,
    Training,
    all_reduce,
    read,
    slowest,
    update,
)
from mindbooth.launch.unet import UNet, layers, sums

ROOT = Path(__file__).parents[3]
MINI = ROOT / "examples" / "mini-sdxl" / "model" / "unet"
LARGE = Training(
    rank=256, resolution=256, train_batch_size=1, train_text_encoder=True, allreduce_dtype="fp32"
)


def mini() -> UNet:
    config = json.loads((MINI / "config.json").read_text())
    attends = [name.startswith("CrossAttn") for name in config["down_block_types"]]
    depths = config["transformer_layers_per_block"]
    return UNet(
        channels=tuple(config["block_out_channels"]),
        blocks=tuple(d if a else 0 for d, a in zip(depths, attends, strict=True)),
        resnets=config["layers_per_block"],
        context=config["cross_attention_dim"],
        added=config["projection_class_embeddings_input_dim"],
        latents=config["in_channels"],
    )


def shapes(path: Path) -> dict[str, list[int]]:
    """The shapes in a safetensors file's header."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def test_the_walk_meets_every_matrix_of_a_real_model() -> None:
    stored = sorted(
        math.prod(shape)
        for shape in shapes(MINI / "diffusion_pytorch_model.safetensors").values()
        if len(shape) > 1
    )
    assert sorted(layer.weights for layer in layers(mini(), 64) if layer.weights) == stored


def test_the_defaults_are_sdxls() -> None:
    weights = sum(layer.weights for layer in layers(UNet(), 1))
    assert weights == pytest.approx(2_567_463_684, rel=1e-3)  # which has norms and biases too
    assert sum(layer.kind == "lora" for layer in layers(UNet(), 1)) == 560


def test_work_grows_with_the_picture() -> None:
    pairs = zip(layers(UNet(), 64 * 64), layers(UNet(), 128 * 128), strict=True)
    found = {(one.kind, two.flops / one.flops) for one, two in pairs}
    # Once an update: the time's and sizes' embedding, and the text's keys and values. Then what is
    # done at each place, and each place with each.
    assert found == {
        *(("frozen", 1), ("lora", 1), ("frozen", 4), ("lora", 4), ("product", 4), ("product", 16))
    }


def test_an_attention_over_few_keys_is_counted_by_hand() -> None:
    products = [x for x in layers(mini(), 64) if x.kind == "product"]
    # 16 places at the second level, 96 channels: scores and sums, a multiplication and an addition.
    assert products[0].flops == 2 * (2 * 16 * 16 * 96)
    assert products[1].flops == 2 * (2 * 16 * 77 * 96)


@pytest.mark.parametrize(
    ("rank", "text", "numbers"), [(4, False, 5_806_080), (16, True, 29_646_848)]
)
def test_the_wire_has_all_that_is_trained(rank: int, text: bool, numbers: int) -> None:
    training = Training(rank=rank, train_text_encoder=text)
    assert training.numbers == numbers == rank * (1_451_520 + text * 401_408)
    assert training.wire == 2 * (numbers + 2)
    assert replace(training, allreduce_dtype="fp32").wire == 4 * (numbers + 2)


def test_a_sample_is_forward_and_backward() -> None:
    found = sums(128 * 128)
    frozen = sum(x.flops for x in layers(UNet(), 128 * 128) if x.kind != "product")
    products = found.forward - frozen
    assert found.backward < frozen + 2 * products  # nothing before the first LoRA layer
    assert found.backward > 0.8 * (frozen + 2 * products)
    plain = Training()
    assert plain.flops == pytest.approx(found.forward + found.backward, rel=0.01)
    again = replace(plain, gradient_checkpointing=True)
    assert again.flops == plain.flops + found.forward
    assert replace(plain, with_prior_preservation=True).flops == 2 * plain.flops
    one, two = (replace(plain, rank=rank).flops for rank in (100, 200))
    assert two - one == 100 * (one - replace(plain, rank=99).flops)


def test_text_encoders_in_training_are_some_more_arithmetic() -> None:
    plain = Training()
    more = replace(plain, train_text_encoder=True).flops - plain.flops
    # Forward and the gradient of the inputs, a multiplication and an addition a weight and token.
    assert more == 4 * 77 * (12 * 12 * 768**2 + 32 * 12 * 1280**2)


def defaults_of_the_trainer() -> dict[str, object]:
    """Read from the source: the module needs what launch/ may not import."""
    tree = ast.parse((ROOT / "trainer" / "config.py").read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            made = node.value
            if isinstance(made, ast.Call) and getattr(made.func, "id", "") == "option":
                found[node.target.id] = ast.literal_eval(made.args[0])
    return found


def test_the_defaults_are_the_trainers() -> None:
    theirs = defaults_of_the_trainer()
    assert theirs["mixed_precision"] is None  # told in its help to be `no`
    theirs["mixed_precision"] = "no"
    ours = {option.name: option.default for option in fields(Training)}
    assert ours == {name: theirs[name] for name in ours}


@pytest.mark.parametrize(
    ("flags", "config", "expected"),
    [
        ("", {}, Training()),
        ("--rank 16 --resolution=512", {}, Training(rank=16, resolution=512)),
        ("--lora-rank 16", {"rank": 8}, Training(rank=16)),
        ("--rank 16", {"lora_rank": 8}, Training(rank=16)),
        ("", {"lora_rank": 8}, Training(rank=8)),
        ("--rank 8 --rank 16", {}, Training(rank=16)),
        ("--train_batch_size 1", {"train_batch_size": 2}, Training(train_batch_size=1)),
        (
            "--seed 0",
            {"gradient_accumulation_steps": 8, "train_text_encoder": True, "seed": 1},
            Training(gradient_accumulation_steps=8, train_text_encoder=True),
        ),
        ("--train_text_encoder", {}, Training(train_text_encoder=True)),
        ("--train_text_encoder --rank 8", {}, Training(train_text_encoder=True, rank=8)),
        ("--train_text_encoder false", {"train_text_encoder": True}, Training()),
        ("--with-prior-preservation=True", {}, Training(with_prior_preservation=True)),
        ("--gradient_checkpointing", {}, Training(gradient_checkpointing=True)),
        ("--mixed_precision bf16", {}, Training(mixed_precision="bf16")),
        ("--allreduce_dtype fp32", {}, Training(allreduce_dtype="fp32")),
        # The trainer will refuse these; a plan is made all the same.
        ("--rank", {}, Training()),
        ("--rank --resolution", {}, Training()),
        ("--rank 0 --resolution -8 --train_batch_size 2.5", {}, Training()),
        ("--rank 99999999999999999999999 --resolution \u00b2", {}, Training()),
        ("--allreduce_dtype fp8 --mixed_precision half", {}, Training()),
        ("", {"rank": [4], "resolution": {}, "train_text_encoder": "perhaps"}, Training()),
    ],
)
def test_options_are_read_from_flags_and_file(
    flags: str, config: dict[str, object], expected: Training
) -> None:
    assert read(flags.split(), config) == expected


@pytest.mark.parametrize(
    ("workers", "known"),
    # Harter 1961, https://doi.org/10.1093/biomet/48.1-2.151; the first three are exact.
    [(1, 0), (2, math.pi**-0.5), (3, 1.5 * math.pi**-0.5), (10, 1.53875), (400, 2.96818)],
)
def test_the_slowest_of_many_is_that_of_the_tables(workers: int, known: float) -> None:
    assert slowest(workers) == pytest.approx(known, abs=1e-5)


def test_an_all_reduce_inside_a_host_is_a_ring() -> None:
    link, other = Link(1e-3, 1e6), Link(1e9, 1.0)
    assert all_reduce(1e6, 1, 4, link, other) == pytest.approx(6e-3 + 1.5)
    assert all_reduce(1e6, 1, 1, other, other) == 0


def test_between_hosts_each_worker_carries_its_part() -> None:
    inside, between = Link(0.0, math.inf), Link(1e-3, 1e6)
    assert all_reduce(8e6, 2, 8, inside, between) == pytest.approx(2e-3 + 1.0)
    assert all_reduce(8e6, 5, 8, inside, between) == pytest.approx(6e-3 + 1.6)
    assert all_reduce(8e6, 512, 1, inside, between) == pytest.approx(18e-3 + 2 * 511 / 512 * 8)


def test_an_update_is_the_sum_of_its_parts() -> None:
    training = Training(train_batch_size=2, gradient_accumulation_steps=3, mixed_precision="fp16")
    found = update(training, hosts=2, per_host=8)
    assert found.workers == 16
    assert found.samples == 16 * 6
    assert found.compute == 6 * training.flops / NPU.rates["fp16"]
    assert found.waiting == found.compute * NPU.spread * slowest(16)
    assert found.communication == all_reduce(training.wire, 2, 8, NPU.inside, NPU.between)
    parts = (found.compute, found.fixed, found.waiting, found.communication)
    assert found.seconds == pytest.approx(sum(parts))
    alone = update(training, hosts=1, per_host=1)
    assert alone.communication == 0
    assert alone.efficiency == pytest.approx(1)
    assert found.efficiency == pytest.approx(alone.seconds / found.seconds)


@pytest.mark.parametrize(
    ("hosts", "per_host", "workers"),
    [(1, 8, SHOWN), (1, 2, (1, 2, *SHOWN[1:])), (3, 16, (1, 8, 48, *SHOWN[2:])), (1, 12, None)],
)
def test_the_table_has_the_plan_among_usual_sizes(
    hosts: int, per_host: int, workers: tuple[int, ...] | None
) -> None:
    found = estimate.estimate(Training(), hosts=hosts, per_host=per_host)
    shown = tuple(row.workers for row in found.rows)
    assert shown == (workers or (1, 8, 12, *SHOWN[2:]))
    assert found.plan in found.rows
    efficiency = [row.efficiency for row in found.rows]
    assert efficiency == sorted(efficiency, reverse=True)


def test_what_fits_has_no_advice() -> None:
    assert estimate.estimate(Training(), hosts=8, per_host=8).advice == ()


def test_advice_helps_when_it_is_followed() -> None:
    found = estimate.estimate(LARGE, hosts=8, per_host=8)
    assert found.plan.share > MOST_SHARE
    assert [option.split()[0] for option, _ in found.advice] == [
        "--allreduce_dtype",
        "--gradient_accumulation_steps",
        "--rank",
    ]
    asked = {option.name: getattr(LARGE, option.name) for option in fields(Training)}
    for option, share in found.advice:
        followed = update(read(option.split(), asked), hosts=8, per_host=8)
        assert followed.share == share < found.plan.share
    assert all(share <= MOST_SHARE for _, share in found.advice[1:])


@pytest.mark.parametrize(("hosts", "workers"), [(1, 4096), (8, 64)])
def test_the_network_that_would_do_is_the_one_at_the_limit(hosts: int, workers: int) -> None:
    training = Training(rank=64)
    found = estimate.estimate(training, hosts=hosts, per_host=8).network
    assert found is not None
    assert found[0] == workers
    slow = replace(NPU, between=Link(NPU.between.latency, found[1]))
    at = update(training, hosts=workers // 8, per_host=8, machine=slow)
    assert at.share == pytest.approx(MOST_SHARE)


def test_no_network_is_enough_where_the_host_itself_takes_too_long() -> None:
    assert estimate.estimate(LARGE, hosts=8, per_host=8).network is None


def part(text: str) -> list[str]:
    found = [p for p in text.split("\n\n") if p.startswith("estimate")]
    return found[0].splitlines() if found else []


ASCEND = ["plan", "--device_target", "Ascend", "--nproc_per_node", "8"]
FEW = "--mixed_precision fp16"
MANY = f"{FEW} --rank=256 --resolution 256 --train_batch_size 1 --allreduce_dtype fp32"


@pytest.mark.parametrize(
    ("flags", "last"),
    [(FEW, "would take 5% of an update."), (MANY, "--allreduce_dtype fp16 (")],
)
def test_the_plan_ends_with_it_and_says_what_it_is(
    flags: str, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ASCEND, "--", *flags.split()]) == 0
    lines = part(capsys.readouterr().out)
    assert "nothing in it was measured on an NPU" in lines[0]
    assert last in lines[-1]
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if line.startswith("  *  ")][0].split()[1] == "8"


def test_programs_get_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("rank: 16\ntrain_text_encoder: true\n")
    assert main([*ASCEND, "--json", "--", "--config", "run.yaml"]) == 0
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert found["measured_on_npu"] is False
    assert found["training"]["rank"] == 16
    assert found["bytes_of_the_all_reduce"] == 2 * (29_646_848 + 2)
    assert found["plan"] in found["rows"]
    assert found["plan"]["workers"] == 8
    assert found["assumed"]["between"] == NPU.between._asdict()
    assert found["network"]["workers"] == 4096


@pytest.mark.parametrize(
    "argv",
    [
        ["plan", "--device_target", "CPU", "--nproc_per_node", "2"],
        [*ASCEND, "--job", "precompute"],
    ],
)
def test_there_is_none_for_a_cpu_or_a_precompute(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 0
    assert "estimate" not in capsys.readouterr().out
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimate"] is None
