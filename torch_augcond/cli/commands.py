"""What each command of the command line does."""

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.datasets import ImageFolder

from .. import shards
from ..checks import listed
from ..job import Job
from ..progress import bar
from ..request import Request
from ..store import Store
from ..store.imagefile import Corrupt, read_image
from ..store.scan import FOREIGN
from ..transforms import VARIANTS
from . import DONE, ERROR, OVER_BUDGET, UsageError, shown_while, tell
from .arguments import COMPILE
from .export import export_metadata
from .preview import contact_sheet

if TYPE_CHECKING:
    from ..generators import Generator


_SHEET = "contact sheet"
_CHANGING = ("scheduler", "guidance_interval", "cache_interval")  # options of loading


def generate(args: argparse.Namespace) -> int:
    load = _loader(args)
    # What changes images is compared with what the set was made with, also where nothing is left to be made.
    loaded = {"generator": load(args.generator)} if any(vars(args)[name] is not None for name in _CHANGING) else {}
    job = Job(_request(args, **loaded), write=True, load=load)
    share, count = shard = args.shard or _shard()
    if count > 1:
        why = "" if args.shard else ", as the environment says (--shard 0/1 makes all)"
        tell(f"This is share {share} of {count}{why}.", sys.stderr)
    report = job.make(shard=shard, batch_size=args.batch_size, budget=args.max_failures)
    tell(f"{report.made} images made, {report.present} already there, {report.failed} failed: {job.store.root}")
    if count > 1:
        tell(f"{job.owed(1).sum()} of the set's {len(job.plan)} images are left to the other shares.")
    if report.failed:
        tell(f"failed: {job.failure_text()}")
    if unseen := job.unseen():
        tell(f"None of the real images of class {listed(unseen)} can be read, so it has no synthetic ones.")
    if not (report.over(args.max_failures) or job.unreadable_over(args.max_failures) or unseen):
        return ERROR if report.gone else DONE  # of these, a warning has told
    tell(
        f"More than {args.max_failures:.3g} of the images failed"
        + (f", so {report.untried} others were not tried" if report.untried else "")
        + ". Mend what is named above, or allow more with --max-failures, and run the same command again."
    )
    return OVER_BUDGET


def status(args: argparse.Namespace) -> int:
    from .status import describe

    for line in describe(_request(args)):
        tell(line)
    return DONE


def verify(args: argparse.Namespace) -> int:
    store = Store(args.root)
    with suppress(ValueError):  # a damaged record of the settings is one of the files to verify
        store.recorded()
    bad = foreign = images = others = 0
    total = sum(1 for pattern in (".augcond*", "*/*") for _ in store.root.glob(pattern))
    with bar(total, "verifying", unit="file") as shown:
        for path, reason in store.verify(repair=not args.dry_run):
            if reason is None and args.full and path.parent != store.root:
                reason = _decode(store, path, repair=not args.dry_run)
            if reason:
                tell(f"{path}: {reason}")
            strange = bool(reason) and reason.startswith(FOREIGN)
            bad, foreign = bad + (bool(reason) and not strange), foreign + strange
            images, others = images + (path.parent != store.root), others + (path.parent == store.root)
            shown.update(1)
    tell(
        f"{images} images and {others} other files read, {bad} damaged or gone"
        + (f", {foreign} foreign" if foreign else "")
    )
    if bad and not args.dry_run:
        tell(f"What is damaged is set aside in {store.aside}: run `torch-augcond generate` to make it again.")
    if foreign and not args.dry_run:
        tell(f"What is no part of the set lies in {store.aside / 'foreign'} now.")
    return ERROR if bad or foreign else DONE


def _decode(store: Store, path: Path, repair: bool) -> str | None:
    try:
        read_image(path, path.stem)
    except Corrupt as error:
        if repair:
            store.set_aside(path, "corrupt")
        return error.reason
    except FileNotFoundError:  # set aside meanwhile
        return None
    return None


def preview(args: argparse.Namespace) -> int:
    if Path(args.out).suffix.lower() != ".png" or Path(args.out).is_dir():
        raise UsageError(f"--out must be a file called *.png, but got {args.out!r}")
    real = Path(args.data)
    folders = [real, *filter(Path.is_dir, real.iterdir())] if real.is_dir() else []  # some may be links
    if not {folder.resolve() for folder in folders}.isdisjoint(Path(args.out).resolve().parents):
        raise UsageError(f"--out must lie outside of the real images, but got {args.out!r} in {args.data!r}")
    if Path(args.out).exists() and not _is_sheet(args.out):
        raise UsageError(f"--out must be a new file or a sheet of before, but {args.out!r} is another one")
    generator = _loader(args)(args.generator)
    request = _request(args, generator=generator)
    requests = {name: replace(request, augmentation=name) for name in args.variants or VARIANTS}
    sheet = contact_sheet(requests, args.rows, batch_size=args.batch_size)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = PngInfo()
    mark.add_itxt("augcond", _SHEET)  # no real image, wherever it lies
    sheet.save(out, "PNG", pnginfo=mark)
    tell(f"{out}: {sheet.width} x {sheet.height} pixels")
    return DONE


def _is_sheet(path: str) -> bool:
    with suppress(OSError), Image.open(path, formats=["PNG"]) as image:
        return image.info.get("augcond") == _SHEET
    return False


def export(args: argparse.Namespace) -> int:
    path, count = export_metadata(_store(args.root))
    tell(f"{path}: {count} images")
    return DONE


def demo(args: argparse.Namespace) -> int:
    from .demo import run

    run(args)
    return DONE


def _request(args: argparse.Namespace, **other: Any) -> Request:
    """The set that the arguments describe."""
    if not Path(args.data).is_dir():
        raise FileNotFoundError(f"`DATA` must be a folder of real images, but there is no folder {args.data!r}.")
    dataset = ImageFolder(args.data)  # its errors are about the data, not about the usage
    options = {name: value for name, value in vars(args).items() if name in Request.__dataclass_fields__}
    options |= {**other, "dataset": dataset, "class_names": args.class_names}
    try:
        return Request(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(error) from error


def _loader(args: argparse.Namespace) -> Callable[[str], "Generator"]:
    from ..generators import load_generator

    try:
        torch.device(args.device or "cpu")
    except RuntimeError:
        raise UsageError(f"--device must be cpu, cuda, cuda:1, ..., but got {args.device!r}") from None
    if args.guidance_interval and args.guidance_interval[0] >= args.guidance_interval[1]:
        got = "{:g} {:g}".format(*args.guidance_interval)
        raise UsageError(f"--guidance-interval must be LO below HI, but got {got}. For no guidance: --guidance-scale 1")
    devices = torch.cuda.device_count()
    device = args.device or (f"cuda:{shards.local_rank() % devices}" if devices else None)
    options = {name: getattr(args, name) for name in (*_CHANGING, "compile")}
    options["compile"] = COMPILE.get(args.compile)
    given = {name: value for name, value in options.items() if value is not None}
    given |= {"device": device, "dtype": getattr(torch, args.dtype) if args.dtype else None}

    def load(name: str) -> "Generator":
        with shown_while(f"loading {name} ..."):
            return load_generator(name, **given)

    return load


def _shard() -> shards.Shard:
    shard = shards.from_environment()
    return shard if shard[1] > 1 else shards.from_slurm()


def _store(root: str) -> Store:
    """A store that somebody has made."""
    store = Store(root)
    store.recorded()
    return store
