"""x0 is what the scheduler itself predicts, and listening changes nothing."""

import copy
import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from conftest import bundle_info
from lvd.errors import LvdError
from lvd.guard import Guard, GuardResult
from lvd.guard.bundle import Bundle
from lvd.sampling.layout import to_BCFHW
from lvd.sampling.state import StateBefore
from lvd.sampling.tap import StepCall, intercept_step, tap_x0
from lvd.sampling.x0 import predict_x0, step_timesteps, supported_schedulers
from support.samplers import (
    CASES,
    SHAPE,
    STEPS,
    X0,
    Case,
    answer,
    noise,
    noise_level,
    sample,
    sample_perfectly,
    scheduler_class,
    start,
)

STOCHASTIC = {"DDPM", "CogVideoXDPM", "TCD", "LCM", "EulerAncestralDiscrete", "KDPM2AncestralDiscrete"}
STOCHASTIC |= {"DPMSolverSDE", "SASolver", "FlowMatchLCM", "LTXEulerAncestralRF"}
# These report another quantity beside the next latent, or none.
SELF_REPORTING = {"DDIM", "DDPM", "CogVideoXDDIM", "CogVideoXDPM", "LCM", "EDMEuler"}
SELF_REPORTING |= {"EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete"}
SELF_REPORTING |= {"KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"}
# A linear combination of several steps' predictions is their last step, too.
MIXES_STEPS_TO_THE_END = {"PNDM", "LMSDiscrete", "DEISMultistep", "SASolver", "TCD"}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # DPM-Solver's noise form is to go

THRESHOLDING = {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5}


def cases(chosen: Callable[[Case], bool] = lambda case: True) -> Any:
    return pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in CASES if chosen(c)])


def one_of_each_kind() -> Any:
    """Each scheduler with each option that changes what it does in a step."""
    options = ("skip_prk_steps", "algorithm_type", "predict_x0", "invert_sigmas", "stochastic_sampling")
    found: dict[tuple[Any, ...], Case] = {}
    for case in CASES:
        found.setdefault((case.name, *map(case.options.get, options)), case)
    return cases(list(found.values()).__contains__)


def is_stochastic(case: Case) -> bool:
    by_option = "sde" in case.options.get("algorithm_type", "") or case.options.get("stochastic_sampling")
    return case.name in STOCHASTIC or bool(by_option)


def in_noise_form(case: Case) -> bool:
    """Whether the solver goes on with the noise that is left when x0 is taken out of x_t."""
    form = case.options.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver", "noise_prediction")
    return form or case.name == "DEISMultistep" or case.options.get("predict_x0") is False


def keeps_its_noise_level(case: Case) -> bool:
    """Towards a fixed x0. Not where a solver extrapolates what changes from step to step even then."""
    extrapolates_fresh_noise = is_stochastic(case) and in_noise_form(case)
    extrapolates_velocity = case.name == "PNDM" and case.prediction == "v_prediction"
    return not extrapolates_fresh_noise and not extrapolates_velocity


def make_scheduler(name: str, **config: Any) -> Any:
    scheduler = scheduler_class(f"{name}Scheduler")(**config)
    scheduler.set_timesteps(STEPS)
    return scheduler


def state(scheduler: Any) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in vars(scheduler).items() if key != "step"}


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, through containers; of other objects, their attributes."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return torch.equal(a.nan_to_num(-1e9), b.nan_to_num(-1e9))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "tobytes"):
        return a.tobytes() == b.tobytes()
    if callable(a):  # a function that a scheduler defines for itself
        return True
    return same(vars(a), vars(b)) if hasattr(a, "__dict__") else bool(a == b)


def test_the_supported_schedulers_are_all_tested() -> None:
    assert supported_schedulers() == sorted({case.scheduler for case in CASES})


@cases()
def test_a_perfect_model_gives_x0_back_at_every_step(case: Case) -> None:
    found = sample_perfectly(case, torch.float64)
    assert len(found) == STEPS
    for step, predicted in enumerate(found):
        assert predicted.x0.dtype == torch.float64
        assert (predicted.x0 - X0).abs().max() < 1e-6, f"step {step}"


@cases(keeps_its_noise_level)
def test_the_oracle_is_right_about_the_noise_in_the_latent(case: Case) -> None:
    scheduler = case.make()
    for step, predicted in enumerate(sample_perfectly(case, torch.float64)):
        alpha, sigma = noise_level(case, scheduler, predicted.call)
        left = predicted.x_t - alpha * X0
        if is_stochastic(case):
            assert left.std() == pytest.approx(sigma, rel=0.2), f"step {step}"
        else:
            assert (left - sigma * noise(0, torch.float64)).abs().max() < 1e-3 * max(1, sigma), f"step {step}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@cases()
def test_half_precision_costs_only_the_rounding_of_the_models_output(case: Case, dtype: torch.dtype) -> None:
    scheduler = case.make()
    for step, predicted in enumerate(sample_perfectly(case, dtype)):
        assert predicted.x_t.dtype == predicted.output.dtype == dtype
        assert predicted.x0.dtype == torch.float32
        ask = functools.partial(answer, case, scheduler, predicted.call, predicted.x_t)
        gain = 1 / (ask(X0 + 1) - ask(X0)).abs().max()  # of x0 by the output; all is linear
        rounding = torch.finfo(dtype).eps / 2 * predicted.output.double().abs()
        assert ((predicted.x0 - X0).abs() <= gain * rounding + 1e-5).all(), f"step {step}"


def calls_and_x0(scheduler: Any, x_t: Tensor) -> list[tuple[StepCall, Tensor, Any]]:
    """Sample with a network of noise: each call of `scheduler.step`, its x0, and what it returned."""
    found = []

    def around(call: StepCall) -> Any:
        x0 = call.x0("BCFHW")
        found.append((call, x0, call.proceed()))
        return found[-1][2]

    with intercept_step(scheduler, around):
        sample(scheduler, x_t, lambda call, x_t: noise(call + 1))
    return found


def assert_is_the_schedulers_own(scheduler: Any, x_t: Tensor) -> list[Tensor]:
    found = calls_and_x0(scheduler, x_t)
    assert len(found) == len(scheduler.timesteps)
    for _, x0, (_, reported) in found:
        torch.testing.assert_close(x0, reported, rtol=1e-5, atol=1e-5)
    return [x0 for _, x0, _ in found]


@cases(lambda case: case.name in SELF_REPORTING)
def test_x0_is_the_schedulers_own_prediction_at_every_evaluation(case: Case) -> None:
    scheduler = case.make()
    assert_is_the_schedulers_own(scheduler, start(case, scheduler))


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "LCM", "HeunDiscrete"])
def test_clipping_is_honoured(name: str) -> None:
    scheduler = make_scheduler(name, clip_sample=True, clip_sample_range=0.7)
    for x0 in assert_is_the_schedulers_own(scheduler, 9 * noise(0)):
        assert x0.abs().max() == pytest.approx(0.7, rel=1e-2)


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "LCM"])
@pytest.mark.parametrize("clip", [True, False])
def test_thresholding_is_honoured_and_comes_before_clipping(name: str, clip: bool) -> None:
    scheduler = make_scheduler(name, clip_sample=clip, clip_sample_range=0.7, **THRESHOLDING)
    for x0 in assert_is_the_schedulers_own(scheduler, 9 * noise(0)):
        assert x0.abs().max() == pytest.approx(1.0, rel=1e-2)


def keeps_outputs(case: Case) -> bool:
    return case.form == "log_snr" or case.name == "EDMDPMSolverMultistep"


@cases(keeps_outputs)
def test_x0_is_what_the_solver_keeps_of_the_models_output(case: Case) -> None:
    assert_is_what_the_solver_keeps(case, case.make())


def can_threshold(case: Case) -> bool:
    """Two of the solvers fail themselves when they are to threshold in the noise form."""
    return keeps_outputs(case) and not (
        in_noise_form(case) and case.name in ("SASolver", "DPMSolverSinglestep")
    )


@cases(can_threshold)
def test_a_solver_that_thresholds_keeps_what_is_thresholded(case: Case) -> None:
    found = assert_is_what_the_solver_keeps(case, case.make(**THRESHOLDING))
    never = case.options.get("predict_x0") is False  # UniPC in the noise form
    assert never or all(x0.abs().max() == pytest.approx(1, rel=1e-3) for x0 in found)


def assert_is_what_the_solver_keeps(case: Case, scheduler: Any) -> list[Tensor]:
    kept: list[tuple[Tensor, Tensor]] = []

    def around(call: StepCall) -> Any:
        x0, alpha_sigma = call.x0("BCFHW"), noise_level(case, scheduler, len(kept))
        result = call.proceed()
        own = scheduler.model_outputs[-1]
        if in_noise_form(case):
            own = (call.arguments["sample"] - alpha_sigma[1] * own) / alpha_sigma[0]
        kept.append((x0, own))
        return result

    with intercept_step(scheduler, around):
        sample(scheduler, start(case, scheduler), lambda call, x_t: noise(call + 1))
    assert len(kept) == STEPS
    tolerance = 1e-3 if in_noise_form(case) else 1e-5
    for x0, own in kept:
        torch.testing.assert_close(x0, own, rtol=tolerance, atol=tolerance)
    return [x0 for x0, _ in kept]


def ends_on_x0(case: Case) -> bool:
    return case.options.get("final_sigmas_type") != "sigma_min" and case.name not in MIXES_STEPS_TO_THE_END


@cases(ends_on_x0)
def test_sampling_ends_on_the_last_x0(case: Case) -> None:
    scheduler = case.make()
    _, x0, result = calls_and_x0(scheduler, start(case, scheduler))[-1]
    torch.testing.assert_close(result[0], x0, rtol=1e-5, atol=1e-4)


@one_of_each_kind()
def test_a_tapped_sampler_is_bit_identical_and_left_in_the_same_state(case: Case) -> None:
    x_t, runs = start(case, case.make()), []
    for tapped in (False, True):
        torch.manual_seed(0)
        scheduler = case.make()
        if tapped:
            with tap_x0(scheduler, nothing):
                results = sample(scheduler, x_t, lambda call, x_t: x_t.tanh() + noise(call + 1))
        else:
            results = sample(scheduler, x_t, lambda call, x_t: x_t.tanh() + noise(call + 1))
        runs.append((results, state(scheduler), torch.rand(3)))
    assert same(*runs)


@one_of_each_kind()
def test_asking_for_x0_changes_neither_the_scheduler_nor_the_inputs(case: Case) -> None:
    scheduler = case.make()

    def around(call: StepCall) -> Any:
        before, given = state(scheduler), copy.deepcopy(call.arguments)
        _ = call.opens_step, call.x0("BCFHW"), step_timesteps(scheduler)
        assert same(before, state(scheduler))
        assert same(
            [given["model_output"], given["sample"]], [call.arguments[k] for k in ("model_output", "sample")]
        )
        return call.proceed()

    with intercept_step(scheduler, around):
        sample(scheduler, start(case, scheduler), lambda call, x_t: noise(call + 1))


CALLS = {"PNDM-True": 11, "PNDM-False": 19}  # of scheduler.step, for ten denoising steps
CALLS |= dict.fromkeys(("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"), 19)
CALLS |= dict.fromkeys(("DPMSolverSDE", "FlowMatchHeunDiscrete"), 19)


@one_of_each_kind()
def test_a_tap_hears_each_denoising_step_once_and_in_order(case: Case) -> None:
    scheduler, heard = case.make(), []
    x_t = start(case, scheduler)
    with tap_x0(scheduler, lambda step, timestep, x0: heard.append((step, float(timestep)))):
        calls = len(sample(scheduler, x_t, lambda call, x_t: noise(call + 1)))
    form = f"-{case.options['skip_prk_steps']}" if case.name == "PNDM" else ""
    assert calls == CALLS.get(case.name + form, STEPS)
    assert [step for step, _ in heard] == list(range(STEPS))
    timesteps = [timestep for _, timestep in heard]
    assert timesteps == step_timesteps(scheduler).tolist()
    assert timesteps == sorted(set(timesteps), reverse=not case.options.get("invert_sigmas"))


@pytest.mark.parametrize("skip_prk_steps", [True, False])
def test_pndms_steps_are_those_of_ddim(skip_prk_steps: bool) -> None:
    pndm = make_scheduler("PNDM", skip_prk_steps=skip_prk_steps)
    assert step_timesteps(pndm).tolist() == make_scheduler("DDIM").timesteps.tolist()


def test_heuns_steps_are_those_of_euler() -> None:
    for heun, euler in (
        ("HeunDiscrete", "EulerDiscrete"),
        ("FlowMatchHeunDiscrete", "FlowMatchEulerDiscrete"),
    ):
        assert step_timesteps(make_scheduler(heun)).tolist() == make_scheduler(euler).timesteps.tolist()


@pytest.mark.parametrize(
    "case",
    [
        Case("FlowMatchEulerDiscrete", "flow", "flow"),
        Case("HeunDiscrete", "sigma", "epsilon"),
        Case("UniPCMultistep", "log_snr", "flow_prediction", {"use_flow_sigmas": True}),
        Case("EDMEuler", "edm", "epsilon"),
    ],
    ids=str,
)
def test_a_sampler_that_begins_late_begins_at_its_begin_index(case: Case) -> None:
    skipped = 2 * scheduler_class(case.scheduler).order
    scheduler, found = case.make(), []
    scheduler.set_begin_index(skipped)  # as video-to-video pipelines do
    x_t = start(case, scheduler, torch.float64, skipped)
    with tap_x0(scheduler, lambda step, timestep, x0: found.append(x0)):
        sample(scheduler, x_t, lambda call, x_t: answer(case, scheduler, call, x_t), skipped)
    assert len(found) == STEPS - 2
    for x0 in found:
        assert (x0 - X0).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["EulerDiscrete", "HeunDiscrete", "EDMEuler", "UniPCMultistep"])
@pytest.mark.parametrize(("index", "begins_at"), [(0, None), (3, None), (0, 4)])  # Heun has timestep 3 twice
def test_before_its_first_step_a_scheduler_is_where_it_begins(
    name: str, index: int, begins_at: int | None
) -> None:
    scheduler = make_scheduler(name)
    timestep = scheduler.timesteps[index]
    if begins_at is not None:
        scheduler.set_begin_index(begins_at)  # goes before the timestep
    asked = predict_x0(scheduler, noise(1), timestep, noise(2))
    assert scheduler.step_index is None
    result = scheduler.step(noise(1), timestep, noise(2), return_dict=False)
    own = result[1] if name in SELF_REPORTING else scheduler.model_outputs[-1]
    torch.testing.assert_close(asked, own, rtol=1e-5, atol=1e-5)


def test_options_that_a_scheduler_ignores_are_ignored() -> None:
    """`from_config` keeps the other class's options in the configuration."""
    clips = diffusers.DDIMScheduler(clip_sample=True, **THRESHOLDING).config
    for name in ("EulerDiscrete", "EulerAncestralDiscrete", "KDPM2Discrete", "CogVideoXDDIM"):
        scheduler = scheduler_class(f"{name}Scheduler").from_config(clips)
        assert scheduler.config.clip_sample
        assert scheduler.config.thresholding
        scheduler.set_timesteps(STEPS)
        assert max(x0.abs().max() for x0 in assert_is_the_schedulers_own(scheduler, 9 * noise(0))) > 2

    inverted = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config
    heun = diffusers.FlowMatchHeunDiscreteScheduler.from_config(inverted)
    assert heun.config.invert_sigmas
    heun.set_timesteps(STEPS)
    _, x0, result = calls_and_x0(heun, noise(0))[-1]
    torch.testing.assert_close(result[0], x0)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_a_learned_variance_is_left_out(variance_type: str) -> None:
    ddpm = make_scheduler("DDPM", variance_type=variance_type)
    dpm = make_scheduler("DPMSolverMultistep", variance_type=variance_type)
    both = torch.cat([noise(1), noise(2).abs()], dim=1)
    x0 = predict_x0(ddpm, both, ddpm.timesteps[0], noise(0))
    torch.testing.assert_close(x0, ddpm.step(both, ddpm.timesteps[0], noise(0)).pred_original_sample)
    x0 = predict_x0(dpm, both, dpm.timesteps[0], noise(0))
    dpm.step(both, dpm.timesteps[0], noise(0))
    torch.testing.assert_close(x0, dpm.model_outputs[-1])


@pytest.mark.parametrize(("variance_type", "channels"), [("fixed_small", 6), ("learned_range", 9)])
def test_an_output_of_another_shape_is_refused(variance_type: str, channels: int) -> None:
    scheduler = make_scheduler("DDPM", variance_type=variance_type)
    output = torch.zeros(2, channels, 2, 4, 4)
    with pytest.raises(LvdError, match=rf"\(2, {channels}, 2, 4, 4\) has another shape"):
        predict_x0(scheduler, output, scheduler.timesteps[0], noise(0))


@pytest.mark.parametrize("name", ["Helios", "FlowMapEulerDiscrete", "IPNDM"])
def test_an_unsupported_scheduler_is_refused_by_name(name: str) -> None:
    scheduler = scheduler_class(f"{name}Scheduler")()
    with pytest.raises(LvdError, match=rf"{name}Scheduler is not supported.*DDIMScheduler.*UniPC"):
        predict_x0(scheduler, noise(0), torch.tensor(1), noise(1))


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("DDIM", "score"),
        ("LCM", "score"),
        ("EulerDiscrete", "score"),
        ("HeunDiscrete", "flow_prediction"),
        ("DPMSolverMultistep", "score"),
        ("EDMEuler", "sample"),
        ("EDMDPMSolverMultistep", "sample"),
    ],
)
def test_an_unsupported_prediction_type_is_refused_by_name(name: str, prediction: str) -> None:
    scheduler = make_scheduler(name)
    scheduler.register_to_config(prediction_type=prediction)
    with pytest.raises(LvdError, match=f"prediction_type={prediction} of {name}Scheduler"):
        predict_x0(scheduler, noise(0), scheduler.timesteps[0], noise(1))


def test_options_that_do_not_go_together_are_refused() -> None:
    both = make_scheduler("FlowMatchEulerDiscrete", invert_sigmas=True, stochastic_sampling=True)
    with pytest.raises(LvdError, match="inverts sigmas or samples stochastically"):
        predict_x0(both, noise(0), both.timesteps[0], noise(1))
    growing = make_scheduler("FlowMatchLCM", scale_factors=[0.5] * (STEPS - 1))
    with pytest.raises(LvdError, match="FlowMatchLCMScheduler with scale_factors"):
        predict_x0(growing, noise(0), growing.timesteps[0], noise(1))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("EulerDiscrete", "s_churn", 0.5),
        ("FlowMatchHeunDiscrete", "s_churn", 0.5),
        ("FlowMatchEulerDiscrete", "per_token_timesteps", torch.ones(2, 8)),
        ("EDMEuler", "pred_original_sample", torch.zeros(SHAPE)),
    ],
)
def test_a_step_that_would_use_another_x0_is_refused(name: str, option: str, value: Any) -> None:
    scheduler = make_scheduler(name)
    with tap_x0(scheduler, nothing), pytest.raises(LvdError, match=f"{name}Scheduler.step with {option}"):
        scheduler.step(noise(0), scheduler.timesteps[0], noise(1), **{option: value})


def generate(pipeline: Any, **changes: object) -> Tensor:
    return pipeline(
        prompt=["a red three drifting up", "a pink seven drifting left"],
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)],
        **{
            "num_inference_steps": 4,
            "guidance_scale": 5.0,
            "num_frames": 8,
            "height": 32,
            "width": 32,
            "output_type": "latent",
            **changes,
        },
    ).frames


def nothing(step: int, timestep: Tensor | float, x0: Tensor) -> None:
    pass


@pytest.mark.parametrize(
    ("scheduler", "ddim_eta"),
    [
        ("DDIMScheduler", 0.0),
        ("DDIMScheduler", 1.0),
        ("EulerAncestralDiscreteScheduler", 0.0),
        ("HeunDiscreteScheduler", 0.0),
        ("UniPCMultistepScheduler", 0.0),
    ],
)
def test_a_tapped_run_is_bit_identical(tiny_pipeline: Any, scheduler: str, ddim_eta: float) -> None:
    tiny_pipeline.scheduler = getattr(diffusers, scheduler).from_config(tiny_pipeline.scheduler.config)
    untapped, steps = generate(tiny_pipeline, eta=ddim_eta), []
    with tap_x0(tiny_pipeline.scheduler, lambda step, timestep, x0: steps.append(step)):
        tapped = generate(tiny_pipeline, eta=ddim_eta)
    assert torch.equal(tapped, untapped)
    assert steps == [0, 1, 2, 3]


def test_the_samplers_own_eta_reaches_a_tapped_scheduler(tiny_pipeline: Any) -> None:
    with tap_x0(tiny_pipeline.scheduler, nothing):
        assert not torch.equal(generate(tiny_pipeline, eta=1.0), generate(tiny_pipeline, eta=0.0))


def test_recorded_x0_is_ddims_own_and_never_of_a_second_step(tiny_pipeline: Any) -> None:
    scheduler, recorded, calls = tiny_pipeline.scheduler, [], []
    step_itself = scheduler.step

    @functools.wraps(step_itself)
    def spy(model_output: Tensor, timestep: Tensor, sample: Tensor, **kwargs: Any) -> Any:
        output = step_itself(model_output, timestep, sample, **kwargs)
        calls.append((model_output, timestep, output))
        return output

    scheduler.step = spy
    with tap_x0(scheduler, lambda step, timestep, x0: recorded.append((step, timestep, x0))):
        generate(tiny_pipeline)

    assert [step for step, _, _ in recorded] == [0, 1, 2, 3]
    assert len(calls) == 4
    for (_, timestep, x0), (model_output, called_at, output) in zip(recorded, calls, strict=True):
        assert timestep == called_at
        torch.testing.assert_close(x0, output.pred_original_sample, rtol=1e-5, atol=1e-5)
        stepped_twice = step_itself(model_output, timestep, output.prev_sample).pred_original_sample
        assert (x0 - stepped_twice).abs().max() > 0.01


def test_the_scheduler_is_restored_after_success(tiny_pipeline: Any) -> None:
    scheduler = tiny_pipeline.scheduler
    with tap_x0(scheduler, nothing):
        assert "step" in vars(scheduler)
    assert "step" not in vars(scheduler)
    assert scheduler.step == type(scheduler).step.__get__(scheduler)


def test_an_exception_in_on_x0_stops_the_sampling_and_the_scheduler_is_restored(tiny_pipeline: Any) -> None:
    seen = []

    def stop_at_one(step: int, timestep: Tensor | float, x0: Tensor) -> None:
        seen.append(step)
        if step == 1:
            raise LvdError("enough")

    with pytest.raises(LvdError, match="enough"), tap_x0(tiny_pipeline.scheduler, stop_at_one):
        generate(tiny_pipeline)
    assert seen == [0, 1]
    assert "step" not in vars(tiny_pipeline.scheduler)


def test_nested_taps_see_the_same_steps_and_unwind_in_order() -> None:
    scheduler = make_scheduler("DDIM")
    outer: list[Tensor] = []
    with tap_x0(scheduler, lambda step, timestep, x0: outer.append(x0)):
        outer_step = scheduler.step
        inner: list[Tensor] = []
        with tap_x0(scheduler, lambda step, timestep, x0: inner.append(x0)):
            sample(scheduler, noise(0), lambda call, x_t: noise(call))
        assert scheduler.step is outer_step
    assert "step" not in vars(scheduler)
    assert len(inner) == len(outer) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(inner, outer, strict=True))


@pytest.mark.parametrize("nested", [False, True])
def test_a_copy_of_a_tapped_scheduler_steps_alone_and_unheard(nested: bool) -> None:
    """LTX-2 copies its scheduler inside the call of the pipeline, for the sound."""
    scheduler = make_scheduler("FlowMatchEulerDiscrete")
    heard: list[int] = []

    def hear(step: int, timestep: Tensor | float, x0: Tensor) -> None:
        heard.append(step)

    with tap_x0(scheduler, hear), tap_x0(scheduler, hear if nested else nothing):
        sound = copy.deepcopy(scheduler)
        timestep = scheduler.timesteps[0]
        stepped = sound.step(noise(0), timestep, noise(1)).prev_sample
        assert (heard, sound.step_index, scheduler.step_index) == ([], 1, None)
        assert torch.equal(scheduler.step(noise(0), timestep, noise(1)).prev_sample, stepped)
        assert (heard, sound.step_index, scheduler.step_index) == ([0, 0] if nested else [0], 1, 1)


def test_every_tap_counts_its_steps_from_zero() -> None:
    scheduler = make_scheduler("DDIM")
    for _ in range(2):
        steps: list[int] = []
        with tap_x0(scheduler, lambda step, timestep, x0, steps=steps: steps.append(step)):
            scheduler.step(noise(0), scheduler.timesteps[0], sample=noise(1))
            scheduler.step(model_output=noise(0), timestep=scheduler.timesteps[1], sample=noise(1))
        assert steps == [0, 1]


def test_the_signature_of_a_tapped_step_still_shows_eta_and_generator() -> None:
    scheduler = make_scheduler("DDIM")
    untapped = inspect.signature(scheduler.step)
    with tap_x0(scheduler, nothing):
        assert inspect.signature(scheduler.step) == untapped
        assert {"eta", "generator"} <= set(inspect.signature(scheduler.step).parameters)


def test_layouts_become_BCFHW() -> None:
    x = noise(0)
    assert torch.equal(to_BCFHW(x, "BCFHW"), x)
    turned = to_BCFHW(x, "BFCHW")
    assert turned.shape == (2, 2, 3, 4, 4)
    assert torch.equal(turned[1, 0, 2], x[1, 2, 0])


def test_a_tap_hands_over_BCFHW_whatever_the_sampler_steps() -> None:
    scheduler = make_scheduler("DDIM")
    recorded: list[Tensor] = []
    with tap_x0(scheduler, lambda step, timestep, x0: recorded.append(x0), layout="BFCHW"):
        output = scheduler.step(noise(1), scheduler.timesteps[0], noise(0))
    torch.testing.assert_close(recorded[0], output.pred_original_sample.transpose(1, 2))


def test_latents_of_another_layout_are_refused() -> None:
    with pytest.raises(LvdError, match=r"\(2, 3, 4\).*layout BCFHW has 5 axes"):
        to_BCFHW(torch.zeros(2, 3, 4), "BCFHW")
    with pytest.raises(LvdError, match="unknown layout 'BSD'"):
        to_BCFHW(noise(0), "BSD")  # type: ignore[arg-type]


# ---- after a guard has blocked


class Sampling:
    """A pipeline around a case's scheduler, of two samples; `disturb` may raise at a call."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.scheduler = case.make()
        self.unet = SimpleNamespace(config={})
        self.disturb: Callable[[int], None] = lambda call: None

    def __call__(self, prompt: list[str], **_: Any) -> tuple[Tensor]:
        self.scheduler.set_timesteps(STEPS, **self.case.timesteps)

        def network(call: int, x_t: Tensor) -> Tensor:
            self.disturb(call)
            return x_t.tanh() + noise(call + 1)

        torch.manual_seed(0)
        return (sample(self.scheduler, start(self.case, self.scheduler), network)[-1][0],)


class FlagsLate(nn.Module):
    """Flags these of two samples at step 4, when a solver has kept what it wants of the steps before."""

    def __init__(self, *rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, step: int, x0: Tensor) -> Tensor:
        flagged = torch.tensor([[step == 4 and row in self.rows] for row in range(2)])
        return (8.0 * flagged - 4).expand(2, 2)

    def __deepcopy__(self, memo: Any) -> "FlagsLate":
        return self


def under_guard(pipe: Sampling, *rows: int) -> GuardResult:
    info = bundle_info(
        pipe, steps=STEPS, eta=5, lam=0.2, call={}, latent_shape=SHAPE[1:], layout="BCFHW", guidance=None
    )
    return Guard(Bundle(info, "d" * 64, FlagsLate(*rows)))(pipe, prompt=["one", "two"])  # type: ignore[arg-type]


KEEPS_PREDICTIONS = {
    "DPMSolverMultistep",
    "UniPCMultistep",
    "DEISMultistep",
    "SASolver",
    "PNDM",
    "LMSDiscrete",
}
KEEPS_PREDICTIONS |= {"DPMSolverSinglestep", "EDMDPMSolverMultistep"}


def tensors_in(value: Any) -> list[Tensor]:
    """Every latent that can be reached from a scheduler; its own tables have one axis."""
    if isinstance(value, Tensor):
        return [value] if value.ndim > 1 else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple | set):
        return [tensor for one in value for tensor in tensors_in(one)]
    return tensors_in(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, type) else []


@one_of_each_kind()
def test_after_a_call_with_a_blocked_sample_a_scheduler_holds_nothing_of_it(case: Case) -> None:
    unguarded = Sampling(case)
    (videos,) = unguarded(["one", "two"])
    kept = tensors_in(vars(unguarded.scheduler))
    assert kept or case.name not in KEEPS_PREDICTIONS

    pipe = Sampling(case)
    one_blocked = under_guard(pipe, 1)
    assert [d.outcome for d in one_blocked.decisions] == ["safe", "unsafe"], one_blocked.decisions[0].why
    assert torch.equal(one_blocked.videos[0], videos[0])  # nothing that was handed out was written over
    assert tensors_in(vars(pipe.scheduler)) == []

    all_blocked = under_guard(pipe, 0, 1)
    assert all_blocked.videos == [None, None]
    assert tensors_in(vars(pipe.scheduler)) == []

    def boom(call: int) -> None:
        if call == 6:
            raise RuntimeError("boom")

    pipe.disturb = boom
    for rows in ((), (1,)):
        with pytest.raises(RuntimeError, match="boom"):
            under_guard(pipe, *rows)
        assert tensors_in(vars(pipe.scheduler)) == []

    pipe.disturb = lambda call: None
    none_blocked = under_guard(pipe)
    assert all(torch.equal(a, b) for a, b in zip(none_blocked.videos, videos, strict=True))
    assert same(state(unguarded.scheduler), state(pipe.scheduler))  # as the pipeline leaves it
    held = copy.deepcopy(tensors_in(vars(pipe.scheduler)))
    under_guard(pipe, 1)
    assert same(held, tensors_in(vars(pipe.scheduler)))  # those of the call before, and untouched


def test_a_scheduler_within_a_scheduler_keeps_nothing_either() -> None:
    """UniPC's `solver_p` has multistep outputs of its own."""
    inner = diffusers.DPMSolverMultistepScheduler()
    scheduler = diffusers.UniPCMultistepScheduler(solver_p=inner)
    before = StateBefore(scheduler)
    scheduler.set_timesteps(STEPS)
    x_t = noise(0)
    for timestep in scheduler.timesteps[:3]:
        x_t = scheduler.step(noise(1), timestep, x_t).prev_sample
    assert any(isinstance(kept, Tensor) for kept in inner.model_outputs)
    before.give_back()
    assert not any(isinstance(kept, Tensor) for kept in (*inner.model_outputs, *scheduler.model_outputs))
