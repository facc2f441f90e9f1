"""SDXL's parts, one call of each, as Hugging Face diffusers computes them in fp32."""

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline


@torch.no_grad()
def answer(arrays: dict[str, np.ndarray], folder: str, prompt: str) -> dict[str, np.ndarray]:
    """arrays: pixels, latents, timestep, time_ids. To one array a part, and one picture."""
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    embeds, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    posterior = pipeline.vae.encode(given["pixels"]).latent_dist
    predicted = pipeline.unet(
        given["latents"],
        given["timestep"],
        embeds,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": given["time_ids"]},
    ).sample
    picture = pipeline(
        prompt,
        latents=given["latents"],
        num_inference_steps=3,
        guidance_scale=3.0,
        height=given["pixels"].shape[2],
        width=given["pixels"].shape[3],
        output_type="np",
    ).images
    found = {
        "prompt_embeds": embeds[0],
        "pooled": pooled[0],
        "mean": posterior.mean[0],
        "std": posterior.std[0],
        "decoded": pipeline.vae.decode(given["latents"]).sample,
        "predicted": predicted,
    }
    return {name: tensor.numpy() for name, tensor in found.items()} | {"picture": picture}
