"""A Stable unCLIP pipeline as a generator: one source embedding, one prompt and one key a row."""

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from .. import fused
from ..checks import as_int, warn
from .denoise import decode, denoise, draw_latents, in_float32, time_parts, to_uint8
from .inputs import check_keys, check_level, check_numbers, check_prompts, check_rows, to_pil, warn_if_long
from .memory import batch_size_for
from .networks import Networks, choose
from .options import check_compile, check_interval, check_reuse, exact, make_scheduler, own_scheduler_id, scheduler_id
from .parts import check_fingerprint, check_widths
from .protocol import BadImages
from .quiet import without_messages
from .steady import Steady
from .undisturbed import undisturbed
from .weights import functions_of

if TYPE_CHECKING:
    from diffusers import StableUnCLIPImg2ImgPipeline

    from ..transforms import Compose

__all__ = ["StableUnCLIPGenerator"]

# Images or prompts at once, always: in batches of other sizes kernels add up in another order, and with several threads
# on a CPU in other places of a batch as well.
_ENCODED = {"cpu": 1, "cuda": 8}
_BOUND = ("_plain", "_networks", "_way")


class StableUnCLIPGenerator:
    """Runs a ``StableUnCLIPImg2ImgPipeline`` row by row: an image depends on its own row alone, never on its batch.

    Given the same embeddings, prompts, noise and latents, its images are those of the pipeline's ``__call__`` (within
    1e-5 in float32 on a CPU). The pipeline's scheduler is copied for each batch and never stepped itself.

    ``scheduler``, ``guidance_interval`` and ``cache_interval`` save time and change images, so they are part of
    ``fingerprint``; ``compile`` changes them by no more than rounding does. All four are chosen once, here. A
    surrounding ``torch.autocast`` or default device has no influence.

    Args:
        pipe: The pipeline, on its device and in its dtype. Its scheduler may be replaced between two sets, by one that
            takes all noise from the generators it is given. Its other parts, what is set in them and their weights must
            stay as they are: with another VAE, LoRA or FreeU it is another pipeline with another fingerprint. Each call
            looks at the former two, ``prepare`` at the weights.
        fingerprint: Names the weights, such as ``repository@commit``. The scheduler is added, unless it is the one that
            ``load_generator`` found in the checkpoint.
        compile: Whether ``prepare`` may compile: ``"auto"`` (if the job is long enough to save time), True (the whole
            UNet and decoder), ``"regional"`` (the UNet's transformer blocks) or False.
        scheduler: Replaces the pipeline's, for its noise schedule: ``"dpmpp"`` (DPM-Solver++) or ``"unipc"``, which
            need fewer steps, ``"ddim"``, ``"euler"`` or ``"pndm"``; None keeps the pipeline's.
        guidance_interval: (lo, hi), the part of the steps that is guided, as fractions from the first step, 0, to the
            last, 1. A step outside costs half.
        cache_interval: The UNet's deep layers run in every n-th step only; their features are reused in the others.

    Raises:
        TypeError: ``pipe`` is no such pipeline, or an argument has the wrong type.
        ValueError: The parts of the pipeline don't fit each other, its scheduler draws noise of its own, or an option
            is none of those above.

    Example:
        >>> from torch_augcond import load_generator
        >>> generator = load_generator("tiny")
        >>> embeds = generator.encode_images([Image.new("RGB", (40, 30))])
        >>> prompts = generator.encode_prompts(["a photo of a cat"])
        >>> generator.generate(embeds, prompts, torch.tensor([7]), guidance_scale=2.0, num_inference_steps=5).shape
        torch.Size([1, 3, 32, 32])

    Source: diffusers' ``StableUnCLIPImg2ImgPipeline``; the augmented condition is arXiv 2502.04475; guidance in an
    interval is Kynkäänniemi et al. 2024; reused features are DeepCache, Ma et al. 2024.
    """

    def __init__(
        self,
        pipe: "StableUnCLIPImg2ImgPipeline",
        *,
        fingerprint: str,
        compile: bool | str = "auto",
        scheduler: str | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        cache_interval: int = 1,
    ) -> None:
        check_fingerprint(fingerprint)
        check_widths(pipe)
        self.pipe = pipe
        self.checkpoint = fingerprint
        self._compile = check_compile(compile)
        self._guidance_interval = check_interval(guidance_interval)
        self._cache_interval = check_reuse(cache_interval, pipe.unet)
        if scheduler is not None:
            pipe.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
        self._plain = self._networks = Networks(pipe, cache_interval=self.cache_interval)
        self._way = "off"
        self._steady = Steady(pipe)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is compiled or bound to this very pipeline: a copy makes its own."""
        return {name: value for name, value in vars(self).items() if name not in _BOUND}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._plain = self._networks = Networks(self.pipe, cache_interval=self.cache_interval)
        self._way = "off"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fingerprint!r}, {self.image_size} px, {self.dtype}, {self.device})"

    @property
    def fingerprint(self) -> str:
        """Names the weights and all that changes images: own methods, another scheduler than its own, shortcuts."""
        parts, scheduler = [self.checkpoint, *sorted(functions_of(self))], scheduler_id(self.pipe)
        if type(self) is not StableUnCLIPGenerator:
            parts.append(type(self).__qualname__)
        if scheduler != own_scheduler_id(self.pipe):
            parts.append(scheduler)
        if self.guidance_interval != (0, 1):
            parts.append("-".join(["guidance", *map(exact, self.guidance_interval)]))
        if self.cache_interval > 1:
            parts.append(f"cache-{self.cache_interval}")
        return "+".join(parts)

    @property
    def compile(self) -> bool | str:
        """As given; to change it or one of the next two, make another generator of the same pipeline."""
        return self._compile

    @property
    def guidance_interval(self) -> tuple[float, float]:
        return self._guidance_interval

    @property
    def cache_interval(self) -> int:
        return self._cache_interval

    @property
    def embed_dim(self) -> int:
        """D, the entries of an image embedding."""
        return self.pipe.image_encoder.config.projection_dim

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.pipe.unet.config.sample_size * self.pipe.vae_scale_factor

    @property
    def _prompt_dim(self) -> int:
        return self.pipe.text_encoder.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.pipe.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.pipe.unet.dtype

    @cached_property
    def batch_size(self) -> int:
        """Images that are made at once by default: as many as fit the memory that is free now, up to 64."""
        return batch_size_for(self.pipe, self.image_size)

    def prepare(self, num_images: int) -> None:
        """Chooses how to compile for the job that follows, whose first batch compiles; looks at the weights.

        Args:
            num_images: That will be made, in batches of one size.

        Raises:
            ValueError: The weights aren't those that the generator was made with. Looking takes about a second for 1.9
                billion halves on two cores.
        """
        self._steady.check_weights(self.pipe)
        way = choose(self.compile, as_int("num_images", num_images, 0), self.device)
        if way != self._way:
            self._way, self._networks = way, Networks(self.pipe, way, self.cache_interval)

    @undisturbed
    def encode_images(self, images: Sequence[Image.Image | Tensor]) -> Tensor:
        """The image encoder's embeddings, each a function of its image alone.

        Args:
            images: RGB images of any size, PIL or uint8 (3, H, W).

        Shape:
            N images → (N, D), float32, on the CPU.

        Raises:
            TypeError: Something is no RGB image, or ``images`` is no list of them.
        """
        self._steady.check(self.pipe)
        if not isinstance(images, Sequence | Tensor):
            raise TypeError(f"`images` must be a list of images, but got {type(images).__name__}.")
        if not len(images):
            return torch.empty(0, self.embed_dim)
        inputs = self.pipe.feature_extractor(images=[to_pil(image) for image in images], return_tensors="pt")
        encoder = self.pipe.image_encoder
        pixels = inputs.pixel_values.to(encoder.device, encoder.dtype)
        return self._encoded(lambda chunk: encoder(torch.stack(chunk)).image_embeds, list(pixels))

    @undisturbed
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """The text encoder's states; every prompt is padded to the tokenizer's length, so lengths mix freely.

        Shape:
            N prompts → (N, L, C), float32, on the CPU.

        Raises:
            TypeError: ``prompts`` is no list of str.

        Warns:
            Which prompts are too long; what doesn't fit is left out.
        """
        self._steady.check(self.pipe)
        prompts = check_prompts(prompts)
        if not prompts:
            return torch.empty(0, self.pipe.tokenizer.model_max_length, self._prompt_dim)
        with without_messages():
            warn_if_long(self.pipe.tokenizer, prompts)
            return self._encoded(lambda chunk: self.pipe.encode_prompt(chunk, self.device, 1, False)[0], prompts)

    def _encoded(self, encode: Callable[[list[Any]], Tensor], rows: Sequence[Any]) -> Tensor:
        """`encode` of the rows in batches of one size, the last one padded; float32, on the CPU."""
        size = _ENCODED.get(self.device.type, 1)
        padded = [*rows, *[rows[-1]] * (-len(rows) % size)]
        chunks = [padded[start : start + size] for start in range(0, len(padded), size)]
        return torch.cat([encode(chunk).float().cpu() for chunk in chunks])[: len(rows)]

    def check_numbers(self, guidance_scale: float, num_inference_steps: int, noise_level: int) -> None:
        """Refuses what ``generate`` or ``prepare`` would refuse, before anything is made.

        Raises:
            TypeError, ValueError: naming the argument, or what has changed in the pipeline.
        """
        check_numbers(self.pipe, guidance_scale, num_inference_steps, noise_level)
        self._steady.check(self.pipe)
        self._steady.check_weights(self.pipe)

    @undisturbed
    def generate(
        self,
        image_embeds: Tensor,
        prompt_embeds: Tensor,
        keys: Tensor,
        *,
        partner_embeds: Tensor | None = None,
        augmentation: "Compose | None" = None,
        guidance_scale: float,
        num_inference_steps: int,
        noise_level: int = 0,
    ) -> Tensor:
        """One image a row. All random numbers of a row come from its key.

        Rows that come out as NaN or one plain colour in half precision are made again in float32, with a warning; the
        others stay as they are.

        Args:
            image_embeds: From ``encode_images``.
            prompt_embeds: From ``encode_prompts``, one a row.
            keys: int64, one a row.
            partner_embeds: The second image's embedding, for augmentations that mix.
            augmentation: A Compose of Embed transforms; default none.
            guidance_scale: 1 for none.
            num_inference_steps: Of the scheduler.
            noise_level: Timestep of the image noising schedule, from 0; noise is drawn at 0 as well.

        Shape:
            (N, D), (N, L, C), (N,), (N, D) → (N, 3, H, W), uint8, on the CPU.

        Raises:
            TypeError, ValueError: An argument isn't as above.
            BadImages: Some rows are NaN or one plain colour in float32, too.
        """
        self._steady.check(self.pipe)
        check_rows(image_embeds, prompt_embeds, keys, partner_embeds, self.embed_dim, self._prompt_dim)
        check_numbers(self.pipe, guidance_scale, num_inference_steps, noise_level)
        condition = self.condition(image_embeds, keys, partner_embeds, augmentation, noise_level)
        numbers = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps}
        images, bad = to_uint8(self.sample(condition, prompt_embeds, keys, **numbers))
        if bad.any() and self.dtype != torch.float32:
            warn(
                f"{int(bad.sum())} of {len(bad)} images came out as NaN or one plain colour in {self.dtype} and "
                "are made again in float32. load_generator(dtype=torch.bfloat16) is less prone to it.",
            )
            with in_float32(self.pipe):  # alone: how many of a batch are spoilt must not change any of them
                parts = (x[bad].split(1) for x in (condition, prompt_embeds, keys))
                again = [self._sample(self._plain, *row, **numbers) for row in zip(*parts, strict=True)]
            images[bad], bad[bad] = to_uint8(torch.cat(again))
        if bad.any():
            raise BadImages(bad.nonzero().flatten().tolist(), images)
        return images

    @undisturbed
    def condition(
        self,
        image_embeds: Tensor,
        keys: Tensor,
        partner_embeds: Tensor | None = None,
        augmentation: "Compose | None" = None,
        noise_level: int = 0,
    ) -> Tensor:
        """The UNet's conditioning vector: noised embedding ‖ level embedding, augmented as a whole.

        Shape:
            (N, D), (N,), (N, D) → (N, 2D), float32, on the device.
        """
        check_keys(keys)
        check_level(self.pipe, noise_level)
        if augmentation is not None and not hasattr(augmentation, "ops"):
            got = f"{augmentation!r} ({type(augmentation).__name__})"
            raise TypeError(f"`augmentation` must be None or Embed transforms, but got {got}.")
        signal = self.pipe.image_noising_scheduler.alphas_cumprod[noise_level]
        normalizer = self.pipe.image_normalizer
        return fused.condition(
            image_embeds.to(self.device, torch.float32),
            keys.to(self.device),
            partners=None if partner_embeds is None else partner_embeds.to(self.device, torch.float32),
            ops=augmentation,
            noise_level=noise_level,
            signal=float(signal**0.5),
            sigma=float((1 - signal) ** 0.5),
            mean=normalizer.mean[0].to(self.device, torch.float32),
            std=normalizer.std[0].to(self.device, torch.float32),
            compile=self.device.type == "cuda",  # on a CPU compiling takes longer than it could ever save here
        )

    def latents(self, keys: Tensor) -> Tensor:
        """The starting noise of each row, from its key alone.

        Shape:
            (N,) → (N, C, H, W), float32, on the CPU.
        """
        return self._draw(keys)[0]

    def sample(
        self,
        condition: Tensor,
        prompt_embeds: Tensor,
        keys: Tensor,
        *,
        guidance_scale: float,
        num_inference_steps: int,
    ) -> Tensor:
        """Denoise and decode, as ``generate`` does after ``condition`` and before it rounds.

        Shape:
            (N, 2D), (N, L, C), (N,) → (N, 3, H, W) in [0, 1], float32, on the device.
        """
        check_numbers(self.pipe, guidance_scale, num_inference_steps, 0)
        numbers = {"guidance_scale": guidance_scale, "num_inference_steps": num_inference_steps}
        return self._sample(self._networks, condition, prompt_embeds, keys, **numbers)

    @undisturbed
    def _sample(
        self, networks: Networks, condition: Tensor, prompt_embeds: Tensor, keys: Tensor, **numbers: Any
    ) -> Tensor:
        self._steady.check(self.pipe)
        latents, generators = self._draw(keys)
        inputs = (x.to(self.device, self.dtype) for x in (latents, condition, prompt_embeds, self._empty_prompt))
        numbers |= {"generators": generators, "guidance_interval": self.guidance_interval}
        return decode(self.pipe, networks, denoise(self.pipe, networks, *inputs, **numbers))

    def estimate_seconds(self, n: int, num_inference_steps: int) -> float:
        """How long ``n`` guided images will take here one by one; batches on a GPU are faster.

        The first call times a step and a decoding, so it takes about 1/``num_inference_steps`` of an image's time.
        """
        as_int("n", n, 0)
        as_int("num_inference_steps", num_inference_steps, 1)
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        step, rest = self._seconds
        return n * (len(scheduler.timesteps) * step + rest)

    @cached_property
    def _empty_prompt(self) -> Tensor:
        return self.encode_prompts([""])

    @cached_property
    @undisturbed
    def _seconds(self) -> tuple[float, float]:
        """A guided UNet step and a decoding, of one image each."""
        inputs = (
            self.latents(torch.arange(2)),
            torch.linspace(-1, 1, 4 * self.embed_dim).view(2, -1),
            self._empty_prompt.repeat(2, 1, 1),
        )
        return time_parts(self.pipe, *(x.to(self.device, self.dtype) for x in inputs))

    def _draw(self, keys: Tensor) -> tuple[Tensor, list[torch.Generator]]:
        check_keys(keys)
        return draw_latents(keys, self.pipe.unet.config.in_channels, self.pipe.unet.config.sample_size)
