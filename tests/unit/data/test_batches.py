"""A batch depends on its sample numbers alone, and survives a cache that goes bad under it."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mindbooth.data.batches import Batch, Floats, Item, Source, Variant
from mindbooth.data.cache import Store
from mindbooth.data.errors import DataError
from mindbooth.data.prefetch import Prefetch
from mindbooth.data.recipes import key
from mindbooth.data.stream import Purpose, Stream, micro_batch

LATENT = (4, 3, 5)
EXAMPLES = 5
ARRAYS = ("noisy", "timesteps", "target", "weight", "prompt_embeds", "pooled", "time_ids")


def objective(latents: Floats, noise: Floats, u: float) -> tuple[Floats, float, Floats, float]:
    """Shows everything that it was given."""
    return latents, u * 1000, noise, 1 + u


def latents_key(example: int, flip: bool = False) -> str:
    return key({"latents": example, "flip": flip})


def entry_of(name: str) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(int(name[:8], 16))
    if name == key({"text": 0}):
        return {
            "prompt_embeds": rng.standard_normal((7, 8), dtype=np.float32),
            "pooled": rng.standard_normal(6, dtype=np.float32),
        }
    return {
        "mean": rng.standard_normal(LATENT, dtype=np.float32),
        "std": rng.random(LATENT, dtype=np.float32),
    }


def source_in(root: Path, *, seed: int = 1, flips: bool = False) -> Source:
    store = Store(root)
    text = key({"text": 0})
    items = []
    for example in range(EXAMPLES):
        variants = tuple(
            Variant(
                latents=latents_key(example, flip), time_ids=(50, 60, example, int(flip), 24, 40)
            )
            for flip in ((False, True) if flips else (False,))
        )
        items.append(Item(variants=variants, text=text))
    for name in {text, *(variant.latents for item in items for variant in item.variants)}:
        store.publish(name, entry_of(name), note={})
    return Source(
        store=store,
        stream=Stream(seed=seed, examples=EXAMPLES),
        items=items,
        objective=objective,
        scale=0.5,
    )


def equal(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS)


def joined(batches: list[Batch]) -> Batch:
    arrays = {name: np.concatenate([getattr(each, name) for each in batches]) for name in ARRAYS}
    return Batch(samples=tuple(k for each in batches for k in each.samples), **arrays)


def test_shapes_types_and_order(tmp_path: Path) -> None:
    batch = source_in(tmp_path).assemble(range(3, 6))
    assert batch.samples == (3, 4, 5)
    assert {name: getattr(batch, name).shape for name in ARRAYS} == {
        "noisy": (3, *LATENT),
        "timesteps": (3,),
        "target": (3, *LATENT),
        "weight": (3,),
        "prompt_embeds": (3, 7, 8),
        "pooled": (3, 6),
        "time_ids": (3, 6),
    }
    for name in ARRAYS:
        assert getattr(batch, name).dtype == np.float32
        assert getattr(batch, name).flags.c_contiguous


@pytest.mark.parametrize(
    ("world_size", "batch", "accumulation"), [(1, 4, 1), (2, 2, 1), (4, 1, 1), (1, 2, 2), (2, 1, 2)]
)
def test_n_cards_see_what_one_card_sees(
    tmp_path: Path, world_size: int, batch: int, accumulation: int
) -> None:
    expected = source_in(tmp_path, flips=True).assemble(range(12, 16))
    parts = []
    for micro in range(accumulation):
        for rank in range(world_size):
            source = source_in(tmp_path, flips=True)  # each rank has its own
            samples = micro_batch(
                3, micro, rank, batch=batch, accumulation=accumulation, world_size=world_size
            )
            parts.append(source.assemble(samples))
    assert equal(joined(parts), expected)


def test_latents_are_a_scaled_draw_around_the_mean(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    shift, scale = np.float32(0.25), np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1)
    affine = replace(source, shift=shift, scale=scale)
    k = 7
    entry = entry_of(latents_key(source.stream.example(k)))
    eps = source.stream.generator(k, Purpose.LATENTS).standard_normal(LATENT, dtype=np.float32)
    drawn = entry["mean"] + entry["std"] * eps
    assert np.array_equal(affine.latents(k), (drawn - shift) * scale)
    assert np.array_equal(source.assemble([k]).noisy[0], drawn * np.float32(0.5))


def test_noise_is_drawn_apart_from_the_latents(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    batch = source.assemble([7])
    entry = entry_of(latents_key(source.stream.example(7)))
    eps = (batch.noisy[0] * 2 - entry["mean"]) / entry["std"]
    assert not np.isclose(batch.target[0], eps, atol=0.01).all()
    noise = source.stream.generator(7, Purpose.NOISE).standard_normal(LATENT, dtype=np.float32)
    assert np.array_equal(batch.target[0], noise)


def test_draws_over_epochs_have_the_stored_mean_and_std(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    of_first = [k for k in range(3000 * EXAMPLES) if source.stream.example(k) == 0]
    draws = np.stack([source.latents(k) for k in of_first[:2000]]) * 2
    entry = entry_of(latents_key(0))
    assert np.abs(draws.mean(axis=0) - entry["mean"]).max() < 0.12
    assert np.abs(draws.std(axis=0) - entry["std"]).max() < 0.08


def test_half_precision_entries_give_float32_batches(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    exact = source.assemble([0])
    for item in source.items:
        for name in (item.variants[0].latents, item.text):
            halves = {part: array.astype(np.float16) for part, array in entry_of(name).items()}
            source.store.publish(name, halves, note={})
    batch = source.assemble([0])
    assert all(getattr(batch, name).dtype == np.float32 for name in ARRAYS)
    assert np.allclose(batch.noisy, exact.noisy, atol=2e-3)


def test_an_option_more_leaves_the_other_draws_alone(tmp_path: Path) -> None:
    plain = source_in(tmp_path).assemble(range(8))
    flipping = source_in(tmp_path, flips=True).assemble(range(8))
    assert np.array_equal(plain.target, flipping.target)
    assert np.array_equal(plain.timesteps, flipping.timesteps)
    kept = flipping.time_ids[:, 3] == 0
    assert 0 < kept.sum() < 8
    assert np.array_equal(plain.noisy[kept], flipping.noisy[kept])
    assert not np.array_equal(plain.noisy[~kept], flipping.noisy[~kept])


def test_flips_are_drawn_evenly_and_bring_their_own_ids(tmp_path: Path) -> None:
    source = source_in(tmp_path, flips=True)
    flipped = [source.variant(k).time_ids[3] for k in range(2000)]
    assert abs(np.mean(flipped) - 0.5) < 0.04
    assert source.assemble([11]).time_ids[0].tolist() == list(source.variant(11).time_ids)


def test_the_seed_changes_every_draw(tmp_path: Path) -> None:
    one, other = (source_in(tmp_path, seed=seed).assemble(range(4)) for seed in (1, 2))
    for name in ("noisy", "target", "timesteps"):
        assert not np.isclose(getattr(one, name), getattr(other, name)).all()


def test_timesteps_fill_the_unit_interval(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    u = source.assemble(range(500)).timesteps / 1000
    assert u.min() >= 0
    assert u.max() < 1
    assert np.abs(np.histogram(u, bins=5, range=(0, 1))[0] - 100).max() < 40


def test_a_bad_entry_is_repaired_and_training_goes_on(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    expected = source.assemble(range(5))
    repaired = []

    def repair(name: str) -> None:
        repaired.append(name)
        source.store.publish(name, entry_of(name), note={})

    mending = replace(source, repair=repair)
    damaged = source.store.path(latents_key(2))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert equal(mending.assemble(range(5)), expected)
    assert repaired == [latents_key(2)]

    shutil.rmtree(tmp_path)
    assert equal(mending.assemble(range(5)), expected)
    assert len(repaired) == 1 + EXAMPLES + 1


@pytest.mark.parametrize("repair", [None, lambda name: None], ids=["none", "fails"])
def test_a_bad_entry_that_cannot_be_repaired_is_named(tmp_path: Path, repair: object) -> None:
    source = replace(source_in(tmp_path), repair=repair)
    path = source.store.path(latents_key(source.stream.example(0)))
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        source.assemble([0])


def test_batches_are_the_same_through_prefetching(tmp_path: Path) -> None:
    source = source_in(tmp_path, flips=True)

    def make(update: int) -> Batch:
        return source.assemble(range(update * 4, update * 4 + 4))

    with Prefetch(make, range(10), depth=3) as batches:
        assert all(
            equal(batch, make(update)) for update, batch in zip(range(10), batches, strict=True)
        )
