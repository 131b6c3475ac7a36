"""The parts of a pipeline: which fit each other, and that they stay what their fingerprint stands for."""

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from ..checks import listed

__all__ = ["check_fingerprint", "check_parts", "check_widths", "parts_of"]

_PARTS = (
    "feature_extractor",
    "image_encoder",
    "image_normalizer",
    "image_noising_scheduler",
    "image_processor",
    "tokenizer",
    "text_encoder",
    "unet",
    "vae",
)
_EXTRA = ("alphas_cumprod", "special_tokens_map")
_IDLE = {"cache", "deprecation_warnings", "dtype", "init_kwargs", "name_or_path", "verbose"}  # what changes no number


def check_widths(pipe: Any) -> None:
    """Refuse parts of different checkpoints before they make noise, or fail in the middle of a set."""
    if not (hasattr(pipe, "image_encoder") and hasattr(pipe, "image_normalizer")):
        raise TypeError(f"`pipe` must be a StableUnCLIPImg2ImgPipeline, but got {type(pipe).__name__}.")
    dim, text = pipe.image_encoder.config.projection_dim, pipe.text_encoder.config.hidden_size
    unet = pipe.unet.config
    pairs = {
        "the UNet's class embedding twice as wide as the image encoder's": (
            unet.projection_class_embeddings_input_dim,
            2 * dim,
        ),
        "the normalizer as wide as the image encoder's": (pipe.image_normalizer.config.embedding_dim, dim),
        "the UNet's cross-attention as wide as the text encoder's": (unet.cross_attention_dim, text),
    }
    wrong = [f"{rule} (must be {want}, but got {got})" for rule, (got, want) in pairs.items() if got != want]
    if wrong:
        raise ValueError(
            f"`pipe` must have parts that fit: {'; '.join(wrong)}. "
            "Use the encoders that the UNet was trained with: ViT-H (1024) for sd21-unclip, ViT-L (768) for -small."
        )


def check_fingerprint(fingerprint: Any) -> None:
    """Options that change images follow a +, and only a generator itself knows which it has."""
    if not isinstance(fingerprint, str) or not fingerprint:
        raise TypeError(f"`fingerprint` must be a string that names the weights, but got {fingerprint!r}.")
    if "+" in fingerprint:
        raise ValueError(
            f"`fingerprint` must name the weights alone, without a +, but got {fingerprint!r}. Of another generator, "
            "take its `checkpoint`, and give its options."
        )


def parts_of(pipe: Any) -> dict[str, tuple[Any, str]]:
    """All but the denoising scheduler, which may be replaced; each with what is set in it."""
    return {name: (getattr(pipe, name), _settings(pipe, name)) for name in _PARTS}


def check_parts(pipe: Any, parts: dict[str, tuple[Any, str]]) -> None:
    """Refuses a pipeline of which one of these was replaced, or set otherwise: its fingerprint is of the former one."""
    replaced = [name for name, (part, _) in parts.items() if getattr(pipe, name) is not part]
    changed = [name for name, (_, settings) in parts.items() if _settings(pipe, name) != settings]
    for names, what in ((replaced, "was replaced"), (changed, "was set otherwise")):
        if names:
            raise ValueError(
                f"`pipe` must keep the parts that its generator was made with, but {listed(names)} {what}. Make "
                "another generator of it, with another `fingerprint`."
            )


def _settings(pipe: Any, name: str) -> str:
    """A part's configuration, or else its attributes, and what it computes with besides."""
    part = getattr(pipe, name)
    config = getattr(part, "config", part)
    settings = dict(config) if isinstance(config, dict) else {}
    settings |= vars(config) | {extra: getattr(part, extra, None) for extra in _EXTRA}
    settings["tiled"] = getattr(part, "use_tiling", False) and pipe.unet.config.sample_size > part.tile_latent_min_size
    shown = {name: value for name, value in settings.items() if not name.startswith("_") and name not in _IDLE}
    return json.dumps(shown, default=_plain, skipkeys=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # an array or a tensor
        return value.tolist()
    return asdict(value) if is_dataclass(value) else type(value).__name__
