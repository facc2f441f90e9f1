"""Flags of the well-known scripts that do nothing here: accepted and told, or refused.

None is silently ignored: a run that was written for the script either starts, or says what to
change.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .config import ConfigError, option

NO_EFFECT = "Without effect: "
REFUSED = "Refused: "


@dataclass(frozen=True, kw_only=True)
class KnownConfig:
    """Flags of the well-known scripts that do nothing here: told when given, or refused."""

    _argument_group_name = "known, but without effect or refused"

    dataloader_num_workers: int = option(1, "Without effect: one thread reads the cache.")
    enable_mindspore_data_sink: bool = option(
        False, "Without effect: a prefetching thread feeds the step."
    )
    enable_xformers_memory_efficient_attention: bool = option(
        False, "Without effect: flash attention is on where Ascend has it."
    )
    local_rank: int = option(-1, "Without effect: msrun tells each worker its rank.")
    allow_tf32: bool = option(
        False, "Refused: TF32 is an NVIDIA GPU's number format. Use --mixed_precision fp16."
    )
    use_8bit_adam: bool = option(
        False,
        "Refused: bitsandbytes is for NVIDIA GPUs, and an adapter's moments are small (46 MB at "
        "rank 4). Leave it out.",
    )
    use_dora: bool = option(
        False, "Refused: mindone's peft has no DoRA. Use LoRA with a higher --rank."
    )

    def __post_init__(self) -> None:
        for flag in dataclasses.fields(self):
            text = flag.metadata["help"]
            if text.startswith(REFUSED) and getattr(self, flag.name):
                raise ConfigError(f"--{flag.name} is refused: {text.removeprefix('Refused: ')}")

    def warnings(self) -> list[str]:
        """A line for each flag that was given, and does nothing."""
        return [
            f"--{flag.name} has no effect: {flag.metadata['help'].removeprefix(NO_EFFECT)}"
            for flag in dataclasses.fields(self)
            if getattr(self, flag.name) != flag.default
        ]
