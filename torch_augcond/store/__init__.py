"""The directory of images: a plain ImageFolder that many processes may fill at once, without locks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checks import one_of
from ..plan import Settings
from . import config, scan
from .disk import Immovable, explained, is_regular, make_aside, make_folder, move, publish, sweep, sync_folder
from .embedding_cache import DigestCache, EmbeddingCache
from .imagefile import Corrupt, check, encode, extension, read_provenance
from .keys import NO_KEYS, among, as_keys, keys_of
from .names import aside_of, escape_class, place_of, unescape_class
from .records import Failures, Stock
from .turns import Turns

if TYPE_CHECKING:
    from ..plan import Plan, Recipe

__all__ = ["Corrupt", "Store", "escape_class", "unescape_class"]


def _identity(root: Path) -> tuple[int, ...] | None:
    """Which folder of which disk it is, with which record of its settings; ``None`` if there is none."""
    with suppress(OSError):
        folder, record = os.stat(root), root / scan.CONFIG
        mark = [os.stat(record)] if record.exists() else []  # inodes are used again
        return folder.st_dev, folder.st_ino, *[number for x in mark for number in (x.st_ino, x.st_mtime_ns)]
    return None


class Store:
    """A directory that holds exactly one set of images, as ``root/<class>/<key>.png`` or ``.jpg``.

    An image is absent or whole, after a kill, a power cut, a full disk, or several writers at once; what differs
    between two writers of one image is only who was last. Nothing waits for a lock. Metadata are dot-files in ``root``,
    so every tool that reads an ``ImageFolder`` sees the classes and nothing else. What no longer belongs to the set is
    moved to ``<root>.aside``. Links are never followed, but for ``root`` itself.

    Args:
        root: The directory; made by `claim`.

    Raises:
        TypeError: If ``root`` is no path.

    Example:
        >>> store = Store("flowers-synthetic")
        >>> store.claim(settings)
        >>> missing = ~store.present(plan)
    """

    def __init__(self, root: str | os.PathLike):
        if not isinstance(root, (str, os.PathLike)):
            raise TypeError(f"`root` must be a path, but got {type(root).__name__}.")
        self.root = place_of(root)
        self.aside = aside_of(self.root)
        self._shelf = self.aside / "stale"
        self._extension: str | None = None
        self._claimed: tuple[tuple[int, ...] | None, Settings | None] = None, None
        self._ready: set[str] = set()  # class folders seen
        self._failures, self._stock = Failures(self.root), Stock(self.root)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def claim(self, settings: Settings, *, write: bool = True) -> None:
        """Makes ``root`` the set of these settings, or finds that it is. Needs no write permission if it is.

        Args:
            write: False where nothing may be changed: then `recorded` must know of a set.

        Raises:
            ValueError: If ``root`` holds another set (the differences are named), or files that are no set.
            OSError: If it can't be written.
        """
        if self.root.exists() and not self.root.is_dir():
            raise NotADirectoryError(f"`root` must be a folder, but {self.root} is a file. Choose another `root`.")
        config.check_place(self.root)
        if not write:
            config.compare(self.root, settings, self.recorded())
            return
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        config.claim(self.root, settings)
        self._claimed = _identity(self.root), settings
        sweep(self.root)

    def _check_claimed(self) -> None:
        """That ``root`` is still the set that was claimed: by now a link may lead elsewhere.

        Raises:
            RuntimeError: If another set is there, or none.
        """
        (place, settings), now = self._claimed, _identity(self.root)
        if settings is None or now in (None, place):  # that it has gone, writing says
            return
        try:  # some network file systems number their folders anew
            config.compare(self.root, settings, self.recorded())
        except (FileNotFoundError, ValueError) as error:
            raise RuntimeError(
                f"`root` must stay the same folder during a run, but {self.root} is another one now: {error} Images "
                "finished before are in the first one; run the same command again with the `root` they are in."
            ) from error
        self._claimed = now, settings

    def recorded(self) -> dict[str, Any]:
        """The settings ``root`` was claimed with, as plain values; where the record is gone, its images know them.

        Raises:
            FileNotFoundError: If nobody has claimed it.
            ValueError: If the record is damaged or from a newer version.
        """
        try:
            return config.recorded(self.root)
        except FileNotFoundError:
            with suppress(TypeError, ValueError):
                return Settings(**scan.settings(self.root)).as_dict()
            raise

    def path(self, class_name: str, key: str) -> Path:
        """Where image ``key`` of a class lies or will lie."""
        self._extension = self._extension or extension(self.recorded()["image_size"])
        return self.root / escape_class(class_name) / f"{key}.{self._extension}"

    def has(self, class_name: str, key: str) -> bool:
        """Whether there is such an image; it isn't opened. A link in a class folder's place leads elsewhere."""
        return is_regular(path := self.path(class_name, key)) and not path.parent.is_symlink()

    def present(self, plan: Plan) -> np.ndarray:
        """Which recipes have an image: names only, no file is opened (`verify` does that).

        Shape:
            Output: bool ``(len(plan),)``.
        """
        there = np.zeros(len(plan), dtype=bool)
        keys, ending = keys_of(plan), f".{extension(plan.settings.image_size)}"
        folders = {folder.name: folder for folder in scan.folders(self.root)}
        for name, rows in plan.by_class():
            if folder := folders.get(escape_class(name)):
                found = [name for name in scan.images(folder) if name.endswith(ending)]
                there[rows] = among(keys[rows], np.sort(as_keys(found)))
        return there

    def write(self, recipe: Recipe, image: torch.Tensor, provenance: dict[str, Any]) -> Path:
        """Writes one image: afterwards it is there, whole, and outlives a power cut. See `write_many`."""
        return self.write_many([recipe], [image], [provenance])[0]

    def write_many(
        self,
        recipes: Sequence[Recipe],
        images: torch.Tensor | Sequence[torch.Tensor],
        provenances: Sequence[dict[str, Any]],
    ) -> list[Path]:
        """Writes a batch; each image is published alone, so after an error those before it are there and whole.

        Args:
            recipes: One for each image; key, class, prompt, ordinal, seed and digests go into the record.
            images: uint8.
            provenances: What else is to be remembered of each, as JSON can write it.

        Shape:
            images: ``(N, 3, H, W)``.

        Raises:
            OSError: If one can't be written: with its path, the bytes needed and the bytes free.
            RuntimeError: If ``root`` has become another folder since it was claimed; then none is written.
        """
        self._check_claimed()
        with ThreadPoolExecutor(min(8, len(recipes) or 1)) as pool:
            paths = list(pool.map(self._write, zip(recipes, images, provenances, strict=True)))
        for folder in {path.parent for path in paths}:
            with suppress(FileNotFoundError), explained(folder):  # not found: all of it was set aside meanwhile
                sync_folder(folder)
        self._failures.settle(as_keys(recipe.key for recipe in recipes))
        return paths

    def _write(self, row: tuple[Recipe, torch.Tensor, dict[str, Any]]) -> Path:
        recipe, image, provenance = row
        record = {
            "key": recipe.key,
            "class_name": recipe.class_name,
            "prompt": recipe.prompt,
            "ordinal": int(recipe.ordinal),
            "seed": int(recipe.seed),
            "digests": list(recipe.digests),
        }
        path = self.path(recipe.class_name, recipe.key)
        data = encode(image, provenance | record, path.suffix[1:])
        self._make_ready(path.parent)
        publish(data, path, self.root)
        return path

    def _make_ready(self, folder: Path) -> None:
        if folder.name not in self._ready or folder.is_symlink() or not folder.is_dir():
            with explained(folder):
                make_folder(folder)
            self._ready.add(folder.name)

    def stale(self, plan: Plan, spare: Callable[[dict[str, Any]], bool] | None = None) -> list[Path]:
        """Images that ``plan`` would not make whatever the count: their source is gone or has changed.

        Those above the plan's count are kept: they belong to the set as soon as the count is raised again.

        Args:
            spare: Whether an image of the set with this record is to be kept all the same.

        Raises:
            ValueError: If another prompt made them: then a class is called otherwise, and that is another set.
        """
        unknown, spared = self._strangers(plan), set()
        ordinals: dict[str, int] = {}
        for path in unknown:
            with suppress(Corrupt, FileNotFoundError):  # nobody knows where a damaged one belongs
                record = read_provenance(path)
                if scan.key_of(record, plan.settings) == path.stem:
                    self._check_prompt(record, plan)
                    if spare and spare(record):
                        spared.add(path)
                    ordinals[record["class_name"]] = max(record["ordinal"], ordinals.get(record["class_name"], 0))
        if not ordinals:
            return unknown
        strange = set(self._strangers(plan.extended(ordinals))) - spared
        return [path for path in unknown if path in strange]

    def _check_prompt(self, record: dict[str, Any], plan: Plan) -> None:
        name, prompt = record["class_name"], record["prompt"]
        if plan.prompts.get(name, prompt) != prompt:
            raise ValueError(
                f"`root` must hold one set, but {self.root} was made with another configuration: the prompt of class "
                f"{name!r} is {prompt!r}, not {plan.prompts[name]!r}. Choose another `root`, or that `class_names` and "
                "`prompt`."
            )

    def _strangers(self, plan: Plan) -> list[Path]:
        """The images that ``plan`` doesn't have, or not in that class."""
        keys, found = keys_of(plan), []
        known = {escape_class(name): np.sort(keys[rows]) for name, rows in plan.by_class()}
        for folder in scan.folders(self.root):
            names = scan.images(folder)
            strange = ~among(as_keys(names), known.get(folder.name, NO_KEYS))
            found += [Path(folder.path, names[i]) for i in np.flatnonzero(strange)]
        return found

    def set_aside(self, path: Path, why: str) -> bool:
        """Moves a file out of the set, to ``<root>.aside/<why>/<class>``; False if it is gone already.

        Args:
            path: In ``root``.
            why: ``"stale"`` (`restore` looks for it there), ``"corrupt"`` or ``"foreign"``.

        Raises:
            OSError: If it can't be moved there.
        """
        one_of("why", why, ("stale", "corrupt", "foreign"))
        moved = self._put_aside(path, why)
        if path.parent != self.root:
            with suppress(OSError):  # an empty folder would be a class without images; one that isn't empty stays
                path.parent.rmdir()
        return moved

    def _put_aside(self, path: Path, why: str) -> bool:
        """A file of the set, or a stale one that lies aside already."""
        target = self.aside / why / path.relative_to(self.root if path.is_relative_to(self.root) else self._shelf)
        make_aside(target.parent, self.aside, self.root)
        with explained(target), suppress(FileNotFoundError):
            if os.path.lexists(target) and (why != "stale" or not self._is_whole(path)):
                target = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
            move(path, target, self.aside)
            return True
        return False

    def _is_whole(self, path: Path) -> bool:
        with suppress(Corrupt, FileNotFoundError):
            return bool(check(path, path.stem))
        return False

    def restore(self, plan: Plan) -> int:
        """Takes back what was set aside as stale, is wanted again (its source came back) and is whole; how many."""
        shelf = [(folder.path, name) for folder in scan.folders(self._shelf) for name in scan.images(folder)]
        if not shelf:
            return 0
        keys, there, shelved = keys_of(plan), self.present(plan), as_keys(name for _, name in shelf)
        for i in np.flatnonzero(among(shelved, np.sort(keys[there]))):
            self._put_aside(Path(*shelf[i]), "surplus")  # there it would hide that the set's own has gone
        wanted = np.flatnonzero(among(shelved, np.sort(keys[~there])))
        return sum(self._take_back(Path(*shelf[i])) for i in wanted)

    def _take_back(self, path: Path) -> bool:
        """Moves it: of a copy, the first one might go after another process has set the copy aside in its place."""
        try:
            target = self.path(check(path, path.stem)["class_name"], path.stem)
            self._make_ready(target.parent)
            with explained(target):
                move(path, target, self.root)
        except (Corrupt, FileNotFoundError):
            self._put_aside(path, "corrupt")
            return False
        return True

    def verify(self, *, repair: bool = True) -> Iterator[tuple[Path, str | None]]:
        """Reads every file of the set; yields each with what is wrong with it, or ``None``.

        At the end come those that are gone, though they were there when the set was last filled (`take_stock`).

        Args:
            repair: Whether what is damaged is set aside as corrupt (to be made again), what lies in a class folder and
                is no image of the set, or one of another, as foreign, and what killed processes left behind is removed.
                Safe while others write.

        Raises:
            ValueError: If a folder without a record of its settings holds other files (it may be the user's own), or
                that record is a link.
        """
        config.check_no_links(self.root)
        if repair:
            config.check_own(self.root)
        damaged = set()
        for path, reason in scan.inspect(self.root, self.own_settings()):
            if reason and repair:
                damaged.add(path)
                try:
                    self.set_aside(path, "foreign" if reason in scan.FOREIGN else "corrupt")
                except Immovable as error:
                    reason = f"{reason}; {error}"
            yield path, reason
        yield from ((path, "it is gone") for path in self._stock.missing() if path not in damaged)
        if repair:
            sweep(self.root)
            if self.aside.is_dir():
                sweep(self.aside)
            for folder in scan.folders(self.root):
                with suppress(OSError):
                    os.rmdir(folder.path)

    def own_settings(self) -> Settings | None:
        """The settings of the set, or None where nobody knows them."""
        with suppress(FileNotFoundError, TypeError, ValueError):
            return Settings(**self.recorded())
        return None

    def take_stock(self, plan: Plan, present: np.ndarray, failed: np.ndarray) -> None:
        """Writes down which images of ``plan`` are ``present``: `verify` misses what goes. Their failures have passed.

        Args:
            failed: Which are missing because they failed: these are missed no more.

        Shape:
            present, failed: bool (N,).
        """
        self._failures.settle(keys_of(plan)[present])
        self._stock.take(plan, present, failed)

    def turns(self, plan: Plan, rows: Sequence[int], size: int) -> Turns:
        """Deals out the images in these ``rows``, so that processes filling one set hardly make one twice."""
        return Turns(self, plan, rows, size)

    def record_failure(self, recipe: Recipe, reason: str) -> None:
        """Notes why an image could not be made; believed until it is, and no more even if it has gone then."""
        self._failures.add(recipe, reason)

    def failures(self) -> dict[str, dict[str, Any]]:
        """The last failure of each image that is still missing: {key: {"time", "class_name", "prompt", "reason"}}.

        One that was made after it failed, and has gone since, is missing for another reason.
        """
        latest = self._failures.latest()
        return {key: record for key, record in latest.items() if not self.has(record["class_name"], key)}

    def embeddings(self, fingerprint: str) -> EmbeddingCache:
        """The cache of what the generator with this fingerprint has computed."""
        return EmbeddingCache(self.root, fingerprint)

    def digest_cache(self) -> DigestCache:
        """The cache of source files' digests."""
        return DigestCache(self.root)
