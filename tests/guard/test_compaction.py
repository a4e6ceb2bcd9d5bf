"""compact=True: what is blocked frees its compute, and what is released differs by rounding alone."""

import functools
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import pytest
import torch
from torch import Tensor, nn

from conftest import StubPipeline, stub_guard
from lvd.errors import LvdError
from lvd.guard import Guard
from lvd.guard.compaction import COMPACTED, Compaction
from lvd.sampling.pipelines import LAYOUT_OF
from support.pipeline_runs import blocking_one, capture
from support.pipelines import TINY, Tiny

OFTEN = ("CogVideoXPipeline", "WanPipeline")
TRIED = [tiny for tiny in TINY if tiny.pipeline_class in COMPACTED and tiny.free_noise is None]
ROUNDING = 1e-4  # of pixels in [0, 1]; the most that was seen is in docs/guard.md


@contextmanager
def counted(network: nn.Module) -> Iterator[list[int]]:
    """How many rows each call of the network computes."""
    original = type(network).forward
    rows: list[int] = []

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(self, *args, **kwargs).arguments
        rows.append(len(list(given.values())[1]))
        return original(self, *args, **kwargs)

    with patch.object(type(network), "forward", forward):
        yield rows


@pytest.mark.parametrize(
    "tiny",
    [pytest.param(one, marks=[] if one.name in OFTEN else pytest.mark.long, id=one.name) for one in TRIED],
)
def test_a_blocked_row_is_computed_no_more(tiny: Tiny, tmp_path: Path) -> None:
    captured = capture(tiny, tmp_path)
    (batch,) = captured.batches()
    unguarded = captured.sample(batch, "pt")
    compacting = Guard(blocking_one(captured).bundle, compact=True)
    denoiser = getattr(captured.pipe, "transformer", None) or captured.pipe.unet
    with counted(denoiser) as rows:
        result = captured.guarded(compacting, batch)

    assert sorted(decision.outcome for decision in result.decisions) == ["safe", "unsafe"]
    (kept,) = (row for row, decision in enumerate(result.decisions) if decision.outcome == "safe")
    (step,) = (decision.step for decision in result.decisions if decision.outcome == "unsafe")
    assert step is not None
    calls, whole = len(rows) // tiny.steps, rows[0]
    assert rows == [whole] * (calls * (step + 1)) + [whole // 2] * (calls * (tiny.steps - step - 1))
    error = float((result.videos[kept] - unguarded[kept]).abs().max())
    print(f"{tiny.name}: {error:.1e}")
    assert error <= ROUNDING
    assert result.videos[1 - kept] is None

    with counted(denoiser) as rows:  # nothing of it is left on the network
        assert torch.equal(captured.sample(batch, "pt"), unguarded)
    assert set(rows) == {whole}


class Rows(nn.Module):
    """Answers with its rows, and remembers how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.seen: list[int] = []

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        assert len(timestep) in (1, len(sample))
        self.seen.append(len(sample))
        return (sample + 0,)


def test_only_the_guarded_call_is_compacted_where_threads_share_a_network() -> None:
    network, compaction = Rows(), Compaction(3)
    latent = torch.arange(6.0)[:, None]  # three samples, twice: guidance
    pipe = type("Pipe", (), {"unet": network})()
    with compaction.of(pipe):
        assert torch.equal(network(latent, torch.zeros(1))[0], latent)
        compaction.leave_out([1])
        answer = network(latent, timestep=torch.zeros(6))[0]
        assert answer.squeeze(1).tolist() == [0, 0, 2, 3, 0, 5]  # 1 and 4 were left out
        others: list[Tensor] = []
        thread = threading.Thread(target=lambda: others.append(network(latent, torch.zeros(6))[0]))
        thread.start()
        thread.join()
        assert torch.equal(others[0], latent)
        with pytest.raises(LvdError, match="the unet's sample has 4 rows and its latent 4, for 3 samples"):
            network(latent[:4], torch.zeros(1))
    network(latent, torch.zeros(6))
    assert network.seen == [6, 4, 6, 6]


@pytest.mark.parametrize("name", sorted(set(LAYOUT_OF) - COMPACTED)[:3])
def test_a_pipeline_it_was_not_tried_with_is_refused_by_name(name: str) -> None:
    stub = type(name, (StubPipeline,), {})()
    guard = stub_guard(stub, [[False] * 6], compact=True)
    with pytest.raises(LvdError, match=f"compact=True was not tried with {name}: it goes with Allegro"):
        guard(stub, prompt="one")
    assert stub.steps == 0


def test_what_keeps_whole_batches_is_refused() -> None:
    pipe = next(one for one in TINY if one.name == "CogVideoXPipeline").build()
    guard = Guard(stub_guard(StubPipeline(), [[False] * 6]).bundle, compact=True)
    pipe.transformer.enable_cache(diffusers.TaylorSeerCacheConfig())
    with pytest.raises(LvdError, match="does not go with a step cache: the transformer of CogVideoXPipeline"):
        guard(pipe, prompt="one")
    pipe.transformer.disable_cache()
    pipe.transformer = torch.compile(pipe.transformer)
    with pytest.raises(LvdError, match=r"does not go with torch\.compile: the transformer of CogVideoX"):
        guard(pipe, prompt="one")


def test_every_pipeline_that_it_goes_with_is_tried() -> None:
    assert {tiny.pipeline_class for tiny in TRIED} == COMPACTED
