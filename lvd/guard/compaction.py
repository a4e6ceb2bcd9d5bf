"""A denoiser that computes the rows of a batch that are left: what is blocked costs nothing any more.

A network's rows are independent of one another, so those that are blocked can be left out of its inputs, and
zeros stand in their place in its output. The pipeline and its scheduler see the whole batch. Which inputs
have a row for each sample is known by name, for the pipelines that this was tried with.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.caches import step_caches, unreadable_caches
from lvd.sampling.fingerprint import Pipeline, denoisers

COMPACTED = frozenset(
    {
        "AllegroPipeline",
        "AnimateDiffPipeline",
        "CogVideoXPipeline",
        "HunyuanVideoPipeline",
        "LTXPipeline",
        "LattePipeline",
        "MochiPipeline",
        "SanaVideoPipeline",
        "SkyReelsV2Pipeline",
        "TextToVideoSDPipeline",
        "WanPipeline",
    }
)
# What has a row for each sample, once or twice (guidance), or several for each (frames), in their networks.
_WITH_ROWS = frozenset(
    {
        "encoder_attention_mask",
        "encoder_hidden_states",
        "guidance",
        "hidden_states",
        "pooled_projections",
        "sample",
        "timestep",
    }
)


def check_compacts(pipe: Pipeline) -> None:
    """Refuse a pipeline of which rows cannot be left out, or not by what is known of it.

    Raises:
        LvdError: says why.
    """
    name = type(pipe).__name__
    if name not in COMPACTED:
        raise LvdError(f"compact=True was not tried with {name}: it goes with {', '.join(sorted(COMPACTED))}")
    cached = step_caches(pipe).keys() | unreadable_caches(pipe).keys()
    for part, network in denoisers(pipe).items():
        if part in cached:
            raise LvdError(
                f"compact=True does not go with a step cache: the {part} of {name} caches whole batches"
            )
        if getattr(pipe, part) is not network:
            raise LvdError(
                f"compact=True does not go with torch.compile: the {part} of {name} would be compiled again "
                "for every number of rows"
            )
    if getattr(pipe, "free_noise_enabled", False):
        raise LvdError(f"compact=True does not go with FreeNoise: {name} samples one video a call under it")


class Compaction:
    """Leaves rows out of what the denoisers of a call compute, while it is told which.

    kept: the samples that are left; None: all, and while nothing is being denoised.
    """

    def __init__(self, samples: int) -> None:
        self.kept: Sequence[int] | None = None
        self._samples = samples
        self._thread = threading.get_ident()  # pipelines in other threads may share a network

    def leave_out(self, blocked: Sequence[int]) -> None:
        """Do without these samples from now on."""
        left = [row for row in range(self._samples) if row not in set(blocked)]
        self.kept = left if blocked and left else None

    @contextmanager
    def of(self, pipe: Pipeline) -> Iterator[None]:
        """While open, the denoisers of `pipe` compute what is kept."""
        with ExitStack() as stack:
            for name, network in denoisers(pipe).items():
                first, second = self._hooks(name, network)
                stack.callback(network.register_forward_pre_hook(first, with_kwargs=True).remove)
                stack.callback(network.register_forward_hook(second).remove)
            yield

    def _hooks(self, name: str, network: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        signature = inspect.signature(network.forward)

        def select(_network: Any, args: Any, kwargs: Any) -> Any:
            if self.kept is None or threading.get_ident() != self._thread:
                return None
            bound = signature.bind(*args, **kwargs)
            rows = len(next(iter(bound.arguments.values())))  # of the latent, the first argument of them all
            for argument, value in bound.arguments.items():
                if argument in _WITH_ROWS and isinstance(value, Tensor) and value.ndim and len(value) > 1:
                    if len(value) % rows or rows % self._samples:
                        raise LvdError(
                            f"the {name}'s {argument} has {len(value)} rows and its latent {rows}, "
                            f"for {self._samples} samples"
                        )
                    bound.arguments[argument] = self._selected(value, rows // self._samples)
            return bound.args, bound.kwargs

        def scatter(_network: Any, _args: Any, output: Any) -> Any:
            if self.kept is None or threading.get_ident() != self._thread:
                return None
            if isinstance(output, tuple):
                return tuple(self._scattered(value) for value in output)
            return type(output)(**{key: self._scattered(value) for key, value in output.items()})

        return select, scatter

    def _selected(self, value: Tensor, times: int) -> Tensor:
        """The rows that are kept of `[times * samples * ..., ...]`."""
        assert self.kept is not None
        rows: Tensor = value.unflatten(0, (times, self._samples, -1))[:, list(self.kept)]
        return rows.flatten(0, 2)

    def _scattered(self, value: Tensor) -> Tensor:
        """The whole batch, with zeros in the rows that were left out."""
        assert self.kept is not None
        rows: Tensor = value.unflatten(0, (-1, len(self.kept)))
        whole: Tensor = rows.new_zeros(rows.shape[0], self._samples, *rows.shape[2:])
        whole[:, list(self.kept)] = rows
        return whole.flatten(0, 1)
