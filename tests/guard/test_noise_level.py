"""A guard at other numbers of steps and with other schedulers than its bundle's."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import NAMES, StubPipeline, bundle_info
from lvd.detect.levels import TrainedLevels
from lvd.errors import LvdError
from lvd.guard.bundle import Bundle
from lvd.guard.decision import Decision
from lvd.guard.guard import Guard
from support.samplers import levels_of


def with_levels(bundle: Bundle, levels: tuple[float, ...] | None) -> Bundle:
    origin = replace(bundle.info.origin, noise_levels=levels)
    return replace(bundle, info=replace(bundle.info, origin=origin))


class ByPosition(nn.Module):
    """Logits that are the position of the check."""

    def __deepcopy__(self, memo: Any) -> "ByPosition":
        return self

    def forward(self, step: float, x0: Tensor) -> Tensor:
        return torch.full((len(x0), len(NAMES)), float(step) - 10)


def stub(lam: float = 1.0, **options: Any) -> tuple[StubPipeline, Guard]:
    """A guard trained at 20 steps, which decides by the first ten, and flags nothing."""
    pipe = StubPipeline()
    levels = levels_of(type(pipe.scheduler)(**pipe.scheduler.config), 20)
    info = bundle_info(pipe, steps=20, latent_shape=pipe.shape, call={}, noise_levels=levels, eta=10, lam=lam)
    return pipe, Guard(Bundle(info, "d" * 64, ByPosition()), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [5, 10, 40])
def test_another_number_of_steps_is_guarded_by_noise_level_where_it_is_asked_for(steps: int) -> None:
    pipe, guard = stub()
    with pytest.raises(LvdError, match=f"not made for this: num_inference_steps is {steps}, not 20"):
        guard(pipe, prompt=["one", "two"], num_inference_steps=steps)
    pipe, guard = stub(by_noise_level=True)
    decisions = guard(pipe, prompt=["one", "two"], num_inference_steps=steps).decisions
    for decision in decisions:
        assert (decision.outcome, decision.released) == ("safe", True), decision.why
        assert decision.mismatches == (f"num_inference_steps is {steps}, not 20",)
    pipe, guard = stub(lam=0.1, by_noise_level=True)  # one of ten is needed: all ten are looked at
    decision = guard(pipe, prompt="one", num_inference_steps=steps).decisions[0]
    logits = torch.tensor(decision.scores, dtype=torch.float64).logit()[:, 0] + 10
    first = TrainedLevels(guard.bundle.info.origin.noise_levels).positions(levels_of(pipe.scheduler, steps))[
        0
    ]
    assert logits.tolist() == pytest.approx(np.maximum(np.arange(10), first), abs=1e-2)


def test_another_scheduler_of_the_model_is_guarded_by_noise_level() -> None:
    pipe, guard = stub(by_noise_level=True)
    pipe.scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    decision = guard(pipe, prompt="one", num_inference_steps=10).decisions[0]
    assert decision.outcome == "safe", decision.why
    assert "the scheduler is DDPMScheduler, not DDIMScheduler" in decision.mismatches


def test_by_noise_level_allows_nothing_else() -> None:
    pipe, guard = stub(by_noise_level=True)
    with pytest.raises(LvdError, match=r"not made for this: guidance_scale is 9\.0, not 5\.0 \("):
        guard(pipe, prompt="one", guidance_scale=9.0, num_inference_steps=10)


def test_steps_beyond_the_trained_noise_levels_are_not_checked_and_nothing_comes_out() -> None:
    pipe, guard = stub(by_noise_level=True)
    levels = guard.bundle.info.origin.noise_levels
    assert levels is not None
    guard = Guard(with_levels(guard.bundle, levels[5:]), by_noise_level=True)
    result = guard(pipe, prompt="one", num_inference_steps=10)
    assert (result.videos, result.decisions[0].outcome) == ([None], "unchecked")
    assert "lies outside of those that the detectors were trained at" in result.decisions[0].why


def session_of(guard: Guard, levels: Sequence[float | None], **options: Any) -> list[Decision]:
    """A sampler of one's own with these noise levels, from the first step to the last."""
    with guard.session(samples=2, steps=len(levels), **options) as session:
        for step, level in enumerate(levels):
            session.check(step, torch.zeros(2, *StubPipeline.shape), noise_level=level)
    return session.close()


@pytest.mark.parametrize("steps", [5, 10, 40])
def test_a_sampler_of_ones_own_tells_its_noise_levels(steps: int) -> None:
    pipe, guard = stub(lam=0.1, by_noise_level=True)
    by_call = guard(pipe, prompt=["one", "two"], num_inference_steps=steps).decisions
    by_hand = session_of(guard, levels_of(pipe.scheduler, steps))
    for called, told in zip(by_call, by_hand, strict=True):
        assert told.mismatches == (f"the number of steps is {steps}, not 20",)
        assert (told.outcome, told.released, told.step) == ("safe", True, called.step)
        assert told.scores == called.scores


def test_a_scheduler_in_a_loop_of_ones_own_tells_its_noise_levels() -> None:
    pipe, guard = stub(lam=0.1, by_noise_level=True)
    by_call = guard(pipe, prompt="one", num_inference_steps=10).decisions
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(10)
    x_t = torch.zeros(1, *pipe.shape)
    with guard.session(samples=1, steps=10) as session:
        for t in scheduler.timesteps:
            session.check_step(scheduler, x_t, t, x_t)
    (told,) = session.close()
    assert (told.outcome, told.released) == ("safe", True), told.why
    assert told.mismatches[:2] == (
        "the number of steps is 10, not 20",
        "the scheduler is DDPMScheduler, not DDIMScheduler",
    )
    assert told.scores == by_call[0].scores  # both have the same timesteps


def test_the_captures_own_schedule_is_decided_as_ever() -> None:
    """Also where its noise levels are the same but for rounding."""
    pipe, guard = stub(lam=0.1)
    (decision,) = guard(pipe, prompt="one").decisions
    _, by_level = stub(lam=0.1, by_noise_level=True)
    levels = guard.bundle.info.origin.noise_levels
    assert levels is not None
    for told in (
        *by_level(pipe, prompt="one").decisions,
        session_of(by_level, [v + 1e-9 for v in levels])[0],
    ):
        assert (told.outcome, told.step, told.why) == (decision.outcome, decision.step, decision.why)
        assert (told.scores, told.mismatches) == (decision.scores, ())


def test_a_step_without_its_noise_level_is_refused_and_needed_by_noise_level_alone() -> None:
    _, guard = stub(lam=0.1, by_noise_level=True)
    session = guard.session(samples=1, steps=10)
    with pytest.raises(LvdError, match=r"step 0 comes without its noise level, .*x0, noise_level=\.\.\.\)"):
        session.check(0, torch.zeros(1, *StubPipeline.shape))
    assert [decision.outcome for decision in session.close()] == ["unchecked"]
    assert [decision.outcome for decision in session_of(stub()[1], [None] * 20)] == ["safe"] * 2


@pytest.mark.parametrize(
    ("levels", "why"),
    [
        ([0.9, 0.95, *[0.5] * 8], "step 1: noise level 0.9500 is above that of the step before"),
        ([float("nan")] * 10, "step 0: noise level nan lies outside of"),
    ],
)
def test_noise_levels_that_cannot_be_leave_samples_unchecked(levels: list[float | None], why: str) -> None:
    _, guard = stub(lam=0.1, by_noise_level=True)
    trained = tuple(np.linspace(0.98, 0.4, 20).tolist())
    guard = Guard(with_levels(guard.bundle, trained), by_noise_level=True)
    for decision in session_of(guard, levels):
        assert (decision.outcome, decision.released) == ("unchecked", False)
        assert decision.why.startswith(why)


def test_a_step_reports_the_scores_of_its_own_check() -> None:
    """At its position, where the rule is given those of the trained steps."""
    _, guard = stub(lam=0.1, by_noise_level=True)
    levels = guard.bundle.info.origin.noise_levels
    assert levels is not None
    between = [(one + other) / 2 for one, other in itertools.pairwise(levels[:11])]
    heard: list[float] = []
    session_of(
        guard,
        between,
        on_step=lambda step, scores, preview: heard.extend(it[0] for it in scores[:1] if it is not None),
    )
    assert torch.tensor(heard, dtype=torch.float64).logit().add(10).tolist() == pytest.approx(
        [step + 0.5 for step in range(len(heard))], abs=1e-3
    )
    assert len(heard) == 10


def test_a_bundle_that_knows_no_noise_levels_is_refused_by_name() -> None:
    _, guard = stub()
    unknown = with_levels(guard.bundle, None)
    with pytest.raises(LvdError, match="by_noise_level: the bundle does not know the noise levels"):
        Guard(unknown, by_noise_level=True)
