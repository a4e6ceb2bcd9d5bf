"""Every supported sampler, and a network that points at a known x0 whatever it is asked.

`noise_level` says how a sampler's noisy latent is made, x_t = alpha x0 + sigma eps, and `answer` what a
perfect network of its parameterisation then says. Both come from the papers and the scheduler's tables
alone. That the sampler agrees is seen from the noise it leaves in x_t on its way to x0.
"""

import copy
import functools
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor

from lvd.sampling.tap import StepCall, intercept_step

STEPS = 10
SHAPE = (2, 3, 2, 4, 4)


def noise(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


X0 = noise(99, torch.float64)  # where every sampler is to go

# x_t = alpha x0 + sigma eps, with alpha² + sigma² = 1 by the timestep; alpha = 1; either, by what the
# configuration says; alpha + sigma = 1; alpha = 1 with EDM's preconditioning around the network.
Form = Literal["alpha_bar", "sigma", "log_snr", "flow", "edm"]


@dataclass(frozen=True, eq=False)
class Case:
    """A sampler with its options."""

    name: str
    form: Form
    prediction: str
    options: dict[str, Any] = field(default_factory=dict)
    timesteps: dict[str, Any] = field(default_factory=dict)  # of set_timesteps

    @property
    def scheduler(self) -> str:
        return f"{self.name}Scheduler"

    def make(self, **changes: Any) -> Any:
        """The scheduler, ready for `STEPS` steps."""
        scheduler = copy.deepcopy(self._as_built)  # some take long to build
        scheduler.register_to_config(**changes)
        scheduler.set_timesteps(STEPS, **self.timesteps)
        return scheduler

    @functools.cached_property
    def _as_built(self) -> Any:
        parameterised = {} if self.form == "flow" else {"prediction_type": self.prediction}
        return scheduler_class(self.scheduler)(**self.options, **parameterised)

    def __str__(self) -> str:
        options = {**self.options, **self.timesteps}
        told = (f"{key}={value}" for key, value in options.items() if key not in ("beta_start", "beta_end"))
        return "-".join((self.name, self.prediction, *told))


def scheduler_class(name: str) -> Any:
    """From diffusers; DPMSolverSDE even without torchsde, which only draws its noise."""
    if name != "DPMSolverSDEScheduler":
        return getattr(diffusers, name)
    if "torchsde" not in sys.modules and importlib.util.find_spec("torchsde") is None:
        stub = ModuleType("torchsde")
        stub.BrownianInterval = BrownianInterval  # type: ignore[attr-defined]
        sys.modules["torchsde"] = stub
    return getattr(importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde"), name)


class BrownianInterval:
    """Increments of the right size, the same for the same seed and interval."""

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype, entropy: int, **_: Any) -> None:
        self.size, self.dtype, self.entropy = size, dtype, entropy

    def __call__(self, start: Tensor, end: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.entropy, float(start), float(end))) % 2**63)
        increment = torch.randn(self.size, generator=generator) * abs(float(end) - float(start)) ** 0.5
        return increment.to(self.dtype)


def all_cases() -> Iterator[Case]:
    """Every scheduler with every prediction type, and the options that change what x0 is made from."""
    stable_diffusion = {"beta_start": 0.00085, "beta_end": 0.012}
    three, two = ("epsilon", "v_prediction", "sample"), ("epsilon", "v_prediction")

    for name, predictions, options in (
        ("DDIM", three, {**stable_diffusion, "clip_sample": False}),
        ("DDPM", three, {**stable_diffusion, "clip_sample": False}),
        ("CogVideoXDDIM", three, {}),
        ("CogVideoXDPM", three, {}),
        ("PNDM", two, {**stable_diffusion, "skip_prk_steps": True}),
        ("PNDM", two, {**stable_diffusion, "skip_prk_steps": False}),
        ("TCD", three, {}),
        ("LCM", three, {}),
    ):
        for prediction in predictions:
            yield Case(name, "alpha_bar", prediction, options)
    for prediction in three:  # so that the boundary condition is felt at every step
        yield Case("LCM", "alpha_bar", prediction, {"timestep_scaling": 0.002})
    trailing = {"timestep_spacing": "trailing"}
    no_signal = {**trailing, "rescale_betas_zero_snr": True}  # in the first latent
    for name in ("DDIM", "DDPM"):
        yield Case(name, "alpha_bar", "v_prediction", {**no_signal, "clip_sample": False})
        yield Case(name, "alpha_bar", "epsilon", {**trailing, "clip_sample": False})
    for name in ("CogVideoXDDIM", "CogVideoXDPM"):  # as CogVideoX comes
        yield Case(name, "alpha_bar", "v_prediction", {**no_signal, "snr_shift_scale": 1.0})

    for name, predictions in (
        ("EulerDiscrete", three),
        ("EulerAncestralDiscrete", two),
        ("LMSDiscrete", three),
        ("HeunDiscrete", three),
        ("KDPM2Discrete", two),
        ("KDPM2AncestralDiscrete", two),
        ("DPMSolverSDE", two),
    ):
        always: dict[str, Any] = {"noise_sampler_seed": 5} if name == "DPMSolverSDE" else {}
        if name.startswith("KDPM2"):
            always["num_train_timesteps"] = 200  # with 1000 they take half a second to build
        for prediction in predictions:
            yield Case(name, "sigma", prediction, {**stable_diffusion, **always})
        yield Case(name, "sigma", "epsilon", {**always, "timestep_spacing": "trailing"})
        yield Case(name, "sigma", "epsilon", {**always, "timestep_spacing": "leading", "steps_offset": 1})
        if name != "EulerAncestralDiscrete":
            yield Case(name, "sigma", "epsilon", {**always, "use_karras_sigmas": True})
            yield Case(name, "sigma", "v_prediction", {**always, "use_exponential_sigmas": True})
    stable_video = {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002}
    yield Case("EulerDiscrete", "sigma", "v_prediction", {**stable_video, "sigma_max": 700.0})

    flow = {"use_flow_sigmas": True, "flow_shift": 3.0}
    noise_form = {"final_sigmas_type": "sigma_min"}  # alpha / sigma must stay finite
    for name, forms in (
        (
            "DPMSolverMultistep",
            (
                {"algorithm_type": "dpmsolver++"},
                {"algorithm_type": "sde-dpmsolver++"},
                {"algorithm_type": "dpmsolver", **noise_form},
                {"algorithm_type": "sde-dpmsolver", **noise_form},
            ),
        ),
        (
            "DPMSolverSinglestep",
            (
                {"algorithm_type": "dpmsolver++"},
                {"algorithm_type": "sde-dpmsolver++"},
                {"algorithm_type": "dpmsolver", **noise_form},
            ),
        ),
        ("UniPCMultistep", ({"predict_x0": True}, {"predict_x0": False, **noise_form})),
        ("DEISMultistep", ({},)),
        ("SASolver", ({"algorithm_type": "data_prediction"}, {"algorithm_type": "noise_prediction"})),
    ):
        for form in forms:
            for prediction in three:
                yield Case(name, "log_snr", prediction, {**stable_diffusion, **form})
        yield Case(name, "log_snr", "flow_prediction", flow)
        yield Case(name, "log_snr", "flow_prediction", {"use_flow_sigmas": True})
        yield Case(name, "log_snr", "epsilon", {"use_karras_sigmas": True})
        yield Case(name, "log_snr", "v_prediction", {"use_exponential_sigmas": True})
        order = "predictor_order" if name == "SASolver" else "solver_order"
        for number in (1, 3):
            yield Case(name, "log_snr", "epsilon", {order: number})
        if name != "DPMSolverSinglestep":
            yield Case(name, "log_snr", "epsilon", {"timestep_spacing": "trailing"})
            yield Case(name, "log_snr", "epsilon", {"timestep_spacing": "leading", "steps_offset": 1})
    yield Case("DPMSolverMultistep", "log_snr", "epsilon", {"use_lu_lambdas": True})
    yield Case("DPMSolverMultistep", "log_snr", "epsilon", {"euler_at_final": True, "solver_type": "heun"})
    yield Case("UniPCMultistep", "log_snr", "epsilon", {"disable_corrector": [0, 2]})
    yield Case("UniPCMultistep", "log_snr", "epsilon", {"solver_type": "bh1", **noise_form})
    yield Case("UniPCMultistep", "log_snr", "flow_prediction", {**flow, "use_karras_sigmas": True})
    yield Case("UniPCMultistep", "log_snr", "sample", {"use_flow_sigmas": True, "solver_order": 3})

    for name, options in (
        ("EDMEuler", {}),
        ("EDMEuler", {"sigma_schedule": "exponential", "sigma_data": 1.0, "final_sigmas_type": "sigma_min"}),
        ("EDMDPMSolverMultistep", {}),
        ("EDMDPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "sigma_schedule": "exponential"}),
        ("EDMDPMSolverMultistep", {"solver_order": 3, "solver_type": "heun", "sigma_data": 1.0}),
    ):
        for prediction in two:
            yield Case(name, "edm", prediction, options)

    for name in ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "LTXEulerAncestralRF"):
        yield Case(name, "flow", "flow")
    for options in (
        {"shift": 3.0},
        {"invert_sigmas": True},
        {"invert_sigmas": True, "shift": 3.0},
        {"stochastic_sampling": True},
        {"use_karras_sigmas": True},
        {"use_beta_sigmas": True},
        {"shift_terminal": 0.1},
    ):
        yield Case("FlowMatchEulerDiscrete", "flow", "flow", options)
    yield Case("FlowMatchEulerDiscrete", "flow", "flow", {"use_dynamic_shifting": True}, {"mu": 1.2})
    yield Case("FlowMatchHeunDiscrete", "flow", "flow", {"shift": 3.0})


CASES = tuple(all_cases())


def noise_level(case: Case, scheduler: Any, call: int) -> tuple[float, float]:
    """alpha and sigma of the latent that goes into the call of `scheduler.step` with this number."""
    if case.form == "alpha_bar":
        alpha_bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[call])])
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    sigma = float(scheduler.sigmas[call])
    if case.name in ("KDPM2Discrete", "DPMSolverSDE") and call % 2:  # the middle of a step
        sigma = math.sqrt(float(scheduler.sigmas[call - 1]) * sigma)
    if case.form in ("sigma", "edm"):
        return 1.0, sigma
    if case.form == "log_snr" and not case.options.get("use_flow_sigmas"):
        angle = math.atan(sigma)
        return math.cos(angle), math.sin(angle)
    return (sigma, 1 - sigma) if case.options.get("invert_sigmas") else (1 - sigma, sigma)


def answer(case: Case, scheduler: Any, call: int, x_t: Tensor, x0: Tensor = X0) -> Tensor:
    """What a perfect network says of `x_t`, float64."""
    x_t = x_t.double()
    alpha, sigma = noise_level(case, scheduler, call)
    if case.name == "LCM":  # what the boundary condition makes x0 of
        scaling = case.options.get("timestep_scaling", 10.0)
        angle = math.atan2(scaling * float(scheduler.timesteps[call]), 0.5)
        x0 = (x0 - math.cos(angle) ** 2 * x_t) / math.sin(angle)
    eps = (x_t - alpha * x0) / sigma
    if case.form == "edm":
        sigma_data = case.options.get("sigma_data", 0.5)
        angle = math.atan2(sigma, sigma_data)
        output = math.sin(angle) / sigma_data * x0 - math.cos(angle) * eps
        return -output if case.prediction == "v_prediction" else output
    if case.prediction == "epsilon":
        return eps
    if case.prediction == "sample":
        return x0
    if case.prediction == "v_prediction":
        return (alpha * eps - sigma * x0) / math.hypot(alpha, sigma)
    return x0 - eps if case.options.get("invert_sigmas") else eps - x0


def start(case: Case, scheduler: Any, dtype: torch.dtype = torch.float32, call: int = 0) -> Tensor:
    """The latent to begin with at this call: X0 under `noise(0)`."""
    alpha, sigma = noise_level(case, scheduler, call)
    return (alpha * X0 + sigma * noise(0, torch.float64)).to(dtype)


def sample(
    scheduler: Any, x_t: Tensor, network: Callable[[int, Tensor], Tensor], first_call: int = 0
) -> list[Any]:
    """A pipeline's loop: `network(call, x_t)` answers each call, and what the calls returned comes back."""
    parameters = inspect.signature(scheduler.step).parameters
    extra = {"generator": torch.Generator().manual_seed(7)} if "generator" in parameters else {}
    results: list[Any] = []
    before: tuple[Any, Any] = (None, None)  # x0 and timestep of the step before, for CogVideoX's DPM
    for call, timestep in list(enumerate(scheduler.timesteps))[first_call:]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x_t, timestep)
        output = network(call, x_t).to(x_t.dtype)
        if "old_pred_original_sample" in parameters:
            result = scheduler.step(output, before[0], timestep, before[1], x_t, **extra, return_dict=False)
            before = (result[1], timestep)
        else:
            result = scheduler.step(output, timestep, x_t, **extra, return_dict=False)
        results.append(result)
        x_t = result[0]
    return results


@dataclass(frozen=True)
class Predicted:
    """x0 at a step's first call, and what a perfect network had to go by."""

    call: int
    x_t: Tensor
    output: Tensor
    x0: Tensor


@functools.cache
def sample_perfectly(case: Case, dtype: torch.dtype) -> list[Predicted]:
    """Sample towards X0; what `StepCall.x0` says of it at every step."""
    scheduler = case.make()
    found: list[Predicted] = []
    calls = 0

    def around(call: StepCall) -> Any:
        nonlocal calls
        if call.opens_step:
            given = call.arguments
            found.append(Predicted(calls, given["sample"], given["model_output"], call.x0("BCFHW")))
        calls += 1
        return call.proceed()

    with intercept_step(scheduler, around):
        sample(scheduler, start(case, scheduler, dtype), lambda call, x_t: answer(case, scheduler, call, x_t))
    return found


def levels_of(scheduler: Any, steps: int) -> tuple[float, ...]:
    """The noise level of each step of a sampling run."""
    scheduler.set_timesteps(steps)
    heard = []

    def around(call: StepCall) -> Any:
        if call.opens_step:
            heard.append(call.noise_level)
        return call.proceed()

    with intercept_step(scheduler, around):
        sample(scheduler, torch.zeros(1, 1, 1, 2, 2), lambda call, x_t: torch.zeros_like(x_t))
    return tuple(heard)
