"""Transforms one after the other."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .. import functional as F
from ..checks import brief
from .augmentation import Augmentation, Params, check_work, op_of

__all__ = ["Compose", "check_transforms", "instance_of"]


class Compose(Augmentation):
    """Applies transforms one after the other, all with the same partners; nested ones are flattened.

    Transforms of one kind (mixing, dropping) draw numbers of their own, so the second isn't a copy of the first. Which
    they are is decided here: ``transforms`` is a tuple.

    Args:
        transforms: Any number of this module's transforms: those of pixels first, as embeddings come after them. None
            at all is the variant ``real``.

    Raises:
        TypeError: Something isn't one of this module's transforms, or it is no list of them, or a nested subclass
            works in a way of its own.
        ValueError: A transform of pixels follows one of embeddings.

    Example:
        >>> from torch_augcond import Compose, EmbedCutMix, EmbedDropout
        >>> Compose([EmbedCutMix(), EmbedDropout(p=0.2)]).describe()[1]
        {'name': 'EmbedDropout', 'p': 0.2, 'rescale': False}
    """

    def __init__(self, transforms: Sequence[nn.Module]) -> None:
        super().__init__()
        self._transforms = tuple(_flat(check_transforms("transforms", transforms)))
        seen: Counter[str] = Counter()
        self._nth = []  # how many of its kind precede each transform
        for t in self._transforms:
            self._nth.append(seen[t.kind])
            seen[t.kind] += 1

    @property
    def transforms(self) -> tuple[nn.Module, ...]:
        """In their order, flat."""
        return self._transforms

    def __len__(self) -> int:
        return len(self.transforms)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.transforms)

    def _only(self, stage: str) -> "Compose":
        part, kept = Compose([]), [(t, n) for t, n in zip(self.transforms, self._nth) if t.stage == stage]
        part._transforms, part._nth = tuple(t for t, _ in kept), [n for _, n in kept]
        return part

    @property
    def pixel(self) -> "Compose":
        """The part that acts on images, before they are encoded."""
        return self._only("pixel")

    @property
    def embed(self) -> "Compose":
        """The part that acts on embeddings."""
        return self._only("embed")

    @property
    def stage(self) -> str | None:
        """``"pixel"``, ``"embed"``, ``"both"``, or None for no transform at all."""
        stages = {t.stage for t in self.transforms}
        return "both" if len(stages) == 2 else next(iter(stages), None)

    @property
    def mixes(self) -> bool:
        """Whether a partner is needed."""
        return any(t.mixes for t in self.transforms)

    @property
    def num_sources(self) -> int:
        """Real images behind one generated image: 0 if all is dropped, 2 if something is mixed, else 1."""
        number = 1
        for t in self.transforms:
            number = 2 if t.mixes else 0 if getattr(t, "p", 0) == 1 else number
        return number

    @property
    def ops(self) -> tuple:
        """The transforms of embeddings as the constants of a compiled graph (see `torch_augcond.fused`)."""
        if self.stage in ("pixel", "both"):
            got = brief(repr(self))
            raise ValueError(f"`ops` must be made of transforms of embeddings, but got {got}. Take `.embed`.")
        check_work("ops", self, Compose)
        return tuple(op_of(t, n) for t, n in zip(self.transforms, self._nth))

    def _draw(self, x: Tensor, keys: Tensor) -> Params:
        drawn = [t._draw(x, F.fold(keys, n)) for t, n in zip(self.transforms, self._nth)]
        return {name + _suffix(n): value for n, params in zip(self._nth, drawn) for name, value in params.items()}

    def transform(self, x: Tensor, partners: Tensor | None, params: Params) -> Tensor:
        for t, n in zip(self.transforms, self._nth):
            own = {name.removesuffix(_suffix(n)): v for name, v in params.items() if name.endswith(_suffix(n))}
            x = t.transform(x, partners, own)
        return x

    def describe(self) -> list[dict[str, Any]]:
        """Plain JSON: each transform's name and arguments."""
        return [t.describe() for t in self.transforms]

    def extra_repr(self) -> str:
        return "\n".join(map(repr, self.transforms))


def _suffix(n: int) -> str:
    return f"_{n}" if n else ""


def check_transforms(name: str, transforms: Any) -> list[nn.Module]:
    """The transforms, if they are a list of nothing else."""
    rule = f"`{name}` must be a list of Embed and Pixel transforms, but got"
    if isinstance(transforms, str) or not isinstance(transforms, Iterable):
        raise TypeError(f"{rule} {brief(repr(transforms))} ({type(transforms).__name__}).")
    transforms = list(transforms)
    for t in transforms:
        if not isinstance(t, Augmentation):
            hint = " Take VARIANTS[...] of a variant's name." if isinstance(t, str) else instance_of(t)
            raise TypeError(f"{rule} {brief(repr(t))} ({type(t).__name__}) in it.{hint}")
    return transforms


def instance_of(kind: Any) -> str:
    """A sentence for whoever gives a class for one of its instances, or nothing."""
    is_class = isinstance(kind, type) and issubclass(kind, Augmentation)
    return f" Make an instance of it: {kind.__name__}()." if is_class else ""


def _flat(transforms: Sequence[nn.Module]) -> list[nn.Module]:
    flat: list[nn.Module] = []
    for t in transforms:
        if isinstance(t, Compose):
            check_work("transforms", t, Compose)
            flat += t.transforms
        else:
            flat.append(t)
    stages = [t.stage for t in flat]
    if stages != sorted(stages, reverse=True):
        raise ValueError(f"`transforms` must be of pixels first, then of embeddings, but got {flat}.")
    return flat
