"""The ways of making one set of images that `bench_generate.py` compares. Each takes sources from files to files."""

from functools import partial
from itertools import count

import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from torch_augcond import StableUnCLIPGenerator
from torch_augcond.functional import Purpose, normal
from torch_augcond.job import Job
from torch_augcond.progress import silent
from torch_augcond.request import Request
from torch_augcond.store.imagefile import extension

__all__ = ["LOOP", "OURS", "OURS_COMPILED", "STOCK", "contenders", "is_shortcut"]

LOOP = "diffusers, once an image"
BATCHED, TUNED = "diffusers, batched", "diffusers, batched, compiled, channels_last"
OURS, OURS_COMPILED = "torch_augcond, compile=False", "torch_augcond, compile=True"
STOCK = (BATCHED, TUNED)
SLICED = 16  # images that a stock pipeline decodes at once, at most
SHORTCUTS = {  # options, and the share of the steps
    "guided in 0.0-0.6": ({"guidance_interval": (0.0, 0.6)}, 1),
    "dpmpp, half the steps": ({"scheduler": "dpmpp"}, 1 / 2),
    "unipc, a third of the steps": ({"scheduler": "unipc"}, 1 / 3),
    "cache_interval 3": ({"cache_interval": 3}, 1),
}


def contenders(load, real, folder, batch, args):
    """{case: function that makes all images (the loop: the first of them) and returns them, uint8 (N, 3, H, W)}.

    `load` makes a generator; what is compiled or laid out anew gets weights of its own, which are the same.
    """
    numbers = {"guidance_scale": args.guidance, "num_inference_steps": args.steps}
    plain, fresh = load(), count()
    recipes = list(job(plain, real, folder / "plan", numbers).plan)
    loop = partial(make_stock, real, recipes[: args.loop_images], folder, numbers, plain, 1)
    stock = partial(make_stock, real, recipes, folder, numbers)
    ours = partial(make_ours, real, folder, fresh, min(batch, len(recipes)))
    found = {LOOP: loop}
    if not args.shortcuts:
        found |= {BATCHED: partial(stock, plain, batch), OURS: partial(ours, plain, numbers)}
    if args.compile:
        found |= {} if args.shortcuts else {TUNED: partial(stock, tuned(load()), batch)}
        found[OURS_COMPILED] = partial(ours, with_options(load(), compile=True), numbers)
    for name, (options, share) in SHORTCUTS.items() if args.shortcuts else ():
        way, steps = with_options(load(), compile=args.compile, **options), round(share * args.steps)
        found[f"torch_augcond, {name}"] = partial(ours, way, numbers | {"num_inference_steps": steps})
    return found


def is_shortcut(case):
    return case.removeprefix("torch_augcond, ") in SHORTCUTS


def with_options(generator, **options):
    """The same weights with other options."""
    return StableUnCLIPGenerator(generator.pipe, fingerprint=generator.checkpoint, **options)


def tuned(generator):
    """As diffusers' documentation advises."""
    pipe = generator.pipe
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.unet = torch.compile(pipe.unet.to(memory_format=torch.channels_last), dynamic=False)
    pipe.vae.decode = torch.compile(pipe.vae.decode, dynamic=False)
    return generator


def make_stock(real, recipes, folder, numbers, generator, batch):
    """The pipeline's own call, given the noise that we would draw; files of the format and quality that we write."""
    pipe, images, ending = generator.pipe, [], extension(generator.image_size)
    pipe.set_progress_bar_config(disable=True)
    pipe.image_normalizer.float()  # in bfloat16 its scheduler adds no noise at level 0, which would be other images
    if batch > SLICED:
        pipe.vae.enable_slicing()  # 64 images of 768 pixels don't fit a GPU at once
    for start in range(0, len(recipes), batch):
        rows = recipes[start : start + batch]
        keys = torch.tensor([recipe.seed for recipe in rows])
        noise = normal(keys, Purpose.NOISE, generator.embed_dim).to(generator.device)
        pipe.noise_image_embeddings = lambda image_embeds, noise_level, generator, noise=noise: (
            type(pipe)
            .noise_image_embeddings(pipe, image_embeds.float(), noise_level, noise=noise)
            .to(image_embeds.dtype)
        )
        made = pipe(
            image=[real.loader(real.samples[recipe.sources[0]][0]) for recipe in rows],
            prompt=[recipe.prompt for recipe in rows],
            latents=generator.latents(keys).to(generator.device, generator.dtype),
            **numbers,
        ).images
        for recipe, image in zip(rows, made, strict=True):
            image.save(folder / f"{recipe.key}.{ending}", quality=95)
        images += map(pil_to_tensor, made)
    return torch.stack(images)


def make_ours(real, folder, fresh, batch, generator, numbers):
    """A new set each time, so that nothing is cached from the round before; as the generator gave the images out."""
    work = job(generator, real, folder / f"ours-{next(fresh)}", numbers)
    made, generate = {}, type(generator).generate

    def recorded(embeds, prompts, keys, **options):
        if len(keys) != batch:
            raise RuntimeError(f"out of memory for a batch of {batch}: it went on with {len(keys)}")
        images = generate(generator, embeds, prompts, keys, **options)
        made.update(zip(keys.tolist(), images, strict=True))
        return images

    generator.generate = recorded
    report = work.make(batch_size=batch)
    if report.made != len(work.plan):
        raise RuntimeError(f"{report.failed} of {len(work.plan)} images failed: {work.failure_text()}")
    return torch.stack([made[recipe.seed] for recipe in work.plan])


def job(generator, real, root, numbers):
    request = Request(dataset=real, augmentation="real", generator=generator, root=root, **numbers)
    return Job(request, write=True, load=lambda name: generator, progress=silent)
