"""A set on its way: what is asked for, what is there, and making the rest."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import as_int, brief, listed, warn
from .plan import Plan, Recipe, Settings, make_plan
from .progress import Progress, bar, track
from .request import Request
from .shards import Shard, owners
from .sources import UnreadableImage
from .sources.images import hash_bytes
from .store import Store
from .store.scan import EXPORTED

if TYPE_CHECKING:
    from .generate import Report
    from .generators import Generator

__all__ = ["Job", "NothingMade", "duration"]

_LARGE = 256  # pixels
_SLOW_SECONDS = 600
_LONGEST_NAME = 1000  # characters of a fingerprint, which is written into every image


class NothingMade(FileNotFoundError):
    """The set's directory doesn't exist yet."""


class Job:
    """A request joined with its store.

    To read a set that is complete, no generator is loaded: the store knows which one made it.

    Args:
        request: What is asked for.
        write: Whether the store may be created and changed.
        load: Loads the generator where the request only names it.
        progress: Makes progress bars.

    Raises:
        NothingMade: If ``write`` is false and there is no set.
        ValueError: If the store holds a set of another configuration.
    """

    def __init__(
        self, request: Request, *, write: bool, load: Callable[[str], "Generator"], progress: Progress = bar
    ) -> None:
        if request.is_loaded:
            _check_generator(request.generator)
        self.request, self.sources, self.augmentation = request, request.sources, request.compose
        self.store = Store(request.folder())
        self._load, self._progress = load, progress
        recorded = self._recorded()
        if recorded is None and not write:
            raise NothingMade(f"{self.store.root} holds no set of images yet")
        self.settings = self._settings(recorded, write)
        self._claim(self.settings, write)
        self.unreadable: dict[int, UnreadableImage] = {}
        self.plan = self._plan()
        if write:
            self._restore()
            self._set_stale_aside()
            self._record_unreadable()

    def _restore(self) -> None:
        is_new = not self.store.present(self.plan).any()
        if (count := self.store.restore(self.plan)) and is_new:
            warn(
                f"{count} images were taken back from {self.store.aside / 'stale'}, where an earlier set of this name "
                "has left them. To make all anew, delete that folder as well."
            )

    def _recorded(self) -> dict[str, Any] | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return self.store.recorded()

    def _claim(self, settings: Settings, write: bool = True) -> None:
        """Says besides what to type for the checkpoint that the set was made with, if that has a short name."""
        from .generators.checkpoints import short_name

        try:
            self.store.claim(settings, write=write)
        except ValueError as error:
            there = (self._recorded() or {}).get("checkpoint", settings.checkpoint)
            short = short_name(there) if there != settings.checkpoint else None
            if short:
                raise ValueError(f'{error} Its checkpoint is generator="{short}".') from error
            raise

    def _settings(self, recorded: dict[str, Any] | None, write: bool) -> Settings:
        if recorded is None or self.request.is_loaded:
            known = self.generator.fingerprint, self.generator.image_size
            if write and hasattr(self.generator, "check_numbers"):  # before a folder is claimed with what can't be made
                asked = self.request
                guidance = asked.settings(*known).guidance_scale
                self.generator.check_numbers(guidance, asked.num_inference_steps, asked.noise_level)
        else:
            name, checkpoint = self.request.generator_name, recorded["checkpoint"]
            known = checkpoint if _made_by(checkpoint, name) else name, recorded["image_size"]
        return self.request.settings(*known, recorded_guidance=(recorded or {}).get("guidance_scale"))

    def _plan(self) -> Plan:
        cache = self.store.digest_cache()
        digests = self.sources.digests(track("hashing sources", self._progress), cache, self.unreadable)
        self._digests = digests
        with suppress(OSError):  # a store that can only be read
            cache.save()
        if self.unreadable:
            warn(
                f"{len(self.unreadable)} of {len(digests)} real images can't be read and are left out: "
                f"{listed(self.unreadable.values(), str)}.",
            )
        sources, request = self.sources, self.request
        return make_plan(self.settings, sources.labels, digests, sources.class_of, request.prompts, **request.counts)

    def stale(self) -> list[Path]:
        """Images of the set that these sources don't make; not what may be of a source that can't be read just now."""
        unsure = {self.sources.class_of[label] for label in self.sources.labels[list(self.unreadable)].tolist()}
        if not unsure:
            return self.store.stale(self.plan)
        known = set(self._digests)
        return self.store.stale(
            self.plan, lambda record: record["class_name"] in unsure and not known.issuperset(record["digests"])
        )

    def _set_stale_aside(self) -> None:
        moved = sum(self.store.set_aside(path, "stale") for path in self.stale())
        if moved:
            self._warn_of_list()
            warn(
                f"{moved} images of {self.store.root} were set aside in {self.store.aside / 'stale'}, since this "
                "dataset makes others in their place: its real images have changed, or they are another dataset's, "
                "which needs a `root` of its own. They come back once they are wanted again.",
            )

    def _warn_of_list(self) -> None:
        if (exported := self.store.root / EXPORTED).exists():
            warn(f"{exported} lists the images of before: run `torch-augcond export` again.")

    def _record_unreadable(self) -> None:
        """Failure records of the real images that are in no recipe, since their content can't be had; each once."""
        known = self.store.failures()
        for index, error in self.unreadable.items():
            label, reason = int(self.sources.labels[index]), str(error)
            key, name = hash_bytes(reason.encode("utf-8", "surrogatepass")), self.sources.class_of[label]
            if key not in known:
                prompt = self.request.prompts[name]
                self.store.record_failure(Recipe(key, 0, label, name, prompt, 0, (index,), ()), reason)

    def unseen(self) -> list[str]:
        """The classes of which images are asked for, and no real one can be read."""
        labels, bad = self.sources.labels, list(self.unreadable)
        readable = np.delete(labels, bad)
        lost = [self.sources.class_of[label] for label in np.setdiff1d(labels, readable).tolist()]
        return [name for name in lost if self.request.per_class()[name]]

    def lost(self) -> int:
        """How many images that are asked for are in no recipe, since real images can't be read."""
        return self.request.total() - len(self.plan)

    def unreadable_over(self, budget: float) -> bool:
        """Whether a larger fraction than ``budget`` of the real images can't be read."""
        return len(self.unreadable) > budget * len(self.sources)

    @cached_property
    def generator(self) -> "Generator":
        """The generator, loaded on first use."""
        if self.request.is_loaded:
            return self.request.generator
        return self._load(self.request.generator_name)

    def warn_of_doubt(self) -> None:
        """Where nothing is to be made and so nothing is loaded: what the generator's name doesn't tell."""
        made_by = self.settings.checkpoint
        if "generator" in vars(self) or self.request.is_loaded:
            return
        if doubt := _doubt(made_by, self.request.generator_name):
            warn(f"{doubt}. The images in {self.store.root} were made by {made_by} and are taken for its own.")

    def present(self) -> np.ndarray:
        """Which images of the plan are there, bool (N,)."""
        return self.store.present(self.plan)

    def given_up(self, before: Mapping[str, Any] | None = None) -> np.ndarray:
        """Which images of the plan are missing because they failed, bool (N,); not by the failures ``before``."""
        before, now = before or {}, self.store.failures()
        failed = [bytes.fromhex(key) for key, record in now.items() if before.get(key) != record]
        return np.isin(self.plan.keys.view("V16")[:, 0], np.array(failed, "V16"))

    def digest(self) -> str:
        """A short name for the images that are asked for, in their order, and their labels."""
        parts = self.plan.keys.tobytes(), self.plan.labels.astype("<i8").tobytes()
        return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()

    def owed(self, count: int) -> np.ndarray:
        """How many images each of ``count`` shards has neither made nor given up."""
        missing = ~(self.present() | self.given_up())
        return np.bincount(owners(self.plan.keys[missing], count), minlength=count)

    def make(
        self, *, shard: Shard = (0, 1), batch_size: int | None = None, retry: bool = True, budget: float = 1.0
    ) -> "Report":
        """Makes what is missing of a shard; loads the generator only if something is to be made.

        Args:
            shard: (i, N), see `torch_augcond.shards`.
            batch_size: Images made at once.
            retry: Whether to try again what failed before.
            budget: The fraction of the shard that may fail; once more than that has, nothing further is tried.

        Raises:
            ValueError: If the generator is not the one that the set was made with.
        """
        from .generate import Report, generate

        mine, failures = owners(self.plan.keys, shard[1]) == shard[0], self.store.failures() if retry else {}
        present, failed = self.present(), self.given_up() & (not retry)
        todo = int((mine & ~present & ~failed).sum())
        before = Report(0, int((mine & present).sum()), int((mine & failed).sum()), todo)
        if not todo:
            with suppress(OSError):  # a store that can only be read
                self.store.take_stock(self.plan, present, self.given_up())
            self.warn_of_doubt()
        if not todo or before.over(budget):
            return before
        loaded = self.generator
        guidance = self.settings.guidance_scale
        self._claim(self.request.settings(loaded.fingerprint, loaded.image_size, guidance))
        _warn_if_slow(loaded, todo, self.settings.num_inference_steps)
        report = generate(
            self.plan,
            self.sources,
            loaded,
            self.store,
            self.augmentation,
            self.settings,
            batch_size=batch_size,
            shard=shard,
            retry=retry,
            budget=budget,
            progress=self._progress,
        )
        if report.made:
            self._warn_of_list()
        there = self.present()
        gone = np.zeros_like(there) if report.untried else self._gone(mine & ~there, failures)
        self.store.take_stock(self.plan, there | gone, self.given_up(failures))
        return replace(report, gone=int(gone.sum()))

    def _gone(self, missing: np.ndarray, failures: Mapping[str, Any]) -> np.ndarray:
        """Which of the images that are not there, though a run has ended that made them or found them made.

        Args:
            failures: Of before, each of which the run has tried again.
        """
        gone = missing & ~self.given_up(failures)
        for row in np.flatnonzero(gone).tolist():  # a list of names may lag behind what others have written
            gone[row] = not self.store.has(self.sources.class_of[int(self.plan.labels[row])], self.plan[row].key)
        if gone.any():
            warn(
                f"{int(gone.sum())} finished images have gone from {self.store.root} while this run went on: another "
                "dataset uses this `root`, or its images were taken away. Give each dataset a `root` of its own, then "
                "run it again."
            )
        return gone

    def failure_text(self) -> str:
        """Some of the reasons why images of the plan failed, and where all of them are."""
        failures = self.store.failures()
        planned = {self.plan.keys[row].tobytes().hex() for row in np.flatnonzero(self.given_up())}
        reasons = dict.fromkeys(record["reason"] for key, record in failures.items() if key in planned)
        return f"{listed(reasons, str)} (all reasons: {self.store.root}/.augcond-failures-*.jsonl)"


def _check_generator(generator: "Generator") -> None:
    """What else would come up once a directory has been given to the set."""
    name = generator.fingerprint
    if not isinstance(name, str):
        raise TypeError(f"`generator.fingerprint` must be a str, but got {name!r} ({type(name).__name__}).")
    if not name.strip() or len(name) > _LONGEST_NAME or not _is_text(name):
        raise ValueError(
            f"`generator.fingerprint` must be a text of 1 to {_LONGEST_NAME:,} characters, "
            f"but got {brief(ascii(name))}."
        )
    for number in ("embed_dim", "image_size"):
        as_int(f"generator.{number}", getattr(generator, number), 1)


def _is_text(name: str) -> bool:
    """Whether UTF-8 has all of its letters: not half of a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in name)


def _made_by(fingerprint: str, name: str) -> bool:
    """Whether the generator of that name may have this fingerprint, as far as can be told without the network."""
    from .generators.checkpoints import MIRRORS, find_checkpoint, is_folder

    if name == "tiny" or is_folder(name):
        with suppress(FileNotFoundError):
            # What follows a "+" are options of loading; whether they are the same is known once it is loaded.
            return fingerprint.partition("+")[0] == find_checkpoint(name).fingerprint
    return fingerprint.partition("@")[0] in MIRRORS.get(name, (name, "local"))


def _doubt(fingerprint: str, name: str) -> str | None:
    """Why the generator of that name may have another fingerprint."""
    from .generators.checkpoints import cached_commit

    if options := re.search("[+#].*", fingerprint):
        return f"generator={name!r} has no options, and {options[0][1:]!r} are some"
    if fingerprint.startswith("local@") and name != "tiny" and not os.path.isdir(name):
        return f"generator={name!r} is no folder here, so nothing tells which images are its own"
    repo, _, commit = fingerprint.partition("@")
    if repo != "local" and (cached := cached_commit(repo)) and cached != commit:
        return f"generator={name!r} is commit {cached} here"
    return None


def _warn_if_slow(generator: "Generator", images: int, steps: int) -> None:
    """Large images on a CPU take days; whoever starts that should know."""
    if getattr(getattr(generator, "device", None), "type", "") != "cpu" or generator.image_size < _LARGE:
        return
    seconds = generator.estimate_seconds(images, steps)
    if seconds > _SLOW_SECONDS:
        warn(
            f"{images} images of {generator.image_size} pixels will take about {duration(seconds)} on this CPU. "
            'generator="tiny" is the one to try the library with.',
        )


def duration(seconds: float) -> str:
    """A length of time in words, rounded to its largest unit.

    Example:
        >>> duration(9000)
        '2.5 hours'
    """
    units = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    name, length = next((unit for unit in units.items() if seconds >= unit[1]), ("seconds", 1))
    return f"{seconds / length:.2g} {name}"
