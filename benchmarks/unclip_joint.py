"""The last stage of a small unCLIP: denoiser and image encoder together, so that embeddings hold what images need.

An encoder that was trained to tell images apart leaves out what it can do without (the second loop of an 8), and no
denoiser brings that back. Here the denoiser's loss reaches the encoder; two views of one image stay neighbours.
"""

import torch
from stages import Stage, compiled
from tqdm import tqdm
from unclip_parts import image_encoder, moments, unet
from unclip_trainer import contrast, velocity_loss


@torch.no_grad()
def pool_pixels(data, latents, seed=2):
    """The pixels (N, V, H, W), uint8, of the first channel of the views of `make_pool`: its random numbers again."""
    device, pixels, views = data.labels.device, [], latents.shape[1]
    rng = torch.Generator(device).manual_seed(seed)
    for index in tqdm(torch.arange(len(data), device=device).split(64), desc="pixels", disable=None):
        chunk = torch.stack([data.views(index, rng)[:, 0] for _ in range(views)], 1)
        torch.randn(views * len(index), *latents.shape[2:], generator=rng, device=device)  # the autoencoder's sample
        pixels.append(((chunk + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(pixels)


def train_joint(
    data, pool, pixels, text, weights, sizes, work, *, image, denoiser, batch, dropped=0.05, seed=9, **stage
):
    """Go on from `image` and `denoiser`: each target's own view is the condition, as in unCLIP.

    pixels (N, V, H, W): what `pool_pixels` gives; the others as for `train_unet`.
    """
    embeds, latents = pool
    device, statistics = embeds.device, moments(embeds)
    modules = {"unet": unet(sizes).to(memory_format=torch.channels_last), "image": image_encoder(sizes)}
    modules["unet"].load_state_dict(denoiser.state_dict())
    modules["image"].load_state_dict(image.state_dict())
    stage = Stage("joint", modules, work, seed=seed, ema=0.9995, device=device, **stage)
    forward, encode = torch.compile(stage.modules["unet"]), compiled(stage.modules["image"], device)
    rng, scale, itself = stage.rng, torch.tensor(2.5, device=device), torch.eye(batch, device=device)

    def draw(high):
        return torch.randint(high, (batch,), generator=rng, device=device)

    def loss_of(step):
        target = torch.multinomial(weights, batch, replacement=True, generator=rng)
        view, other = draw(latents.shape[1]), draw(latents.shape[1])
        drawn = pixels[target.repeat(2), torch.cat([view, other])].float().div(127.5).sub(1)
        seen, neighbour = encode(drawn[:, None].expand(-1, 3, -1, -1)).image_embeds.chunk(2)
        labels, clean = data.labels[target], latents[target, view]
        return {
            "v": velocity_loss(forward, clean, seen, statistics, text, labels, data, dropped, rng),
            "view": 0.04 * contrast(seen, neighbour, scale, itself),
            "size": 0.01 * (seen.pow(2).mean() - 1).pow(2),
        }

    return stage.run(loss_of, batch)


@torch.no_grad()
def embeddings(image, pixels, count=4096, seed=7):
    """Embeddings (n, 1, D) of `count` random views: what the exported normaliser's statistics are measured on."""
    rng = torch.Generator(pixels.device).manual_seed(seed)
    flat = pixels.flatten(0, 1)
    chosen = flat[torch.randint(len(flat), (count,), generator=rng, device=pixels.device)].float().div(127.5).sub(1)
    parts = [image(part[:, None].expand(-1, 3, -1, -1)).image_embeds for part in chosen.split(256)]
    return torch.cat(parts)[:, None]
