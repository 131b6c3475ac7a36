"""A sheet of pictures: each row a real image, and what every variant makes of it."""

import re
from collections.abc import Mapping, Sequence
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import Subset
from torchvision.transforms.v2.functional import to_pil_image

from ..generate import default_batch_size, synthesise
from ..generate.conditions import Memory, centre
from ..plan import Plan, Recipe, make_plan
from ..progress import Progress, bar, track
from ..request import Request
from ..sources import Sources, UnreadableImage

__all__ = ["contact_sheet", "draw"]

_POOL = 16  # images of a class among which partners are looked for: quick to read, enough to see what mixing does
_GAP, _LINE, _LABEL = 4, 14, 96  # pixels: between cells, of a line of text, of the column with the classes


def contact_sheet(
    requests: Mapping[str, Request], rows: int = 6, *, batch_size: int | None = None, progress: Progress = bar
) -> Image.Image:
    """Real images, and beside each one what every variant makes of it. What can't be made stays blank.

    Args:
        requests: {heading: set}, of one dataset and one loaded generator.
        rows: How many real images, from as many classes as possible.
        batch_size: Images made at once.
    """
    base = next(iter(requests.values()))
    chosen, pool = _choose(base.sources.labels, rows)
    sources = Sources.from_dataset(Subset(base.dataset, pool))
    digests = sources.digests(track("hashing sources", progress), failed={})
    columns = {"real image": [_real(sources, row, base.generator.image_size) for row in chosen]}
    cache = Memory()
    with progress(len(chosen) * len(requests), "drawing") as shown:
        for name, request in requests.items():
            columns[name] = _column(request, sources, digests, chosen, batch_size, cache)
            shown.update(len(chosen))
    return draw(columns, [sources.class_of[int(sources.labels[row])] for row in chosen])


def _column(
    request: Request,
    sources: Sources,
    digests: Sequence[str],
    chosen: Sequence[int],
    batch_size: int | None,
    cache: Memory,
) -> list[Image.Image | None]:
    """What one variant makes of the chosen images."""
    generator = request.generator
    settings = request.settings(generator.fingerprint, generator.image_size)
    plan = make_plan(settings, sources.labels, digests, sources.class_of, request.prompts, num_per_image=1)
    recipes = _recipes(plan, sources.labels, digests, chosen)
    known = {recipe.key: recipe for recipe in recipes if recipe}.values()
    size = batch_size or min(len(chosen), default_batch_size(generator))
    batches = synthesise(known, sources, generator, request.compose, settings, batch_size=size, cache=cache)
    made = {outcome.recipe.key: outcome.image for batch in batches for outcome in batch}
    pictures = [made.get(recipe.key) if recipe else None for recipe in recipes]
    return [None if picture is None else to_pil_image(picture) for picture in pictures]


def _choose(labels: np.ndarray, rows: int) -> tuple[list[int], list[int]]:
    """Images of as many classes as possible, as positions in a pool; and the pool, as indices."""
    classes = np.unique(labels)
    if len(classes) > rows:
        classes = classes[np.linspace(0, len(classes) - 1, rows).astype(int)]
    pools = [np.flatnonzero(labels == label)[: max(_POOL, rows)].tolist() for label in classes]
    picks = [pool[turn] for turn in range(rows) for pool in pools if turn < len(pool)][:rows]
    pool = sorted(index for members in pools for index in members)
    return [pool.index(index) for pool_of in pools for index in pool_of if index in picks], pool


def _recipes(plan: Plan, labels: np.ndarray, digests: Sequence[str], chosen: Sequence[int]) -> list[Recipe | None]:
    """For each chosen image the recipe that starts from it; text-only ones start from none and are dealt out."""
    if plan.settings.num_sources:
        first = {(recipe.label, recipe.digests[0]): recipe for recipe in plan if not recipe.ordinal}
        return [first.get((int(labels[row]), digests[row])) for row in chosen]
    turns = {label: iter([plan[i] for i in np.flatnonzero(plan.labels == label)]) for label in set(labels.tolist())}
    return [next(turns[int(labels[row])], None) for row in chosen]


def _real(sources: Sources, index: int, size: int) -> Image.Image | None:
    try:
        return to_pil_image(centre(sources.image(index), size))
    except UnreadableImage:
        return None


def draw(columns: Mapping[str, Sequence[Image.Image | None]], labels: Sequence[str]) -> Image.Image:
    """A labelled table of pictures.

    Args:
        columns: {heading: pictures from top to bottom}; None for a blank.
        labels: of the rows.
    """
    size = next((image.width for cells in columns.values() for image in cells if image), 96)
    side = min(256, max(1, 96 // size) * size)
    headings = [_lines(name, side // 7) or [""] for name in columns]
    top = _GAP + _LINE * max(map(len, headings))
    width = _LABEL + (side + _GAP) * len(columns) + _GAP
    sheet = Image.new("RGB", (width, top + (side + _GAP) * len(labels) + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, label in enumerate(labels):
        text = "\n".join(_lines(label, 15)[: side // _LINE])
        pen.multiline_text((_GAP, top + (side + _GAP) * row), text, "black", font)
    for column, (lines, cells) in enumerate(zip(headings, columns.values(), strict=True)):
        left = _LABEL + (side + _GAP) * column
        pen.multiline_text((left, _GAP // 2), "\n".join(lines), "black", font)
        for row, image in enumerate(cells):
            if image:
                sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (left, top + (side + _GAP) * row))
    return sheet


def _lines(text: str, width: int) -> list[str]:
    """Lines of at most so many characters, broken at spaces, behind _ and -, and in mid-word only if need be."""
    parts = re.sub(r"(?<=[_-])(?=[^_-])", "\v", text)  # a white space that no name has
    return [line.replace("\v", "") for line in wrap(parts, width, replace_whitespace=False, break_on_hyphens=False)]
