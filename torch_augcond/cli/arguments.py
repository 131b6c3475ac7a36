"""The arguments of each command. Nothing here loads torch, so that help is there at once."""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from .. import shards
from ..defaults import DEFAULT_GENERATOR, FAILURE_BUDGET, MAX_SHOTS, SCHEDULER_NAMES, VARIANT_NAMES

__all__ = ["COMPILE", "add_demo", "add_export", "add_generate", "add_preview", "add_status", "add_verify"]

COMPILE = {"yes": True, "no": False, "regional": "regional"}


def add_generate(parser: argparse.ArgumentParser) -> None:
    _add_set(parser)
    _add_machine(parser)
    parser.add_argument(
        "--shard",
        type=_checked(shards.parse),
        metavar="i/N",
        help="make only this share of the images, "
        "counted from 0 (default: as torchrun or Slurm (job step, job array) say)",
    )
    parser.add_argument(
        "--max-failures",
        type=_checked(_fraction),
        default=FAILURE_BUDGET,
        metavar="F",
        help="failure budget, as a fraction of the images of this run; past it the run stops",
    )


def add_status(parser: argparse.ArgumentParser) -> None:
    _add_set(parser)


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="folder of synthetic images")
    parser.add_argument("--full", action="store_true", help="decode every image as well")
    parser.add_argument("--dry-run", action="store_true", help="only report")


def add_preview(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder of real images, one sub-folder for each class")
    parser.add_argument("--out", default="preview.png", metavar="FILE", help="where to write the sheet, as PNG")
    parser.add_argument("--rows", type=_checked(_positive), default=6, metavar="N", help="real images to start from")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANT_NAMES, metavar="NAME", help="columns (default: all variants)"
    )
    _add_recipe(parser)
    _add_machine(parser)


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", metavar="ROOT", help="folder of synthetic images")


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="augcond-demo", metavar="DIR", help="images and results")
    parser.add_argument(
        "--shots", type=_checked(_shots), default=2, metavar="N", help=f"real images a class, at most {MAX_SHOTS}"
    )
    parser.add_argument(
        "--num-per-class", type=_checked(_positive), default=64, metavar="N", help="synthetic images a class"
    )
    parser.add_argument(
        "--augmentation",
        default="embed-cutmix",
        choices=VARIANT_NAMES,
        metavar="NAME",
        help=f"one of {', '.join(VARIANT_NAMES)}",
    )
    parser.add_argument("--guidance-scale", type=_checked(_guidance), default=2.0, metavar="W", help="1 for none")
    parser.add_argument(
        "--num-inference-steps", type=_checked(_positive), default=10, metavar="N", help="denoising steps, of UniPC"
    )
    parser.add_argument(
        "--synthetic-fraction", type=_checked(_share), default=Fraction(1, 2), metavar="F", help="of a batch"
    )
    parser.add_argument(
        "--seeds", type=_checked(_positive), default=3, metavar="N", help="runs, each with other real images"
    )
    parser.add_argument(
        "--updates", type=_checked(_positive), default=400, metavar="N", help="optimizer steps of each classifier"
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="images to measure on")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder of real images, one sub-folder for each class")
    parser.add_argument(
        "--root", metavar="DIR", help="where the synthetic images lie (default: in the Hugging Face cache)"
    )
    counts = parser.add_mutually_exclusive_group()
    counts.add_argument(
        "--num-per-image", type=int, metavar="N", help="synthetic images for each real image (default: 1)"
    )
    counts.add_argument("--num-per-class", type=int, metavar="N", help="synthetic images for each class")
    counts.add_argument("--fill-to", type=int, metavar="N", help="real and synthetic images together for each class")
    parser.add_argument("--augmentation", default="embed-cutmix-dropout", metavar="NAME", help=", ".join(VARIANT_NAMES))
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
        "--guidance-scale",
        type=float,
        metavar="W",
        help="1 for none (default: 10 up to 16 real images a class on average, else 2)",
    )
    parser.add_argument("--num-inference-steps", type=int, default=30, metavar="N", help="denoising steps")
    parser.add_argument("--noise-level", type=int, default=0, metavar="T", help="timestep of the embeddings' noise")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the whole set")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size", type=_checked(_positive), metavar="N", help="images made at once (default: by size)"
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: the GPU of this process, if any)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="of the weights (default: bfloat16 on a GPU, else float32)",
    )
    parser.add_argument(
        "--compile", choices=list(COMPILE), help="whether to compile the networks (default: if that saves time)"
    )
    parser.add_argument(
        "--scheduler",
        choices=SCHEDULER_NAMES,
        metavar="NAME",
        help="dpmpp or unipc (which need fewer steps), ddim, euler or pndm (default: the checkpoint's own)",
    )
    parser.add_argument(
        "--guidance-interval",
        type=_checked(_fraction),
        nargs=2,
        metavar=("LO", "HI"),
        help="fractions of the steps between which there is guidance; a step without costs half (default: 0 1)",
    )
    parser.add_argument(
        "--cache-interval",
        type=_checked(_positive),
        metavar="N",
        help="run the UNet's deep layers in every N-th step only (default: 1)",
    )


def _json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise ValueError(f"must be a JSON file, but {path} is none: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError(f"{Counter(name for name, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return names


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


def _shots(text: str) -> int:
    if _positive(text) > MAX_SHOTS:
        raise ValueError(f"must be an int from 1 to {MAX_SHOTS}, but got {text!r}")
    return int(text)


def _guidance(text: str) -> float:
    if not float(text) >= 1:
        raise ValueError(f"must be 1 or more, but got {text!r}")
    return float(text)


def _share(text: str) -> Fraction:
    with suppress(ZeroDivisionError):
        if 0 <= (share := Fraction(text)) <= 1:
            return share
    raise ValueError(f"must be between 0 and 1, such as 1/2 or 0.25, but got {text!r}")


def _fraction(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError(f"must be between 0 and 1, but got {text!r}")
    return float(text)
