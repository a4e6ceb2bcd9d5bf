"""x0 is what the scheduler itself predicts, and listening changes nothing."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.layout import to_BCFHW
from lvd.sampling.tap import tap_x0
from lvd.sampling.x0 import predict_x0, supported

STEPS = 6
SHAPE = (2, 3, 2, 4, 4)

ALPHA_BAR = {"clip_sample": False, "beta_start": 0.00085, "beta_end": 0.012}
SIGMA = {"timestep_spacing": "leading", "steps_offset": 1, "beta_start": 0.00085, "beta_end": 0.012}
SELF_REPORTING = {  # schedulers that return their own pred_original_sample
    f"{name}-{prediction}": (name, {**config, "prediction_type": prediction})
    for name, config, predictions in (
        ("DDIMScheduler", ALPHA_BAR, ("epsilon", "v_prediction", "sample")),
        ("DDPMScheduler", ALPHA_BAR, ("epsilon", "v_prediction", "sample")),
        ("EulerDiscreteScheduler", SIGMA, ("epsilon", "v_prediction", "sample")),
        ("EulerAncestralDiscreteScheduler", SIGMA, ("epsilon", "v_prediction")),
    )
    for prediction in predictions
}
FLOW = {
    "flow": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-shifted": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow-inverted": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
}
ALL = {**SELF_REPORTING, **FLOW}


def make_scheduler(case: str, **changes: object) -> Any:
    name, config = ALL[case]
    scheduler = getattr(diffusers, name)(**{**config, **changes})
    scheduler.set_timesteps(STEPS)
    return scheduler


def noise(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def oracle(case: str, scheduler: Any, index: int, x_t: Tensor, x0: Tensor) -> Tensor:
    """What a perfect network answers at step `index`: solve the forward process for the noise."""
    name, config = ALL[case]
    if name in ("DDIMScheduler", "DDPMScheduler"):
        alpha_bar = scheduler.alphas_cumprod[int(scheduler.timesteps[index])].double()
        signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    elif name == "FlowMatchEulerDiscreteScheduler":
        time = scheduler.sigmas[index].double()
        if config.get("invert_sigmas"):
            return x0 - (x_t - time * x0) / (1 - time)
        return (x_t - (1 - time) * x0) / time - x0
    else:
        sigma = scheduler.sigmas[index].double()
        eps = (x_t - x0) / sigma
        length = (1 + sigma**2).sqrt()
        velocity = eps / length - x0 * sigma / length
        return {"epsilon": eps, "v_prediction": velocity, "sample": x0}[str(config["prediction_type"])]
    eps = (x_t - signal * x0) / spread
    velocity = signal * eps - spread * x0
    return {"epsilon": eps, "v_prediction": velocity, "sample": x0}[str(config["prediction_type"])]


def denoise(
    scheduler: Any, x_t: Tensor, answer: Callable[[int, Tensor], Tensor]
) -> tuple[list[Tensor], list[Any], Tensor]:
    """A pipeline's loop, tapped: the recorded x0, what the scheduler returned, and the last latent."""
    recorded: list[Tensor] = []
    returned = []
    generator = torch.Generator().manual_seed(7)
    stochastic = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if stochastic else {}
    with tap_x0(scheduler, lambda step, timestep, x0: recorded.append(x0)):
        for index, timestep in enumerate(scheduler.timesteps):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x_t, timestep)
            output = scheduler.step(answer(index, x_t), timestep, x_t, **extra)
            returned.append(output)
            x_t = output.prev_sample
    return recorded, returned, x_t


def start(scheduler: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise(0, dtype) * getattr(scheduler, "init_noise_sigma", 1.0)


def assert_is_the_schedulers_own(scheduler: Any) -> list[Tensor]:
    recorded, returned, _ = denoise(scheduler, start(scheduler), lambda index, x_t: noise(index + 1))
    assert len(recorded) == STEPS
    for x0, output in zip(recorded, returned, strict=True):
        torch.testing.assert_close(x0, output.pred_original_sample, rtol=1e-5, atol=1e-5)
    return recorded


def test_the_supported_schedulers_are_all_tested() -> None:
    assert supported() == sorted({name for name, _ in ALL.values()})


@pytest.mark.parametrize("case", SELF_REPORTING)
def test_x0_is_the_schedulers_own_prediction(case: str) -> None:
    assert_is_the_schedulers_own(make_scheduler(case))


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_x0_is_the_schedulers_own_at_fractional_timesteps_and_karras_sigmas(spacing: str) -> None:
    changes = {"timestep_spacing": spacing, "use_karras_sigmas": True}
    assert_is_the_schedulers_own(make_scheduler("EulerDiscreteScheduler-epsilon", **changes))


@pytest.mark.parametrize("case", ALL)
def test_a_perfect_model_gives_x0_back_at_every_step(case: str) -> None:
    scheduler = make_scheduler(case)
    x0 = noise(99, torch.float64)
    recorded, _, last = denoise(
        scheduler,
        start(scheduler, torch.float64),
        lambda index, x_t: oracle(case, scheduler, index, x_t.double(), x0),
    )
    assert len(recorded) == STEPS
    for step, predicted in enumerate(recorded):
        assert predicted.dtype == torch.float64
        assert (predicted - x0).abs().max() < 1e-6, f"step {step}"
    torch.testing.assert_close(last, x0, rtol=0, atol=1e-3)  # the oracle is right: the sampler lands on x0


def test_a_sampler_that_begins_late_begins_at_its_begin_index() -> None:
    scheduler, x0 = make_scheduler("flow"), noise(99, torch.float64)
    scheduler.set_begin_index(2)  # as video-to-video pipelines do
    scheduler.timesteps = scheduler.timesteps[2:]
    recorded, _, last = denoise(
        scheduler,
        start(scheduler, torch.float64),
        lambda index, x_t: oracle("flow", scheduler, index + 2, x_t.double(), x0),
    )
    assert len(recorded) == STEPS - 2
    for predicted in recorded:
        assert (predicted - x0).abs().max() < 1e-6
    torch.testing.assert_close(last, x0, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_clipping_is_honoured(name: str) -> None:
    scheduler = make_scheduler(f"{name}-epsilon", clip_sample=True, clip_sample_range=0.7)
    for x0 in assert_is_the_schedulers_own(scheduler):
        assert x0.abs().max() == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("clip", [True, False])
def test_thresholding_is_honoured_and_comes_before_clipping(name: str, clip: bool) -> None:
    dynamic = {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5}
    scheduler = make_scheduler(f"{name}-epsilon", clip_sample=clip, clip_sample_range=0.7, **dynamic)
    for x0 in assert_is_the_schedulers_own(scheduler):
        assert x0.abs().max() == pytest.approx(1.0)


def test_half_precision_latents_give_float32_x0() -> None:
    scheduler = make_scheduler("DDIMScheduler-epsilon")
    output, x_t, timestep = noise(1).half(), noise(2).half(), scheduler.timesteps[0]
    x0 = predict_x0(scheduler, output, timestep, x_t)
    assert x0.dtype == torch.float32
    assert torch.equal(x0, predict_x0(scheduler, output.float(), timestep, x_t.float()))


def test_an_unsupported_scheduler_is_refused_by_name() -> None:
    scheduler = diffusers.UniPCMultistepScheduler()
    scheduler.set_timesteps(STEPS)
    with pytest.raises(LvdError, match=r"UniPCMultistepScheduler is not supported.*DDIMScheduler"):
        predict_x0(scheduler, noise(0), scheduler.timesteps[0], noise(1))


@pytest.mark.parametrize("case", ["DDIMScheduler-epsilon", "EulerDiscreteScheduler-epsilon"])
def test_an_unsupported_prediction_type_is_refused_by_name(case: str) -> None:
    scheduler = make_scheduler(case)
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(LvdError, match="prediction_type=score"):
        predict_x0(scheduler, noise(0), scheduler.timesteps[0], noise(1))


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
    [("DDIMScheduler", 0.0), ("DDIMScheduler", 1.0), ("EulerAncestralDiscreteScheduler", 0.0)],
)
def test_a_tapped_run_is_bit_identical(tiny_pipeline: Any, scheduler: str, ddim_eta: float) -> None:
    tiny_pipeline.scheduler = getattr(diffusers, scheduler).from_config(tiny_pipeline.scheduler.config)
    untapped = generate(tiny_pipeline, eta=ddim_eta)
    with tap_x0(tiny_pipeline.scheduler, nothing):
        tapped = generate(tiny_pipeline, eta=ddim_eta)
    assert torch.equal(tapped, untapped)


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
    scheduler = make_scheduler("DDIMScheduler-epsilon")
    outer: list[Tensor] = []
    with tap_x0(scheduler, lambda step, timestep, x0: outer.append(x0)):
        outer_step = scheduler.step
        inner, _, _ = denoise(scheduler, start(scheduler), lambda index, x_t: noise(index))
        assert scheduler.step is outer_step
    assert "step" not in vars(scheduler)
    assert len(inner) == len(outer) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(inner, outer, strict=True))


def test_every_tap_counts_its_steps_from_zero() -> None:
    scheduler = make_scheduler("DDIMScheduler-epsilon")
    for _ in range(2):
        steps: list[int] = []
        with tap_x0(scheduler, lambda step, timestep, x0, steps=steps: steps.append(step)):
            scheduler.step(noise(0), scheduler.timesteps[0], sample=noise(1))
            scheduler.step(model_output=noise(0), timestep=scheduler.timesteps[1], sample=noise(1))
        assert steps == [0, 1]


def test_the_signature_of_a_tapped_step_still_shows_eta_and_generator() -> None:
    scheduler = make_scheduler("DDIMScheduler-epsilon")
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
    scheduler = make_scheduler("DDIMScheduler-epsilon")
    recorded: list[Tensor] = []
    with tap_x0(scheduler, lambda step, timestep, x0: recorded.append(x0), layout="BFCHW"):
        output = scheduler.step(noise(1), scheduler.timesteps[0], noise(0))
    torch.testing.assert_close(recorded[0], output.pred_original_sample.transpose(1, 2))


def test_latents_of_another_layout_are_refused() -> None:
    with pytest.raises(LvdError, match=r"\(2, 3, 4\).*layout BCFHW has five axes"):
        to_BCFHW(torch.zeros(2, 3, 4), "BCFHW")
    with pytest.raises(LvdError, match="unknown layout 'BSD'"):
        to_BCFHW(noise(0), "BSD")  # type: ignore[arg-type]
