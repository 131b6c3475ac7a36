"""The parts of a small unCLIP, built from their sizes: diffusers' and transformers' own classes, and the folder."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

PROMPT = "a photo of a {}"


def make_tokenizer(names, folder, vocabulary, length):
    """A CLIP tokenizer whose byte-pair merges were learned on the names.

    They are kept in the folder and read from there by the next call: learned again, they would come out in another
    order, and the words' numbers would mean nothing to a text encoder that was trained with the first ones.
    """
    folder, alphabet = Path(folder), sorted(pre_tokenizers.ByteLevel.alphabet())
    if not (folder / "merges.txt").exists():
        _learn_merges(names, folder, vocabulary, alphabet)
    vocab = json.loads((folder / "vocab.json").read_text())
    for letter in alphabet:  # CLIP's vocabulary holds every byte both inside and at the end of a word
        for token in (letter, letter + "</w>"):
            vocab.setdefault(token, len(vocab))
    lines = (folder / "merges.txt").read_text().splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and line[0] != "#"]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def _learn_merges(names, folder, vocabulary, alphabet):
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\s+|(?<=\D)(?=\d)|(?<=\d)"), "removed"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(alphabet), initial_alphabet=alphabet, end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"], show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator([PROMPT.format(name) for name in names], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(folder))


def tokens(tokenizer, names):
    prompts = [PROMPT.format(name) if name else "" for name in names]
    settings = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    return tokenizer(prompts, return_tensors="pt", **settings).input_ids


def image_encoder(sizes):
    config = CLIPVisionConfig(
        image_size=sizes["image"], patch_size=sizes["patch"], hidden_size=sizes["vision"],
        intermediate_size=sizes.get("wider", 2) * sizes["vision"], num_hidden_layers=sizes["vision_layers"],
        num_attention_heads=4, projection_dim=sizes["embed"],
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def text_encoder(sizes, tokenizer):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=sizes["text"], intermediate_size=2 * sizes["text"],
        num_hidden_layers=sizes["text_layers"], num_attention_heads=4, projection_dim=sizes["embed"],
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


class Sketch(nn.Module):
    """Draws 16x16 pixels from an embedding: it keeps the shape of the single image in the embedding."""

    def __init__(self, embed, channels=1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embed, 512), nn.GELU(), nn.Linear(512, 64 * 16), nn.GELU(), nn.Unflatten(1, (64, 4, 4)),
            nn.ConvTranspose2d(64, 48, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(48, 24, 4, 2, 1), nn.GELU(),
            nn.Conv2d(24, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, embeds):
        return self.layers(embeds)


def autoencoder(sizes):
    return AutoencoderKL(
        block_out_channels=sizes["vae"], down_block_types=["DownEncoderBlock2D"] * len(sizes["vae"]),
        up_block_types=["UpDecoderBlock2D"] * len(sizes["vae"]), latent_channels=sizes.get("latent", 4),
        layers_per_block=1, norm_num_groups=8, sample_size=sizes["image"], mid_block_add_attention=False,
        scaling_factor=1.0,
    )  # fmt: skip


@torch.no_grad()
def standardise(vae, pixels):
    """Fold the latents' mean and spread into the 1x1 convolutions on both sides of them: z becomes (z - mean) / std."""
    latent = vae.encode(pixels).latent_dist.mean
    mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    into, out, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    out.bias.add_(out.weight[:, :, 0, 0] @ mean)
    out.weight.mul_(std.view(1, -1, 1, 1))
    into.weight[:channels].div_(std.view(-1, 1, 1, 1))
    into.bias[:channels].sub_(mean).div_(std)
    into.bias[channels:].sub_(2 * std.log())
    return vae


def unet(sizes):
    levels, channels = len(sizes["unet"]), sizes.get("latent", 4)
    return UNet2DConditionModel(
        sample_size=sizes["image"] // 2 ** (len(sizes["vae"]) - 1), in_channels=channels, out_channels=channels,
        block_out_channels=sizes["unet"], down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (levels - 1),
        up_block_types=["CrossAttnUpBlock2D"] * (levels - 1) + ["UpBlock2D"], layers_per_block=sizes.get("layers", 1),
        cross_attention_dim=sizes["text"], attention_head_dim=4, norm_num_groups=16, use_linear_projection=True,
        time_embedding_dim=sizes["time"], class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * sizes["embed"],
        resnet_time_scale_shift=sizes.get("time_scale_shift", "default"),
    )  # fmt: skip


def diffusion(cls=DDPMScheduler, **changes):
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return cls(**settings, prediction_type="v_prediction", **changes)


def noising():
    """The noise of the image embedding, as in Stable unCLIP."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def moments(embeds):
    flat = embeds[:, :4].flatten(0, 1).float()
    return flat.mean(0), flat.std(0)


def export(image, text, tokenizer, vae, denoiser, embeds, sizes, out):
    """Save the parts, in half precision, as a folder that `StableUnCLIPImg2ImgPipeline.from_pretrained` reads."""
    normalizer = StableUnCLIPImageNormalizer(sizes["embed"])
    mean, std = moments(embeds)
    normalizer.load_state_dict({"mean": mean[None], "std": std[None]})
    side = sizes["image"]
    pipeline = StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side},
            image_mean=[0.5] * 3, image_std=[0.5] * 3,
        ),
        image_encoder=image, image_normalizer=normalizer, image_noising_scheduler=noising(), tokenizer=tokenizer,
        text_encoder=text, unet=denoiser, vae=vae,
        scheduler=diffusion(PNDMScheduler, skip_prk_steps=True, steps_offset=1),
    )  # fmt: skip
    pipeline.to("cpu", torch.float16)
    pipeline.save_pretrained(out, safe_serialization=True)
    for file in Path(out).rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes 0600 whatever the umask is
