"""Random numbers that are functions of a key: counter-based, without any state.

Number j that row i draws for a purpose is a hash of (keys[i], purpose, j), so a row is bitwise the same in any batch,
order or shard. They are made of integer operations and of the four that IEEE 754 rounds correctly (+ × ÷ √), so that
they don't hang on anybody's `log` or `cos` either: a CPU gives the same bits eagerly and compiled.

Example:
    >>> import torch
    >>> from torch_augcond.functional import Purpose, uniform
    >>> both, one = torch.tensor([7, 8]), torch.tensor([8])
    >>> torch.equal(uniform(both, Purpose.LAM, 5)[1:, :3], uniform(one, Purpose.LAM, 3))
    True
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

from .checks import as_float, as_int
from .operands import check_keys, check_size

__all__ = ["Purpose", "beta", "fold", "normal", "uniform"]

# splitmix64 (Steele, Lea, Flood 2014): 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB as int64.
_GOLDEN, _M1, _M2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


class Purpose(IntEnum):
    """What a random number is for; each purpose has its own stream."""

    LAM = 0
    SPAN = 1
    DROPOUT = 2
    NOISE = 3
    BOX = 4
    CROP = 5
    PARTNER = 6
    LATENTS = 7


_PURPOSES = frozenset(map(int, Purpose))


def _shift(x: Tensor, n: int) -> Tensor:
    return (x >> n) & ((1 << (64 - n)) - 1)  # >> repeats the sign on int64


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def fold(keys: Tensor, n: int) -> Tensor:
    """Keys for the n-th further use of the same purpose; ``keys`` themselves for n = 0."""
    check_keys(keys)
    check_size("n", n, None)
    return _mix(_mix(keys) - n) if n else keys


def _words(keys: Tensor, purpose: int, num: int, first: int = 0) -> Tensor:
    # The position comes in by an exclusive or, which Inductor can't fold into its index arithmetic: there, a multiple
    # of _GOLDEN would leave the range of int64.
    positions = torch.arange(first, first + num, device=keys.device)
    return _mix((_mix(_mix(keys) + int(purpose))[:, None] ^ positions) * _GOLDEN)


def _check(keys: Tensor, purpose: int, num: int, first: int = 0) -> None:
    if torch.compiler.is_compiling():
        return
    check_keys(keys)
    check_size("num", num)
    check_size("first", first)
    if as_int("purpose", purpose) not in _PURPOSES:
        raise ValueError(f"`purpose` must be one of {', '.join(map(str, Purpose.__members__))}, but got {purpose}.")


def _unit(words: Tensor, n: int) -> Tensor:
    """23 bits as the middle of one of 2²³ equal parts of (0, 1), which float32 holds exactly."""
    bits = (words >> n).to(torch.int32) & 0x7FFFFF  # 32 bits as soon as can be: a processor does twice as many at once
    return (bits.to(torch.float32) + 0.5) * 2.0**-23


def _horner(x: Tensor, *coefficients: float) -> Tensor:
    y = coefficients[0] * x
    for c in coefficients[1:-1]:
        y = (y + c) * x
    return y + coefficients[-1]


def _sqrt(x: Tensor) -> Tensor:
    # Compiled code takes the processor's root. torch's eager one is MKL's, which misses the last bit of one float32 in
    # six; float64 leaves that bit no room.
    return torch.sqrt(x) if torch.compiler.is_compiling() else torch.sqrt(x.double()).to(x.dtype)


def _log(u: Tensor) -> Tensor:
    """log of a normal float32: exponent · log 2 + log m, and log m = 2 artanh((m−1)/(m+1)) for the rest in [½, 1)."""
    bits = u.view(torch.int32)
    m = ((bits & 0x7FFFFF) | 0x3F000000).view(torch.float32)
    s = (m - 1) / (m + 1)
    series = _horner(torch.square(s), 1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0)
    return ((bits >> 23) - 126).to(torch.float32) * math.log(2) + 2 * s * series


def _cos_turns(v: Tensor) -> Tensor:
    """cos(2πv) for v in (0, 1), as a sine between −π/2 and π/2, where seven terms are enough for float32."""
    x = ((v - 0.5).abs() - 0.25) * (2 * math.pi)
    return x * _horner(torch.square(x), *((-1) ** k / math.factorial(2 * k + 1) for k in range(6, -1, -1)))


def _exp(x: Tensor) -> Tensor:
    """exp of float64 x ≥ 0: Taylor's series of x/1024, squared ten times. Infinite where exp is."""
    y = _horner(x / 1024, *(1 / math.factorial(k) for k in range(8, -1, -1)))
    for _ in range(10):
        y = torch.square(y)  # unlike y · y, one use of y: Inductor would repeat it a thousand times
    return y


def uniform(keys: Tensor, purpose: int, num: int, first: int = 0) -> Tensor:
    """Uniform numbers in (0, 1), each a function of (key, purpose, position) alone.

    Args:
        keys: int64, one a row.
        purpose: A `Purpose`.
        num: Numbers a row; asking for more leaves the first ones as they are.
        first: Position of the first of them.

    Shape:
        (N,) → (N, num), float32.

    Raises:
        TypeError, ValueError: An argument isn't as above.

    Source:
        splitmix64 (Steele, Lea and Flood, 2014), one counter a row.
    """
    _check(keys, purpose, num, first)
    return _unit(_words(keys, purpose, num, first), 41)


def normal(keys: Tensor, purpose: int, num: int) -> Tensor:
    """Standard normal numbers (Box–Muller), each a function of (key, purpose, position) alone.

    Shape:
        (N,) → (N, num), float32; at most 5.77 from 0, as 23 bits can be.

    Raises:
        TypeError, ValueError: An argument isn't as above.
    """
    _check(keys, purpose, num)
    words = _words(keys, purpose, num)
    return _sqrt(-2 * _log(_unit(words, 41))) * _cos_turns(_unit(words, 9))


def beta(keys: Tensor, alpha: float) -> Tensor:
    """λ ~ Beta(α, α), one a row, a function of the key alone: in closed form, so nothing is ever rejected.

    Args:
        alpha: α > 0; 1 is the uniform distribution.

    Shape:
        (N,) → (N,), float32 in [0, 1].

    Raises:
        TypeError, ValueError: An argument isn't as above.

    Source:
        Bailey's polar Student t (1994) with 2α degrees of freedom; λ = ½ + ½ t / √(2α + t²) is then Beta(α, α)
        (Devroye 1996, "Random variate generation in one line of code").
    """
    if not torch.compiler.is_compiling():
        alpha = as_float("alpha", alpha, "a positive float", lambda a: 0 < a < math.inf)
    if alpha == 1:
        return uniform(keys, Purpose.LAM, 1)[:, 0]
    u, v = uniform(keys, Purpose.LAM, 2).unbind(1)
    cos = _cos_turns(v).double()
    w = (_exp(_log(u).double() / -alpha) - 1) * torch.square(cos)  # t² / 2α
    small = 0.5 / (1 + w) / (1 + _sqrt(1 / (1 + 1 / w)))  # ½ − ½ √(w / (1 + w)) without cancellation
    return torch.where(cos < 0, small, 1 - small).float()
