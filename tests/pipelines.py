"""Real unCLIP pipelines with tiny random weights: every class is diffusers' or transformers' own."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
    StableUnCLIPImg2ImgPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from torch_augcond.generators.options import keep_own_scheduler

_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**_NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "pndm": lambda: PNDMScheduler(**_NOISE, skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction"),
    "dpm": lambda: DPMSolverMultistepScheduler(**_NOISE),
    "ancestral": lambda: EulerAncestralDiscreteScheduler(**_NOISE),
}


def make_pipeline(
    scheduler: str = "pndm", *, dim: int = 32, unet_dim: int | None = None, size: int = 32, seed: int = 0
) -> StableUnCLIPImg2ImgPipeline:
    """A pipeline that makes ``size`` × ``size`` images from ``dim`` wide embeddings, the same for the same arguments.

    ``unet_dim`` is the width that the UNet is built for, where it shall not fit the encoder's.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipe = StableUnCLIPImg2ImgPipeline(
            feature_extractor=CLIPImageProcessor(crop_size=32, size={"shortest_edge": 32}),
            image_encoder=_image_encoder(dim),
            image_normalizer=_normalizer(dim),
            image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
            tokenizer=_tokenizer(),
            text_encoder=_text_encoder(),
            unet=_unet(2 * (unet_dim or dim), size // 4),
            scheduler=SCHEDULERS[scheduler](),
            vae=_vae(size),
        )
    pipe.set_progress_bar_config(disable=True)
    keep_own_scheduler(pipe)  # as of one that was loaded
    return pipe


def save_pipeline(folder: Path, **arguments: Any) -> Path:
    """``make_pipeline`` as a folder of safetensors."""
    make_pipeline(**arguments).save_pretrained(folder, safe_serialization=True)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Replace top-level entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _image_encoder(dim: int) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(**_LAYERS, image_size=32, patch_size=8, projection_dim=dim)
    return CLIPVisionModelWithProjection(config).eval()


def _text_encoder() -> CLIPTextModel:
    tokens = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    return CLIPTextModel(CLIPTextConfig(**_LAYERS, **tokens, projection_dim=32)).eval()


def _tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level vocabulary without merges: bytes, bytes that end a word, the two special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    unprintable = 256 - len(printable)
    letters = [chr(i) for i in printable] + [chr(256 + i) for i in range(unprintable)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _normalizer(dim: int) -> StableUnCLIPImageNormalizer:
    normalizer = StableUnCLIPImageNormalizer(dim)
    with torch.no_grad():
        normalizer.mean.normal_(std=0.3)
        normalizer.std.uniform_(0.5, 1.5)
    return normalizer


def _unet(class_dim: int, sample_size: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=class_dim,
    ).eval()


def _vae(size: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=8,
        latent_channels=4,
        sample_size=size,
    ).eval()
