"""Stable Diffusion 2.1 unCLIP (image encoder ViT-H) from its configuration alone: right shapes, random weights.

Speed doesn't depend on what the weights are, as long as they are no zeros and nothing overflows; so it can be measured
without a download. `small=True` builds the same classes and blocks a few channels wide, for machines without a GPU.
"""

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
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

VISION = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
          "image_size": 224, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu"}  # fmt: skip
TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
        "projection_dim": 512, "hidden_act": "gelu"}  # fmt: skip
UNET = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20), "norm_num_groups": 32}
VAE = {"block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

SMALL = {
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
               "image_size": 28, "projection_dim": 32},
    "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    "unet": {"block_out_channels": (16, 32, 32, 32), "attention_head_dim": (1, 2, 2, 2), "norm_num_groups": 8},
    "vae": {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 8},
}  # fmt: skip


def build(side=768, *, small=False, device="cpu", dtype=torch.float32, seed=0):
    """The whole pipeline, for images of `side` pixels."""
    torch.manual_seed(seed)
    narrow = SMALL if small else {part: {} for part in SMALL}
    vision, text = VISION | narrow["vision"], TEXT | narrow["text"]
    with torch.device(device):
        models = {
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(**text, vocab_size=514, bos_token_id=512, eos_token_id=513, pad_token_id=513)
            ),
            "unet": unet(side, vision["projection_dim"], text["hidden_size"], UNET | narrow["unet"]),
            "vae": vae(VAE | narrow["vae"]),
            "image_normalizer": StableUnCLIPImageNormalizer(vision["projection_dim"]),
        }
    pipe = StableUnCLIPImg2ImgPipeline(
        **{name: model.eval().requires_grad_(False).to(dtype) for name, model in models.items()},
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": vision["image_size"]}, crop_size=vision["image_size"]
        ),
        tokenizer=tokenizer(),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler=PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet(side, image_dim, text_dim, widths):
    cross = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    return UNet2DConditionModel(
        sample_size=side // 8,
        down_block_types=(*[cross[0]] * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *[cross[1]] * 3),
        cross_attention_dim=text_dim,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * image_dim,
        **widths,
    )


def vae(widths):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=768,
        **widths,
    )


def tokenizer():
    """CLIP's byte-level vocabulary without merges, as no file is at hand; any prompt is padded to 77 tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(i) for i in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)
