"""The ComfyUI node: on a sampler that reports as ComfyUI's do, and on the engine where it is installed."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import NAMES, StubPipeline, bundle_info
from lvd.errors import LvdError
from lvd.guard import Guard
from lvd.guard.bundle import Bundle

STEPS, SHAPE = 6, (16, 1, 4, 4)  # of `bundle_info`
sys.path.insert(0, str(Path(__file__).parents[2] / "integrations" / "comfyui"))
guarded = importlib.import_module("guarded")


class ByMean(nn.Module):
    """Flags a sample whose first x0 has a mean above the limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def __deepcopy__(self, memo: Any) -> "ByMean":
        return self

    def forward(self, step: int, x0: Tensor) -> Tensor:
        unsafe = x0.float().flatten(1).mean(dim=1) > self.limit
        return (8.0 * unsafe - 4)[:, None].repeat(1, len(NAMES))


def guard_for(limit: float, pipeline_class: str = "WanPipeline", lam: float = 0.25) -> Guard:
    info = bundle_info(StubPipeline(), latent_shape=SHAPE, call={}, lam=lam)
    info = replace(info, origin=replace(info.origin, pipeline_class=pipeline_class))
    return Guard(Bundle(info, "d" * 64, ByMean(limit)))  # type: ignore[arg-type]


class Patcher:
    """As much of ComfyUI's ModelPatcher as the adapter uses."""

    def __init__(self, latent_format: str = "Wan21") -> None:
        self.model = SimpleNamespace(latent_format=type(latent_format, (), {})())
        self.wrappers: list[Callable[..., Any]] = []

    def clone(self) -> "Patcher":
        return Patcher(type(self.model.latent_format).__name__)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
        assert (kind, key) == ("outer_sample", "lvd")
        self.wrappers.append(wrapper)


def x0_of(noise: Tensor, step: int) -> Tensor:
    return noise / (step + 1)


def euler(
    noise: Tensor, _latent: Any, _sampler: Any, sigmas: Tensor, _mask: Any, callback: Any, *_: Any
) -> Tensor:
    """The loop of ComfyUI's `sample_euler`: x0 is reported before the step is made."""
    x = noise * sigmas[0]
    for step in range(len(sigmas) - 1):
        x0 = x0_of(noise, step)
        direction = (x - x0) / sigmas[step]
        callback(step, x0, x, len(sigmas) - 1)
        x = x + direction * (sigmas[step + 1] - sigmas[step])
    return x


SIGMAS = torch.linspace(1, 0, STEPS + 1)
NOISE = torch.stack([torch.full(SHAPE, value) for value in (1.0, 3.0, 2.0)])


def sample(
    limit: float, *, mask: Any = None, sampler: Any = euler, show: Any = None
) -> tuple[Tensor, list[Tensor], list[str]]:
    shown: list[str] = []
    model = guarded.guard_model(Patcher(), guard_for(limit), show or shown.append)
    previews: list[Tensor] = []
    (around,) = model.wrappers
    callback = lambda step, x0, x, steps: previews.append(x0)  # noqa: E731
    samples = around(sampler, NOISE.clone(), torch.zeros_like(NOISE), None, SIGMAS, mask, callback, True, 0)
    return samples, previews, shown


def test_a_blocked_row_is_blank_and_the_others_are_bit_for_bit_as_without() -> None:
    samples, previews, (told,) = sample(2.5)
    plain = euler(NOISE, None, None, SIGMAS, None, lambda *_: None)
    assert torch.equal(samples[[0, 2]], plain[[0, 2]])
    assert not samples[1].any()
    assert len(previews) == STEPS
    assert not any(preview[1].any() for preview in previews)
    lines = told.splitlines()
    assert [line.split()[1] for line in lines] == ["safe", "unsafe", "safe"]
    assert [line.rsplit(": ")[-1] for line in lines] == ["released", "withheld", "released"]


def test_a_row_is_shown_from_the_step_on_that_decides_it() -> None:
    """One of three is flagged at the first three steps, and three of four flags are needed."""
    (around,) = guarded.guard_model(Patcher(), guard_for(0.9, lam=0.75), print).wrappers
    shown: list[tuple[list[bool], list[bool]]] = []

    def callback(step: int, x0: Tensor, x_t: Tensor, steps: int) -> None:
        shown.append(tuple([bool(row.any()) for row in latent] for latent in (x0, x_t)))

    noise = torch.stack([torch.full(SHAPE, value) for value in (1.0, 3.0, 0.5)])
    samples = around(euler, noise, torch.zeros_like(noise), None, SIGMAS, None, callback, True, 0)
    at = [[False, False, False], [False, False, True], *[[True, False, True]] * 4]
    assert [bool(row.any()) for row in samples] == [True, False, True]
    assert shown == [(rows, rows) for rows in at]


def test_when_all_are_blocked_sampling_stops() -> None:
    samples, previews, (told,) = sample(0.0)
    assert not samples.any()
    assert previews == []
    assert told.count("unsafe") == 3


@pytest.mark.parametrize(
    ("sampler", "mask", "why"),
    [
        (euler, torch.ones(3), "a noise mask"),
        (lambda *given: euler(*given[:5], lambda *_: None), None, "made 0 steps, not 6"),
        (
            lambda *given: euler(*given[:5], lambda i, *r: given[5](min(i, 2), *r)),
            None,
            "repeated",
        ),
        (lambda *given: euler(*given[:5], lambda i, x0, *r: given[5](i, x0 * torch.nan, *r)), None, "NaN"),
        (lambda *given: euler(*given)[:2], None, "returned 2 videos for 3"),
    ],
    ids=["mask", "silent", "repeats", "nan", "loses one"],
)
def test_what_was_not_checked_is_withheld(sampler: Any, mask: Any, why: str) -> None:
    samples, previews, (told,) = sample(9.0, mask=mask, sampler=sampler)
    assert not samples.any()
    assert not previews or not previews[-1].any()
    assert told.count("unchecked") == 3
    assert why in told


def test_a_browser_that_cannot_be_reached_changes_nothing() -> None:
    def show(text: str) -> None:
        raise ConnectionError

    samples, _, _ = sample(2.5, show=show)
    assert [bool(row.any()) for row in samples] == [True, False, True]


def test_another_number_of_steps_and_other_latents_are_refused() -> None:
    with pytest.raises(LvdError, match="made from CogVideoXPipeline, and the model's latents are Wan21's"):
        guarded.guard_model(Patcher(), guard_for(1.0, "CogVideoXPipeline"), print)
    with pytest.raises(LvdError, match="made from WanPipeline, and the model's latents are Unheard's"):
        guarded.guard_model(Patcher("Unheard"), guard_for(1.0), print)
    (around,) = guarded.guard_model(Patcher(), guard_for(1.0), print).wrappers
    with pytest.raises(LvdError, match="the number of steps is 4, not 6"):
        around(euler, NOISE, NOISE, None, SIGMAS[2:], None, None, True, 0)


def test_the_engine_itself_with_a_tiny_random_wan() -> None:
    pytest.importorskip("comfy.cli_args", reason="ComfyUI is not installed").args.cpu = True
    from comfy import model_patcher, sample, supported_models

    torch.manual_seed(0)
    sizes = {"dim": 48, "ffn_dim": 32, "num_heads": 2, "num_layers": 1, "text_dim": 32, "freq_dim": 32}
    config = supported_models.WAN21_T2V({"image_model": "wan2.1", "model_type": "t2v", **sizes})
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({}, "", torch.device("cpu")).eval()
    for values in network.parameters():
        nn.init.normal_(values, std=0.2)
    cpu = torch.device("cpu")
    plain = model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)
    condition = [[torch.randn(1, 5, 32), {}]]
    noise = torch.randn(2, *SHAPE)

    def run(model: Any, sampler: str, callback: Any = None) -> Tensor:
        call = (model, noise, STEPS, 3.0, sampler, "simple", condition, condition, torch.zeros_like(noise))
        return sample.sample(*call, callback=callback, disable_pbar=True, seed=0)

    for sampler in ("euler", "heun", "dpmpp_2m", "uni_pc"):
        x0: list[Tensor] = []
        expected = run(plain, sampler, lambda step, denoised, *_, x0=x0: x0.append(denoised.clone()))
        means = x0[0].flatten(1).mean(dim=1).tolist()
        shown: list[str] = []
        model = guarded.guard_model(plain, guard_for(sum(means) / 2), shown.append)
        samples = run(model, sampler)
        high = means.index(max(means))
        assert "unsafe" in shown[0].splitlines()[high], (sampler, shown)
        assert not samples[high].any()
        if "unchecked" not in shown[0]:
            later = max(m.flatten(1).mean(dim=1)[1 - high] for m in x0[:4])
            assert later > sum(means) / 2 or torch.equal(samples[1 - high], expected[1 - high])
