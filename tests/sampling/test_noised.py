"""A clip in place of what a sampler draws: each step is asked about the clip, at its own noise level."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lvd.sampling.layout import LAYOUTS, from_BCFHW, to_BCFHW
from lvd.sampling.noised import find_start, noised_steps
from lvd.sampling.tap import tap_x0
from support.samplers import CASES, SHAPE, X0, Case, answer, noise, noise_level


class Loop:
    """A pipeline's loop around a network that sees the clip `x0` in whatever it is given."""

    def __init__(self, case: Case, x0: Tensor = X0) -> None:
        self.case, self.x0 = case, x0
        self.scheduler = case.make()
        self.asked: list[Tensor] = []

    def __call__(self, latents: Tensor | None = None) -> None:
        made = self.case.make()
        vars(self.scheduler).update({k: v for k, v in vars(made).items() if k != "step"})
        scale = float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        x_t = (noise(7) if latents is None else latents) * scale
        for call, timestep in enumerate(self.scheduler.timesteps):
            self.asked.append(x_t)
            output = answer(self.case, made, call, x_t, self.x0).float()
            x_t = self._step(output, timestep, x_t, call)

    def _step(self, output: Tensor, timestep: Tensor, x_t: Tensor, call: int) -> Tensor:
        if self.case.name == "CogVideoXDPM":
            earlier = None if call == 0 else self.scheduler.timesteps[call - 1]
            return self.scheduler.step(output, None, timestep, earlier, x_t, return_dict=False)[0]
        return self.scheduler.step(output, timestep, x_t, return_dict=False)[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_sampler_is_asked_about_the_clip_at_each_steps_level(case: Case) -> None:
    loop = Loop(case)
    start = find_start(loop, loop.scheduler, X0.float(), "BCFHW", None)
    loop.asked.clear()
    x0: list[Tensor] = []
    clip, eps = X0.float(), noise(3)
    with (
        tap_x0(loop.scheduler, lambda step, timestep, x0_BCFHW: x0.append(x0_BCFHW.clone())),
        noised_steps(loop.scheduler, clip, eps, "BCFHW"),
    ):
        loop(latents=start.latents(clip, eps, "BCFHW"))
    oracle = case.make()
    second_order = hasattr(oracle, "state_in_first_order")
    for call, x_t in enumerate(loop.asked):
        if second_order and call % 2:
            continue
        alpha, sigma = noise_level(case, oracle, call)
        expected = alpha * X0 + sigma * eps
        torch.testing.assert_close(x_t.double(), expected, rtol=2e-3, atol=2e-3 * (1 + sigma))
    assert len(x0) >= 10 - 1
    for found in x0:
        assert found.shape == SHAPE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_latent_goes_to_a_samplers_layout_and_back(layout: Any) -> None:
    x = noise(1)
    assert torch.equal(to_BCFHW(from_BCFHW(x, layout), layout, (2, 4, 4)), x)
