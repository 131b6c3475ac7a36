"""The synthetic images of a dataset, as a dataset."""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset
from torchvision.datasets import DatasetFolder, VisionDataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.vision import StandardTransform

from . import shards
from .checks import as_int, listed, warn
from .defaults import FAILURE_BUDGET
from .job import Job, NothingMade
from .plan.recipe import readable
from .progress import bar, silent, track
from .request import Request
from .samples import Samples
from .sources.layers import layers
from .sources.takeover import Takeover, transform_of
from .store.imagefile import check, load_image

if TYPE_CHECKING:
    from .generators import Generator

__all__ = ["AugConditionedSynthetic"]


class _Inherited:
    """An attribute that is the wrapped dataset's until it is set.

    Looked up at each access: some training scripts set a dataset's transform long after it was made. Whether it can be
    taken over is checked when other datasets have one than at the last access, or other ones are one and the same.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, dataset: "AugConditionedSynthetic | None", owner: type | None = None) -> Any:
        if dataset is None:
            return self
        if self.name in dataset._own:
            return dataset._own[self.name]
        found = [transform_of(layer, self.name) for layer in dataset._wrapped]
        state = [*found, *(self._of_joint(getattr(layer, "transforms", None)) for layer in dataset._wrapped)]
        if not all(map(_is_same, dataset._checked.setdefault(self.name, state), state)):
            takeover = Takeover(dataset._real[0])
            late = self.name == "transform" and "target_transform" not in dataset._own and takeover.is_joint
            for name in [self.name, "target_transform"] if late else [self.name]:
                _check(takeover, name)
            dataset._checked[self.name] = state
        return next((value for value in found if value is not None), None)

    def _of_joint(self, joint: Any) -> Any:
        """What a `transforms` of image and label does: of torchvision's, the one of this name that it holds."""
        return getattr(joint, self.name) if isinstance(joint, StandardTransform) else joint

    def __set__(self, dataset: "AugConditionedSynthetic", value: Callable | None) -> None:
        dataset.__dict__.setdefault("_own", {})[self.name] = value


def _is_same(transform: Any, other: Any) -> bool:
    """A method is another object each time that it is looked up."""
    return transform is other or (isinstance(other, MethodType) and transform == other)


def _check(takeover: Takeover, name: str) -> None:
    if name == "transform":
        takeover.check_transform()
    else:
        takeover.check_target_transform(track("comparing labels"))


class AugConditionedSynthetic(DatasetFolder):
    """Synthetic images of the classes of ``dataset``, each conditioned on its real images, as a torchvision dataset.

    What is missing is made when the dataset is constructed and kept in ``root``, a plain ``ImageFolder``; nothing is
    ever made in ``__getitem__``. Every image is a function of its recipe: a larger count only adds images, and images
    are made again only if their source's content or the configuration changes. Labels are those of ``dataset``, so
    ``dataset + synthetic`` is one training set; ``classes`` has the names in the order of their labels.

    In a process started by torchrun, or with a process group initialised, each rank makes its share on its own device
    and all wait for the rest.

    Args:
        dataset: Any map-style dataset of (image, int label). Images are taken as its own loader reads them, before its
            transforms.
        augmentation: The name of one of ``VARIANTS``, a transform, or a sequence of transforms.
        num_per_image: Images for each real one. Exactly one of this and the next two may be given; default 1. An empty
            set is possible: 0 here, and 0 or {} below.
        num_per_class: Images for each class, an int or {class: int}; a class that isn't named gets none.
        fill_to: Real and synthetic images together make this many in each class that has fewer.
        generator: None for the default checkpoint, a name or path for ``load_generator`` (``"tiny"`` is bundled), or
            a generator.
        prompt: A template, in which underscores of the dataset's class names become spaces, {class: prompt}, or a
            function of the class name.
        class_names: Names to use in prompts instead of the dataset's: a list, or {class: name}.
        guidance_scale: None for the paper's value: 10.0 up to 16 real images a class on average, else 2.0. A set that
            exists keeps the one it was made with.
        num_inference_steps: Denoising steps.
        noise_level: Timestep of the noise that is added to embeddings.
        seed: Of the whole set.
        root: Where the images are kept; default a folder in the Hugging Face assets cache.
        transform: Of the images. None takes over the wrapped dataset's, as it is when an image is read (ValueError,
            if it is ambiguous by then).
        target_transform: Of the labels; None likewise.
        generate: Whether to make what is missing, as torchvision's ``download``.
        batch_size: Images made at once; default by their size and the memory that is free.

    Raises:
        TypeError, ValueError: If an argument is none of these, ``root`` holds a set of another configuration, or a
            transform to be taken over is ambiguous (only parts of ``dataset`` have it, say).
        FileNotFoundError: If ``generate`` is false and images are missing; it names the command that makes them.
        RuntimeError: If more than 1 % of the images can't be made; nothing further is tried then. Fewer are left out
            with a warning. Or if images went from ``root`` meanwhile.

    Example:
        >>> real = ImageFolder("flowers/train", transform=transform)
        >>> synthetic = AugConditionedSynthetic(real, num_per_class=64)
        >>> train = real + synthetic

    Source: arXiv 2502.04475.
    """

    is_synthetic = True

    def __init__(
        self,
        dataset: Any,
        augmentation: Any = "embed-cutmix-dropout",
        *,
        num_per_image: int | None = None,
        num_per_class: int | Mapping[str, int] | None = None,
        fill_to: int | None = None,
        generator: Any = None,
        prompt: str | Mapping[str, str] | Callable[[str], str] = "a photo of a {}",
        class_names: Sequence[str] | Mapping[str, str] | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int = 30,
        noise_level: int = 0,
        seed: int = 0,
        root: str | os.PathLike | None = None,
        transform: Callable | None = None,
        target_transform: Callable | None = None,
        generate: bool = True,
        batch_size: int | None = None,
    ) -> None:
        given = dict(locals())
        if not isinstance(generate, bool):
            raise TypeError(f"`generate` must be True or False, but got {generate!r}.")
        if batch_size is not None:
            batch_size = as_int("batch_size", batch_size, 1)
        own = {name: given[name] for name in ("transform", "target_transform") if given[name] is not None}
        for name, value in own.items():
            if not callable(value):
                raise TypeError(f"`{name}` must be None or callable, but got {type(value).__name__}.")
        request = Request(**{field.name: given[field.name] for field in fields(Request)})
        takeover, used = Takeover(request.sources), dict(own)
        for name in sorted({"transform", "target_transform"} - own.keys()):  # before hours of making images
            _check(takeover, name)
            used[name] = getattr(takeover, name)
        wrapped, check = tuple(layers(request.sources.dataset)), partial(takeover.warn_if_unlike, **used)
        job = _make(request, batch_size, check) if generate else _find(request)
        VisionDataset.__init__(self, os.fspath(job.store.root))
        self._wrapped, self._own = wrapped, own
        self.loader, self.extensions = load_image, IMG_EXTENSIONS
        self.classes, self.class_to_idx = job.sources.classes, job.sources.class_to_idx
        self.samples, self.settings = _samples(job), job.settings
        self._real, self._checked = (job.sources, job.plan.contents), {}
        job.sources.release()
        if self.transform or self.target_transform:
            self.transforms = StandardTransform(self.transform, self.target_transform)

    transform = _Inherited()
    target_transform = _Inherited()

    @property
    def targets(self) -> list[int]:
        """The label of every image: of ``samples`` as it is, which may be replaced by a list of (path, label)."""
        samples = self.samples
        of, length, labels = self.__dict__.get("_targets", (None, 0, None))
        if of is samples and length == len(samples):
            return labels
        if not isinstance(samples, Samples):  # it may be shuffled in place
            return [label for _, label in samples]
        self.targets = labels = samples.labels.tolist()
        return labels

    @targets.setter
    def targets(self, labels: list[int]) -> None:
        self._targets = self.samples, len(self.samples), labels

    def provenance(self, index: int) -> dict[str, Any]:
        """What made image ``index``: sources, drawn numbers, prompt, checkpoint and all settings.

        Its label and the names of its sources are those that the wrapped dataset had when this one was constructed:
        files may have been renamed since the image was made, and items reordered. A source that isn't there any more,
        and in a worker process each one, has the name that it had then, from the dataset's folder on: an image tells
        nobody where that lay. Its content is ``digests`` in any case.

        Raises:
            IndexError: If there is no such image.
            Corrupt: If its file is damaged.
        """
        path, label = self.samples[index]
        record = check(path, Path(path).stem)
        sources = [self._named(*pair, label) for pair in zip(record["digests"], record["sources"], strict=True)]
        return record | {"label": label, "sources": sources}

    def _named(self, digest: str, then: str, label: int) -> str:
        """What the real image with a content is called now, of several one of this label; else what it was then."""
        if self._real is None:
            return then
        sources, contents = self._real
        rows = np.flatnonzero((contents == np.frombuffer(bytes.fromhex(digest), np.uint8)).all(axis=1))
        same = rows[sources.labels[rows] == label]
        names = {sources.place(i): sources.name(i) for i in (same if len(same) else rows)}
        return names.get(then) or next(iter(names.values()), then)

    def __getstate__(self) -> dict[str, Any]:
        # A worker needs neither the real images nor what made the synthetic ones.
        own = {name: getattr(self, name) for name in ("transform", "target_transform")}
        state = self.__dict__ | {"_wrapped": (), "_own": own, "_real": None, "_checked": {}}
        state.pop("_targets", None)  # made again from the samples, which are far smaller
        return state

    def __copy__(self) -> "AugConditionedSynthetic":
        twin = type(self).__new__(type(self))  # not by `__getstate__`: it goes on taking over the transforms
        twin.__dict__.update(self.__dict__ | {"_own": dict(self._own)})
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> "AugConditionedSynthetic":
        memo[id(self)] = twin = type(self).__new__(type(self))  # of `real + synthetic`, they stay joined
        before = dict(memo)
        try:
            state = copy.deepcopy(self.__dict__, memo)
        except Exception:  # the real images can't be copied, so there is nothing to be joined with
            memo.clear()
            memo.update(before)  # without the half of a copy
            state = copy.deepcopy(self.__getstate__(), memo)
        twin.__dict__.update(state)
        return twin

    def __radd__(self, other: Any) -> ConcatDataset:
        return ConcatDataset([other, self])

    def extra_repr(self) -> str:
        from .generators.checkpoints import short_name

        made = self.settings
        short = short_name(made.checkpoint)
        return "\n".join(
            [
                f"Augmentation: {readable(made.augmentation)}",
                f"Checkpoint: {made.checkpoint}{f' ({short})' if short else ''}",
                f"Guidance scale: {made.guidance_scale:g}, steps: {made.num_inference_steps}, seed: {made.seed}",
            ]
        )


def _load(name: str) -> "Generator":
    from .generators import load_generator

    rank, devices = shards.local_rank(), torch.cuda.device_count()
    alone = shards.from_environment()[1] == 1
    return load_generator(name, device=None if alone or not devices else f"cuda:{rank % devices}")


def _make(request: Request, batch_size: int | None, check: Callable[[int], None]) -> Job:
    """The set with everything made: by this process, or by all of its process group.

    Args:
        check: Is given the size of the images before they are made.
    """
    rank, count = shard = shards.from_environment()
    job = Job(request, write=True, load=_load, progress=silent if rank else bar)
    _check_readable(job)
    check(job.settings.image_size)
    plan = _agreed(job)
    beat = shards.Heartbeat(job.store.root, shard, plan)
    with beat if count > 1 else nullcontext():
        # What has failed stays failed: the ranks must agree on the length of the dataset, and so must a run that goes
        # on later. Only what would be refused, and by one process, is tried again: the cause may have passed.
        retry = count == 1 and job.given_up().sum() > FAILURE_BUDGET * len(job.plan)
        report = job.make(shard=shard, batch_size=batch_size, retry=retry, budget=FAILURE_BUDGET)
        if report.over(FAILURE_BUDGET):
            raise _too_many(job, report.failed, report.untried)
        if report.gone:
            raise _gone(job, report.gone)
        if count > 1:
            beat.rest()
            shards.wait_for(job.store.root, partial(job.owed, count), count, since=beat.since, plan=plan)
    return job


def _agreed(job: Job) -> str:
    """A name for what all ranks want, where there are several: whoever wants something else is told."""
    shard = shards.from_environment()
    plan = job.digest() if shard[1] > 1 else ""
    if plan:
        shards.agree(job.store.root, shard, plan)
    return plan


def _check_readable(job: Job) -> None:
    """That what can't be read of the real images costs no class, and no more images than may fail."""
    reasons, total = listed(job.unreadable.values(), str), job.request.total()
    if unseen := job.unseen():
        raise RuntimeError(f"none of the real images of class {listed(unseen)} can be read: {reasons}. Mend them.")
    if job.lost() > FAILURE_BUDGET * total:
        raise RuntimeError(
            f"{job.lost()} of {total} synthetic images can't be had, since real images can't be read: {reasons}. Mend "
            "these, or leave them out with torch.utils.data.Subset."
        )


def _find(request: Request) -> Job:
    try:
        job = Job(request, write=False, load=_load)
        _check_readable(job)
        missing, root = int(job.owed(1).sum()), job.store.root
    except NothingMade:
        missing, root = request.total(), request.folder()
    if missing:
        command = request.command()
        remedy = f"Make them with: {command}" if command else "Make them with the same call and generate=True."
        raise FileNotFoundError(f"{missing} of {request.total()} synthetic images are missing from {root}. {remedy}")
    job.warn_of_doubt()
    return job


def _samples(job: Job) -> Samples:
    """All images that are there; those that failed are left out if they are few."""
    there = job.present()
    if missing := int((~there & ~job.given_up()).sum()):
        raise _gone(job, missing)
    if failed := int((~there).sum()):
        if failed > FAILURE_BUDGET * len(there):
            raise _too_many(job, failed)
        warn(f"{_failed(job, failed)} They are left out.")
    keys, labels = job.plan.keys[there], job.plan.labels[there]
    paths = {label: job.store.path(job.sources.class_of[label], "") for label in np.unique(labels).tolist()}
    extension = next((path.name for path in paths.values()), "")
    folders = {label: os.path.join(path.parent, "") for label, path in paths.items()}
    return Samples(keys, labels, folders, extension)


def _failed(job: Job, count: int) -> str:
    return f"{count} of {len(job.plan)} synthetic images could not be made: {job.failure_text()}."


def _gone(job: Job, count: int) -> RuntimeError:
    return RuntimeError(
        f"{count} of {len(job.plan)} synthetic images have gone from {job.store.root} while this ran, and none of "
        "them failed: another run with other sources or classes may use this root. Give each its own `root`, and "
        "run this again."
    )


def _too_many(job: Job, failed: int, untried: int = 0) -> RuntimeError:
    stopped = f" {untried} others were not tried." if untried else ""
    return RuntimeError(
        f"{_failed(job, failed)}{stopped} Mend their sources, or leave these out with torch.utils.data.Subset. One "
        "process alone, or `torch-augcond generate`, tries them again."
    )
