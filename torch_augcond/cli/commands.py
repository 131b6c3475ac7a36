"""What each command of the command line does."""

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torchvision.datasets import ImageFolder

from .. import shards
from ..job import FAILURE_BUDGET, Job
from ..progress import bar
from ..request import DEFAULT_GENERATOR, Request
from ..store import Store
from ..store.imagefile import Corrupt, read_image
from ..transforms import VARIANTS
from . import DONE, ERROR, OVER_BUDGET, UsageError, tell
from .export import export_metadata
from .preview import contact_sheet

if TYPE_CHECKING:
    from ..generators import Generator

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_COMPILE = {"yes": True, "no": False, "regional": "regional"}


def add_generate(parser: argparse.ArgumentParser) -> None:
    _add_set(parser)
    _add_machine(parser)
    parser.add_argument(
        "--shard",
        type=_checked(shards.parse),
        metavar="i/N",
        help="make only this share of the images, "
        "counted from 0; default as torchrun or Slurm (job step, job array) say",
    )
    parser.add_argument(
        "--max-failures",
        type=_checked(_fraction),
        default=FAILURE_BUDGET,
        metavar="F",
        help="failure budget, as a fraction of the images of this run; past it the run stops",
    )


def generate(args: argparse.Namespace) -> int:
    job = Job(_request(args), write=True, load=_loader(args))
    report = job.make(shard=args.shard or _shard(), batch_size=args.batch_size, budget=args.max_failures)
    tell(f"{report.made} images made, {report.present} already there, {report.failed} failed: {job.store.root}")
    if report.failed:
        tell(f"failed: {job.failure_text()}")
    if not report.over(args.max_failures) and not job.unreadable_over(args.max_failures):
        return DONE
    tell(
        f"More than {args.max_failures:.3g} of the images failed"
        + (f", so {report.untried} others were not tried" if report.untried else "")
        + ". Mend what is named above, or allow more with --max-failures, and run the same command again."
    )
    return OVER_BUDGET


def add_status(parser: argparse.ArgumentParser) -> None:
    _add_set(parser)


def status(args: argparse.Namespace) -> int:
    from .status import describe

    for line in describe(_request(args)):
        tell(line)
    return DONE


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="folder of synthetic images")
    parser.add_argument("--full", action="store_true", help="decode every image as well")
    parser.add_argument("--dry-run", action="store_true", help="only report")


def verify(args: argparse.Namespace) -> int:
    store = Store(args.root)
    with suppress(ValueError):  # a damaged record of the settings is one of the files to verify
        store.recorded()
    bad = count = 0
    with bar(sum(1 for _ in store.root.glob("*/*")), "verifying", unit="file") as shown:
        for path, reason in store.verify(repair=not args.dry_run):
            if reason is None and args.full and path.parent != store.root:
                reason = _decode(store, path, repair=not args.dry_run)
            if reason:
                tell(f"{path}: {reason}")
            bad, count = bad + bool(reason), count + 1
            shown.update(1)
    tell(f"{count} files read, {bad} damaged or gone")
    if bad and not args.dry_run:
        tell(f"What is damaged is set aside in {store.aside}: run `torch-augcond generate` to make it again.")
    return ERROR if bad else DONE


def _decode(store: Store, path: Path, repair: bool) -> str | None:
    try:
        read_image(path, path.stem)
    except Corrupt as error:
        if repair:
            store.set_aside(path, "corrupt")
        return error.reason
    return None


def add_preview(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder of real images, one sub-folder for each class")
    parser.add_argument("--out", default="preview.png", metavar="FILE", help="where to write the sheet, as PNG")
    parser.add_argument("--rows", type=_checked(_positive), default=6, metavar="N", help="real images to start from")
    parser.add_argument(
        "--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME", help="columns"
    )
    _add_recipe(parser)
    _add_machine(parser)


def preview(args: argparse.Namespace) -> int:
    generator = _loader(args)(args.generator)
    request = _request(args, generator=generator)
    requests = {name: replace(request, augmentation=name) for name in args.variants}
    sheet = contact_sheet(requests, args.rows, batch_size=args.batch_size)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "PNG")
    tell(f"{out}: {sheet.width} x {sheet.height} pixels")
    return DONE


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="folder of synthetic images")


def export(args: argparse.Namespace) -> int:
    path, count = export_metadata(_store(args.root))
    tell(f"{path}: {count} images")
    return DONE


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder of real images, one sub-folder for each class")
    parser.add_argument(
        "--root", metavar="DIR", help="where the synthetic images lie; default in the Hugging Face cache"
    )
    counts = parser.add_mutually_exclusive_group()
    counts.add_argument(
        "--num-per-image", type=int, metavar="N", help="synthetic images for each real image; default 1"
    )
    counts.add_argument("--num-per-class", type=int, metavar="N", help="synthetic images for each class")
    counts.add_argument("--fill-to", type=int, metavar="N", help="real and synthetic images together for each class")
    parser.add_argument("--augmentation", default="embed-cutmix-dropout", metavar="NAME", help=", ".join(VARIANTS))
    _add_recipe(parser)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--generator",
        default=DEFAULT_GENERATOR,
        metavar="NAME",
        help="checkpoint: a name, a folder, or OWNER/NAME on the Hugging Face Hub; 'tiny' is bundled",
    )
    parser.add_argument("--prompt", default="a photo of a {}", metavar="TEXT", help="template; {} is the class name")
    parser.add_argument(
        "--class-names",
        type=_checked(_json),
        metavar="FILE",
        help="JSON list or {folder: name} of names for the prompts",
    )
    parser.add_argument(
        "--guidance-scale", type=float, metavar="W", help="default 10 up to 16 real images a class on average, else 2"
    )
    parser.add_argument("--num-inference-steps", type=int, default=30, metavar="N", help="denoising steps")
    parser.add_argument("--noise-level", type=int, default=0, metavar="T", help="timestep of the embeddings' noise")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the whole set")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=_checked(_positive), metavar="N", help="images made at once; default by size"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, ...; default the GPU of this process, if any"
    )
    parser.add_argument(
        "--dtype", choices=list(_DTYPES), help="of the weights; default bfloat16 on a GPU, else float32"
    )
    parser.add_argument(
        "--compile", choices=list(_COMPILE), help="whether to compile the networks; default if that saves time"
    )
    parser.add_argument(
        "--scheduler", metavar="NAME", help="dpmpp or unipc (which need fewer steps), ddim, euler or pndm"
    )
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LO", "HI"),
        help="fractions of the steps between which there is guidance; a step without costs half; default 0 1",
    )
    parser.add_argument(
        "--cache-interval",
        type=_checked(_positive),
        metavar="N",
        help="run the UNet's deep layers in every N-th step only; default 1",
    )


def _request(args: argparse.Namespace, **other: Any) -> Request:
    """The set that the arguments describe."""
    dataset = ImageFolder(args.data)  # its errors are about the data, not about the usage
    options = {name: value for name, value in vars(args).items() if name in Request.__dataclass_fields__}
    options |= {**other, "dataset": dataset, "class_names": args.class_names}
    try:
        return Request(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(error) from error


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"must be a JSON file, but {path} is none: {error}") from error


def _loader(args: argparse.Namespace) -> Callable[[str], "Generator"]:
    from ..generators import load_generator

    devices = torch.cuda.device_count()
    device = args.device or (f"cuda:{shards.local_rank() % devices}" if devices else None)
    options = {name: getattr(args, name) for name in ("scheduler", "guidance_interval", "cache_interval", "compile")}
    options["compile"] = _COMPILE.get(args.compile)
    given = {name: value for name, value in options.items() if value is not None}
    return partial(load_generator, device=device, dtype=_DTYPES.get(args.dtype), **given)


def _shard() -> shards.Shard:
    shard = shards.from_environment()
    return shard if shard[1] > 1 else shards.from_slurm()


def _store(root: str) -> Store:
    """A store that somebody has made."""
    store = Store(root)
    store.recorded()
    return store


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """For argparse, which hides the message of a ValueError."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"must be an int of 1 or more, but got {text!r}")
    return int(text)


def _fraction(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError(f"must be between 0 and 1, but got {text!r}")
    return float(text)
