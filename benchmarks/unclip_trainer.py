"""Train a small unCLIP from nothing, in four stages, and save it as a diffusers `StableUnCLIPImg2ImgPipeline` folder.

Each stage runs for a number of minutes, keeps a checkpoint in the work folder, logs to `<stage>.csv` there and goes on
from where it stopped: `clip` (image and text encoder), `vae`, `unet`, `refine` (the UNet, conditioned on the view
it draws). `export` writes the folder.
"""

import copy
import csv
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from tqdm import tqdm
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

PROMPT = "a photo of a {}"


class Stage:
    """A named, resumable training loop: modules, an optimizer with warm-up and cosine decay, a log."""

    def __init__(self, name, modules, work, *, lr, minutes, ema=None):
        self.name, self.work, self.lr, self.minutes = name, Path(work), lr, minutes
        self.modules = nn.ModuleDict(modules)
        self.ema = copy.deepcopy(self.modules).requires_grad_(False) if ema else None
        self.decay, self.step, self.seconds, self.samples = ema, 0, 0.0, 0
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), lr, betas=(0.9, 0.98), weight_decay=1e-3)
        self.file = self.work / f"{name}.pt"
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
            self.step, self.seconds, self.samples = state["step"], state["seconds"], state["samples"]

    def save(self):
        state = {"modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        state |= {"seconds": self.seconds, "samples": self.samples, "ema": self.ema.state_dict() if self.ema else {}}
        torch.save(state, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)

    def best(self):
        """The modules to use afterwards: the moving average where there is one."""
        return (self.ema or self.modules).eval().requires_grad_(False)

    def run(self, loss_of, batch):
        """Call `loss_of(step) -> {name: loss}` until the stage's minutes are over; the losses are summed."""
        total, last, means = self.minutes * 60, time.monotonic(), {}
        self.modules.train()
        bar = tqdm(total=round(total), initial=round(min(self.seconds, total)), desc=self.name, unit="s", disable=None)
        while self.seconds < total:
            done = self.seconds / total
            rate = self.lr * min(1.0, (self.step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * done) + 0.01)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses = loss_of(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimizer.step()
            if self.ema:
                self._average()
            for key, value in losses.items():
                means[key] = 0.98 * means.get(key, value.item()) + 0.02 * value.item()
            self.step, self.samples, now = self.step + 1, self.samples + batch, time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if self.step % 100 == 0:
                self._log(means)
                bar.n = round(self.seconds)
                bar.set_postfix({k: f"{v:.4f}" for k, v in means.items()})
            if self.step % 500 == 0:
                self.save()
        self.save()
        return self.best()

    def _average(self):
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.ema.parameters(), self.modules.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - decay)

    def _log(self, means):
        path = self.work / f"{self.name}.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "samples", "seconds", *means])
            writer.writerow([self.step, self.samples, round(self.seconds), *(f"{v:.5f}" for v in means.values())])


def make_tokenizer(names, folder, vocabulary, length):
    """A CLIP tokenizer whose byte-pair merges were learned on the names."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\s+|(?<=\D)(?=\d)|(?<=\d)"), "removed"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(alphabet), initial_alphabet=alphabet, end_of_word_suffix="</w>",
        special_tokens=["<|startoftext|>", "<|endoftext|>"], show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator([PROMPT.format(name) for name in names], trainer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab_file, merges_file = bpe.model.save(str(folder))
    vocab = json.loads(Path(vocab_file).read_text())
    for letter in alphabet:  # CLIP's vocabulary holds every byte both inside and at the end of a word
        for token in (letter, letter + "</w>"):
            vocab.setdefault(token, len(vocab))
    merges = [tuple(line.split(" ")) for line in Path(merges_file).read_text().splitlines() if line and line[0] != "#"]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def image_encoder(sizes):
    config = CLIPVisionConfig(
        image_size=sizes["image"], patch_size=sizes["patch"], hidden_size=sizes["vision"],
        intermediate_size=2 * sizes["vision"], num_hidden_layers=sizes["vision_layers"], num_attention_heads=4,
        projection_dim=sizes["embed"],
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


def tokens(tokenizer, names):
    prompts = [PROMPT.format(name) if name else "" for name in names]
    settings = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    return tokenizer(prompts, return_tensors="pt", **settings).input_ids


class Sketch(nn.Module):
    """Draws the canonical view, 16x16, from an embedding: it keeps the shape of the single image in the embedding."""

    def __init__(self, embed):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embed, 512), nn.GELU(), nn.Linear(512, 64 * 16), nn.GELU(), nn.Unflatten(1, (64, 4, 4)),
            nn.ConvTranspose2d(64, 48, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(48, 24, 4, 2, 1), nn.GELU(),
            nn.Conv2d(24, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, embeds):
        return self.layers(embeds)


def train_clip(data, tokenizer, sizes, work, *, minutes, batch, lr, seed=0):
    """Image and text encoder: two views of one image, image and text, and the drawing of the canonical view."""
    rng = torch.Generator().manual_seed(seed)
    modules = {"image": image_encoder(sizes), "text": text_encoder(sizes, tokenizer), "sketch": Sketch(sizes["embed"])}
    modules["words"] = nn.Linear(sizes["text"], sizes["embed"], bias=False)
    modules["scale"] = nn.ParameterDict({k: nn.Parameter(torch.tensor(2.3)) for k in ("view", "text")})
    stage = Stage("clip", modules, work, lr=lr, minutes=minutes, ema=0.999)
    vocabulary = tokens(tokenizer, data.names)
    m = stage.modules

    def contrast(a, b, scale, same):
        logits = F.normalize(a) @ F.normalize(b).T * scale.exp().clamp(max=50)
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T / target.T.sum(1, True))) / 2

    def loss_of(step):
        index = torch.randint(len(data), (batch,), generator=rng)
        labels = data.labels[index]
        pixels = torch.cat([data.views(index, rng), data.views(index, rng)])
        embeds = m["image"](pixels).image_embeds
        first, second = embeds.chunk(2)
        words = m["words"](m["text"](vocabulary[labels]).pooler_output)
        target = F.interpolate(data.canonical(index)[:, :1], (16, 16), mode="area").repeat(2, 1, 1, 1)
        same = (labels[:, None] == labels).float()
        return {
            "view": contrast(first, second, m["scale"]["view"], torch.eye(batch)),
            "text": 0.5 * contrast(first, words, m["scale"]["text"], same),
            "sketch": 10 * F.mse_loss(m["sketch"](embeds), target),
            "size": 0.01 * (embeds.pow(2).mean() - 1).pow(2),
        }

    return stage.run(loss_of, 2 * batch)


def autoencoder(sizes):
    return AutoencoderKL(
        block_out_channels=sizes["vae"], down_block_types=["DownEncoderBlock2D"] * len(sizes["vae"]),
        up_block_types=["UpDecoderBlock2D"] * len(sizes["vae"]), latent_channels=4, layers_per_block=1,
        norm_num_groups=8, sample_size=sizes["image"], mid_block_add_attention=False, scaling_factor=1.0,
    )  # fmt: skip


def train_vae(data, sizes, work, *, minutes, batch, lr, seed=1):
    """The autoencoder: absolute error and a little of the prior."""
    rng = torch.Generator().manual_seed(seed)
    vae = autoencoder(sizes)
    stage = Stage("vae", {"vae": vae}, work, lr=lr, minutes=minutes, ema=0.998)
    model = stage.modules["vae"].to(memory_format=torch.channels_last)

    def loss_of(step):
        pixels = data.views(torch.randint(len(data), (batch,), generator=rng), rng)
        latent = model.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist
        drawn = latent.mean + latent.std * torch.randn(latent.mean.shape, generator=rng)
        error = model.decode(drawn).sample - pixels
        prior = latent.kl().mean() / latent.mean[0].numel()
        return {"l1": error.abs().mean(), "l2": error.pow(2).mean(), "kl": 3e-4 * prior}

    return stage.run(loss_of, batch)


@torch.no_grad()
def standardise(vae, pixels):
    """Fold the latents' mean and spread into the 1x1 convolutions on both sides of them: z becomes (z - mean) / std."""
    latent = vae.encode(pixels).latent_dist.mean
    mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias.add_(out.weight[:, :, 0, 0] @ mean)
    out.weight.mul_(std.view(1, -1, 1, 1))
    into.weight[:4].div_(std.view(-1, 1, 1, 1))
    into.bias[:4].sub_(mean).div_(std)
    into.bias[4:].sub_(2 * std.log())
    return vae


def unet(sizes):
    levels = len(sizes["unet"])
    return UNet2DConditionModel(
        sample_size=sizes["image"] // 2 ** (len(sizes["vae"]) - 1), block_out_channels=sizes["unet"],
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (levels - 1),
        up_block_types=["CrossAttnUpBlock2D"] * (levels - 1) + ["UpBlock2D"], layers_per_block=sizes.get("layers", 1),
        cross_attention_dim=sizes["text"], attention_head_dim=4, norm_num_groups=16, use_linear_projection=True,
        time_embedding_dim=sizes["time"], class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * sizes["embed"],
    )  # fmt: skip


def diffusion(cls=DDPMScheduler, **changes):
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return cls(**settings, prediction_type="v_prediction", **changes)


def noising():
    """The noise of the image embedding, as in Stable unCLIP."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


@torch.no_grad()
def make_pool(data, image, vae, views, seed=2):
    """`views` views of every drawing, encoded once: embeds (N, V, D) and latents (N, V, 4, h, w), float16."""
    rng, embeds, latents = torch.Generator().manual_seed(seed), [], []
    for start in tqdm(range(0, len(data), 64), desc="pool", disable=None):
        index = torch.arange(start, min(start + 64, len(data)))
        pixels = torch.cat([data.views(index, rng) for _ in range(views)])
        shape = (views, len(index))
        embeds.append(image(pixels).image_embeds.unflatten(0, shape).transpose(0, 1).half())
        drawn = vae.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.sample(rng)
        latents.append(drawn.unflatten(0, shape).transpose(0, 1).half().contiguous())
    return torch.cat(embeds), torch.cat(latents)


def cached_pool(work, *args):
    """`make_pool`, kept in the work folder."""
    path = Path(work) / "pool.safetensors"
    if not path.exists():
        embeds, latents = make_pool(*args)
        save_file({"embeds": embeds, "latents": latents}, path)
    pool = load_file(path)
    return pool["embeds"], pool["latents"]


@torch.no_grad()
def hidden_states(text, tokenizer, names):
    """The text encoder's output for every name's prompt and, last, for the empty prompt: (names + 1, L, C)."""
    ids = tokens(tokenizer, [*names, ""])
    return torch.cat([text(part).last_hidden_state for part in ids.split(256)])


def train_unet(
    data, pool, text, weights, sizes, work, *, minutes, batch, lr,
    other=0.25, same=0.0, dropped=0.05, seed=3, name="unet", start=None,
):  # fmt: skip
    """The denoiser, from a random view of a drawing to another, or of what else the two probabilities say.

    pool: embeds (N, V, D), latents (N, V, 4, h, w); text: hidden states (names + 1, L, C), the last row of the empty
    prompt; weights (N,): how often a drawing is chosen. The condition is, with probability `other`, of another drawing
    of the label and, with probability `same`, of the target's own view, as in unCLIP. Embedding noise as there: none
    for half of the rows, else of a random level. Dropped: both conditions, the image alone and the text alone, each
    with probability `dropped`. A further stage has a name of its own and goes on from the weights of `start`.
    """
    embeds, latents = pool
    rng, (mean, std) = torch.Generator().manual_seed(seed), moments(embeds)
    model = unet(sizes).to(memory_format=torch.channels_last)
    if start is not None:
        model.load_state_dict(start.state_dict())
    stage = Stage(name, {"unet": model}, work, lr=lr, minutes=minutes, ema=0.9995)
    rng.manual_seed(seed + stage.step)
    noise_steps, level_steps = diffusion(), noising()
    forward = torch.compile(stage.modules["unet"])
    views, n = embeds.shape[1], batch

    def draw(high):
        return torch.randint(high, (n,), generator=rng)

    def loss_of(step):
        target = torch.multinomial(weights, n, replacement=True, generator=rng)
        source = torch.where(torch.rand(n, generator=rng) < other, data.another(target, rng), target)
        view = draw(views)
        clean = latents[target, view].float().contiguous(memory_format=torch.channels_last)
        seen = torch.where(torch.rand(n, generator=rng) < same, view, draw(views))
        image = (embeds[source, seen].float() - mean) / std
        level = (torch.rand(n, generator=rng).mul(2).sub(1).clamp(min=0).pow(2) * 999).long()
        image = level_steps.add_noise(image, torch.randn(image.shape, generator=rng), level) * std + mean
        image = torch.cat([image, get_timestep_embedding(level, image.shape[1])], 1)
        fate = torch.rand(n, generator=rng) / dropped  # < 1 both, < 2 the image, < 3 the text
        image[fate < 2] = 0
        words = text[torch.where((fate < 1) | ((fate >= 2) & (fate < 3)), len(text) - 1, data.labels[target])]
        noise, t = torch.randn(clean.shape, generator=rng), draw(1000)
        noisy, velocity = noise_steps.add_noise(clean, noise, t), noise_steps.get_velocity(clean, noise, t)
        output = forward(noisy, t, words, class_labels=image, return_dict=False)[0]
        return {"v": F.mse_loss(output, velocity)}

    return stage.run(loss_of, batch)


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
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(out, safe_serialization=True)
    for file in Path(out).rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes 0600 whatever the umask is
