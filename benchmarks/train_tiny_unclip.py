"""Train the bundled handwriting model `tiny`: `python benchmarks/train_tiny_unclip.py --omniglot ZIP --fonts DIR`.

Run it again to go on from where it stopped. Stages may run side by side: `--stage clip` and `--stage vae` need nothing,
`--stage unet` needs both, `--stage refine` the UNet, `--stage joint` all of them, `--stage export` writes the folder.
"""

import argparse
from pathlib import Path

import glyphs
import torch
import unclip_joint as joint
import unclip_parts as parts
import unclip_trainer as trainer
from arguments import run_main

SIZES = {
    "image": 32, "patch": 8, "vision": 128, "vision_layers": 4, "embed": 256, "text": 64, "text_layers": 2,
    "vae": (16, 32, 64), "unet": (48, 96), "time": 256,
}  # fmt: skip
VOCABULARY, LENGTH = 1200, 24
VIEWS = 16  # kept views of each drawing
MINUTES = (22, 22, 60, 45, 45)
STAGES = ("clip", "vae", "unet", "refine", "joint", "export")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--omniglot", required=True, help="zip of Omniglot drawings")
    parser.add_argument("--fonts", help="folder of fonts, searched for letters (default: none)")
    parser.add_argument("--work", default="tiny-unclip-work", help="checkpoints and logs (default: %(default)s)")
    parser.add_argument("--out", default="torch_augcond/checkpoints/tiny-unclip", help="default: %(default)s")
    parser.add_argument("--stage", choices=STAGES, help="only this stage (default: all)")
    parser.add_argument("--minutes", type=float, nargs=5, default=MINUTES, metavar=tuple(map(str.upper, STAGES[:5])),
                        help="default: %(default)s")  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    data = glyphs.load(args.omniglot, args.fonts)
    tokenizer = parts.make_tokenizer(data.names, work / "tokenizer", VOCABULARY, LENGTH)
    stages = [args.stage] if args.stage else STAGES
    minutes = dict(zip(STAGES, (*args.minutes, 0), strict=True))
    # A finished stage returns at once, so what a later one needs of it is read by the same call.
    if {"clip", "unet", "refine", "joint", "export"} & set(stages):
        clip = trainer.train_clip(data, tokenizer, SIZES, work, minutes=minutes["clip"], batch=128, lr=1e-3)
    if {"vae", "unet", "refine", "joint", "export"} & set(stages):
        vae = trainer.train_vae(data, SIZES, work, minutes=minutes["vae"], batch=32, lr=1.5e-3)["vae"]
    if {"unet", "refine", "joint", "export"} & set(stages):
        sample = torch.randint(len(data), (2048,), generator=torch.Generator().manual_seed(4))
        vae = parts.standardise(vae, data.views(sample, torch.Generator().manual_seed(5)))
        pool = trainer.cached_pool(work, data, clip["image"], vae, VIEWS)
        text = trainer.hidden_states(clip["text"], tokenizer, data.names)
        drawn_by_hand = torch.tensor(["character" in name for name in data.names])[data.labels]
        weights = torch.where(drawn_by_hand, 3.0, 1.0)
        inputs = (data, pool, text, weights, SIZES, work)
        unet = trainer.train_unet(*inputs, minutes=minutes["unet"], batch=128, lr=1e-3)["unet"]
    if {"refine", "joint", "export"} & set(stages):
        options = {"name": "refine", "start": unet, "other": 0.0, "same": 1.0, "seed": 6}
        unet = trainer.train_unet(*inputs, minutes=minutes["refine"], batch=128, lr=4e-4, **options)["unet"]
    if {"joint", "export"} & set(stages):
        pixels = joint.pool_pixels(data, pool[1])
        options = {"image": clip["image"], "denoiser": unet, "minutes": minutes["joint"], "batch": 128, "lr": 5e-4}
        both = joint.train_joint(data, pool, pixels, *inputs[2:], **options)
    if "export" in stages:
        embeds = joint.embeddings(both["image"], pixels)
        parts.export(both["image"], clip["text"], tokenizer, vae, both["unet"], embeds, SIZES, args.out)


if __name__ == "__main__":
    run_main(main)
