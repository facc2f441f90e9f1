"""A batch depends on its sample numbers alone, and survives a cache that goes bad under it."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mindbooth.data.batches import (
    Arrays,
    Batch,
    Embedded,
    Floats,
    Item,
    Reader,
    Side,
    Source,
    Tokenized,
    Variant,
)  # fmt: skip
from mindbooth.data.buckets import by_size
from mindbooth.data.cache import Store
from mindbooth.data.framing import Frame, Size
from mindbooth.data.prefetch import Prefetch
from mindbooth.data.recipes import key
from mindbooth.data.stream import Purpose, Stream, micro_batch

LATENT = (4, 3, 5)
EXAMPLES = 5
ARRAYS = ("noisy", "timesteps", "target", "weight", "time_ids")


def objective(latents: Floats, noise: Floats, u: float) -> tuple[Floats, float, Floats, float]:
    """Shows everything that it was given."""
    return latents, u * 1000, noise, 1 + u


def latents_key(example: int, flip: bool = False) -> str:
    return key({"latents": example, "flip": flip})


def entry_of(name: str, latent: tuple[int, ...] = LATENT) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(int(name[:8], 16))
    if name == key({"text": 0}):
        return {
            "prompt_embeds": rng.standard_normal((7, 8), dtype=np.float32),
            "pooled": rng.standard_normal(6, dtype=np.float32),
        }
    return {
        "mean": rng.standard_normal(latent, dtype=np.float32),
        "std": rng.random(latent, dtype=np.float32),
    }


def not_needed(name: str) -> dict[str, np.ndarray]:
    raise AssertionError(f"{name} is missing")


def variant(key: str, top: int, left: int, size: Size) -> Variant:
    return Variant(key, Frame((50, 60), (50, 60), False, top, left, size), "photo.png", "0" * 64)


def source_in(root: Path, *, seed: int = 1, flips: bool = False) -> Source:
    store = Store(root)
    text = key({"text": 0})
    items = []
    for example in range(EXAMPLES):
        variants = tuple(
            variant(latents_key(example, flip), example, int(flip), (24, 40))
            for flip in ((False, True) if flips else (False,))
        )
        items.append(Item(variants=variants, text=text))
    for name in {text, *(variant.latents for item in items for variant in item.variants)}:
        store.publish(name, entry_of(name), note={})
    side = Side(stream=Stream.of(seed, EXAMPLES), items=items, objective=objective)
    read = Reader(store=store, repair=not_needed)
    return Source(read=read, sides=(side,), texts=Embedded(read=read), scale=0.5)


def with_class(source: Source, *, weight: float) -> Source:
    """The same pictures as class pictures too, in another order."""
    side = source.sides[0]
    partners = Stream.of(side.stream.seed, EXAMPLES, partners=True)
    return replace(source, sides=(side, replace(side, stream=partners, weight=weight)))


def dropping(source: Source, share: float) -> Source:
    return replace(source, sides=(replace(source.sides[0], caption_dropout=share),))


def arrays_of(batch: Batch) -> dict[str, NDArray[np.float32]]:
    texts = dict(zip(("prompt_embeds", "pooled"), batch.text, strict=True))
    return {name: getattr(batch, name) for name in ARRAYS} | texts


def equal(one: Batch, other: Batch) -> bool:
    theirs = arrays_of(other)
    return all(np.array_equal(array, theirs[name]) for name, array in arrays_of(one).items())


def joined(batches: list[Batch]) -> Batch:
    arrays = {name: np.concatenate([getattr(each, name) for each in batches]) for name in ARRAYS}
    text = tuple(np.concatenate(parts) for parts in zip(*(b.text for b in batches), strict=True))
    samples = tuple(k for each in batches for k in each.samples)
    return Batch(samples=samples, text=text, **arrays)


def test_shapes_types_and_order(tmp_path: Path) -> None:
    batch = source_in(tmp_path).assemble(range(3, 6))
    assert batch.samples == (3, 4, 5)
    assert {name: array.shape for name, array in arrays_of(batch).items()} == {
        "noisy": (3, *LATENT),
        "timesteps": (3,),
        "target": (3, *LATENT),
        "weight": (3,),
        "prompt_embeds": (3, 7, 8),
        "pooled": (3, 6),
        "time_ids": (3, 6),
    }
    for array in arrays_of(batch).values():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous


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
    entry = entry_of(latents_key(source.sides[0].stream.example(k)))
    eps = (
        source.sides[0]
        .stream.generator(k, Purpose.LATENTS)
        .standard_normal(LATENT, dtype=np.float32)
    )
    drawn = entry["mean"] + entry["std"] * eps
    assert np.array_equal(affine.latents(source.sides[0], k), (drawn - shift) * scale)
    assert np.array_equal(source.assemble([k]).noisy[0], drawn * np.float32(0.5))


def test_noise_is_drawn_apart_from_the_latents(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    batch = source.assemble([7])
    entry = entry_of(latents_key(source.sides[0].stream.example(7)))
    eps = (batch.noisy[0] * 2 - entry["mean"]) / entry["std"]
    assert not np.isclose(batch.target[0], eps, atol=0.01).all()
    noise = (
        source.sides[0].stream.generator(7, Purpose.NOISE).standard_normal(LATENT, dtype=np.float32)
    )
    assert np.array_equal(batch.target[0], noise)


def test_draws_over_epochs_have_the_stored_mean_and_std(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    of_first = [k for k in range(3000 * EXAMPLES) if source.sides[0].stream.example(k) == 0]
    draws = np.stack([source.latents(source.sides[0], k) for k in of_first[:2000]]) * 2
    entry = entry_of(latents_key(0))
    assert np.abs(draws.mean(axis=0) - entry["mean"]).max() < 0.12
    assert np.abs(draws.std(axis=0) - entry["std"]).max() < 0.08


def test_half_precision_entries_give_float32_batches(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    exact = source.assemble([0])
    for item in source.sides[0].items:
        for name in (item.variants[0].latents, item.text):
            halves = {part: array.astype(np.float16) for part, array in entry_of(name).items()}
            source.read.store.publish(name, halves, note={})
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
    side = source.sides[0]
    flipped = [source.variant(side, k).frame.left for k in range(2000)]
    assert abs(np.mean(flipped) - 0.5) < 0.04
    assert source.assemble([11]).time_ids[0].tolist() == list(
        source.variant(side, 11).frame.time_ids
    )


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

    def repair(name: str) -> dict[str, np.ndarray]:
        repaired.append(name)
        source.read.store.publish(name, entry_of(name), note={})
        return entry_of(name)

    read = replace(source.read, repair=repair)
    mending = replace(source, read=read, texts=Embedded(read=read))
    damaged = source.read.store.path(latents_key(2))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert equal(mending.assemble(range(5)), expected)
    assert repaired == [latents_key(2)]

    shutil.rmtree(tmp_path)
    assert equal(mending.assemble(range(5)), expected)
    assert len(repaired) == 1 + EXAMPLES + 1


def test_training_goes_on_with_entries_that_cannot_be_kept(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    expected = source.assemble(range(5))
    shutil.rmtree(tmp_path)
    read = replace(source.read, repair=entry_of)
    assert equal(replace(source, read=read, texts=Embedded(read=read)).assemble(range(5)), expected)
    assert not tmp_path.exists()


def test_batches_are_the_same_through_prefetching(tmp_path: Path) -> None:
    source = source_in(tmp_path, flips=True)

    def make(update: int) -> Batch:
        return source.assemble(range(update * 4, update * 4 + 4))

    with Prefetch(make, range(10), depth=3) as batches:
        assert all(
            equal(batch, make(update)) for update, batch in zip(range(10), batches, strict=True)
        )


def test_each_sample_brings_a_class_picture_of_its_own(tmp_path: Path) -> None:
    plain, batch = source_in(tmp_path), with_class(source_in(tmp_path), weight=0.5).assemble([3, 4])
    alone = plain.assemble([3, 4])
    assert batch.samples == (3, 4)
    for name, array in arrays_of(batch).items():
        assert len(array) == 4
        if name != "weight":  # the subject's rows come first, and are what they are without
            assert np.array_equal(array[:2], arrays_of(alone)[name])
    assert not np.isclose(batch.target[:2], batch.target[2:]).all()
    assert not np.isclose(batch.timesteps[:2], batch.timesteps[2:]).any()


def test_the_mean_over_rows_is_the_subjects_plus_the_weighted_class_mean(tmp_path: Path) -> None:
    batch = with_class(source_in(tmp_path), weight=0.25).assemble(range(3))
    error = np.arange(1.0, 7.0)  # of each row
    counted = 1 + batch.timesteps / 1000  # what the objective gave
    expected = (error * counted)[:3].mean() + 0.25 * (error * counted)[3:].mean()
    assert np.isclose((error * batch.weight).mean(), expected, rtol=1e-6)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_class_partners_do_not_depend_on_the_split(tmp_path: Path, world_size: int) -> None:
    source = with_class(source_in(tmp_path, flips=True), weight=1.0)
    whole = source.assemble(range(8, 12))
    for rank in range(world_size):
        samples = micro_batch(2, 0, rank, batch=4 // world_size, accumulation=1,
                              world_size=world_size)  # fmt: skip
        part, count = source.assemble(samples), 4 // world_size
        rows = [rank * count + i for i in range(count)]
        assert np.array_equal(part.noisy, whole.noisy[[*rows, *(4 + row for row in rows)]])


def test_class_pictures_come_once_an_epoch_in_an_order_of_their_own(tmp_path: Path) -> None:
    subject, of_class = with_class(source_in(tmp_path), weight=1.0).sides
    orders = [
        [[side.stream.example(e * EXAMPLES + i) for i in range(EXAMPLES)] for e in range(4)]
        for side in (subject, of_class)
    ]
    assert all(sorted(order) == list(range(EXAMPLES)) for order in orders[1])
    assert orders[0] != orders[1]


def test_noise_offset_moves_a_channel_as_a_whole(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    plain, moved = (replace(source, noise_offset=o).assemble(range(4)).target for o in (0.0, 0.1))
    offset = moved - plain
    assert np.ptp(offset, axis=(2, 3)).max() < 1e-6
    assert 0.02 < offset[:, :, 0, 0].std() < 0.3
    doubled = replace(source, noise_offset=0.2).assemble(range(4)).target - plain
    assert np.allclose(doubled, 2 * offset, atol=1e-6)


def test_captions_are_dropped_in_the_share_asked_for_and_by_nothing_but_k(tmp_path: Path) -> None:
    source = dropping(source_in(tmp_path), 0.3)
    dropped = [k for k in range(2000) if source.sides[0].drops_caption(k)]
    assert abs(len(dropped) / 2000 - 0.3) < 0.03
    kept = next(k for k in range(2000) if k not in dropped)
    embeds, pooled = source.assemble([dropped[0], kept]).text
    assert not embeds[0].any()
    assert not pooled[0].any()
    assert np.array_equal(embeds[1], entry_of(key({"text": 0}))["prompt_embeds"])
    plain, other = source_in(tmp_path).assemble(range(8)), source.assemble(range(8))
    assert np.array_equal(plain.noisy, other.noisy)


def test_a_dropped_caption_is_the_empty_prompt_where_that_is_encoded(tmp_path: Path) -> None:
    source = source_in(tmp_path)
    empty = key({"text": ""})
    entry = {name: 2 * tensor for name, tensor in entry_of(key({"text": 0})).items()}
    source.read.store.publish(empty, entry, note={})
    embeds, _ = Embedded(read=source.read, empty=empty)(key({"text": 0}), True)
    assert np.array_equal(embeds, entry["prompt_embeds"])


def test_tokens_say_whether_the_caption_counts() -> None:
    ids, empty = (np.arange(3), np.arange(3) + 5), (np.zeros(3), np.ones(3))
    texts = Tokenized(ids={"a dog": ids}.__getitem__)
    assert [texts("a dog", dropped)[2] for dropped in (False, True)] == [1, 0]
    first, second, kept = Tokenized(ids={"a dog": ids}.__getitem__, empty=empty)("a dog", True)
    assert (first.tolist(), second.tolist(), kept) == ([0, 0, 0], [1, 1, 1], 1)


def counted(asked: list[str]) -> Tokenized:
    def ids(caption: str) -> Arrays:
        asked.append(caption)
        return np.zeros(3), np.ones(3)

    return Tokenized(ids=ids)


def test_a_caption_is_tokenized_when_it_is_asked_for_and_then_kept() -> None:
    asked: list[str] = []
    texts = counted(asked)
    assert asked == []
    for caption in ("a dog", "a cat", "a dog", "a cat"):
        texts(caption, False)
    assert asked == ["a dog", "a cat"]


def test_not_all_captions_are_kept() -> None:
    asked: list[str] = []
    texts = counted(asked)
    captions = [f"dog {number}" for number in range(5000)]
    for caption in [*captions, captions[0]]:
        texts(caption, False)
    assert asked == [*captions, captions[0]]


WIDE, TALL, SQUARE = (24, 40), (40, 24), (32, 32)
SHAPES = {WIDE: (4, 3, 5), TALL: (4, 5, 3), SQUARE: (4, 4, 4)}
SUBJECTS = [TALL, WIDE, WIDE, SQUARE, WIDE, TALL, WIDE]  # the size of each picture
UPDATE = 6


def variants_of(store: Store, picture: str, size: Size) -> tuple[Variant, ...]:
    """A crop and another one, whose ids tell the picture's number."""
    made = []
    for crop in (0, 1):
        name = key({"picture": picture, "size": size, "crop": crop})
        store.publish(name, entry_of(name, SHAPES[size]), note={})
        number = int(picture.split()[1])
        made.append(variant(name, number, crop, size))
    return tuple(made)


def bucketed_in(root: Path) -> Source:
    """Subjects of three sizes, and class pictures that have frames of each of them."""
    store = Store(root)
    text = key({"text": 0})
    store.publish(text, entry_of(text), note={})
    subjects = [
        Item(variants=variants_of(store, f"subject {number}", size), text=text)
        for number, size in enumerate(SUBJECTS)
    ]
    others = [
        Item(
            variants=tuple(
                v for size in SHAPES for v in variants_of(store, f"class {number}", size)
            ),
            text=text,
        )
        for number in range(EXAMPLES)
    ]
    buckets = by_size([item.variants[0].frame.size for item in subjects])
    stream = Stream(1, buckets, samples_per_update=UPDATE)
    sides = (
        Side(stream=stream, items=subjects, objective=objective),
        Side(stream=Stream.of(1, EXAMPLES, partners=True), items=others, objective=objective),
    )
    read = Reader(store=store, repair=not_needed)
    return Source(read=read, sides=sides, texts=Embedded(read=read), scale=0.5)


def test_a_batch_holds_one_size_which_the_class_follows(tmp_path: Path) -> None:
    source = bucketed_in(tmp_path)
    met = []
    for update in range(len(SUBJECTS)):
        batch = source.assemble(range(update * UPDATE, update * UPDATE + UPDATE))
        (size,) = {tuple(map(int, ids[4:])) for ids in batch.time_ids}
        assert batch.noisy.shape == (2 * UPDATE, *SHAPES[size])
        met.append(size)
    assert sorted(met) == sorted(SUBJECTS)


@pytest.mark.parametrize("split", [(2, 3, 1), (3, 1, 2), (3, 2, 1), (6, 1, 1)], ids=str)
def test_n_cards_see_of_each_bucket_what_one_card_sees(
    tmp_path: Path, split: tuple[int, int, int]
) -> None:
    world_size, count, accumulation = split
    source = bucketed_in(tmp_path)
    for update in range(len(SUBJECTS)):
        start = update * UPDATE
        whole = source.assemble(range(start, start + UPDATE))
        for micro, rank in product(range(accumulation), range(world_size)):
            samples = micro_batch(update, micro, rank, batch=count, accumulation=accumulation,
                                  world_size=world_size)  # fmt: skip
            rows = [k - start for k in samples]
            part = arrays_of(source.assemble(samples))
            for name, array in arrays_of(whole).items():
                assert np.array_equal(part[name], array[[*rows, *(UPDATE + row for row in rows)]])


def test_class_pictures_come_once_an_epoch_whatever_their_size(tmp_path: Path) -> None:
    source = bucketed_in(tmp_path)
    batches = [source.assemble(range(u * UPDATE, u * UPDATE + UPDATE)) for u in range(EXAMPLES)]
    numbers = np.concatenate([batch.time_ids[UPDATE:, 2] for batch in batches])
    epochs = numbers.reshape(UPDATE, EXAMPLES)
    assert np.array_equal(np.sort(epochs, axis=1), [range(EXAMPLES)] * UPDATE)


def test_crops_of_a_size_are_drawn_evenly_on_both_sides(tmp_path: Path) -> None:
    source = bucketed_in(tmp_path)
    for side in source.sides:
        crops = [source.variant(side, k).frame.left for k in range(2000)]
        assert abs(np.mean(crops) - 0.5) < 0.04
