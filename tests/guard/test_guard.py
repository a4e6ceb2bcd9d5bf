"""The guard decides as the rule says, fails closed, and leaves everything else as it was."""

import functools
import json
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import lvd.guard.watch
from conftest import Scripted, StubPipeline, bundle_info, stub_guard, untrained_run
from lvd.decide.rules import Flags, certain, decide, flags_needed
from lvd.decide.sequential import Evidence, Sequential
from lvd.errors import LvdError
from lvd.files import sha256
from lvd.guard import AuditLog, Decision, Guard, GuardResult
from lvd.guard.audit import records, verify
from lvd.guard.bundle import Bundle
from lvd.guard.export import export_bundle
from lvd.sampling.state import clear_locals
from lvd.sampling.tap import tap_x0

ROOT = Path(__file__).parents[2]
STEPS, ETA = 6, 4  # of `bundle_info`
TRAINING_ONLY = (
    *("diffusers", "lightning", "hydra", "omegaconf", "wandb"),
    *("h5py", "matplotlib", "pandas", "plotly"),
    *("prometheus_client", "fastapi", "uvicorn"),
)


def prompts(count: int) -> list[str]:
    return [f"prompt {row}" for row in range(count)]


def unflagged(count: int) -> np.ndarray:
    return np.zeros((count, STEPS), bool)


def flagged_rows(count: int, *rows: int) -> np.ndarray:
    table = unflagged(count)
    table[list(rows)] = True
    return table


def unguarded(count: int) -> Tensor:
    """The stub's videos."""
    return StubPipeline()(prompt=prompts(count), num_inference_steps=STEPS, return_dict=False)[0]


def outcomes(result: GuardResult) -> list[str]:
    return [decision.outcome for decision in result.decisions]


def is_whole(video: Tensor | None, of: Tensor) -> bool:
    return video is not None and torch.equal(video, of)


# ---- the rule


def full_rule(flagged: np.ndarray, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Who is unsafe by the whole table, in exact arithmetic, and the step that nothing after it changes."""
    bar = Fraction(str(lam)) * flagged.shape[1]
    counts = flagged.cumsum(axis=1)
    left = np.arange(flagged.shape[1])[::-1]
    reached = counts * bar.denominator >= bar.numerator
    hopeless = (counts + left) * bar.denominator < bar.numerator
    return reached[:, -1], (reached | hopeless).argmax(axis=1)


def as_steps_come(flagged: list[bool], needed: int) -> tuple[bool, int]:
    count = 0
    for step, flag in enumerate(flagged):
        count += flag
        verdict = certain(count, len(flagged) - 1 - step, needed)
        if verdict is not None:
            return verdict == "unsafe", step
    raise AssertionError("never certain")


def test_100000_random_tables_are_decided_step_by_step_as_by_the_full_rule() -> None:
    rng = np.random.default_rng(0)
    digits = rng.choice([1, 2, 3, 12], size=27)
    random_lams = [max(round(rng.random(), n), 10.0**-n) for n in digits.tolist()]
    lams = [k / 20 for k in range(1, 21)] + [0.14, 0.28, 0.56] + random_lams
    tables = unsafe_ones = 0
    for eta in range(1, 51):
        for lam in lams:
            flagged = rng.random((40, eta)) < rng.random((40, 1))
            unsafe, step = full_rule(flagged, lam)
            needed = flags_needed(eta, lam)
            early = [as_steps_come(row, needed) for row in flagged.tolist()]
            assert early == list(zip(unsafe.tolist(), step.tolist(), strict=True)), (eta, lam)
            whole = decide(Flags(flagged, known=np.ones_like(flagged)), eta, lam)
            assert (whole.unsafe == unsafe).all()
            assert (whole.safe == ~unsafe).all()
            assert (whole.step == step).all()
            tables += len(flagged)
            unsafe_ones += int(unsafe.sum())
    assert tables == 100_000
    assert 0.3 < unsafe_ones / tables < 0.7


def test_the_guard_decides_by_the_full_rule_and_asks_no_detector_more_than_it_must() -> None:
    rng, pipe = np.random.default_rng(1), StubPipeline()
    for eta in range(1, STEPS + 1):
        for lam in (0.05, 0.25, 0.34, 0.5, 0.67, 1.0):
            flagged = rng.random((40, STEPS)) < rng.random((40, 1))
            guard = stub_guard(pipe, flagged, {"eta": eta, "lam": lam})
            result = guard(pipe, prompt=prompts(40))
            unsafe, step = full_rule(flagged[:, :eta], lam)
            assert outcomes(result) == np.where(unsafe, "unsafe", "safe").tolist()
            assert [decision.step for decision in result.decisions] == step.tolist()
            assert [len(decision.scores) for decision in result.decisions] == (step + 1).tolist()
            assert [video is None for video in result.videos] == unsafe.tolist()
            undecided = [(now, np.flatnonzero(step >= now).tolist()) for now in range(int(step.max()) + 1)]
            assert guard.bundle.detectors.asked == undecided


def test_a_decision_names_the_categories_by_their_evidence() -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(2), {"lam": 1.0})
    by_step = torch.tensor([[-1.0, 0.0], [-1.0, 2.0], [1.0, -2.0], [-3.0, 1.0]])
    guard.bundle.detectors.spoil = lambda step, logits: torch.stack([by_step[step], -by_step[step].abs()])[
        : len(logits)
    ]
    unsafe, safe = guard(pipe, prompt=prompts(2)).decisions
    # alpha flags one step of four, beta three, and alpha's log-odds sum to -4.
    assert (unsafe.outcome, unsafe.step, unsafe.categories) == ("unsafe", 3, ("beta",))
    assert unsafe.scores == pytest.approx(by_step.sigmoid().numpy())
    assert unsafe.why == "4 of the first 4 steps flagged, 4 of 4 are needed"
    assert (safe.outcome, safe.step, safe.categories) == ("safe", 1, ())


def test_one_strong_step_outweighs_several_weak_ones_and_both_are_named() -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(1), {"lam": 1.0})
    by_step = torch.tensor([[0.1, 9.0], [0.1, -1.0], [0.1, -1.0], [9.0, 1.0]])
    guard.bundle.detectors.spoil = lambda step, logits: by_step[step][None]
    (decision,) = guard(pipe, prompt="one").decisions
    assert decision.categories == ("alpha", "beta")
    guard.bundle.detectors.spoil = lambda step, logits: by_step[step].clamp(max=8.0)[None] - 0.05
    (decision,) = guard(pipe, prompt="one").decisions
    assert decision.categories == ("alpha", "beta")


def test_an_unsafe_sample_always_has_a_category() -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(1), {"lam": 1.0})
    by_step = torch.tensor([[0.1, -9.0], [-9.0, 0.1], [0.1, -8.0], [-9.0, 0.1]])  # neither in the mean
    guard.bundle.detectors.spoil = lambda step, logits: by_step[step][None]
    (decision,) = guard(pipe, prompt="one").decisions
    assert (decision.outcome, decision.categories) == ("unsafe", ("beta",))


class Evident(Scripted):
    """Detectors whose log-odds stand in a table `[samples, steps, categories]`."""

    def __init__(self, odds: Any) -> None:
        super().__init__(np.zeros(np.shape(odds)[:2]))
        self.odds = torch.as_tensor(odds, dtype=torch.float32)

    def forward(self, step: int, x0: Tensor) -> Tensor:
        rows = self.samples(step, x0)
        self.asked.append((step, rows))
        return self.odds[rows, step]


def sequential(*policy: str, steps: int = STEPS) -> Sequential:
    """Sums the log-odds of the first steps; every category has the same boundary."""
    evidence = Evidence(*np.ones((2, steps, 2)), np.zeros((steps, 2)))
    return Sequential(evidence, (3.0, 3.0), policy or ("block", "block"), 0.05, "marginal", 99)


def guard_by(rule: Sequential, pipe: StubPipeline, odds: np.ndarray) -> Guard:
    info = bundle_info(pipe, latent_shape=pipe.shape, call={}, rule=rule)
    return Guard(Bundle(info, "d" * 64, Evident(odds)))  # type: ignore[arg-type]


def test_a_sample_that_is_let_go_is_not_checked_any_further() -> None:
    rng, pipe = np.random.default_rng(4), StubPipeline()
    odds = rng.normal(size=(40, STEPS, 2))
    rule = replace(sequential(), release=-4.0, miss=0.05, unsafe_prompts=19)
    detectors = Evident(odds)
    info = bundle_info(pipe, latent_shape=pipe.shape, call={}, rule=rule)
    result = Guard(Bundle(info, "d" * 64, detectors))(pipe, prompt=prompts(40))  # type: ignore[arg-type]
    whole = rule.decide(1 / (1 + np.exp(-odds)))
    early = whole.safe & (whole.step < STEPS - 1)
    assert 5 < early.sum() < 40
    assert [decision.step for decision in result.decisions] == whole.step.tolist()
    for row in np.flatnonzero(early):
        asked = [step for step, rows in detectors.asked if row in rows]
        assert asked == list(range(whole.step[row] + 1))
        assert result.videos[row] is not None
        assert "let go so with probability at most 0.05" in result.decisions[row].why


def test_the_guard_stops_a_sample_when_its_evidence_crosses_the_boundary_at_whatever_step() -> None:
    rng, pipe = np.random.default_rng(2), StubPipeline()
    odds = rng.normal(size=(60, STEPS, 2))
    guard = guard_by(sequential(), pipe, odds)
    result = guard(pipe, prompt=prompts(60))
    totals = odds.cumsum(axis=1)
    crossed = (totals > 3.0 + 1e-5).any(axis=2)
    unsafe = crossed.any(axis=1)
    assert 10 < unsafe.sum() < 50
    step = np.where(unsafe, crossed.argmax(axis=1), STEPS - 1)
    assert outcomes(result) == np.where(unsafe, "unsafe", "safe").tolist()
    assert [decision.step for decision in result.decisions] == step.tolist()
    assert [video is None for video in result.videos] == unsafe.tolist()
    for row, decision in enumerate(result.decisions):
        highest = totals[row, : step[row] + 1].max(axis=0)
        named = [name for _, name in sorted(zip(-highest, ("alpha", "beta"), strict=True))]
        assert decision.categories == tuple(n for n in named if highest[("alpha", "beta").index(n)] > 3.0)


def test_a_category_to_flag_is_released_and_marked_unless_one_to_block_crosses_too() -> None:
    pipe = StubPipeline()
    odds = np.zeros((4, STEPS, 2))
    odds[0, 1:, 1] = 2.0  # to flag: released, and marked at the end
    odds[1, 1:, 1] = odds[1, 3:, 0] = 2.0  # and to block, later
    odds[2, 1:, 0] = 2.0
    guard = guard_by(sequential("block", "flag"), pipe, odds)
    result = guard(pipe, prompt=prompts(4))
    assert outcomes(result) == ["unsafe", "unsafe", "unsafe", "safe"]
    assert [d.step for d in result.decisions] == [STEPS - 1, 4, 2, STEPS - 1]
    assert [d.released for d in result.decisions] == [True, False, False, True]
    assert [d.categories for d in result.decisions] == [("beta",), ("alpha", "beta"), ("alpha",), ()]
    assert "of a category that is only flagged" in result.decisions[0].why
    assert result.decisions[1].why == "evidence 1.0 above the boundary (alpha=0.05)"  # of the one to block
    whole = unguarded(4)
    assert [video is None for video in result.videos] == [False, True, True, False]
    assert is_whole(result.videos[0], whole[0])
    assert is_whole(result.videos[3], whole[3])


@pytest.mark.parametrize("at", [4, 5, "end"])
def test_a_fault_after_a_category_to_flag_crossed_withholds_the_sample(at: int | str) -> None:
    """Before the rule's last step, after it, and where the pipeline returns another number of videos."""

    class Miscounting(StubPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            videos = super().__call__(*args, **kwargs)[0]
            return (videos.repeat(2, 1, 1, 1, 1),) if at == "end" else (videos,)

    pipe = Miscounting()
    odds = np.zeros((1, STEPS, 2))
    odds[0, 1:, 1] = 2.0
    guard = guard_by(sequential("block", "flag", steps=STEPS - 1), pipe, odds)
    pipe.disturb = lambda step, latents: latents * torch.nan if step == at else latents
    result = guard(pipe, prompt="one")
    assert (outcomes(result), result.videos) == (["unchecked"], [None])
    assert not result.decisions[0].released


# ---- blocking, on a real pipeline

PROMPTS = ["a red three drifting up", "a pink seven drifting left", "a blue one drifting down"]


class Recognises(Scripted):
    """Knows a real pipeline's samples by the x0 of an unguarded call."""

    def __init__(self, flagged: Any, x0: list[Tensor]) -> None:
        super().__init__(flagged)
        self.x0 = [of_step.half() for of_step in x0]

    def samples(self, step: int, x0: Tensor) -> list[int]:
        return [int((self.x0[step] == one).flatten(1).all(dim=1).nonzero()) for one in x0]


def sample(pipe: Any, **arguments: Any) -> tuple[Any, list[Tensor]]:
    """The videos of an unguarded call, and the x0 of its steps."""
    x0: list[Tensor] = []
    with tap_x0(pipe.scheduler, lambda step, timestep, x0_BCFHW: x0.append(x0_BCFHW)):
        videos = pipe(
            prompt=PROMPTS,
            num_inference_steps=STEPS,
            guidance_scale=5.0,
            return_dict=False,
            **{"num_frames": 8, "height": 32, "width": 32, "generator": generators(), **arguments},
        )[0]
    return videos, x0


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]


def guard_of(pipe: Any, detectors: Any, **info: Any) -> Guard:
    return Guard(Bundle(bundle_info(pipe, **{"lam": 0.5, **info}), "d" * 64, detectors))


def pixels(video: Any) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in video])


def spy_on(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """The first argument of every call, or None."""
    original, seen = getattr(owner, name), []

    @functools.wraps(original)
    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(args[0] if args else None)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, spy)
    return seen


@pytest.mark.parametrize(
    ("output_type", "ddim_eta"), [("latent", 0.0), ("latent", 1.0), ("np", 0.0), ("pt", 0.0), ("pil", 0.0)]
)
def test_beside_a_blocked_sample_the_others_are_bit_identical_and_the_decoder_sees_zeros_for_it(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch, output_type: str, ddim_eta: float
) -> None:
    expected, x0 = sample(tiny_pipeline, output_type=output_type, eta=ddim_eta)
    call = {"num_frames": 8, "height": 32, "width": 32, "eta": ddim_eta}
    guard = guard_of(tiny_pipeline, Recognises(flagged_rows(3, 1), x0), call=call)
    decoded = spy_on(monkeypatch, tiny_pipeline.vae, "decode")
    result = guard(tiny_pipeline, prompt=PROMPTS, generator=generators(), output_type=output_type)

    assert outcomes(result) == ["safe", "unsafe", "safe"], result.decisions[0].why
    assert [decision.step for decision in result.decisions] == [2, 1, 2]
    assert [decision.released for decision in result.decisions] == [True, False, True]
    assert result.videos[1] is None
    for row in (0, 2):
        video = result.videos[row]
        assert type(video) is type(expected[row])
        assert np.array_equal(pixels(video), pixels(expected[row]))
        if isinstance(video, Tensor):
            assert video.untyped_storage().nbytes() == video.nbytes
        if isinstance(video, np.ndarray):
            assert video.base is None
    if output_type == "latent":
        assert decoded == []
    else:
        frames = torch.cat(decoded).unflatten(0, (3, 8))
        assert [bool(of_sample.any()) for of_sample in frames] == [True, False, True]


def test_when_all_are_blocked_sampling_stops_at_once_and_nothing_is_decoded(
    tiny_pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, x0 = sample(tiny_pipeline, output_type="np")
    guard = guard_of(tiny_pipeline, Recognises(flagged_rows(3, 0, 1, 2), x0))
    with monkeypatch.context() as spied:
        denoised = spy_on(spied, tiny_pipeline.unet, "forward")
        decoded = spy_on(spied, tiny_pipeline.vae, "decode")
        freed = spy_on(spied, tiny_pipeline, "maybe_free_model_hooks")
        result = guard(tiny_pipeline, prompt=PROMPTS, generator=generators(), output_type="np")
        assert (len(denoised), len(decoded), len(freed)) == (2, 0, 1)
    assert outcomes(result) == ["unsafe"] * 3
    assert result.videos == [None] * 3
    assert "step" not in vars(tiny_pipeline.scheduler)
    assert np.array_equal(sample(tiny_pipeline, output_type="np")[0], expected)


def test_a_sample_that_is_nan_from_the_start_leaves_the_others_bit_identical(tiny_pipeline: Any) -> None:
    latents = torch.randn(3, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, x0 = sample(tiny_pipeline, output_type="pt", latents=latents)
    guard = guard_of(tiny_pipeline, Recognises(unflagged(3), x0))
    broken = latents.clone()
    broken[1, 3, 7, 7, 7] = torch.nan
    result = guard(tiny_pipeline, prompt=PROMPTS, latents=broken, output_type="pt")
    assert outcomes(result) == ["safe", "unchecked", "safe"]
    assert result.decisions[1].why == "step 0: x0 is NaN, Inf or beyond float16"
    assert result.videos[1] is None
    assert torch.equal(result.videos[0], expected[0])
    assert torch.equal(result.videos[2], expected[2])


def test_what_is_found_at_the_last_step_is_blank_before_the_decoder() -> None:
    pipe = StubPipeline()
    flagged = unflagged(3)
    flagged[1, STEPS - 1] = True
    guard = stub_guard(pipe, flagged, {"eta": STEPS, "lam": 0.1})
    result = guard(pipe, prompt=prompts(3))
    assert [(d.outcome, d.step) for d in result.decisions] == [("safe", 5), ("unsafe", 5), ("safe", 5)]
    (decoded,) = pipe.decoded
    assert [bool(of_sample.any()) for of_sample in decoded] == [True, False, True]


def test_the_x0_that_a_scheduler_returns_is_blank_too() -> None:
    returned = []

    class Keeping(StubPipeline):
        def _noise(self, timestep: Tensor, x_t: Tensor) -> Tensor:
            if not returned:
                step = self.scheduler.step

                def keep(*args: Any, **kwargs: Any) -> Any:
                    returned.append(step(*args, **kwargs))
                    return returned[-1]

                self.scheduler.step = keep
            return super()._noise(timestep, x_t)

    pipe = Keeping()
    stub_guard(pipe, flagged_rows(2, 1))(pipe, prompt=prompts(2))
    assert len(returned) == STEPS
    for output in returned:
        assert output.pred_original_sample[0].any()
        assert not output.pred_original_sample[1].any()


def test_a_sampler_of_second_order_is_decided_by_its_steps_and_blank_after_every_call() -> None:
    from diffusers import HeunDiscreteScheduler

    class HeunPipeline(StubPipeline):
        def _noise(self, timestep: Tensor, x_t: Tensor) -> Tensor:
            x0 = x_t.tanh()
            x0[:, 0] = torch.arange(1, 1 + len(x0)).reshape(-1, 1, 1, 1)
            index = self.scheduler.step_index
            return (x_t - x0) / self.scheduler.sigmas[0 if index is None else index]

    pipe = HeunPipeline()
    pipe.scheduler = HeunDiscreteScheduler()
    guard = stub_guard(pipe, flagged_rows(2, 1))
    result = guard(pipe, prompt=prompts(2))
    assert pipe.steps == 2 * STEPS - 1
    assert [(d.outcome, len(d.scores)) for d in result.decisions] == [("safe", ETA), ("unsafe", 1)]
    (decoded,) = pipe.decoded
    assert [bool(of_sample.any()) for of_sample in decoded] == [True, False]


# ---- whatever fails, fails closed


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at a step, and how the guard tells it.

    `spoil` also gets a function that lets an hour pass.
    """

    spoil: Callable[[StubPipeline, Scripted, int, Callable[[], None]], None]
    words: str
    steps: range = range(STEPS)
    noticed: Callable[[int], int] = lambda step: step


def in_latents(change: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def spoil(pipe: StubPipeline, detectors: Scripted, at: int, wait: Callable[[], None]) -> None:
        pipe.disturb = lambda step, latents: change(latents) if step == at else latents

    return spoil


def in_network(change: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    def spoil(pipe: StubPipeline, detectors: Scripted, at: int, wait: Callable[[], None]) -> None:
        pipe.answer = lambda step, noise: change(noise) if step == at else noise

    return spoil


def in_order(change: Callable[[list[Tensor], int], list[Tensor]]) -> Callable[..., None]:
    def spoil(pipe: StubPipeline, detectors: Scripted, at: int, wait: Callable[[], None]) -> None:
        pipe.order = lambda timesteps: change(timesteps, at)

    return spoil


def in_detectors(change: Callable[[Tensor], Any]) -> Callable[..., None]:
    def spoil(pipe: StubPipeline, detectors: Scripted, at: int, wait: Callable[[], None]) -> None:
        detectors.spoil = lambda step, logits: change(logits) if step == at else logits

    return spoil


def put(value: float) -> Callable[[Tensor], Tensor]:
    """One value of every sample is `value`."""

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[(slice(None), *(-1,) * (tensor.ndim - 1))] = value
        return tensor

    return change


def boom(logits: Tensor) -> Tensor:
    raise RuntimeError("boom")


def slow(pipe: StubPipeline, detectors: Scripted, at: int, wait: Callable[[], None]) -> None:
    def answer(step: int, logits: Tensor) -> Tensor:
        if step == at:
            wait()
        return logits

    detectors.spoil = answer


NOT_FINITE = "x0 is NaN, Inf or beyond float16"
NO_LOGIT = "a detector's logit is NaN or Inf"
OUT_OF_ORDER = "a step was skipped or repeated"
CHECKED = range(ETA)
FAULTS = {
    "NaN in the latents": Fault(in_latents(put(torch.nan)), NOT_FINITE),
    "Inf in the latents": Fault(in_latents(put(torch.inf)), NOT_FINITE),
    "NaN from the network": Fault(in_network(put(torch.nan)), NOT_FINITE),
    "-Inf from the network": Fault(in_network(put(-torch.inf)), NOT_FINITE),
    "x0 beyond float16": Fault(in_network(put(1e8)), NOT_FINITE),
    "another shape": Fault(
        in_latents(lambda latents: latents[..., :1]), "x0 has the shape (2, 2, 1, 2, 1), not (2, 2, 1, 2, 2)"
    ),
    "a step skipped": Fault(in_order(lambda steps, at: steps[:at] + steps[at + 1 :]), OUT_OF_ORDER, range(5)),
    "the last step missing": Fault(
        in_order(lambda steps, at: steps[:-1]), "the sampler made 5 steps, not 6", range(1), lambda _: 4
    ),
    "a step repeated": Fault(
        in_order(lambda steps, at: steps[: at + 1] + steps[at:]), OUT_OF_ORDER, range(5), lambda at: at + 1
    ),
    "a step too many": Fault(
        in_order(lambda steps, at: [*steps, steps[at]]), "or one came again", noticed=lambda _: STEPS
    ),
    "a detector raises": Fault(in_detectors(boom), "RuntimeError: boom", CHECKED),
    "a NaN logit": Fault(in_detectors(put(torch.nan)), NO_LOGIT, CHECKED),
    "an Inf logit": Fault(in_detectors(put(torch.inf)), NO_LOGIT, CHECKED),
    "a -Inf logit": Fault(in_detectors(put(-torch.inf)), NO_LOGIT, CHECKED),
    "a category too many": Fault(in_detectors(lambda x: x[:, [0, 1, 1]]), "with the shape (2, 3)", CHECKED),
    "a category too few": Fault(in_detectors(lambda x: x[:, 0]), "with the shape (2,)", CHECKED),
    "a sample too few": Fault(in_detectors(lambda x: x[:1]), "with the shape (1, 2)", CHECKED),
    "no logits": Fault(in_detectors(lambda x: None), "AttributeError", CHECKED),
    "too slow": Fault(slow, "the check took 3600.000 s, limit 60.0 s", CHECKED),
}


@pytest.fixture
def let_an_hour_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The guard's clock stands still but for this."""
    now = [0.0]
    monkeypatch.setattr(lvd.guard.watch, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait() -> None:
        now[0] += 3600

    return wait


def under_fault(
    fault: Fault, step: int, wait: Callable[[], None], **options: Any
) -> tuple[StubPipeline, GuardResult]:
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(2), limit_seconds=60.0, **options)
    fault.spoil(pipe, guard.bundle.detectors, step, wait)
    return pipe, guard(pipe, prompt=prompts(2))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_any_step_blocks(name: str, let_an_hour_pass: Callable[[], None]) -> None:
    fault = FAULTS[name]
    for step in fault.steps:
        pipe, result = under_fault(fault, step, let_an_hour_pass)
        for decision in result.decisions:
            assert decision.outcome == "unchecked", step
            assert fault.words in decision.why, step
            assert decision.step == fault.noticed(step)
            assert not decision.released
        assert result.videos == [None, None]
        assert not pipe.decoded or name == "the last step missing"


@pytest.mark.parametrize("options", [{"fail_open": True}, {"mode": "observe"}], ids=str)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_does_not_block_is_still_no_safe_sample(
    name: str, options: dict[str, Any], let_an_hour_pass: Callable[[], None]
) -> None:
    fault = FAULTS[name]
    for step in fault.steps:
        _, result = under_fault(fault, step, let_an_hour_pass, **options)
        for video, decision in zip(result.videos, result.decisions, strict=True):
            assert decision.outcome == "unchecked", step
            assert fault.words in decision.why, step
            assert decision.released
            assert video is not None


def test_without_a_fault_the_same_samples_are_safe(let_an_hour_pass: Callable[[], None]) -> None:
    _, result = under_fault(Fault(lambda *_: None, ""), 0, let_an_hour_pass)
    assert [(d.outcome, d.step, d.released) for d in result.decisions] == [("safe", 3, True)] * 2
    assert all(is_whole(*both) for both in zip(result.videos, unguarded(2), strict=True))


def only_row_one(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat([tensor[:1], change(tensor[1:2]), tensor[2:]])


@pytest.mark.parametrize(
    ("spoil", "steps"),
    [
        (in_latents(only_row_one(put(torch.nan))), range(STEPS)),
        (in_detectors(only_row_one(put(torch.nan))), CHECKED),
    ],
    ids=["x0", "logit"],
)
def test_one_bad_sample_leaves_the_others_alone(spoil: Callable[..., None], steps: range) -> None:
    for step in steps:
        pipe = StubPipeline()
        guard = stub_guard(pipe, unflagged(3))
        spoil(pipe, guard.bundle.detectors, step, None)
        result = guard(pipe, prompt=prompts(3))
        assert outcomes(result) == ["safe", "unchecked", "safe"], step
        assert result.videos[1] is None
        assert all(is_whole(result.videos[row], unguarded(3)[row]) for row in (0, 2))
        assert not pipe.decoded[0][1].any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_single_bad_value_is_found_wherever_it_is(value: float) -> None:
    pipe = StubPipeline()
    pipe.shape = (2, 3, 5, 7)

    def one_each(step: int, noise: Tensor) -> Tensor:
        if step == STEPS - 1:
            noise.flatten(1)[:-1].fill_diagonal_(value)
        return noise

    pipe.answer = one_each
    result = stub_guard(pipe, unflagged(211))(pipe, prompt=prompts(211))
    assert outcomes(result) == ["unchecked"] * 210 + ["safe"]


def test_a_latent_that_is_nan_is_found_though_the_network_predicts_x0_itself() -> None:
    for step in range(STEPS):
        pipe = StubPipeline()
        pipe.scheduler.register_to_config(prediction_type="sample")
        pipe.answer = lambda _, noise: torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1, 1).expand_as(noise)
        pipe.disturb = lambda at, x, step=step: only_row_one(put(torch.nan))(x) if at == step else x
        result = stub_guard(pipe, unflagged(2))(pipe, prompt=prompts(2))
        assert outcomes(result) == ["safe", "unchecked"]
        assert result.decisions[1].why == f"step {step}: x_t is NaN, Inf or beyond float16"


def test_a_fault_after_a_sample_was_found_safe_blocks_it_after_all() -> None:
    for step in range(1, STEPS):
        pipe = StubPipeline()
        guard = stub_guard(pipe, unflagged(2), {"lam": 1.0})  # safe from step 0
        pipe.disturb = lambda at, x, step=step: only_row_one(put(torch.nan))(x) if at == step else x
        result = guard(pipe, prompt=prompts(2))
        assert [(d.outcome, d.step) for d in result.decisions] == [("safe", 0), ("unchecked", step)]
        assert result.videos[1] is None


@pytest.mark.parametrize("fail_open", [False, True])
def test_what_was_found_unsafe_stays_unsafe_whatever_fails_later(fail_open: bool) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged_rows(2, 0), fail_open=fail_open)
    pipe.disturb = lambda step, latents: latents * torch.nan if step == 2 else latents
    result = guard(pipe, prompt=prompts(2))
    assert [(d.outcome, d.step) for d in result.decisions] == [("unsafe", 0), ("unchecked", 2)]
    assert result.videos[0] is None
    assert (result.videos[1] is not None) == fail_open


@pytest.mark.parametrize("options", [{}, {"fail_open": True}, {"mode": "observe"}], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_videos_that_cannot_be_told_apart_are_not_handed_out(count: int, options: dict[str, Any]) -> None:
    class Miscounting(StubPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            videos = super().__call__(*args, **kwargs)[0]
            return (videos[torch.arange(count) % 2],)

    pipe = Miscounting()
    result = stub_guard(pipe, unflagged(2), **options)(pipe, prompt=prompts(2))
    assert result.videos == [None, None]
    assert [(d.outcome, d.released) for d in result.decisions] == [("unchecked", False)] * 2
    assert result.decisions[0].why == f"the pipeline returned {count} videos for 2 samples"


def test_a_sampler_that_steps_past_the_guard_is_blocked() -> None:
    class Evading(StubPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            del self.scheduler.step
            try:
                return super().__call__(*args, **kwargs)
            finally:
                self.scheduler.step = None

    pipe = Evading()
    result = stub_guard(pipe, unflagged(1))(pipe, prompt="one")
    (decision,) = result.decisions
    assert (decision.outcome, decision.step) == ("unchecked", None)
    assert decision.why == "the sampler made 0 steps, not 6"
    assert result.videos == [None]


@pytest.mark.parametrize(("kind", "swallowed"), [(Exception, False), (BaseException, True)])
def test_a_pipeline_that_swallows_exceptions_hands_out_nothing(
    kind: type[BaseException], swallowed: bool
) -> None:
    caught: list[BaseException] = []

    class Swallowing(StubPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().__call__(*args, **kwargs)
            except kind as error:
                caught.append(error)
                return (unguarded(2),)

    pipe = Swallowing()
    result = stub_guard(pipe, flagged_rows(2, 0, 1))(pipe, prompt=prompts(2))
    assert bool(caught) == swallowed
    assert result.videos == [None, None]
    assert outcomes(result) == ["unsafe", "unsafe"]


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_that_no_check_could_keep_is_refused(limit: float) -> None:
    with pytest.raises(LvdError, match=f"limit_seconds={limit} must be greater than 0"):
        stub_guard(StubPipeline(), unflagged(1), limit_seconds=limit)


def test_a_decision_tells_the_time_that_checks_took(let_an_hour_pass: Callable[[], None]) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(1))

    def answer(step: int, logits: Tensor) -> Tensor:
        let_an_hour_pass()
        return logits

    guard.bundle.detectors.spoil = answer
    pipe.disturb = lambda step, latents: (let_an_hour_pass(), latents)[1]  # the pipeline's own time
    assert guard(pipe, prompt="one").decisions[0].seconds == ETA * 3600


# ---- watching without blocking


def test_observe_decides_and_withholds_nothing() -> None:
    pipe = StubPipeline()
    result = stub_guard(pipe, flagged_rows(3, 0, 2), mode="observe")(pipe, prompt=prompts(3))
    assert outcomes(result) == ["unsafe", "safe", "unsafe"]
    assert {(d.mode, d.released) for d in result.decisions} == {("observe", True)}
    assert result.decisions[0].categories == ("alpha", "beta")
    assert all(is_whole(*both) for both in zip(result.videos, unguarded(3), strict=True))


def test_observe_does_not_stop_when_all_are_unsafe() -> None:
    pipe = StubPipeline()
    result = stub_guard(pipe, flagged_rows(2, 0, 1), mode="observe")(pipe, prompt=prompts(2))
    assert pipe.steps == STEPS
    assert outcomes(result) == ["unsafe", "unsafe"]
    assert all(is_whole(*both) for both in zip(result.videos, unguarded(2), strict=True))


@pytest.mark.parametrize("mode", ["Observe", "observed", "", None, True])
def test_a_mode_that_is_not_one_is_refused(mode: Any) -> None:
    with pytest.raises(LvdError, match="must be block or observe"):
        stub_guard(StubPipeline(), unflagged(1), mode=mode)


class FailingLog(AuditLog):
    def append(self, *_: Any) -> str:
        raise LvdError("audit log elsewhere cannot be written: No space left on device")


def failing_log(kind: str, directory: Path) -> AuditLog:
    if kind == "full":
        return FailingLog(directory / "audit.jsonl")
    if kind == "a folder":
        return AuditLog(directory)
    (directory / "audit.jsonl").write_text("{}\n")
    return AuditLog(directory / "audit.jsonl")


LOG_FAILURES = {
    "full": "No space left on device",
    "a folder": "cannot be written: Is a directory",
    "edited": "the last line is not a record",
}


@pytest.mark.parametrize("kind", LOG_FAILURES)
def test_observing_hands_out_what_it_cannot_record_and_says_so(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged_rows(2, 0), mode="observe", audit=failing_log(kind, tmp_path))
    result = guard(pipe, prompt=prompts(2))
    assert outcomes(result) == ["unsafe", "safe"]
    assert all(is_whole(*both) for both in zip(result.videos, unguarded(2), strict=True))
    for decision in result.decisions:
        assert decision.released
        (note,) = decision.notes
        assert note.startswith("not recorded: ")
        assert LOG_FAILURES[kind] in note
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "lvd.guard.guard")
    assert record.getMessage() == f"2 decisions were {note}"


@pytest.mark.parametrize("kind", LOG_FAILURES)
@pytest.mark.parametrize("fail_open", [False, True])
def test_blocking_hands_out_nothing_that_it_cannot_record(kind: str, fail_open: bool, tmp_path: Path) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(2), audit=failing_log(kind, tmp_path), fail_open=fail_open)
    pipe.scheduler.last_sample = None  # as a multistep solver has it

    def remember(step: int, noise: Tensor) -> Tensor:
        pipe.scheduler.last_sample = noise
        return noise

    pipe.answer = remember
    with pytest.raises(LvdError, match=LOG_FAILURES[kind]):
        guard(pipe, prompt=prompts(2))
    assert pipe.scheduler.last_sample is None


def test_what_the_pipeline_raised_goes_through_where_observing_cannot_record_it(tmp_path: Path) -> None:
    pipe = StubPipeline()
    pipe.disturb = raises(RuntimeError("boom"))
    guard = stub_guard(pipe, unflagged(1), mode="observe", audit=failing_log("full", tmp_path))
    with pytest.raises(RuntimeError, match="boom"):
        guard(pipe, prompt="one")


def test_a_decision_that_is_recorded_has_no_notes(tmp_path: Path) -> None:
    pipe = StubPipeline()
    for mode in ("observe", "block"):
        guard = stub_guard(pipe, unflagged(1), mode=mode, audit=AuditLog(tmp_path / mode))
        assert guard(pipe, prompt="one").decisions[0].notes == ()
        assert json.loads((tmp_path / mode).read_text())["notes"] == []


# ---- a pipeline that the bundle was not made for


class OtherPipeline(StubPipeline):
    pass


def with_(**parts: Any) -> StubPipeline:
    pipe = StubPipeline()
    vars(pipe).update(parts)
    return pipe


REFUSED = {
    "the pipeline is OtherPipeline, not StubPipeline": (OtherPipeline, {}),
    "the unet is another network than the capture's": (
        lambda: with_(unet=SimpleNamespace(config={"sample_size": 3})),
        {},
    ),
    "the transformer is another network than the capture's": (
        lambda: with_(transformer=SimpleNamespace(config={})),
        {},
    ),
    "the scheduler is DDPMScheduler, not DDIMScheduler": (
        lambda: with_(scheduler=diffusers.DDPMScheduler(clip_sample=False)),
        {},
    ),
    "the scheduler's beta_end is 0.03, not 0.02": (
        lambda: with_(scheduler=diffusers.DDIMScheduler(clip_sample=False, beta_end=0.03)),
        {},
    ),
    "num_inference_steps is 7, not 6": (StubPipeline, {"num_inference_steps": 7}),
    "guidance_scale is 7.5, not 5.0": (StubPipeline, {"guidance_scale": 7.5}),
    "num_frames is 16, not 8": (StubPipeline, {"num_frames": 16}),
    "clip_skip is 1, not None": (StubPipeline, {"clip_skip": 1}),
}


def made_for_stub(**options: Any) -> Guard:
    return stub_guard(StubPipeline(), unflagged(1), {"call": {"num_frames": 8}}, **options)


@pytest.mark.parametrize("difference", REFUSED)
def test_another_pipeline_or_call_is_refused_unless_it_is_allowed(difference: str) -> None:
    build, arguments = REFUSED[difference]
    pipe = build()
    with pytest.raises(LvdError) as refusal:
        made_for_stub()(pipe, prompt="one", **arguments)
    assert difference in str(refusal.value)
    assert pipe.received == []

    (decision,) = made_for_stub(allow_mismatch=True)(pipe, prompt="one", **arguments).decisions
    assert difference in decision.mismatches
    assert len(pipe.received) == 1


def test_every_difference_is_told() -> None:
    pipe = OtherPipeline()
    with pytest.raises(LvdError) as refusal:
        made_for_stub()(pipe, prompt="one", num_frames=16, guidance_scale=7.5)
    for difference in (
        "the pipeline is OtherPipeline, not StubPipeline",
        "num_frames is 16, not 8",
        "guidance_scale is 7.5, not 5.0",
    ):
        assert difference in str(refusal.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"callback_on_step_end": dict},
        {"callback": print},
        {"return_dict": False},
        {"return_dict": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("allow_mismatch", [False, True])
def test_an_argument_that_would_let_frames_out_is_always_refused(
    arguments: dict[str, Any], allow_mismatch: bool
) -> None:
    pipe = StubPipeline()
    (name,) = arguments
    with pytest.raises(LvdError) as refusal:
        made_for_stub(allow_mismatch=allow_mismatch)(pipe, prompt="one", **arguments)
    assert str(refusal.value) == (
        f"{name} does not go with a guard: it would hand out what is not decided yet"
    )
    assert pipe.received == []


@pytest.mark.parametrize("prompt", [None, "one"])
@pytest.mark.parametrize("allow_mismatch", [False, True])
@pytest.mark.parametrize(
    "name", ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "prompt_embeds_qwen"]
)
def test_embeddings_in_place_of_prompts_are_refused(
    name: str, allow_mismatch: bool, prompt: str | None
) -> None:
    pipe = StubPipeline()
    guard = made_for_stub(allow_mismatch=allow_mismatch)
    with pytest.raises(LvdError) as refusal:
        guard(pipe, prompt=prompt, **{name: torch.zeros(1, 4, 8)})
    assert str(refusal.value) == (
        f"{name} does not go with a guard, which records prompts: give the prompts themselves"
    )
    assert guard(pipe, prompt="one", **{name: None}).decisions[0].outcome == "safe"


def test_fewer_steps_than_the_rule_needs_leave_a_sample_unchecked() -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(1), allow_mismatch=True)
    result = guard(pipe, prompt="one", num_inference_steps=ETA - 1)
    assert result.decisions[0].outcome == "unchecked"
    assert result.decisions[0].why == "3 steps are too few to decide by: 4 are needed"
    assert result.videos == [None]


def test_what_the_caller_leaves_out_is_as_in_the_capture() -> None:
    pipe = StubPipeline()
    guard = made_for_stub()
    as_captured = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "num_frames": 8}
    for given in ({}, {"num_frames": 8, "guidance_scale": 5}, {"generator": None}):
        assert guard(pipe, prompt="one", **given).decisions[0].mismatches == ()
        assert pipe.received.pop() == as_captured


def test_a_negative_prompt_is_given_to_every_prompt() -> None:
    pipe = StubPipeline()
    stub_guard(pipe, unflagged(2))(pipe, prompt=prompts(2), negative_prompt="blurred")
    assert pipe.received[0]["negative_prompt"] == ["blurred", "blurred"]


@pytest.mark.parametrize(("repeats", "samples"), [(2, 4), (1, 2), (None, 2)])
def test_every_video_of_a_prompt_is_decided_by_itself(repeats: int | None, samples: int) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged_rows(4, 1))
    result = guard(pipe, prompt=prompts(2), num_videos_per_prompt=repeats)
    assert outcomes(result) == ["safe", "unsafe", "safe", "safe"][:samples]
    assert len(result.videos) == samples


def test_no_prompt_is_refused() -> None:
    pipe = StubPipeline()
    with pytest.raises(LvdError, match="there is no prompt"):
        stub_guard(pipe, unflagged(1))(pipe, prompt=[])


# ---- the pipeline is as it was


def raises(error: BaseException) -> Callable[[int, Tensor], Tensor]:
    def at_step_two(step: int, tensor: Tensor) -> Tensor:
        if step == 2:
            raise error
        return tensor

    return at_step_two


def stop(pipe: StubPipeline, detectors: Scripted) -> None:
    detectors.flagged[:] = True


ENDINGS: dict[str, tuple[Callable[[StubPipeline, Scripted], None], type[BaseException] | None]] = {
    "success": (lambda pipe, detectors: None, None),
    "all blocked": (stop, None),
    "the pipeline raised": (
        lambda pipe, detectors: setattr(pipe, "disturb", raises(RuntimeError("boom"))),
        RuntimeError,
    ),
    "interrupted": (
        lambda pipe, detectors: setattr(pipe, "disturb", raises(KeyboardInterrupt())),
        KeyboardInterrupt,
    ),
    "a detector raised": (
        lambda pipe, detectors: setattr(detectors, "spoil", raises(RuntimeError("boom"))),
        None,
    ),
    "interrupted in a detector": (
        lambda pipe, detectors: setattr(detectors, "spoil", raises(KeyboardInterrupt())),
        KeyboardInterrupt,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_after_a_call_the_pipeline_is_as_before_and_can_be_called_again(ending: str) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(2))
    detectors = guard.bundle.detectors
    before = vars(pipe).copy(), vars(detectors).copy()
    arrange, error = ENDINGS[ending]
    arrange(pipe, detectors)
    if error is None:
        guard(pipe, prompt=prompts(2))
    else:
        with pytest.raises(error):
            guard(pipe, prompt=prompts(2))
    assert "step" not in vars(pipe.scheduler)
    assert pipe.freed == 1

    vars(pipe).update(before[0])
    vars(detectors).update(before[1])
    detectors.flagged[:] = False
    result = guard(pipe, prompt=prompts(2))
    assert outcomes(result) == ["safe", "safe"]
    assert all(is_whole(*both) for both in zip(result.videos, unguarded(2), strict=True))


def test_a_guard_within_a_tap_and_a_tap_within_a_guard_see_the_same_steps() -> None:
    inner: list[Tensor] = []

    class Tapped(StubPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with tap_x0(self.scheduler, lambda step, timestep, x0: inner.append(x0)):
                return super().__call__(*args, **kwargs)

    pipe, outer = Tapped(), []
    guard = stub_guard(pipe, unflagged(2))
    with tap_x0(pipe.scheduler, lambda step, timestep, x0: outer.append(x0)):
        tapped = pipe.scheduler.step
        result = guard(pipe, prompt=prompts(2))
        assert pipe.scheduler.step is tapped
    assert "step" not in vars(pipe.scheduler)
    assert outcomes(result) == ["safe", "safe"]
    assert all(is_whole(*both) for both in zip(result.videos, unguarded(2), strict=True))
    assert len(inner) == len(outer) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(inner, outer, strict=True))


class Nested:
    """A pipeline whose every call is under a guard already."""

    def __init__(self, flagged: Any) -> None:
        self.pipe = StubPipeline()
        self.guard = stub_guard(self.pipe, flagged)
        self.scheduler, self.unet, self.shape = self.pipe.scheduler, self.pipe.unet, self.pipe.shape

    def __call__(self, prompt: list[str], return_dict: bool, **arguments: Any) -> tuple[list[Any]]:
        self.result = self.guard(self.pipe, prompt=prompt, **arguments)
        return (self.result.videos,)


def test_of_two_nested_guards_each_blocks_what_it_finds() -> None:
    pipe = Nested(flagged_rows(3, 0))
    result = stub_guard(pipe, flagged_rows(3, 1))(pipe, prompt=prompts(3))
    assert outcomes(pipe.result) == ["unsafe", "safe", "safe"]
    assert outcomes(result) == ["safe", "unsafe", "safe"]
    assert result.videos[:2] == [None, None]
    assert is_whole(result.videos[2], unguarded(3)[2])
    assert [bool(of_sample.any()) for of_sample in pipe.pipe.decoded[0]] == [False, False, True]
    assert "step" not in vars(pipe.scheduler)


def test_a_guard_that_was_stopped_by_another_has_checked_nothing() -> None:
    pipe = Nested(unflagged(2))
    result = stub_guard(pipe, flagged_rows(2, 0, 1))(pipe, prompt=prompts(2))
    assert outcomes(result) == ["unsafe", "unsafe"]
    assert {(d.outcome, d.why) for d in pipe.result.decisions} == {
        ("unchecked", "the sampling was stopped by another guard")
    }
    assert result.videos == pipe.result.videos == [None, None]
    assert "step" not in vars(pipe.scheduler)


def test_a_guard_whose_sampling_another_stopped_has_checked_nothing() -> None:
    pipe = Nested(flagged_rows(2, 0, 1))
    result = stub_guard(pipe, unflagged(2))(pipe, prompt=prompts(2))
    assert outcomes(pipe.result) == ["unsafe", "unsafe"]
    assert outcomes(result) == ["unchecked", "unchecked"]
    assert result.videos == [None, None]


# ---- what a call leaves behind


class KeepsItsMean:
    """A guider that keeps the running mean of its predictions, as adaptive projected guidance does."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.momentum_buffer: Any = None


@pytest.mark.parametrize(("flagged", "kept"), [((), True), ((1,), False), ((0, 1), False)])
def test_a_guider_keeps_nothing_of_a_call_with_a_blocked_sample(flagged: tuple[int, ...], kept: bool) -> None:
    pipe = StubPipeline()
    pipe.guider = KeepsItsMean()

    def remember(step: int, predicted: Tensor) -> Tensor:
        pipe.guider.momentum_buffer = predicted
        return predicted

    pipe.answer = remember
    stub_guard(pipe, flagged_rows(2, *flagged))(pipe, prompt=prompts(2))
    assert (pipe.guider.momentum_buffer is not None) == kept


def locals_of(error: BaseException | None) -> list[Any]:
    """What a reporter of errors sees: the variables in the frames of an exception, and of those before it."""
    found: list[Any] = []
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame is not sys._getframe(1):
                found += trace.tb_frame.f_locals.values()
            trace = trace.tb_next
        error = error.__context__
    return [*found, *(inner for value in found if isinstance(value, tuple | list) for inner in value)]


@pytest.mark.parametrize("flagged", [(0,), (0, 1)])
@pytest.mark.parametrize("where", ["network", "detector", "log", "on_step"])
def test_an_exception_holds_no_latent_of_the_sampling_that_it_ended(
    where: str, flagged: tuple[int, ...], tmp_path: Path
) -> None:
    """Both may be found unsafe at the third step, and the log cannot be written in any case."""
    pipe, table = StubPipeline(), unflagged(2)
    table[list(flagged), 2] = True
    guard = stub_guard(pipe, table, audit=failing_log("full", tmp_path))
    at_step_two = raises(KeyboardInterrupt())
    on_step = None
    if where == "network":
        pipe.answer = at_step_two
    elif where == "detector":
        guard.bundle.detectors.spoil = at_step_two
    elif where == "on_step":
        on_step = lambda step, scores, preview: at_step_two(step, preview)  # noqa: E731
    try:
        guard(pipe, prompt=prompts(2), on_step=on_step, preview=where == "on_step")
    except (KeyboardInterrupt, LvdError) as error:
        kept = locals_of(error)
        assert not any(isinstance(value, Tensor) for value in kept)
    else:
        raise AssertionError("the log can be written")


def test_the_variables_of_the_members_of_a_group_are_let_go() -> None:
    def failing() -> None:
        held = torch.zeros(2)
        raise ValueError(str(len(held)))

    errors = []
    for _ in range(2):
        try:
            failing()
        except ValueError as error:
            errors.append(error)
    clear_locals(ExceptionGroup("both", errors), None)
    assert not [value for error in errors for value in locals_of(error) if isinstance(value, Tensor)]


def test_the_variables_of_an_exception_that_the_caller_handles_stay(tmp_path: Path) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(1), audit=failing_log("full", tmp_path))

    def fail(mine: str) -> None:
        raise ValueError(mine)

    def instead() -> None:
        try:
            fail("kept")
        except ValueError:
            with pytest.raises(LvdError):
                guard(pipe, prompt="one")
            raise

    with pytest.raises(ValueError, match="kept") as handled:
        instead()
    assert "kept" in locals_of(handled.value)


# ---- threads


def timeless(decisions: list[Decision]) -> list[Decision]:
    return [replace(decision, seconds=0.0) for decision in decisions]


def test_two_threads_may_share_a_guard() -> None:
    flagged = flagged_rows(6, 1, 3)
    flagged[4, 2] = True
    pipes = [StubPipeline(first=1), StubPipeline(first=4)]
    alone = [stub_guard(pipe, flagged)(pipe, prompt=prompts(3)) for pipe in pipes]
    barrier = threading.Barrier(2, timeout=60)
    for pipe in pipes:
        pipe.disturb = lambda step, latents: (barrier.wait(), latents)[1]
    guard = stub_guard(pipes[0], flagged)
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda pipe: guard(pipe, prompt=prompts(3)), pipes))
    assert [outcomes(result) for result in alone] == [
        ["safe", "unsafe", "safe"],
        ["unsafe", "unsafe", "safe"],
    ]
    for one, other in zip(alone, together, strict=True):
        assert timeless(one.decisions) == timeless(other.decisions)
        for a, b in zip(one.videos, other.videos, strict=True):
            assert (a is None and b is None) or is_whole(a, b)


def test_two_real_pipelines_may_share_a_bundle_in_two_threads(
    tiny_pipeline: Any, tiny_pipeline_path: Path, tmp_path: Path
) -> None:
    other = diffusers.AnimateDiffPipeline.from_pretrained(tiny_pipeline_path, use_safetensors=True)
    other.set_progress_bar_config(disable=True)
    run = untrained_run(tmp_path / "run", lambda name, step: "head" if name == "alpha" else "network")
    digest = export_bundle(tmp_path / "bundle", run, bundle_info(tiny_pipeline, lam=1.0))

    def call(guard: Guard, pipe: Any, seed: int) -> GuardResult:
        generator = torch.Generator().manual_seed(seed)
        return guard(pipe, prompt=PROMPTS[:2], generator=generator, output_type="np")

    def fresh() -> Guard:
        return Guard.from_pretrained(tmp_path / "bundle", digest=digest, mode="observe")

    guard = fresh()
    alone = [call(guard, tiny_pipeline, 0), call(guard, other, 1)]
    guard = fresh()
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(call, [guard, guard], [tiny_pipeline, other], [0, 1]))
    for one, another in zip(alone, together, strict=True):
        assert all(len(decision.scores) >= 1 for decision in one.decisions), one.decisions[0].why
        assert timeless(one.decisions) == timeless(another.decisions)
        assert np.array_equal(np.stack(one.videos), np.stack(another.videos))


def test_eight_pipelines_in_eight_threads_share_a_guard_and_a_log(tmp_path: Path) -> None:
    pipes = [StubPipeline(first=number + 1) for number in range(8)]
    log = tmp_path / "audit.jsonl"
    guard = stub_guard(pipes[0], flagged_rows(8, 1, 3, 5, 7), audit=AuditLog(log))
    together = threading.Barrier(8, timeout=60)

    def call(number: int) -> list[GuardResult]:
        together.wait()
        return [guard(pipes[number], prompt=f"{number} {again}") for again in range(8)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(8)))
    for number, of_thread in enumerate(results):
        alone = StubPipeline(first=number + 1)(prompt=["one"], num_inference_steps=STEPS, return_dict=False)[
            0
        ][0]
        for result in of_thread:
            assert outcomes(result) == ["unsafe" if number % 2 else "safe"]
            assert result.videos[0] is None if number % 2 else is_whole(result.videos[0], alone)
        assert not pipes[number].decoded or not number % 2
    verify(log)
    assert Counter((r["prompt_sha256"], r["outcome"]) for r in records(log)) == Counter(
        (sha256(f"{number} {again}".encode()), "unsafe" if number % 2 else "safe")
        for number in range(8)
        for again in range(8)
    )


# ---- what it runs from

ON_THE_BASE_INSTALL = '''
import importlib.util
import json
import sys
from pathlib import Path

import torch

from lvd.decide.rules import Vote
from lvd.detect.network import EncoderConfig, NetworkDetector
from lvd.detect.files import save_detector
from lvd.guard import AuditLog, Guard
from lvd.guard.verify import BUNDLE_VERSION
from lvd.guard.bundle import BundleInfo
from lvd.guard.export import export_bundle
from lvd.sampling.fingerprint import fingerprint
from lvd.sampling.origin import Origin

folder, names = Path(sys.argv[1]), sys.argv[2:]


class Config(dict):
    __getattr__ = dict.__getitem__


class DDIMScheduler:
    def __init__(self):
        self.config = Config(prediction_type="epsilon", thresholding=False, clip_sample=False)
        self.alphas_cumprod = torch.linspace(0.999, 0.01, 60)
        self.timesteps = torch.arange(50, -1, -10)

    def step(self, model_output, timestep, sample):
        return (sample - 0.1 * model_output,)


class Pipeline:
    def __init__(self):
        self.scheduler = DDIMScheduler()
        self.unet = type("Unet", (), {"config": {"sample_size": 8}})()

    def __call__(self, prompt, num_inference_steps, guidance_scale, return_dict):
        latents = torch.ones(len(prompt), 2, 4, 8, 8)
        for timestep in self.scheduler.timesteps:
            latents = self.scheduler.step(latents, timestep, latents)[0]
        return (latents,)


def outcome(pipe, bias):
    """Of a guard whose one detector always answers `bias`."""
    encoder = EncoderConfig((2, 4, 8, 8), width=8, layers=1, heads=1, patch=2, tubelet=2)
    detector = NetworkDetector(encoder)
    torch.nn.init.zeros_(detector.output.weight)
    torch.nn.init.constant_(detector.output.bias, bias)
    save_detector(folder / "run/bad/step_00/detector", detector, {}, None)
    info = BundleInfo(
        format_version=BUNDLE_VERSION, rule=Vote(1, 1.0, 0.5), category_names=("bad",),
        origin=Origin(
            pipeline="", revision=None, pipeline_class="Pipeline", fingerprint=fingerprint(pipe),
            scheduler="DDIMScheduler", scheduler_config=dict(pipe.scheduler.config), layout="BCFHW", steps=6,
            guidance=5.0, call={}, latent_shape=(2, 4, 8, 8),
        ),
        measured={
            "n_test": 0, "per_category": {}, "n_left_out": 0, "capture": "one", "trained_on": "one",
            "attribution": {"n": 0}, "caught_in_words": "", "blocked_in_words": "",
            "intervals": "",
            **{name: None for key in ("accuracy", "tpr", "fpr") for name in (key, key + "_ci")},
        },
    )
    digest = export_bundle(folder / "bundle", folder / "run", info)
    log = AuditLog(folder / "audit.jsonl")
    result = Guard.from_pretrained(folder / "bundle", digest=digest, audit=log)(pipe, prompt="one")
    return [result.decisions[0].outcome, result.videos[0] is not None]


print(json.dumps({
    "outcomes": [outcome(Pipeline(), -4.0), outcome(Pipeline(), 4.0)],
    "imported": [name for name in names if name in sys.modules],
    "installed": [name for name in names if importlib.util.find_spec(name) is not None],
}))
'''


def run_on(python: str | Path, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-W", "ignore", "-c", ON_THE_BASE_INSTALL, folder, *TRAINING_ONLY],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_guard_imports_nothing_that_only_training_needs(tmp_path: Path) -> None:
    ran = run_on(sys.executable, tmp_path)
    assert ran["outcomes"] == [["safe", True], ["unsafe", False]]
    assert ran["imported"] == []


@pytest.mark.long
def test_a_guard_runs_on_the_base_install_alone(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "empty"
    folder.mkdir()
    shutil.copytree(ROOT / "lvd", source / "lvd", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", "constraints.txt", "."],
        cwd=source,
        check=True,
    )
    ran = run_on(python, folder)
    assert ran["outcomes"] == [["safe", True], ["unsafe", False]]
    assert ran["imported"] == []
    assert ran["installed"] == []
