"""The mint operators that MindSpore's CPU backend lacks, made from operators that it has.

mindone's models are written with `mindspore.mint`, whose newer operators have kernels on Ascend
only. `install()` puts the functions below in their places; `device.start()` calls it when the
device target is CPU, before mindone is imported, because mindone copies some of them by name.
On Ascend this file is never imported.

Each replacement takes and returns what the mint operator does, for the arguments that SDXL's UNet,
VAE, text encoders and pipelines use, and refuses what it can't do; it works in PyNative and in
graph mode, in fp32 and fp16, and has a gradient where the original has one.
tests/integration/test_cpu_ops.py compares them with torch, and shows for each that mint's own does
fail (split and chunk in graph mode only) or, as exp, is far off. linear and attention are here for
speed alone.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import mint, ops

# Functions, in the signatures of mindspore.mint 2.7.


def arange(start=0, end=None, step=1, *, dtype=None):
    """Evenly spaced values in [start, end)."""
    if end is None:
        start, end = 0, start
    if dtype is None:
        whole = isinstance(start, int) and isinstance(end, int) and isinstance(step, int)
        dtype = ms.int64 if whole else ms.float32
    return ops.arange(start, end, step).astype(dtype)


def linspace(start, end, steps, *, dtype=None):
    """`steps` values from start to end, both included."""
    return ops.linspace(
        ops.scalar_to_tensor(float(start), ms.float32),
        ops.scalar_to_tensor(float(end), ms.float32),
        steps,
    ).astype(ms.float32 if dtype is None else dtype)


def full(size, fill_value, *, dtype=None):
    """A tensor of one value."""
    if dtype is None:
        dtype = ms.float32
        if isinstance(fill_value, bool):  # before int, which a bool is too
            dtype = ms.bool_
        elif isinstance(fill_value, int):
            dtype = ms.int64
    return ops.fill(dtype, size, fill_value)


def zeros_like(input, *, dtype=None):
    """Zeros in the shape (and, unless told otherwise, the dtype) of `input`."""
    return ops.zeros(input.shape, input.dtype if dtype is None else dtype)


def exp(input):
    """e to the power of `input`, by fp64: MindSpore's own is off by 5e-6 of it, and with that the
    embedding of a timestep of 999 by 5e-3."""
    return ops.exp(input.astype(ms.float64)).astype(input.dtype)


def stack(tensors, dim=0):
    """Joins tensors of one shape along a new axis."""
    return ops.stack(tensors, axis=dim)


def split(tensor, split_size_or_sections, dim=0):
    """Cuts a tensor along an axis into parts of the given size or sizes."""
    return ops.split(tensor, split_size_or_sections, axis=dim)


def chunk(input, chunks, dim=0):
    """Cuts a tensor along an axis into at most `chunks` parts of one size; the last may be less."""
    return ops.chunk(input, chunks, axis=dim)


def baddbmm(input, batch1, batch2, *, beta=1, alpha=1):
    """beta * input + alpha * (batch1 @ batch2); with beta 0, `input` is left out, NaN too."""
    product = ops.bmm(batch1, batch2) * alpha
    return product if beta == 0 else input * beta + product


def linear(input, weight, bias=None):
    """input (..., I) times weight (O, I) transposed, and bias (O,) added.

    mint's own has kernels here, but its gradient copies every weight to transpose it, once a step.
    """
    rows = ops.reshape(input, (-1, weight.shape[1]))
    output = ops.MatMul(transpose_b=True)(rows, weight)
    if bias is not None:
        output = ops.bias_add(output, bias)
    return ops.reshape(output, (*input.shape[:-1], weight.shape[0]))


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Two-dimensional cross-correlation of (N, C, H, W) with (O, C / groups, kH, kW).

    padding: in numbers, not "same" or "valid".
    """
    top, left = (padding, padding) if isinstance(padding, int) else padding
    convolve = ops.Conv2D(
        out_channel=weight.shape[0],
        kernel_size=tuple(weight.shape[2:]),
        pad_mode="pad",
        pad=(top, top, left, left),
        stride=stride,
        dilation=dilation,
        group=groups,
    )
    output = convolve(input, weight)
    return output if bias is None else ops.bias_add(output, bias)


def pad(input, pad, mode="constant", value=None):
    """Pads the last axes; `pad` lists (before, after) from the last axis backwards."""
    if mode == "constant" and value is None:
        value = 0.0
    return ops.pad(input, pad, mode, value)


def gelu(input, *, approximate="none"):
    """Gaussian error linear unit, exact or by tanh."""
    return ops.gelu(input, approximate=approximate)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """Normalises over the last axes."""
    first = input.ndim - len(normalized_shape)
    if weight is None:
        weight = ops.ones(normalized_shape, input.dtype)
    if bias is None:
        bias = ops.zeros(normalized_shape, input.dtype)
    normalise = ops.LayerNorm(begin_norm_axis=first, begin_params_axis=first, epsilon=eps)
    return normalise(input, weight, bias)[0]


def embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0,
              scale_grad_by_freq=False):  # fmt: skip
    """Rows of `weight` at the indices `input`.

    padding_idx and scale_grad_by_freq change gradients only, and embeddings are frozen here.
    """
    if max_norm is not None:
        raise ValueError("mint.embedding on CPU has no max_norm.")
    return ops.gather(weight, input, 0)


def dropout(input, p=0.5, training=True, inplace=False):
    """Zeroes elements with probability p and scales the rest by 1 / (1 - p)."""
    if inplace:
        raise ValueError("mint.dropout on CPU does not work in place.")
    return ops.dropout(input, p=p, training=training)


# What mint's layers compute, with the functions above.


def _conv2d_construct(self, input):
    padding = self.padding
    if self.padding_mode != "zeros":
        input = pad(input, self._reversed_padding, self.padding_mode)
        padding = 0
    return conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def _linear_construct(self, x):
    return linear(x, self.weight, self.bias)


def _layer_norm_construct(self, input):
    return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


def _embedding_construct(self, input):
    return embedding(input, self.weight, self.padding_idx, self.max_norm)


def _gelu_construct(self, input):
    return gelu(input, approximate=self.approximate)


def _dropout_construct(self, input):
    if not self.training or self.p == 0:
        return input
    return dropout(input, self.p, True, self.inplace)


# What mindone's layers compute.


def _geglu_construct(self, hidden_states):
    hidden_states, gate = chunk(self.proj(hidden_states), 2, dim=-1)
    return hidden_states * gelu(gate)


def _attend(self, query, key, value, attn_mask=None):
    """softmax(Q K^T / sqrt(D)) V, (..., L, D) each, without a transposed copy of K or V in either
    direction."""
    if attn_mask is not None:
        raise ValueError("Attention on CPU takes no mask.")
    dtype = query.dtype
    if self.upcast_attention:
        query, key = query.astype(ms.float32), key.astype(ms.float32)
    query = query * self.scale
    scores = ops.BatchMatMul(transpose_b=True)(query, key)
    if self.upcast_softmax:
        scores = scores.astype(ms.float32)
    return ops.BatchMatMul()(mint.softmax(scores, dim=-1).astype(dtype), value)


FUNCTIONS = {
    mint: (arange, linspace, full, zeros_like, exp, stack, split, chunk, baddbmm),
    mint.nn.functional: (linear, conv2d, pad, gelu, layer_norm, embedding, dropout),
}
LAYERS = {
    mint.nn.Linear: _linear_construct,
    mint.nn.Conv2d: _conv2d_construct,
    mint.nn.LayerNorm: _layer_norm_construct,
    mint.nn.Embedding: _embedding_construct,
    mint.nn.GELU: _gelu_construct,
    mint.nn.Dropout: _dropout_construct,
}


def install() -> None:
    """Puts the replacements in place. Once, on device target CPU, before importing mindone."""
    for module, functions in FUNCTIONS.items():
        for function in functions:
            setattr(module, function.__name__, function)
    for layer, construct in LAYERS.items():
        layer.construct = construct
    # GEGLU cuts with the tensor method `chunk`, which has no kernel in graph mode.
    from mindone.diffusers.models.activations import GEGLU
    from mindone.diffusers.models.attention_processor import Attention

    GEGLU.construct = _geglu_construct
    Attention.math_attention_op = _attend
