"""How noisy x_t is, by each supported scheduler."""

from typing import Any

import diffusers
import pytest
import torch

from lvd.errors import LvdError
from lvd.sampling.noise import noise_level
from lvd.sampling.tap import StepCall, intercept_step
from support.samplers import CASES, Case, sample, start
from support.samplers import noise_level as alpha_and_sigma


def kinds_of_schedule() -> list[Any]:
    """One of each scheduler and form of its noise levels."""
    told = (
        "use_flow_sigmas",
        "invert_sigmas",
        "rescale_betas_zero_snr",
        "use_karras_sigmas",
        "skip_prk_steps",
    )
    found = {(case.name, case.form, *(case.options.get(key) for key in told)): case for case in CASES}
    return [pytest.param(case, id=str(case)) for case in found.values()]


@pytest.mark.parametrize("case", kinds_of_schedule())
def test_the_noise_level_is_the_share_of_noise_in_x_t(case: Case) -> None:
    scheduler, calls = case.make(), 0

    def around(call: StepCall) -> Any:
        nonlocal calls
        if call.opens_step:
            alpha, sigma = alpha_and_sigma(case, scheduler, calls)
            assert noise_level(scheduler, call.timestep) == pytest.approx(sigma / (alpha + sigma), abs=1e-6)
            assert call.noise_level == noise_level(scheduler, call.timestep)
        calls += 1
        return call.proceed()

    with intercept_step(scheduler, around):
        sample(scheduler, start(case, scheduler), lambda call, x_t: torch.zeros_like(x_t))
    assert calls == len(scheduler.timesteps)


def test_an_unknown_scheduler_has_no_noise_level() -> None:
    with pytest.raises(LvdError, match="scheduler IPNDMScheduler is not supported"):
        noise_level(diffusers.IPNDMScheduler(), 1)
