"""The parts of a pipeline: which fit each other, and that they stay what their fingerprint stands for."""

from typing import Any

from ..checks import listed

__all__ = ["check_fingerprint", "check_parts", "check_widths", "parts_of"]

_PARTS = (
    "feature_extractor",
    "image_encoder",
    "image_normalizer",
    "image_noising_scheduler",
    "tokenizer",
    "text_encoder",
    "unet",
    "vae",
)


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


def parts_of(pipe: Any) -> dict[str, Any]:
    """All but the denoising scheduler, which may be replaced."""
    return {name: getattr(pipe, name) for name in _PARTS}


def check_parts(pipe: Any, parts: dict[str, Any]) -> None:
    """Refuses a pipeline of which one of these was replaced: its fingerprint is of the former one."""
    if replaced := [name for name, part in parts.items() if getattr(pipe, name) is not part]:
        raise ValueError(
            f"`pipe` must keep the parts that its generator was made with, but {listed(replaced)} was replaced. Make "
            "another generator of it, with another `fingerprint`."
        )
