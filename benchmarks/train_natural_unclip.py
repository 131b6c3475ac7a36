"""Train the small unCLIP of photographs, and the two networks that look at it, in calls of limited length.

    python benchmarks/train_natural_unclip.py --data base_0.safetensors base_1.safetensors --budget-minutes 9.5

The data are Tiny-ImageNet's, packed as `photographs.packed` reads them; one file or both. Each call goes on where the
last one stopped: it loads the stages' checkpoints from the work folder, trains until its budget is spent, writes the
loss curves and, of what is finished, the folder of the pipeline and the judges' files. A call that found all stages
finished only writes. Two calls of ten minutes suit one H100; `--minutes` divides another machine's time.

On a machine with a GPU that nothing can be installed on, give it this repository, the data and a wheel of diffusers:

    python -m pip install --no-index --no-deps --target site diffusers-*.whl
    PYTHONPATH=site:. python benchmarks/train_natural_unclip.py --data base_*.safetensors --budget-minutes 9.5
    PYTHONPATH=site:. python benchmarks/train_natural_unclip.py --data base_*.safetensors --budget-minutes 9

The work folder (a few gigabytes, most of it views encoded once) stays there between the calls. What is worth bringing
back afterwards has 40 MB; cut to any size a transfer allows:

    tar c OUT JUDGES WORK/*.csv WORK/*.png | split -b 15M - natural.tar.      # cat natural.tar.* | tar x

Then `benchmarks/measure_natural_unclip.py`.
"""

import argparse
import time
from pathlib import Path

import judges
import photographs
import torch
import unclip_parts as parts
import unclip_trainer as trainer
from arguments import run_main
from curves import curves
from stages import OutOfTime

SIZES = {
    "image": 64, "patch": 8, "vision": 192, "vision_layers": 6, "wider": 3, "embed": 512, "text": 128, "text_layers": 2,
    "sketch": 3, "vae": (32, 48, 72, 96), "latent": 8, "unet": (96, 160), "time": 256,
    "time_scale_shift": "scale_shift",
}  # fmt: skip
VOCABULARY, LENGTH = 1600, 24
VIEWS = 16  # of each photograph, encoded once for the UNet
STAGES = {"classifier": 1.5, "measure": 1.5, "clip": 4, "vae": 3.5, "unet": 7}  # minutes of training on an H100
BATCHES = {"classifier": 512, "measure": 512, "clip": 1024, "vae": 256, "unet": 1024}
RATES = {"classifier": 2e-3, "measure": 2e-3, "clip": 1e-3, "vae": 1e-3, "unet": 1e-3}


class Training:
    """The stages in their order; each takes from the ones before it what `finished` holds.

    Args:
        stage: Further arguments of every `Stage`: `until`, and for tests `steps`, `bf16`.
    """

    def __init__(self, data, work, *, sizes=SIZES, minutes=STAGES, batches=BATCHES, views=VIEWS, **stage):
        self.data, self.work, self.sizes, self.views, self.stage = data, Path(work), sizes, views, stage
        self.minutes, self.batches, self.finished = minutes, batches, {}
        self.tokenizer = parts.make_tokenizer(data.names, self.work / "tokenizer", VOCABULARY, LENGTH)

    def settings(self, name):
        return {"minutes": self.minutes[name], "batch": self.batches[name], "lr": RATES[name], **self.stage}

    def run(self, names=STAGES):
        """Train these stages, or read the finished ones; whatever was finished before the time was over stays."""
        for name in names:
            self.finished[name] = getattr(self, name)()
            print(f"{name} is finished.", flush=True)

    def classifier(self):
        return self._judge("classifier")

    def measure(self):
        return self._judge("measure")

    def _judge(self, name):
        data = self.data.seen(**judges.VIEWS[name])
        return judges.train_judge(name, data, judges.JUDGES[name], self.work, **self.settings(name))

    def clip(self):
        data = self.data.seen(crop=(0.3, 1.0), jitter=0.3)
        options = {"sketch": 3.0, "weight_decay": 0.05}
        return trainer.train_clip(data, self.tokenizer, self.sizes, self.work, **options, **self.settings("clip"))

    def vae(self):
        encoder = self.finished["clip"]["image"]
        vae = trainer.train_vae(self.data, self.sizes, self.work, encoder=encoder, **self.settings("vae"))["vae"]
        index = torch.arange(min(2048, len(self.data)), device=self.data.labels.device)
        return parts.standardise(vae, self.data.views(index, torch.Generator(index.device).manual_seed(5)))

    def pool(self):
        clip, vae = self.finished["clip"], self.finished["vae"]
        return trainer.cached_pool(self.work, self.data, clip["image"], vae, self.views)

    def unet(self):
        """From the very view it draws, as in unCLIP; a tenth of the images and a tenth of the texts dropped."""
        text = trainer.hidden_states(self.finished["clip"]["text"], self.tokenizer, self.data.names)
        weights = torch.ones(len(self.data), device=self.data.labels.device)
        condition = {"other": 0.0, "same": 1.0, "dropped": 0.05}
        inputs = (self.data, self.pool(), text, weights, self.sizes, self.work)
        return trainer.train_unet(*inputs, **condition, **self.settings("unet"))["unet"]

    def write(self, out, folder):
        """The pipeline's folder, once the UNet is finished, and the judges that are."""
        classes = [texts[0] for texts in self.data.texts]
        for name in judges.JUDGES.keys() & self.finished.keys():
            Path(folder).mkdir(parents=True, exist_ok=True)
            path = Path(folder) / f"{name}.safetensors"
            judges.save_judge(self.finished[name], judges.JUDGES[name], classes, path)
        if "unet" in self.finished:
            clip, vae, unet = (self.finished[name] for name in ("clip", "vae", "unet"))
            embeds = self.pool()[0]
            parts.export(clip["image"], clip["text"], self.tokenizer, vae, unet, embeds, self.sizes, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="safetensors files of packed photographs")
    parser.add_argument("--work", default="natural-unclip-work", help="checkpoints and logs (default: %(default)s)")
    parser.add_argument("--out", default="torch_augcond/checkpoints/tiny-natural", help="default: %(default)s")
    parser.add_argument("--judges", default="benchmarks/judges", help="for the classifiers (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="default: all")
    parser.add_argument("--minutes", type=float, nargs=5, default=list(STAGES.values()), metavar=tuple(STAGES),
                        help="of each stage in all (default: %(default)s)")  # fmt: skip
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="of this call (default: no limit)")
    parser.add_argument("--batch", type=int, help="images of every stage's batch (default: what suits an H100)")
    parser.add_argument("--limit", type=int, help="photographs of each file, to try it (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.budget_minutes
    torch.manual_seed(0)
    if args.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.suppress_errors = True  # what can't be compiled runs as it is: slower, but no time is lost
    Path(args.work).mkdir(parents=True, exist_ok=True)
    data = photographs.packed(args.data, args.device, args.limit)
    minutes = dict(zip(STAGES, args.minutes, strict=True))
    batches = dict.fromkeys(STAGES, args.batch) if args.batch else BATCHES
    training = Training(data, args.work, sizes=SIZES, minutes=minutes, batches=batches, until=until)
    try:
        training.run([name for name in STAGES if name in needed(args.stages)])
    except OutOfTime as stopped:
        print(f"{stopped} Run the same command again to go on.")
    training.write(args.out, args.judges)
    curves(args.work, Path(args.work) / "curves.png")


def needed(names):
    """These stages and those that they take something from."""
    before = {"vae": {"clip"}, "unet": {"clip", "vae"}}
    return set(names).union(*(before.get(name, ()) for name in names))


if __name__ == "__main__":
    run_main(main)
