"""The models that carry the adapter, and the batches that they are trained on, from a `Run`.

That is the UNet, and with --train_text_encoder both text encoders: then prompts reach the step as
tokens, and otherwise as embeddings from the cache, and no text encoder is in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mindspore import nn

from mindbooth.data.batches import Batch, Embedded, Reader, Side, Source, Texts, Tokenized

from . import lora, precompute, sdxl
from .recompute import recompute
from .run import Run
from .sample import Embeddings
from .sdxl import TextEncoders


@dataclass(frozen=True, kw_only=True)
class Trained:
    """models: with LoRA layers, by lora.TARGETS' names. encoders: those in training, if they are.

    read: entries of the cache.
    """

    models: dict[str, nn.Cell]
    encoders: TextEncoders | None
    read: Reader


def load(run: Run) -> Trained:
    """Loads what is trained, in the dtype that it computes in, with fresh LoRA layers."""
    adapter = run.config.adapter
    models = {"unet": sdxl.load_unet(run.model, run.dtype)}
    encoders = None
    if adapter.train_text_encoder:
        encoders = TextEncoders(run.model, run.dtype)
        models |= dict(zip(("text_encoder", "text_encoder_2"), encoders.encoders, strict=True))
    for name, model in models.items():
        targets = lora.TARGETS[name]
        lora.inject(model, rank=adapter.rank, targets=targets, dropout=adapter.lora_dropout)
    lora.drop(models, on=adapter.lora_dropout > 0)
    if run.config.optim.gradient_checkpointing:
        recompute(models)
    repair = precompute.repairer(run)
    return Trained(models=models, encoders=encoders, read=Reader(store=run.store, repair=repair))


def source(run: Run, trained: Trained) -> Source:
    """Where the run's batches come from."""
    scale, shift = sdxl.latent_scale(run.model.config("vae"))
    streams = run.streams
    sides = [
        Side(
            stream=streams[0],
            items=run.needed.items,
            objective=run.objectives.instance,
            caption_dropout=run.config.data.caption_dropout,
        )
    ]
    if run.needed.class_items:
        sides.append(
            Side(
                stream=streams[1],
                items=run.needed.class_items,
                objective=run.objectives.prior,
                weight=run.config.prior.prior_loss_weight,
            )
        )
    return Source(
        read=trained.read,
        sides=tuple(sides),
        texts=_texts(run, trained),
        scale=scale,
        shift=shift,
        noise_offset=run.config.objective.noise_offset,
    )


def batches(run: Run, source: Source) -> Callable[[int], list[Batch]]:
    """This rank's micro-batches of an update, as a function of its number."""
    batching, rank = run.batching, run.comm.rank
    return lambda update: [
        source.assemble(batching.samples(update, micro, rank))
        for micro in range(batching.accumulation)
    ]


def one_of_each_size(run: Run, first: int) -> list[int]:
    """From `first` on, an update of each size of pictures that is still to come."""
    stream = run.streams[0]
    found: dict[int, int] = {}
    for update in range(first, run.updates):
        found.setdefault(stream.bucket(update), update)
        if len(found) == len(stream.buckets):
            break
    return list(found.values())


def embedder(run: Run, trained: Trained) -> Callable[[str], Embeddings]:
    """The embeddings of a validation prompt, or of "", as the adapter is when it is called."""
    zeros = sdxl.zeros_for_empty_prompt(run.model)
    prompts = run.config.output.validation_prompt or []

    def embed(prompt: str) -> Embeddings:
        if not prompt and zeros:
            some = embed(prompts[0])
            return {name: np.zeros_like(tensor) for name, tensor in some.items()}
        if trained.encoders:
            return trained.encoders.encode(prompt)
        return trained.read(run.needed.texts[prompt])

    return embed


def _texts(run: Run, trained: Trained) -> Texts:
    zeros = sdxl.zeros_for_empty_prompt(run.model)
    if trained.encoders is None:
        return Embedded(read=trained.read, empty=None if zeros else run.needed.texts.get(""))
    tokenizers = trained.encoders.tokenizers
    return Tokenized(
        ids=lambda caption: sdxl.tokens(tokenizers, caption),
        empty=None if zeros else sdxl.tokens(tokenizers, ""),
    )
