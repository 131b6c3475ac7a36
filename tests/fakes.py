"""A generator without a network, and folders of pictures for it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class FakeGenerator:
    """Fulfils the protocol of ``torch_augcond.generators``; paints hashes of what it is given.

    The left half of an image is drawn from the row's conditioning, the right half from its prompt and key, so a wrong
    source, partner, prompt, key or parameter changes pixels.

    Args:
        image_size: Side of the images in pixels.
        embed_dim: Entries of an embedding.
        limit: Rows above which it runs out of memory; None for no limit.
        bad: Keys whose images come out spoilt.
    """

    def __init__(
        self, image_size: int = 16, embed_dim: int = 12, *, limit: int | None = None, bad: Sequence[int] = ()
    ) -> None:
        self.image_size, self.embed_dim = image_size, embed_dim
        self.limit, self.bad = limit, frozenset(bad)
        self.fingerprint = f"fake-{image_size}-{embed_dim}"
        self.batches: list[int] = []
        self.keys: list[int] = []
        self.encoded = self.prompted = self.refused = 0

    def encode_images(self, images: Sequence[Image.Image | Tensor]) -> Tensor:
        self.encoded += len(images)
        return torch.stack([self._encode(image) for image in images])

    def _encode(self, image: Image.Image | Tensor) -> Tensor:
        array = image.permute(1, 2, 0).numpy() if isinstance(image, Tensor) else np.asarray(image)
        assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3, (array.dtype, array.shape)
        return _hashed(array.tobytes(), self.embed_dim)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        self.prompted += len(prompts)
        return torch.stack([_hashed(prompt.encode(), 4 * 3).view(4, 3) for prompt in prompts])

    def generate(
        self,
        image_embeds: Tensor,
        prompt_embeds: Tensor,
        keys: Tensor,
        *,
        partner_embeds: Tensor | None = None,
        augmentation: Any = None,
        guidance_scale: float,
        num_inference_steps: int,
        noise_level: int = 0,
    ) -> Tensor:
        n = len(keys)
        assert image_embeds.shape == (n, self.embed_dim) and prompt_embeds.shape[::2] == (n, 3)
        assert keys.shape == (n,) and keys.dtype == torch.int64
        if self.limit is not None and n > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError(f"no memory for {n} rows")
        self.batches.append(n)
        self.keys += keys.tolist()
        embeds = image_embeds
        if augmentation is not None:
            embeds = augmentation(embeds, partners=partner_embeds, keys=keys)
        numbers = f"{guidance_scale} {num_inference_steps} {noise_level}".encode()
        images = torch.stack([self._paint(embeds[i], prompt_embeds[i], keys[i], numbers) for i in range(n)])
        spoilt = [i for i, key in enumerate(keys.tolist()) if key in self.bad]
        if spoilt:
            from torch_augcond.generators import BadImages

            raise BadImages(spoilt, images)
        return images

    def _paint(self, embed: Tensor, prompt: Tensor, key: Tensor, numbers: bytes) -> Tensor:
        half = self.image_size // 2
        left = _noise(embed.numpy().tobytes() + numbers, half * self.image_size * 3)
        right = _noise(prompt.numpy().tobytes() + key.numpy().tobytes(), (self.image_size - half) * self.image_size * 3)
        halves = [left.view(3, self.image_size, half), right.view(3, self.image_size, self.image_size - half)]
        return torch.cat(halves, dim=2)


def _noise(data: bytes, n: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(hashlib.shake_128(data).digest(n), np.uint8).copy())


def _hashed(data: bytes, n: int) -> Tensor:
    return _noise(data, n).float() / 255 - 0.5


def paint_folder(root: Path, counts: dict[str, int], size: int = 20) -> Path:
    """An ImageFolder of noise: ``counts`` pictures of each class, no two alike."""
    for name, count in counts.items():
        for i in range(count):
            paint(root / name / f"{i}.png", f"{name} {i}", size)
    return root


def paint(path: Path, content: str, size: int = 20) -> Path:
    """One picture, a function of its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = _noise(content.encode(), size * size * 3).view(size, size, 3).numpy()
    Image.fromarray(pixels).save(path)
    return path


class ToFloat:
    """A transform that worker processes can unpickle."""

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).float()

    def __repr__(self) -> str:
        return "ToFloat()"
