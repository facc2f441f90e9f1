"""The parts of the mini SDXL: the architecture's numbers, and the folder they are saved to."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .tokenizer import MAX_LENGTH, load_tokenizers

WIDTH_1, WIDTH_2, POOLED = 64, 96, 96
TIME_WIDTH = 32  # of each of the six time ids
TextEncoders = tuple[CLIPTextModel, CLIPTextModelWithProjection]


def make_vae() -> AutoencoderKL:
    """3 x 64 x 64 pixels <-> 4 x 16 x 16 latents."""
    return AutoencoderKL(
        sample_size=64,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        force_upcast=False,
    )


def make_text_encoders(vocabulary: int) -> TextEncoders:
    first = text_config(vocabulary, width=WIDTH_1, heads=4, activation="quick_gelu")
    second = text_config(vocabulary, width=WIDTH_2, heads=6, activation="gelu")
    return CLIPTextModel(first), CLIPTextModelWithProjection(second)


def text_config(vocabulary: int, *, width: int, heads: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=POOLED,
        num_hidden_layers=3,
        num_attention_heads=heads,
        max_position_embeddings=MAX_LENGTH,
        hidden_act=activation,
        # CLIP's historical ids, as in SDXL: with eos 2, the pooled output is the highest id's.
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )


def make_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(4, 6, 6),  # heads, in spite of the name: each 16 wide
        cross_attention_dim=WIDTH_1 + WIDTH_2,
        use_linear_projection=True,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=POOLED + 6 * TIME_WIDTH,
    )


def make_scheduler() -> EulerDiscreteScheduler:
    """SDXL base's own settings."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
    )


def encode_prompts(
    encoders: TextEncoders, ids: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """SDXL's prompt embedding: both last-but-one hidden states in a row; the pooled vector."""
    first = encoders[0](ids[0], output_hidden_states=True)
    second = encoders[1](ids[1], output_hidden_states=True)
    states = (first.hidden_states[-2], second.hidden_states[-2])
    return torch.cat(states, dim=-1), second.text_embeds  # (B, L, 160), (B, 96)


def save_pipeline(
    folder: Path,
    *,
    unet: UNet2DConditionModel,
    encoders: TextEncoders,
    vae: AutoencoderKL,
    tokenizers: Path,
) -> None:
    """Write the diffusers folder, fp16; the networks are fp16 afterwards."""
    first, second = load_tokenizers(tokenizers)
    pipeline = StableDiffusionXLPipeline(
        vae=vae.half(),
        text_encoder=encoders[0].half(),
        text_encoder_2=encoders[1].half(),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet.half(),
        scheduler=make_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    without(folder / "model_index.json", "feature_extractor", "image_encoder")
    for config in folder.glob("*/config.json"):
        without(config, "_name_or_path")  # where it was trained


def without(path: Path, *keys: str) -> None:
    content = {k: v for k, v in json.loads(path.read_text()).items() if k not in keys}
    path.write_text(json.dumps(content, indent=2))
