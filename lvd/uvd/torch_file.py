"""Read a file of torch.save that somebody else wrote: tensors, lists and numbers, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvd.errors import LvdError

# What a pickled NumPy number needs, under the names that NumPy 1 and 2 give it.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in "bhilqBHILQefd"},
]


def open_tensor(path: Path) -> Tensor:
    """The one tensor that a file holds, on the CPU, memory-mapped: a part is read when it is touched.

    Raises:
        LvdError: the file was not written by torch.save, or does not hold one dense tensor of floats.
    """
    held = _load(path)
    if type(held) is not Tensor:
        raise LvdError(f"{path} holds a {type(held).__name__}, not one tensor")
    whole = held.layout == torch.strided and held.device.type == "cpu" and held.is_contiguous()
    if not whole or not held.is_floating_point():
        raise LvdError(
            f"{path} holds a tensor of {held.dtype} that is not plain numbers, one after the other"
        )
    return held


def read_numbers(path: Path) -> list[float]:
    """The numbers of a list or of a one-dimensional tensor.

    Raises:
        LvdError: the file was not written by torch.save, or holds something else.
    """
    held = _load(path)
    values = held.tolist() if isinstance(held, Tensor) and held.ndim == 1 else held
    if not isinstance(values, list):
        raise LvdError(f"{path} holds a {type(held).__name__}, not a list of numbers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise LvdError(f"{path} holds a {type(value).__name__} where a number should be")
    return [float(value) for value in values]


def _load(path: Path) -> Any:
    if not path.is_file():
        raise LvdError(f"no such file: {path}")
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a pickle can make its reader raise anything
        raise LvdError(
            f"{path} is refused, nothing in it was run: it must be whole, of torch.save since torch 1.6, and "
            f"hold tensors, lists and numbers alone ({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    """The line of torch's long advice that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or "nsupported" in line]
    return (telling or lines or [type(error).__name__])[0].removeprefix("WeightsUnpickler error: ")[:160]
