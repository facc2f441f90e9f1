"""The arithmetic of SDXL's UNet: its matrices in the order of a forward pass, and their FLOP.

Counted from the public configuration; tests compare the weights with a real model's file. Norms,
activations and biases are left out: they are no work beside these.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

TOKENS = 77


@dataclass(frozen=True, kw_only=True)
class UNet:
    """A UNet2DConditionModel; the defaults are SDXL base 1.0's.

    By level, from the finest: channels, and transformer blocks in each attention (0: none).
    """

    channels: tuple[int, ...] = (320, 640, 1280)
    blocks: tuple[int, ...] = (0, 2, 10)
    resnets: int = 2  # at each level on the way down, and one more on the way up
    context: int = 2048  # of a token's embedding
    tokens: int = TOKENS
    added: int = 2816  # pooled text and sizes
    latents: int = 4


class Layer(NamedTuple):
    """A matrix (inputs * taps, outputs), applied at so many places; or the two products of an
    attention, with keys as inputs."""

    inputs: int
    outputs: int
    places: int
    taps: int = 1
    kind: Literal["frozen", "lora", "product"] = "frozen"

    @property
    def weights(self) -> int:
        return 0 if self.kind == "product" else self.inputs * self.outputs * self.taps

    @property
    def flops(self) -> int:
        """Of the forward pass; a multiplication and an addition are two."""
        return 2 * self.inputs * self.outputs * self.taps * self.places


class Sums(NamedTuple):
    """FLOP of the UNet's forward and backward pass; and over all LoRA layers, inputs + outputs, and
    the same times places."""

    forward: int
    backward: int
    sides: int
    lora: int


@functools.cache
def sums(places: int) -> Sums:
    """Frozen matrices need the gradient of their inputs only, as much again as forward; products
    need two; what comes before the first LoRA layer needs none."""
    forward = backward = sides = lora = 0
    for layer in layers(UNet(), places):
        forward += layer.flops
        if layer.kind == "lora":
            sides += layer.inputs + layer.outputs
            lora += (layer.inputs + layer.outputs) * layer.places
        if sides:
            backward += layer.flops * (2 if layer.kind == "product" else 1)
    return Sums(forward, backward, sides, lora)


def layers(unet: UNet, places: int) -> Iterator[Layer]:
    """All matrices and products in the order of the forward pass; `places`: of the latents."""
    first, time = unet.channels[0], 4 * unet.channels[0]
    yield from (Layer(first, time, 1), Layer(time, time, 1))
    yield from (Layer(unet.added, time, 1), Layer(time, time, 1))
    yield Layer(unet.latents, first, places, 9)
    now, skips = first, [first]
    levels = list(enumerate(zip(unet.channels, unet.blocks, strict=True)))
    for level, (channels, blocks) in levels:
        here = places // 4**level
        for _ in range(unet.resnets):
            yield from _resnet(now, channels, time, here)
            yield from _attention(unet, channels, blocks, here)
            now = channels
            skips.append(now)
        if level < len(levels) - 1:
            yield Layer(now, now, here // 4, 9)
            skips.append(now)
    yield from _resnet(now, now, time, here)
    yield from _attention(unet, now, blocks, here)
    yield from _resnet(now, now, time, here)
    for level, (channels, blocks) in reversed(levels):
        here = places // 4**level
        for _ in range(unet.resnets + 1):
            yield from _resnet(now + skips.pop(), channels, time, here)
            yield from _attention(unet, channels, blocks, here)
            now = channels
        if level:
            yield Layer(now, now, 4 * here, 9)
    yield Layer(now, unet.latents, places, 9)


def _resnet(before: int, after: int, time: int, places: int) -> Iterator[Layer]:
    yield from (Layer(before, after, places, 9), Layer(after, after, places, 9))
    yield Layer(time, after, 1)
    if before != after:
        yield Layer(before, after, places)


def _attention(unet: UNet, width: int, blocks: int, places: int) -> Iterator[Layer]:
    if not blocks:
        return
    yield from [Layer(width, width, places)] * 2  # into the blocks, and out of them
    for _ in range(blocks):
        yield from [Layer(width, width, places, kind="lora")] * 6  # q, k, v, out; q, out
        yield from [Layer(unet.context, width, unet.tokens, kind="lora")] * 2  # k, v of the text
        yield Layer(places, width, places, 2, kind="product")
        yield Layer(unet.tokens, width, places, 2, kind="product")
        yield from (Layer(width, 8 * width, places), Layer(4 * width, width, places))
