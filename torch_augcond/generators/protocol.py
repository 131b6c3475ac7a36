"""What the package asks of a generator."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..checks import as_int, listed

__all__ = ["BadImages", "Generator"]


class BadImages(RuntimeError):
    """Some rows of a batch came out as NaN or as one plain colour, and no other precision helped.

    Args:
        rows: Indices of the bad rows, from 0: a list, or a tensor of ints.
        images: The whole batch, uint8 (N, 3, H, W); the rows in ``rows`` hold nothing of use.

    Raises:
        TypeError, ValueError: ``rows`` are no indices of ``images``: else a bad image would pass for a good one.
    """

    def __init__(self, rows: Sequence[int] | Tensor, images: Tensor) -> None:
        self.images = images
        self.rows = [as_int("rows", row) for row in (rows.tolist() if hasattr(rows, "tolist") else rows)]
        if outside := [row for row in self.rows if not 0 <= row < len(images)]:
            rule = f"`rows` must be indices of the {len(images)} images, from 0"
            raise ValueError(f"{rule}, but got {listed(outside)}. Of a mask, take `.nonzero().flatten()`.")
        super().__init__(
            f"rows {self.rows} of {len(images)} images came out as NaN or one plain colour. "
            "Check their embeddings for NaN, or lower `guidance_scale`."
        )


class Generator(Protocol):
    """Anything with these members can make the images of a set.

    Three more are used if they are there: an attribute ``batch_size``, how many images to make at once, a method
    ``prepare(num_images)``, which is called before the first batch of a job, and a method
    ``check_numbers(guidance_scale, num_inference_steps, noise_level)``, which refuses what ``generate`` can't do,
    and a generator that isn't any more what its fingerprint says, before a directory is given to the set. A batch in
    which the fingerprint has changed is not kept.

    Attributes:
        fingerprint: Names weights and scheduler; equal fingerprints make equal images. A subclass of ours whose images
            depend on what it is given has to add that.
        embed_dim: D, the entries of an image embedding.
        image_size: Side of the images in pixels.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def embed_dim(self) -> int: ...

    @property
    def image_size(self) -> int: ...

    def encode_images(self, images: Sequence[Image.Image | Tensor]) -> Tensor:
        """RGB images, PIL or uint8 (3, H, W), to float32 embeddings (N, D) on the CPU.

        They are kept for good. If its numbers depend on how many images an encoder is given, give it as many each time.
        """
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to float32 embeddings (N, L, C) on the CPU, of the same L whatever they are."""
        ...

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
        """One uint8 (3, H, W) image a row, on the CPU; a row depends on its own inputs and key alone.

        It has to apply ``augmentation(image_embeds, partners=partner_embeds, keys=keys)``, where that isn't None.
        """
        ...
