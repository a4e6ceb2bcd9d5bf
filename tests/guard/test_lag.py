"""lag=1: a check does not wait for what it finds, and the decisions are those of a guard that does."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_guard import FAULTS, STEPS, Fault, flagged_rows, prompts, put, unflagged
from test_noise_level import stub as trained_at_20_steps
from test_session import SCHEDULERS, flags, guard_of_scheduler, loop, told, x0_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import StubPipeline, stub_guard
from lvd.detect.ensemble import Detectors, StepDetectors
from lvd.detect.network import EncoderConfig, HeadDetector, Trunk
from lvd.errors import LvdError
from lvd.guard import Decision, Guard, GuardResult

HELD = [name for name in FAULTS if name != "too slow"]  # its limit does not go with lag
tables = st.lists(st.lists(st.booleans(), min_size=STEPS, max_size=STEPS), min_size=1, max_size=3)
rows_at_steps = st.tuples(st.integers(0, 2), st.integers(0, STEPS - 1))


def sampled(
    lag: int, flagged: np.ndarray, lam: float, spoil: Callable[..., None], options: dict[str, Any]
) -> tuple[StubPipeline, GuardResult, list[Any]]:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged, {"lam": lam}, lag=lag, **options)
    spoil(pipe, guard.bundle.detectors)
    return pipe, guard(pipe, prompt=prompts(len(flagged))), guard.bundle.detectors.asked


def same(spoil: Callable[..., None], flagged: Any, lam: float = 0.25, **options: Any) -> list[Decision]:
    """The decisions, after it was seen that those of both guards are the same but for when."""
    flagged = np.array(flagged)
    at_once, result, asked = sampled(0, flagged, lam, spoil, options)
    late, lagging, asked_late = sampled(1, flagged, lam, spoil, options)
    assert [(*each, d.fault) for each, d in zip(told(lagging.decisions), lagging.decisions, strict=True)] == [
        (*each, d.fault) for each, d in zip(told(result.decisions), result.decisions, strict=True)
    ]
    for one, other in zip(result.videos, lagging.videos, strict=True):
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one, other, equal_nan=True)
    assert at_once.steps <= late.steps <= at_once.steps + 1
    assert {(step, row) for step, rows in asked for row in rows} <= {
        (step, row) for step, rows in asked_late for row in rows
    }
    for decoded in late.decoded if late.steps == STEPS else []:
        assert not any(
            decoded[row].any() for row, decision in enumerate(lagging.decisions) if not decision.released
        )
    return lagging.decisions


@settings(max_examples=50)
@given(
    tables,
    st.sampled_from([0.25, 0.5, 1.0]),
    st.lists(rows_at_steps, max_size=2),
    st.lists(rows_at_steps, max_size=2),
    st.sampled_from([{}, {"fail_open": True}, {"mode": "observe"}]),
)
def test_the_decisions_are_the_same_whatever_is_flagged_and_is_no_number(
    flagged: list[list[bool]],
    lam: float,
    latents: list[tuple[int, int]],
    logits: list[tuple[int, int]],
    options: dict[str, Any],
) -> None:
    def spoil(pipe: StubPipeline, detectors: Any) -> None:
        pipe.disturb = lambda step, x_t: nan_in([row for row, at in latents if at == step], x_t)

        def spoilt(step: int, found: Tensor) -> Tensor:
            _, asked = detectors.asked[-1]
            return nan_in([asked.index(row) for row, at in logits if at == step and row in asked], found)

        detectors.spoil = spoilt

    same(spoil, flagged, lam, **options)


def nan_in(rows: list[int], tensor: Tensor) -> Tensor:
    """One value of these rows, if there are so many, is NaN."""
    tensor = tensor.clone()
    for row in rows:
        if row < len(tensor):
            tensor[row : row + 1] = put(torch.nan)(tensor[row : row + 1])
    return tensor


@pytest.mark.parametrize("name", HELD)
def test_every_fault_at_every_step_fails_closed_alike(name: str) -> None:
    fault: Fault = FAULTS[name]
    for step in fault.steps:
        decisions = same(
            lambda pipe, detectors, at=step: fault.spoil(pipe, detectors, at, None), unflagged(2)
        )
        for decision in decisions:
            assert (decision.outcome, decision.released) == ("unchecked", False)
            assert fault.words in decision.why
            assert decision.step == fault.noticed(step)


@pytest.mark.parametrize("step", range(STEPS - 2))
def test_when_all_are_blocked_sampling_stops_a_step_later(step: int) -> None:
    table = unflagged(2)
    table[:, step] = True
    at_once = sampled(0, table, 0.25, lambda *_: None, {})[0]
    late = sampled(1, table, 0.25, lambda *_: None, {})[0]
    assert (at_once.steps, late.steps) == (step + 1, step + 2)
    assert not late.decoded


def test_what_is_found_at_the_last_step_is_blank_before_the_decoder() -> None:
    table = unflagged(2)
    table[1, -1] = True
    pipe = StubPipeline()
    guard = stub_guard(pipe, table, {"eta": STEPS, "lam": 0.01}, lag=1)
    result = guard(pipe, prompt=prompts(2))
    assert [d.outcome for d in result.decisions] == ["safe", "unsafe"]
    (decoded,) = pipe.decoded
    assert [bool(row.any()) for row in decoded] == [True, False]


def test_a_session_tells_the_verdicts_of_the_step_before_and_at_the_last_step_of_both() -> None:
    session = stub_guard(StubPipeline(), flags(1), lag=1).session(samples=3, steps=STEPS)
    assert [verdict.outcome for verdict in session.check(0, x0_of())] == [None] * 3
    assert session.blocked == []
    second = session.check(1, x0_of())
    assert [verdict.outcome for verdict in second] == [None, "unsafe", None]
    assert session.blocked == [1]
    for step in range(2, STEPS):
        last = session.check(step, x0_of())
    assert [verdict.outcome for verdict in last] == ["safe", "unsafe", "safe"]
    assert [(d.outcome, d.step) for d in session.close()] == [("safe", 3), ("unsafe", 0), ("safe", 3)]


def test_a_sampling_that_is_given_up_keeps_what_was_found_unsafe() -> None:
    session = stub_guard(StubPipeline(), flags(1), lag=1).session(samples=3, steps=STEPS)
    session.check(0, x0_of())
    assert [d.outcome for d in session.abort("given up")] == ["unchecked", "unsafe", "unchecked"]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_loop_over_a_scheduler_is_decided_alike(name: str) -> None:
    made = []
    for lag in (0, 1):
        scheduler = SCHEDULERS[name]()
        session = guard_of_scheduler(scheduler, flags(1), lag=lag).session(samples=3, steps=STEPS)
        made.append((loop(scheduler, session), told(session.close())))
    (latents, decisions), (late, decided_late) = made
    assert decided_late == decisions
    assert torch.equal(late, latents)


@pytest.mark.parametrize("steps", [5, 10, 40])
def test_by_noise_level_is_decided_alike(steps: int) -> None:
    made = []
    for lag in (0, 1):
        pipe, guard = trained_at_20_steps(lam=0.1, by_noise_level=True, lag=lag)
        made.append(told(guard(pipe, prompt=["one", "two"], num_inference_steps=steps).decisions))
    assert made[0] == made[1]


class OnDevice(Tensor):
    """What is computed of it is one, too. Remembers what would wait for a GPU."""

    read: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in (
            "tolist",
            "item",
            "cpu",
            "numpy",
            "__bool__",
            "__float__",
            "__int__",
            "__index__",
        ):
            cls.read.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("lag", [0, 1])
def test_nothing_is_read_from_the_device_at_the_step_that_it_is_of(
    lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnDevice, "read", [])
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    guard = guard_of_scheduler(scheduler, flags(), lag=lag)
    guard.bundle.detectors.samples = lambda step, x0: [0, 1, 2]
    session = guard.session(samples=3, steps=STEPS)
    scheduler.set_timesteps(STEPS)
    scheduler.timesteps = scheduler.timesteps.as_subclass(OnDevice)
    scheduler.set_begin_index(0)  # else the first step of diffusers' own looks for its timestep
    x_t = torch.randn(3, *StubPipeline.shape).as_subclass(OnDevice)
    session.check_step(scheduler, x_t - x0_of(), scheduler.timesteps[0], x_t)
    assert set(OnDevice.read) == (set() if lag else {"tolist"})
    scheduler.step(x_t, scheduler.timesteps[0], x_t)
    OnDevice.read.clear()
    session.check_step(scheduler, x_t - x0_of(), scheduler.timesteps[1], x_t)
    assert set(OnDevice.read) == {"tolist"}  # with lag, of the step before


class BetweenDevices(TorchDispatchMode):
    """Remembers what takes tensors of two devices, or reads a number: a GPU is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, Tensor)]
        if len({tensor.device for tensor in tensors}) > 1 or "_local_scalar_dense" in str(func):
            self.calls.append(str(func))
        return made


def test_a_check_by_networks_copies_nothing_to_the_device_and_reads_nothing_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On "meta" in place of a GPU: what is not there cannot be read."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which meta has not
    scheduler, pipe = diffusers.FlowMatchEulerDiscreteScheduler(), StubPipeline()
    guard = guard_of_scheduler(scheduler, flags(), lag=1)
    encoder = EncoderConfig(pipe.shape, width=8, layers=1, heads=2, patch=2, tubelet=1)
    categories = len(guard.bundle.info.category_names)
    heads = StepDetectors([HeadDetector(8) for _ in range(categories)])
    network = Detectors(Trunk(encoder, STEPS, categories), dict.fromkeys(range(STEPS), heads))
    guard = Guard(replace(guard.bundle, detectors=network.eval()), lag=1)
    device = torch.device("meta")
    guard._detectors_on(device)  # once for all samplings
    session = guard.session(samples=3, steps=STEPS)
    scheduler.set_timesteps(STEPS, device=device)
    scheduler.set_begin_index(0)
    x_t = torch.empty(3, *pipe.shape, device=device)
    with BetweenDevices() as between:
        verdicts = session.check_step(scheduler, x_t, scheduler.timesteps[0], x_t)
    assert between.calls == []
    assert [verdict.why for verdict in verdicts] == ["", "", ""]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lag": 2}, "lag=2 must be 0 or 1"),
        ({"lag": -1}, "lag=-1 must be 0 or 1"),
        ({"lag": 1, "limit_seconds": 1.0}, "limit_seconds does not go with lag=1"),
    ],
)
def test_a_lag_that_cannot_be_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LvdError, match=sentence):
        stub_guard(StubPipeline(), unflagged(1), **options)


def test_progress_is_told_of_checked_steps_and_so_does_not_go_with_it() -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged_rows(1), lag=1)
    with pytest.raises(LvdError, match="on_step does not go with lag=1"):
        guard(pipe, prompt="one", on_step=lambda *_: None)
    assert not pipe.steps
