"""What a generator is given for each recipe: embeddings of its source images and of its prompt."""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..generators.protocol import Generator
from ..plan import Recipe
from ..sources import Sources, UnreadableImage
from ..transforms import Compose
from .batches import Batches, windows
from .returned import check_fingerprint, embeds_of, prompts_of

__all__ = ["Cache", "Conditions", "Memory", "Row", "centre"]

Failures = MutableMapping[str, str]


class Cache(Protocol):
    """Keeps tensors by name, as `torch_augcond.store.embedding_cache.EmbeddingCache` does."""

    def get(self, keys: Sequence[str]) -> Mapping[str, Tensor]: ...

    def put(self, values: Mapping[str, Tensor]) -> None: ...


class Memory(dict[str, Tensor]):
    """A cache that lasts as long as the process."""

    def get(self, keys: Sequence[str]) -> dict[str, Tensor]:
        return {key: self[key] for key in keys if key in self}

    put = dict.update


@dataclass(frozen=True)
class Row:
    """A recipe with the embeddings of its source and of its partner (its own where it has none)."""

    recipe: Recipe
    embed: Tensor
    partner: Tensor


@dataclass
class Conditions:
    """Embeds what recipes need. Contents and prompts are encoded once and cached; mixed pixels are encoded each time.

    Args:
        sources: The real images.
        generator: Its encoders are used.
        augmentation: Its pixel stage is applied before encoding.
        cache: Where embeddings are looked for and left.
        batches: Images encoded at once.
        checkpoint: The fingerprint that the set is made with; where the generator has another by now, nothing of what
            it returns is kept.
    """

    sources: Sources
    generator: Generator
    augmentation: Compose
    cache: Cache
    batches: Batches
    checkpoint: str

    def check(self) -> None:
        """Whatever has come from the generator since the last check is of the set's own."""
        check_fingerprint(self.generator, self.checkpoint)

    def rows(self, recipes: Sequence[Recipe]) -> tuple[list[Row], Failures]:
        """The recipes that can be embedded, in order, and {key: reason} of the others."""
        if not self.augmentation.num_sources:
            nothing = torch.zeros(self.generator.embed_dim, dtype=torch.float32)
            return [Row(recipe, nothing, nothing) for recipe in recipes], {}
        broken: dict[str, str] = {}
        pixels, mixes = len(self.augmentation.pixel) > 0, self.augmentation.embed.mixes
        mixed = self._mixed(recipes, broken) if pixels else {}
        first = {} if pixels else {recipe.digests[0]: recipe.sources[0] for recipe in recipes}
        last = {recipe.digests[-1]: recipe.sources[-1] for recipe in recipes} if mixes else {}
        known = self._contents(first | last, broken)
        good = [recipe for recipe in recipes if not broken.keys() & {recipe.key, *recipe.digests}]
        embeds = [mixed[recipe.key] if pixels else known[recipe.digests[0]] for recipe in good]
        partners = [known[recipe.digests[-1]] for recipe in good] if mixes else embeds
        reasons = ((r.key, next((broken[d] for d in (r.key, *r.digests) if d in broken), None)) for r in recipes)
        return list(map(Row, good, embeds, partners)), {key: reason for key, reason in reasons if reason}

    def _contents(self, wanted: Mapping[str, int], broken: Failures) -> dict[str, Tensor]:
        """{digest: embedding} of the sources, from the cache or freshly encoded."""
        known = dict(self.cache.get(list(wanted)))
        fresh: dict[str, Tensor] = {}
        for digests in windows([digest for digest in wanted if digest not in known], self.batches.size):
            images = {digest: self._read(digest, wanted[digest], broken) for digest in digests}
            fresh |= self._encoded({digest: image for digest, image in images.items() if image}, broken)
        if fresh:
            self.cache.put(fresh)
        return known | fresh

    def _mixed(self, recipes: Sequence[Recipe], broken: Failures) -> dict[str, Tensor]:
        """{key: embedding} of what the pixel stage makes of source and partner."""
        embeds: dict[str, Tensor] = {}
        for window in windows(recipes, self.batches.size):
            crops: dict[str, Tensor] = {}
            for digest, index in {d: i for r in window for d, i in zip(r.digests, r.sources, strict=True)}.items():
                if image := self._read(digest, index, broken):
                    crops[digest] = centre(image, self.generator.image_size)
            if good := [recipe for recipe in window if crops.keys() >= set(recipe.digests)]:
                images = torch.stack([crops[recipe.digests[0]] for recipe in good])
                partners = torch.stack([crops[recipe.digests[-1]] for recipe in good])
                keys = torch.tensor([recipe.seed for recipe in good])
                mixed = self.augmentation.pixel(images, partners=partners, keys=keys)
                embeds |= self._encoded(dict(zip((recipe.key for recipe in good), mixed, strict=True)), broken)
        return embeds

    def _encoded(self, images: Mapping[str, Image.Image | Tensor], broken: Failures) -> dict[str, Tensor]:
        embeds: dict[str, Tensor] = {}
        encode = lambda names: self._encode([images[name] for name in names])  # noqa: E731
        for names, batch in self.batches(encode, list(images)):
            if batch is None:
                broken[names[0]] = "there is not enough memory to encode a single image"
                continue
            finite = batch.isfinite().all(dim=1).tolist()
            broken |= {name: "its embedding is not finite" for name, ok in zip(names, finite, strict=True) if not ok}
            embeds |= {name: embed for name, embed, ok in zip(names, batch, finite, strict=True) if ok}
        return embeds

    def _encode(self, images: Sequence[Image.Image | Tensor]) -> Tensor:
        embeds = embeds_of(self.generator.encode_images(images), len(images), self.generator)
        self.check()
        return embeds

    def _read(self, digest: str, index: int, broken: Failures) -> Image.Image | None:
        try:
            return self.sources.image(index, digest)
        except UnreadableImage as error:
            broken[digest] = str(error)
        return None

    def prompts(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of the prompts, (N, L, C), each encoded alone: a tokenizer may pad to the longest of several.

        Raises:
            ValueError: Not all have one L.
        """
        names = {f"prompt {text}": text for text in texts}
        known = dict(self.cache.get(list(names)))
        if new := [name for name in names if name not in known]:
            wanted = [[names[name]] for name in new]
            made = [prompts_of(self.generator.encode_prompts(prompt), prompt)[0] for prompt in wanted]
            fresh = dict(zip(new, made, strict=True))
            self.check()
            self.cache.put(fresh)
            known |= fresh
        found = [known[f"prompt {text}"] for text in texts]
        if len(lengths := {len(one) for one in found}) > 1:
            raise ValueError(
                "`generator.encode_prompts` must return one length L for all prompts, but got "
                f"{' and '.join(map(str, sorted(lengths)))}. Let its tokenizer pad all to one length."
            )
        return torch.stack(found)


def centre(image: Image.Image, size: int) -> Tensor:
    """The largest square in the middle, as uint8 (3, size, size).

    Cropped first: of an image of 3 × 2000 pixels, resizing first would make one of 768 × 512,000.
    """
    square = F.center_crop(image, min(image.size))
    return F.pil_to_tensor(F.resize(square, [size, size], F.InterpolationMode.BICUBIC))
