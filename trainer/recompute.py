"""--gradient_checkpointing: blocks keep their inputs only and compute the rest again for gradients.

mindone's own `enable_gradient_checkpointing()` asks for a method that MindSpore 2.6 and 2.7 do not
have, and raises; so the blocks are told here, one by one.

Method: training deep nets with sublinear memory cost, https://arxiv.org/abs/1604.06174.
"""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import nn

# The blocks that a network of ours is a row of, by the names of mindone's classes.
BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "CLIPEncoderLayer")


def recompute(models: Mapping[str, nn.Cell]) -> None:
    """Marks the blocks of all models, before anything of them is compiled."""
    for model in models.values():
        for _, cell in model.cells_and_names():
            if type(cell).__name__ in BLOCKS:
                cell.recompute()
