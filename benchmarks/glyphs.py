"""Handwriting to train the bundled model on: Omniglot drawings and letters of open fonts, never a digit.

Every drawing is kept as a signed distance field, so one drawing gives views of any stroke width, slant and size.
Omniglot (MIT): https://github.com/brendenlake/omniglot, as a zip of `train/<Alphabet_characterNN>/<drawing>.png`.
"""

import io
import random
import unicodedata
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

FIELD = 64  # side of a stored distance field, pixels
IMAGE = 32  # side of a view, pixels
BOX = 44  # longer side of a drawing's bounding box inside its field, pixels


@dataclass
class Glyphs:
    """Drawings as signed distances in view pixels, negative inside the stroke.

    fields (N, 64, 64) float16; labels (N,) int64 index into names; members: for each label its drawings.
    """

    fields: torch.Tensor
    labels: torch.Tensor
    names: list[str]

    def __post_init__(self):
        order = torch.argsort(self.labels, stable=True)
        self.members = order.split(torch.bincount(self.labels, minlength=len(self.names)).tolist())

    def __len__(self):
        return len(self.labels)

    def captions(self, index):
        return [self.names[label] for label in self.labels[index].tolist()]

    def named(self, labels, rng):
        """The index into `names` of a text for each label: its only one."""
        return labels

    def another(self, index, rng):
        """A random drawing with the same label as each of `index` (possibly itself)."""
        members = (self.members[label] for label in self.labels[index].tolist())
        return torch.stack([m[torch.randint(len(m), (), generator=rng)] for m in members])

    def views(self, index, rng):
        """Random views (N, 3, 32, 32) in [-1, 1]: affine, elastic, stroke width, softness of the edge."""
        n = len(index)
        draw = lambda low, high: torch.rand(n, generator=rng) * (high - low) + low  # noqa: E731
        angle, slant = draw(-0.2, 0.2), draw(-0.25, 0.25)
        zoom_x, zoom_y = draw(0.88, 1.35), draw(0.88, 1.2)
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack([cos * zoom_x, (slant * cos - sin) * zoom_y, draw(-0.12, 0.12),
                             sin * zoom_x, (slant * sin + cos) * zoom_y, draw(-0.12, 0.12)], 1)  # fmt: skip
        grid = F.affine_grid(theta.view(n, 2, 3), (n, 1, IMAGE, IMAGE), align_corners=False)
        bend = torch.randn(n, 2, 4, 4, generator=rng) * draw(0.0, 0.09).view(n, 1, 1, 1)
        grid = grid + F.interpolate(bend, (IMAGE, IMAGE), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        return self._render(index, grid, draw(0.1, 1.3), draw(0.2, 0.5))

    def canonical(self, index):
        """The plain view of each drawing, in one stroke width."""
        n = len(index)
        theta = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).expand(n, 2, 3)
        grid = F.affine_grid(theta, (n, 1, IMAGE, IMAGE), align_corners=False)
        return self._render(index, grid, torch.full((n,), 0.7), torch.full((n,), 0.35))

    def sketches(self, index, pixels):
        """What an embedding of views of drawings shall tell: the canonical view in 16x16, whatever the view shows."""
        small = F.interpolate(self.canonical(index)[:, :1], (16, 16), mode="area")
        return small.repeat(len(pixels) // len(index), 1, 1, 1)

    def _render(self, index, grid, width, softness):
        field = self.fields[index].float().unsqueeze(1)
        distance = F.grid_sample(field, grid, padding_mode="border", align_corners=False)
        ink = torch.sigmoid((width.view(-1, 1, 1, 1) - distance) / softness.view(-1, 1, 1, 1))
        return (ink * 2 - 1).expand(-1, 3, -1, -1)


def omniglot(path, split="train"):
    """Yield (name, ink) of every drawing; ink is a boolean array. The drawers of `test` draw nothing of `train`."""
    with zipfile.ZipFile(path) as archive:
        for entry in sorted(archive.namelist()):
            if entry.startswith(f"{split}/") and entry.endswith(".png"):
                name = entry.split("/")[1].replace("_", " ").lower()
                yield name, np.asarray(Image.open(io.BytesIO(archive.read(entry))).convert("L")) < 128


def is_letter(char):
    """A letter that stands for no number: digits, numerals and counting characters never enter the data."""
    return unicodedata.category(char) in {"Ll", "Lu", "Lo"} and unicodedata.numeric(char, None) is None


def letters(folder, per_font=48, seed=0):
    """Yield (name, ink) of letters of every regular Noto font and every other font below `folder`."""
    from fontTools.ttLib import TTFont

    for path in sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in {".ttf", ".otf"}):
        noto = path.name.startswith("Noto")
        if (noto and "Regular" not in path.name) or "Math" in path.name or "Symbol" in path.name:
            continue
        chars = sorted(chr(c) for c in TTFont(path, lazy=True).getBestCmap() if is_letter(chr(c)))
        own = [c for c in chars if not (c.isascii() or "LATIN" in unicodedata.name(c, ""))]
        latin = [c for c in chars if c.isascii()]
        if not noto or path.name in {"NotoSans-Regular.ttf", "NotoSerif-Regular.ttf"}:
            own = latin + [c for c in own if unicodedata.name(c, "").startswith(("GREEK", "CYRILLIC"))][:per_font]
        else:
            random.Random(f"{seed} {path.name}").shuffle(own)
            own = own[:per_font]
        font = ImageFont.truetype(path, 96)
        for char in own:
            image = Image.new("L", (224, 224))
            ImageDraw.Draw(image).text((64, 48), char, fill=255, font=font)
            ink = np.asarray(image) > 127
            if 80 < ink.sum() < 0.6 * ink.size and unicodedata.name(char, ""):
                yield unicodedata.name(char).lower(), ink


def distance_field(ink, box=BOX):
    """Signed distance (64, 64) of a boolean drawing, scaled so that its longer side is `box` pixels, in view pixels."""
    rows, cols = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    ink = np.pad(ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1], 2)
    side = max(ink.shape) - 4
    frame = round(side * FIELD / box)
    canvas = np.zeros((frame + 4, frame + 4), bool)
    top, left = (frame + 4 - ink.shape[0]) // 2, (frame + 4 - ink.shape[1]) // 2
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    signed = distance_transform_edt(~canvas) - distance_transform_edt(canvas)
    field = torch.from_numpy(signed).float()[None, None] * (IMAGE / frame)
    return F.interpolate(field, (FIELD, FIELD), mode="area" if frame > FIELD else "bilinear")[0, 0].half()


def load(omniglot_zip, fonts=None, split="train"):
    """All drawings of one split of Omniglot and, with `fonts`, the letters of the fonts below that folder."""
    pairs = list(omniglot(omniglot_zip, split)) + (list(letters(fonts)) if fonts else [])
    names = sorted({name for name, _ in pairs})
    position = {name: i for i, name in enumerate(names)}
    fields = torch.stack([distance_field(ink) for _, ink in pairs])
    return Glyphs(fields, torch.tensor([position[name] for name, _ in pairs]), names)
