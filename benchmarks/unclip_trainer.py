"""Train a small unCLIP from nothing, in stages, each of which can be cut short: see `Stage` for what they share.

`clip` (image and text encoder), `vae`, `unet`, and further ones of the UNet. Data has `labels (N,)`, on the device that
everything runs on, `names` and `named(labels, rng)` (the texts, and one of them for each label), `views(index, rng)`
(random pixels (n, 3, H, W) in [-1, 1]), `sketches(index, pixels)` and `another(index, rng)`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file, save_file
from stages import Stage, compiled
from torch import nn
from tqdm import tqdm
from unclip_parts import (
    Sketch,
    autoencoder,
    diffusion,
    image_encoder,
    moments,
    noising,
    text_encoder,
    tokens,
    unet,
)


def contrast(a, b, scale, same):
    """Cross-entropy of finding, among all rows of b, those that are `same` as each row of a, and the other way."""
    logits = F.normalize(a) @ F.normalize(b).T * scale.exp().clamp(max=50)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T / target.T.sum(1, True))) / 2


def train_clip(data, tokenizer, sizes, work, *, batch, seed=0, sketch=10.0, **stage):
    """Image and text encoder: two views of one image, image and text, and drawing a sketch from the embedding."""
    device, channels = data.labels.device, sizes.get("sketch", 1)
    modules = {"image": image_encoder(sizes), "text": text_encoder(sizes, tokenizer)}
    modules["sketch"] = Sketch(sizes["embed"], channels)
    modules["words"] = nn.Linear(sizes["text"], sizes["embed"], bias=False)
    modules["scale"] = nn.ParameterDict({k: nn.Parameter(torch.tensor(2.3)) for k in ("view", "text")})
    stage = Stage("clip", modules, work, seed=seed, ema=0.999, device=device, **stage)
    vocabulary, rng, m = tokens(tokenizer, data.names).to(device), stage.rng, stage.modules
    see, read, itself = compiled(m["image"], device), compiled(m["text"], device), torch.eye(batch, device=device)

    def loss_of(step):
        index = torch.randint(len(data), (batch,), generator=rng, device=device)
        labels = data.labels[index]
        pixels = torch.cat([data.views(index, rng), data.views(index, rng)])
        embeds = see(pixels).image_embeds
        first, second = embeds.chunk(2)
        words = m["words"](read(vocabulary[data.named(labels, rng)]).pooler_output)
        same = (labels[:, None] == labels).float()
        return {
            "view": contrast(first, second, m["scale"]["view"], itself),
            "text": 0.5 * contrast(first, words, m["scale"]["text"], same),
            "sketch": sketch * F.mse_loss(m["sketch"](embeds), data.sketches(index, pixels)),
            "size": 0.01 * (embeds.pow(2).mean() - 1).pow(2),
        }

    return stage.run(loss_of, 2 * batch)


def perceptual(see, patch, output, pixels, step):
    """How far apart two batches lie in the hidden states of an image encoder, which `see` runs; as in LPIPS.

    Both are rolled alike, in each step by other numbers of pixels, so that patches begin everywhere.
    """
    shift = divmod(step * 5 % patch**2, patch)
    hidden = [see(x.roll(shift, (2, 3)), output_hidden_states=True).hidden_states[1::2] for x in (output, pixels)]
    errors = [(F.normalize(a, dim=-1) - F.normalize(b.detach(), dim=-1)).pow(2).sum(-1) for a, b in zip(*hidden)]
    return sum(error.mean() for error in errors) / len(errors)


def train_vae(data, sizes, work, *, batch, seed=1, encoder=None, weight=0.2, **stage):
    """The autoencoder: absolute and squared error, a little of the prior and, with an image encoder, what it sees."""
    vae, device = autoencoder(sizes), data.labels.device
    stage = Stage("vae", {"vae": vae}, work, seed=seed, ema=0.998, device=device, **stage)
    model, rng = stage.modules["vae"].to(memory_format=torch.channels_last), stage.rng
    encode, decode = compiled(model.encode, device), compiled(model.decode, device)
    see = encoder and compiled(encoder, device)

    def loss_of(step):
        pixels = data.views(torch.randint(len(data), (batch,), generator=rng, device=device), rng)
        latent = encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist
        drawn = latent.mean + latent.std * torch.randn(latent.mean.shape, generator=rng, device=device)
        output = decode(drawn).sample.float()
        error, prior = output - pixels, latent.kl().mean() / latent.mean[0].numel()
        losses = {"l1": error.abs().mean(), "l2": error.pow(2).mean(), "kl": 3e-4 * prior}
        if see:
            losses["seen"] = weight * perceptual(see, sizes["patch"], output, pixels, step)
        return losses

    return stage.run(loss_of, batch)


@torch.no_grad()
def make_pool(data, image, vae, views, seed=2):
    """`views` views of every image, encoded once: embeds (N, V, D) and latents (N, V, C, h, w), float16."""
    device, embeds, latents = data.labels.device, [], []
    rng, see, encode = torch.Generator(device).manual_seed(seed), compiled(image, device), compiled(vae.encode, device)
    for index in tqdm(torch.arange(len(data), device=device).split(64), desc="pool", disable=None):
        pixels = torch.cat([data.views(index, rng) for _ in range(views)])
        shape = (views, len(index))
        embeds.append(see(pixels).image_embeds.unflatten(0, shape).transpose(0, 1).half())
        drawn = encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.sample(rng)
        latents.append(drawn.unflatten(0, shape).transpose(0, 1).half().contiguous())
    return torch.cat(embeds), torch.cat(latents)


def cached_pool(work, data, *args):
    """`make_pool`, kept in the work folder."""
    path = Path(work) / "pool.safetensors"
    if not path.exists():
        embeds, latents = make_pool(data, *args)
        save_file({"embeds": embeds, "latents": latents}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    pool = load_file(path, device=str(data.labels.device))
    return pool["embeds"], pool["latents"]


@torch.no_grad()
def hidden_states(text, tokenizer, names):
    """The text encoder's output for every name's prompt and, last, for the empty prompt: (names + 1, L, C)."""
    ids = tokens(tokenizer, [*names, ""]).to(text.device)
    return torch.cat([text(part).last_hidden_state for part in ids.split(256)])


def train_unet(
    data, pool, text, weights, sizes, work, *, batch,
    other=0.25, same=0.0, dropped=0.05, seed=3, name="unet", start=None, **stage,
):  # fmt: skip
    """The denoiser, from a random view of an image to another, or of what else the two probabilities say.

    pool: embeds (N, V, D), latents (N, V, C, h, w); text: hidden states (names + 1, L, C), the last row of the empty
    prompt; weights (N,): how often an image is chosen. The condition is, with probability `other`, of another image
    of the label and, with probability `same`, of the target's own view, as in unCLIP. Embedding noise as there: none
    for half of the rows, else of a random level. Dropped: both conditions, the image alone and the text alone, each
    with probability `dropped`. A further stage has a name of its own and goes on from the weights of `start`.
    """
    embeds, latents = pool
    device, statistics = embeds.device, moments(embeds)
    model = unet(sizes).to(memory_format=torch.channels_last)
    if start is not None:
        model.load_state_dict(start.state_dict())
    stage = Stage(name, {"unet": model}, work, seed=seed, ema=0.9995, device=device, **stage)
    forward, rng = torch.compile(stage.modules["unet"]), stage.rng
    views, n = embeds.shape[1], batch

    def draw(high):
        return torch.randint(high, (n,), generator=rng, device=device)

    def chance():
        return torch.rand(n, generator=rng, device=device)

    def loss_of(step):
        target = torch.multinomial(weights, n, replacement=True, generator=rng)
        source = torch.where(chance() < other, data.another(target, rng), target)
        view = draw(views)
        seen = torch.where(chance() < same, view, draw(views))
        image, labels = embeds[source, seen].float(), data.labels[target]
        return {"v": velocity_loss(forward, latents[target, view], image, statistics, text, labels, data, dropped, rng)}

    return stage.run(loss_of, batch)


def velocity_loss(forward, latents, embeds, statistics, text, labels, data, dropped, rng):
    """The denoiser's squared error at random times, with embedding noise and dropped conditions; see `train_unet`."""
    n, device, (mean, std) = len(latents), latents.device, statistics
    noise_steps, level_steps = diffusion(), noising()

    def chance():
        return torch.rand(n, generator=rng, device=device)

    def noise_like(x):
        return torch.randn(x.shape, generator=rng, device=device)

    clean = latents.float().contiguous(memory_format=torch.channels_last)
    image = (embeds - mean) / std
    level = (chance().mul(2).sub(1).clamp(min=0).pow(2) * 999).long()
    image = level_steps.add_noise(image, noise_like(image), level) * std + mean
    fate = chance() / dropped  # < 1 both, < 2 the image, < 3 the text
    image = torch.cat([image, get_timestep_embedding(level, image.shape[1])], 1).masked_fill(fate[:, None] < 2, 0)
    named = data.named(labels, rng)
    words = text[torch.where((fate < 1) | ((fate >= 2) & (fate < 3)), len(text) - 1, named)]
    noise, t = noise_like(clean), torch.randint(1000, (n,), generator=rng, device=device)
    noisy, velocity = noise_steps.add_noise(clean, noise, t), noise_steps.get_velocity(clean, noise, t)
    output = forward(noisy, t, words, class_labels=image, return_dict=False)[0]
    return F.mse_loss(output, velocity)
