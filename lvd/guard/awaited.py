"""Numbers on their way from a device, which need not be waited for at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Awaited:
    """The numbers of some tensors as they are now, to be read later.

    A CUDA device copies them after what was asked of it before; `read` waits for that, and for nothing that
    was asked of it since. Of any other device they are copied where they are, and `read` waits for it.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._copies = [
            tensor.to("cpu", non_blocking=True) if tensor.is_cuda else tensor.clone() for tensor in tensors
        ]  # from CUDA in pinned memory
        self._done: torch.cuda.Event | None = None
        for tensor in tensors:
            if tensor.is_cuda and self._done is None:
                self._done = torch.cuda.Event()
                self._done.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> list[Any]:
        """A list, nested as the tensor is, for each tensor."""
        if self._done is not None:
            self._done.synchronize()
        return [copy.tolist() for copy in self._copies]
