"""Steps of other samplers among those that detectors were trained at."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from conftest import NAMES, SHAPE
from lvd.detect.ensemble import Detectors, StepDetectors
from lvd.detect.levels import TrainedLevels, TrainedSteps, same_levels
from lvd.detect.network import EncoderConfig, HeadDetector, Trunk, at_steps
from lvd.errors import LvdError
from support.samplers import levels_of

ANIMATEDIFF = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "steps_offset": 1}


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [
        *((diffusers.DDIMScheduler(**ANIMATEDIFF), steps) for steps in (4, 8, 25, 30, 100)),
        (diffusers.EulerDiscreteScheduler(**ANIMATEDIFF, timestep_spacing="leading"), 50),
        (diffusers.DPMSolverMultistepScheduler(**ANIMATEDIFF), 20),
        (diffusers.LCMScheduler(**{k: v for k, v in ANIMATEDIFF.items() if k != "steps_offset"}), 8),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_steps_of_other_samplers_lie_among_those_of_fifty_ddim_steps(scheduler: Any, steps: int) -> None:
    trained = TrainedLevels(levels_of(diffusers.DDIMScheduler(**ANIMATEDIFF), 50))
    positions = trained.positions(levels_of(scheduler, steps))
    assert len(positions) == steps
    assert (np.diff(positions) >= 0).all()
    assert positions[0] < 49 / steps + 1
    if isinstance(scheduler, diffusers.DDIMScheduler) and steps == 25:  # every second one, from the second on
        assert positions == pytest.approx(list(range(1, 50, 2)), abs=1e-9)


def test_levels_outside_are_refused_and_those_just_outside_count_as_the_end() -> None:
    trained = TrainedLevels((0.9, 0.7, 0.6))
    assert trained.positions([1.0, 0.9, 0.8, 0.65, 0.6, 0.55]) == pytest.approx([0, 0, 0.5, 1.5, 2, 2])
    with pytest.raises(LvdError, match=r"step 1: noise level 0.4000 lies outside of .* 0.9000 to 0.6000"):
        trained.positions([0.8, 0.4])
    assert same_levels(trained.levels, (0.9, 0.7 + 1e-9, 0.6))
    assert not same_levels(trained.levels, (0.9, 0.7))
    assert not same_levels(trained.levels, (0.9, 0.71, 0.6))
    with pytest.raises(LvdError, match="do not fall from step to step"):
        TrainedLevels((0.9, 0.9, 0.5))


def test_a_table_between_two_steps_is_interpolated_and_at_a_step_is_that_steps() -> None:
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([3, 0, 2])
    assert torch.equal(at_steps(table, whole.float()), at_steps(table, whole))
    torch.testing.assert_close(
        at_steps(table, torch.tensor([1.25])), (0.75 * table[1] + 0.25 * table[2])[None]
    )


@pytest.mark.parametrize("steps", [4, 8, 25, 30, 50, 100])
def test_trained_steps_lie_between_the_checks_around_them(steps: int) -> None:
    """A trajectory whose logits bend at no check: interpolation then gives it back at every trained step."""
    trained = TrainedLevels(tuple(np.linspace(0.98, 0.02, 50)))
    sampled, levels = TrainedSteps(trained, steps), np.linspace(0.975, 0.02, steps)
    found: dict[int, float] = {}
    checks = []
    for step, level in enumerate(levels):
        told = sampled.advance(step, lambda level=level: float(level))
        if told:
            checks.append(sampled.position)
            logits = torch.tensor([[0.1 * sampled.position], [7.0]])
            for at, of_step in zip(told, sampled.between(logits, [0, 1], told), strict=True):
                assert at not in found
                found[at] = of_step[0].item()
                assert of_step[1].item() == 7
    assert list(found) == list(range(50))
    assert sampled.known == 50
    assert len(checks) <= 50  # with more steps than trained ones, those that tell nothing are left out
    expected = np.interp(range(50), checks, 0.1 * np.array(checks))
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)


def test_what_was_left_out_of_a_check_does_not_shift_the_others() -> None:
    sampled = TrainedSteps(TrainedLevels((0.9, 0.8, 0.7)), 2)
    told = sampled.advance(0, lambda: 0.9)
    sampled.between(torch.tensor([[1.0], [2.0], [3.0]]), [0, 1, 2], told)
    told = sampled.advance(1, lambda: 0.7)
    between = sampled.between(torch.tensor([[4.0], [5.0]]), [0, 2], told)
    torch.testing.assert_close(torch.cat(between, dim=1), torch.tensor([[2.5, 4.0], [4.0, 5.0]]))


def head(bias: float) -> HeadDetector:
    detector = HeadDetector(8)
    nn.init.zeros_(detector.output.weight)
    nn.init.constant_(detector.output.bias, bias)
    return detector


def test_heads_between_two_steps_are_interpolated() -> None:
    trunk = Trunk(EncoderConfig(SHAPE, 8, 1, 2, 2, 2), 4, len(NAMES)).eval()
    nn.init.normal_(trunk.scale.weight)
    steps = {at: StepDetectors([head(2.0 * at), head(-2.0 * at)]) for at in range(3)}
    detectors = Detectors(trunk, steps).eval()
    x0 = torch.randn(5, *SHAPE).half()
    with torch.inference_mode():
        torch.testing.assert_close(detectors(1.25, x0), torch.tensor([[2.5, -2.5]] * 5))
        torch.testing.assert_close(detectors(2.5, x0), torch.tensor([[4.0, -4.0]] * 5))  # beyond the last
        whole, fraction = (trunk.features(x0, at) for at in (1, 1.25))
        assert torch.equal(trunk.features(x0, 1.0), whole)
        assert not torch.allclose(fraction, whole)
