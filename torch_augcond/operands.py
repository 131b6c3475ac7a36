"""Checks of what the pure functions are given: types, shapes and plain numbers, never a value inside a tensor.

A value on a GPU would have to be waited for. In a graph that is being compiled nothing is checked.
"""

from typing import Any

import torch
from torch import Tensor

from .checks import as_int

__all__ = ["check_keys", "check_size", "check_tensor"]

_KINDS = {
    "floating": ("a floating-point", lambda dtype: dtype.is_floating_point),
    "int64": ("an int64", lambda dtype: dtype == torch.int64),
    "integer": ("an integer", lambda dtype: not dtype.is_floating_point and not dtype.is_complex),
    "bool": ("a bool", lambda dtype: dtype == torch.bool),
    "real": ("a real", lambda dtype: not dtype.is_complex),
}


def check_tensor(name: str, x: Any, shape: tuple[int | str, ...], kind: str = "floating", remedy: str = "") -> None:
    """That ``x`` is a tensor of this kind and shape; a letter in the shape stands for any length.

    Raises:
        TypeError, ValueError: If it isn't; ``remedy`` ends the message.
    """
    if torch.compiler.is_compiling():
        return
    is_tensor, (text, fits) = isinstance(x, Tensor), _KINDS[kind]
    right = is_tensor and fits(x.dtype)
    if right and len(shape) == x.ndim and all(isinstance(n, str) or n == m for n, m in zip(shape, x.shape)):
        return
    got = f"{x.dtype} of shape {tuple(x.shape)}" if is_tensor else f"{type(x).__name__}"
    wanted = f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"
    raise (ValueError if right else TypeError)(
        f"`{name}` must be {text} tensor of shape {wanted}, but got {got}.{remedy}"
    )


def check_keys(keys: Any, n: int | str = "N") -> None:
    """That ``keys`` are int64, one a row."""
    check_tensor("keys", keys, (n,), "int64")


def check_size(name: str, value: Any, low: int | None = 0) -> None:
    """That a length is an int of at least ``low``, if that is one."""
    if not torch.compiler.is_compiling():
        as_int(name, value, low)
