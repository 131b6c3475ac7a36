"""The one join: recipes × a frozen generator → images in the store.

Work goes in batches of one constant shape across all classes. What goes wrong with a row (a source that can't be
read, an image that comes out spoilt, no memory even for one row) becomes a failure record, and the run goes on.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_int
from ..functional import span_length
from ..generators.protocol import BadImages, Generator
from ..plan import Plan, Recipe, Settings
from ..progress import Progress, silent
from ..shards import Shard, owners
from ..sources import Sources
from ..store import Store
from ..transforms import Compose
from .batches import Batches, behind, windows
from .conditions import Cache, Conditions, Memory, Row
from .returned import images_of

__all__ = ["Outcome", "Report", "default_batch_size", "generate", "synthesise"]

_WINDOW = 8  # batches whose sources are encoded together, so that the cache gets fewer and larger files
_MOST = 64  # images made at once by default


@dataclass(frozen=True)
class Report:
    """How many images of its share a run made, found made already, gave up, and never tried.

    Those that are ``gone`` are among the first two, but were taken out of the set before the run ended.
    """

    made: int
    present: int
    failed: int
    untried: int = 0
    gone: int = 0

    def over(self, budget: float) -> bool:
        """Whether a larger fraction than ``budget`` of all images failed."""
        return self.failed > budget * (self.made + self.present + self.failed + self.untried)


@dataclass(frozen=True)
class Outcome:
    """What became of a recipe: an image and what made it, or the reason why there is none."""

    recipe: Recipe
    image: Tensor | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def generate(
    plan: Plan,
    sources: Sources,
    generator: Generator,
    store: Store,
    augmentation: Compose,
    settings: Settings,
    *,
    batch_size: int | None = None,
    shard: Shard = (0, 1),
    retry: bool = True,
    budget: float = 1.0,
    progress: Progress | None = None,
) -> Report:
    """Makes every image of ``plan`` that is missing from ``store`` and belongs to ``shard``.

    An image doesn't depend on the batch size, the shards or how often the run was interrupted. A batch is stored
    while the next is made, so a run that is killed loses one batch of finished images at most, and the one in the
    making. A generator that has a method ``prepare(num_images)`` is told how many are to come.

    Args:
        batch_size: Images made at once; default: see `default_batch_size`. Halved where the memory doesn't suffice.
        shard: (i, N): this call's share, see `torch_augcond.shards`.
        retry: Whether to try again what failed in an earlier run.
        budget: The fraction of the share that may fail; once more than that has, nothing further is tried.
        progress: Makes the progress bar, such as `torch_augcond.progress.bar`; None for none.

    Raises:
        ValueError: If ``batch_size`` isn't a positive int, or the generator's fingerprint isn't, or doesn't stay, that
            of ``settings``; what it has made since then is not written.
        OSError: If an image can't be written.
    """
    mine = owners(plan.keys, shard[1]) == shard[0]
    missing = np.flatnonzero(mine & ~store.present(plan)).tolist()
    given_up = {} if retry else store.failures()
    todo = [row for row in missing if plan.keys[row].tobytes().hex() not in given_up] if given_up else missing
    total, made, failed = int(mine.sum()), 0, len(missing) - len(todo)
    # The last batch is padded, and a million rows may be asked for; up to 64 keep their shape as the set grows.
    most = max(total, _MOST)
    size = default_batch_size(generator) if batch_size is None else batch_size
    if isinstance(size, Integral):
        size = min(size, most)
    cache, over = store.embeddings(_computed_by(generator)), failed > budget * total
    if hasattr(generator, "prepare"):
        generator.prepare(len(todo))
    with (
        (progress or silent)(total, "generating", initial=total - len(todo)) as bar,
        store.turns(plan, todo, size) as turns,
    ):
        # A pass is written to its end before the next: while it waits for others, nobody waits for it.
        outcomes = (
            written
            for recipes in turns
            for written in behind(
                partial(_keep, store=store),
                synthesise(recipes, sources, generator, augmentation, settings, batch_size=size, cache=cache),
            )
        )
        for batch, lost in () if over else outcomes:
            turns.done([outcome.recipe for outcome in batch])
            made, failed = made + len(batch) - lost, failed + lost
            over = failed > budget * total
            bar.update(len(batch))
            if over:
                break
    untried = len(missing) - made - failed if over else 0  # otherwise the rest is what others have made
    return Report(made, present=total - made - failed - untried, failed=failed, untried=untried)


def _keep(batch: Sequence[Outcome], store: Store) -> int:
    """Stores images and failure records; returns the number of the latter."""
    made = [outcome for outcome in batch if outcome.image is not None]
    if made:
        store.write_many([o.recipe for o in made], [o.image for o in made], [o.provenance for o in made])
    for outcome in batch:
        if outcome.image is None:
            store.record_failure(outcome.recipe, outcome.reason)
    return len(batch) - len(made)


def default_batch_size(generator: Generator) -> int:
    """The generator's own ``batch_size`` if it has one, else 16 images of 768 pixels or up to 64 smaller ones."""
    own = getattr(generator, "batch_size", None)
    if own:
        return as_int("generator.batch_size", own, 1)
    return max(1, min(_MOST, 16 * 768**2 // generator.image_size**2))


def synthesise(
    recipes: Iterable[Recipe],
    sources: Sources,
    generator: Generator,
    augmentation: Compose,
    settings: Settings,
    *,
    batch_size: int,
    cache: Cache | None = None,
) -> Iterator[list[Outcome]]:
    """Yields an `Outcome` for every recipe, a batch at a time; what to do with them is the caller's business.

    Args:
        settings: Of the set; a generator whose fingerprint is another than theirs, before or after a batch, is refused.
        batch_size: Rows in every call of the generator; the last one is padded to it.
        cache: Keeps embeddings; None: for this call only.

    Raises:
        ValueError: If ``batch_size`` isn't a positive int, or the generator changes meanwhile.
    """
    batches = Batches(batch_size)
    cache = Memory() if cache is None else cache
    conditions = Conditions(sources, generator, augmentation, cache, Batches(batch_size), settings.checkpoint)
    painter = _Painter(conditions, settings, batches)
    waiting: list[Row] = []
    for window in windows(recipes, _WINDOW * batch_size):
        rows, failures = conditions.rows(window)
        if failures:
            yield [Outcome(r, reason=failures[r.key]) for r in window if r.key in failures]
        waiting += rows
        whole = len(waiting) - len(waiting) % batches.size
        yield from painter.paint(waiting[:whole])
        waiting = waiting[whole:]
    yield from painter.paint(waiting)


@dataclass
class _Painter:
    """Rows → images, in batches of one shape."""

    conditions: Conditions
    settings: Settings
    batches: Batches

    def paint(self, rows: Sequence[Row]) -> Iterator[list[Outcome]]:
        for batch, result in self.batches(self._images, rows):
            if result is None:
                yield [Outcome(row.recipe, reason="there is not enough memory for a single image") for row in batch]
            else:
                yield self._outcomes(batch, *result)

    def _images(self, rows: Sequence[Row]) -> tuple[Tensor, frozenset[int]]:
        """The images of the rows, and which of them are spoilt."""
        padded = [*rows, *[rows[-1]] * (self.batches.size - len(rows))]
        try:
            images, bad = self._generate(padded), []
        except BadImages as error:
            images, bad = error.images, error.rows
        self.conditions.check()
        return images_of(images, len(padded), self.settings.image_size)[: len(rows)], frozenset(bad)

    def _generate(self, rows: Sequence[Row]) -> Tensor:
        embed = self.conditions.augmentation.embed
        return self.conditions.generator.generate(
            torch.stack([row.embed for row in rows]),
            self.conditions.prompts([row.recipe.prompt for row in rows]),
            torch.tensor([row.recipe.seed for row in rows]),
            partner_embeds=torch.stack([row.partner for row in rows]) if embed.mixes else None,
            augmentation=embed,
            guidance_scale=self.settings.guidance_scale,
            num_inference_steps=self.settings.num_inference_steps,
            noise_level=self.settings.noise_level,
        )

    def _outcomes(self, rows: Sequence[Row], images: Tensor, bad: frozenset[int]) -> list[Outcome]:
        drawn = self._drawn(rows)
        return [
            Outcome(row.recipe, reason="it came out as NaN or as one plain colour, in every precision")
            if i in bad
            else Outcome(row.recipe, images[i], self._provenance(row.recipe, drawn[i]))
            for i, row in enumerate(rows)
        ]

    def _provenance(self, recipe: Recipe, drawn: dict[str, Any]) -> dict[str, Any]:
        """What the store doesn't know already."""
        settings = self.settings.as_dict()
        if any(step["name"] == "EmbedDropout" for step in settings["augmentation"]):
            drawn = drawn | {"dropout_key": recipe.seed}
        sources = [self.conditions.sources.place(index) for index in recipe.sources]
        return {"label": recipe.label, "sources": sources, "drawn": drawn, "settings": settings}

    def _drawn(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The random numbers of each row that are few enough to be written down, as the transforms drew them."""
        augmentation, generator = self.conditions.augmentation, self.conditions.generator
        keys = torch.tensor([row.recipe.seed for row in rows])
        embeds = torch.empty(len(rows), generator.embed_dim)
        images = torch.empty(len(rows), 3, generator.image_size, generator.image_size)
        params = augmentation.pixel.make_params(images, keys=keys) | augmentation.embed.make_params(embeds, keys=keys)
        for name in [name for name in params if name.startswith("start")]:
            start, length = params.pop(name), span_length(params[name.replace("start", "lam")], generator.embed_dim)
            params[name.replace("start", "span")] = torch.stack([start, start + length], 1)
        few = {name: values.tolist() for name, values in params.items() if not name.startswith("mask")}
        return [{name: values[i] for name, values in few.items()} for i in range(len(rows))]


def _computed_by(generator: Generator) -> str:
    """What tells whose embeddings are whose: one fingerprint may compute in several dtypes."""
    dtype = getattr(generator, "dtype", torch.float32)
    return generator.fingerprint if dtype == torch.float32 else f"{generator.fingerprint} {dtype}"
