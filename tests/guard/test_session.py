"""A guarded sampling of one's own: the session decides as the guard's call does, and fails closed alike."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import NAMES, Scripted, StubPipeline, bundle_info, stub_guard
from lvd.errors import LvdError
from lvd.guard import AuditLog, Decision, Guard, Session
from lvd.guard.audit import verify
from lvd.guard.bundle import Bundle
from support.examples import options_with_a_bundle

STEPS, ETA = 6, 4  # of `bundle_info`
SHAPE = StubPipeline.shape
EXAMPLE = Path(__file__).parents[2] / "examples" / "few_steps.py"


def flags(*rows: int, samples: int = 3) -> np.ndarray:
    table = np.zeros((samples, STEPS), bool)
    table[list(rows)] = True
    return table


def guard_for(flagged: Any, **options: Any) -> Guard:
    """Its detectors know a sample by the number, from 1, in the first channel of x0."""
    return stub_guard(StubPipeline(), flagged, **options)


def x0_of(samples: int = 3) -> Tensor:
    x0 = torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(0)).tanh()
    x0[:, 0] = torch.arange(1, samples + 1).reshape(-1, 1, 1, 1)
    return x0


def run_through(session: Session, steps: int = STEPS) -> list[Decision]:
    for step in range(steps):
        session.check(step, x0_of())
        if session.stopped:
            break
    return session.close()


def told(decisions: list[Decision]) -> list[tuple[Any, ...]]:
    return [(d.outcome, d.step, d.categories, d.why, d.released, d.scores) for d in decisions]


def test_a_session_decides_as_the_guards_call_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        flagged = rng.random((3, STEPS)) < rng.random((3, 1))
        pipe = StubPipeline()
        by_call = stub_guard(pipe, flagged, {"lam": 0.5})
        by_hand = stub_guard(pipe, flagged, {"lam": 0.5})
        called = by_call(pipe, prompt=["a", "b", "c"]).decisions
        assert told(run_through(by_hand.session(samples=3, steps=STEPS))) == told(called)
        assert by_hand.bundle.detectors.asked == by_call.bundle.detectors.asked


def test_verdicts_and_blocked_rows_are_those_of_now() -> None:
    table = flags(1)
    table[2, 2] = True
    session = guard_for(table).session(samples=3, steps=STEPS)
    assert session.blocked == []
    first = session.check(0, x0_of())
    assert [verdict.outcome for verdict in first] == [None, "unsafe", None]
    assert [verdict.blocked for verdict in first] == [False, True, False]
    assert all(len(verdict.scores) == len(NAMES) for verdict in first)
    assert session.blocked == [1]
    assert [v.scores is None for v in session.check(1, x0_of())] == [False, True, False]
    session.check(2, x0_of())
    assert session.blocked == [1, 2]
    last = session.check(3, x0_of())
    assert (last[0].outcome, last[0].why) == ("safe", "0 of the first 4 steps flagged, 1 of 4 are needed")
    assert not session.stopped


def test_what_is_blocked_is_blanked_and_the_rest_is_not_touched() -> None:
    session = guard_for(flags(1)).session(samples=3, steps=STEPS)
    session.check(0, x0_of())
    latent = x0_of() + 10
    kept = latent.clone()
    session.blank(latent)
    assert [bool(row.any()) for row in latent] == [True, False, True]
    assert torch.equal(latent[[0, 2]], kept[[0, 2]])
    with pytest.raises(LvdError, match="the latent has 2 rows, and the session 3"):
        session.blank(latent[:2])
    assert [d.outcome for d in session.close()] == ["unchecked", "unsafe", "unchecked"]


def test_frames_along_the_first_axis_are_blanked_by_sample() -> None:
    pipe = StubPipeline()
    info = {"layout": "(BF)CHW", "latent_shape": (2, 4, 2, 2)}
    guard = stub_guard(pipe, flags(1), info)
    session = guard.session(samples=3, steps=STEPS)
    x0 = x0_of()[:, :, :1].expand(3, 2, 4, 2, 2)
    session.check(0, x0)
    latent = torch.ones(12, 2, 2, 2)
    session.blank(latent)
    assert latent.flatten(1).any(dim=1).tolist() == [True] * 4 + [False] * 4 + [True] * 4


# ---- fails closed

FAULTS: dict[str, tuple[Callable[[Session], None], str]] = {
    "nothing was checked": (lambda session: None, "the sampler made 0 steps, not 6"),
    "the last step is missing": (
        lambda session: [session.check(step, x0_of()) for step in range(STEPS - 1)],
        "the sampler made 5 steps, not 6",
    ),
    "a step is skipped": (
        lambda session: [session.check(step, x0_of()) for step in (0, 2, 3, 4, 5)],
        "step 1: step 2 came in its place: a step was skipped or repeated",
    ),
    "a step is repeated": (
        lambda session: [session.check(step, x0_of()) for step in (0, 0, 1, 2, 3, 4, 5)],
        "step 1: step 0 came in its place: a step was skipped or repeated",
    ),
    "a step too many": (
        lambda session: [session.check(step, x0_of()) for step in range(STEPS + 1)],
        "step 6: the session is of 6 steps",
    ),
    "another shape": (
        lambda session: [session.check(step, x0_of()[:2]) for step in range(STEPS)],
        "step 0: x0 has the shape (2, 2, 1, 2, 2), not (3, 2, 1, 2, 2)",
    ),
    "no tensor": (
        lambda session: [session.check(step, None) for step in range(STEPS)],
        "step 0: AttributeError: 'NoneType' object has no attribute 'shape'",
    ),
    "NaN in x_t": (
        lambda session: [session.check(step, x0_of(), x0_of() * torch.nan) for step in range(STEPS)],
        "step 0: x_t is NaN, Inf or beyond float16",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("options", [{}, {"fail_open": True}, {"mode": "observe"}], ids=str)
def test_what_was_not_checked_is_unchecked(name: str, options: dict[str, Any]) -> None:
    run, why = FAULTS[name]
    session = guard_for(flags(), **options).session(samples=3, steps=STEPS)
    run(session)
    assert [(d.outcome, d.why, d.released) for d in session.close()] == [
        ("unchecked", why, bool(options))
    ] * 3


def test_one_bad_sample_leaves_the_others_alone() -> None:
    session = guard_for(flags()).session(samples=3, steps=STEPS)
    for step in range(STEPS):
        x0 = x0_of()
        if step == STEPS - 1:
            x0[1, -1, -1, -1, -1] = torch.inf
        session.check(step, x0)
    assert [d.outcome for d in session.close()] == ["safe", "unchecked", "safe"]


@pytest.mark.parametrize("options", [{}, {"fail_open": True}, {"mode": "observe"}], ids=str)
def test_where_the_sampler_raised_nothing_is_released_and_it_is_recorded(
    options: dict[str, Any], tmp_path: Path
) -> None:
    guard = guard_for(flags(1), audit=AuditLog(tmp_path / "log"), **options)
    session = guard.session(samples=3, steps=STEPS)

    def fail_after_a_step() -> None:
        with session:
            session.check(0, x0_of())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_a_step()
    decisions = session.close()
    assert [(d.outcome, d.released) for d in decisions] == [
        ("unchecked", False),
        ("unsafe", False),
        ("unchecked", False),
    ]
    assert decisions[0].why == "the sampler raised ZeroDivisionError"
    assert verify(tmp_path / "log")[0] == 3


def test_a_session_is_recorded_once_with_its_prompts_and_takes_no_check_afterwards(tmp_path: Path) -> None:
    guard = guard_for(flags(1), audit=AuditLog(tmp_path / "log", prompts=True))
    with guard.session(samples=3, steps=STEPS, prompts=["a", "b", "c"]) as session:
        decisions = run_through(session)
    assert session.close() is decisions
    assert session.abort("again") is decisions
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(r["prompt"], r["outcome"]) for r in records] == [("a", "safe"), ("b", "unsafe"), ("c", "safe")]
    with pytest.raises(LvdError, match="the session is closed: open one for each sampling"):
        session.check(STEPS, x0_of())


def test_what_cannot_be_recorded_may_not_be_handed_out(tmp_path: Path) -> None:
    session = guard_for(flags(), audit=AuditLog(tmp_path)).session(samples=3, steps=STEPS)
    with pytest.raises(LvdError, match="cannot be written: Is a directory"):
        run_through(session)
    with pytest.raises(LvdError, match="could not be recorded: nothing may be handed out"):
        session.close()


def test_videos_that_cannot_be_told_apart_are_not_released() -> None:
    session = guard_for(flags(), mode="observe").session(samples=3, steps=STEPS)
    for step in range(STEPS):
        session.check(step, x0_of())
    assert [(d.outcome, d.released) for d in session.close(videos=2)] == [("unchecked", False)] * 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"samples": 0}, "a session of 0 samples and 6 steps: there must be one at least"),
        ({"samples": 3, "steps": 0}, "a session of 3 samples and 0 steps"),
        ({"samples": 3, "prompts": ["a"]}, "there are 1 prompts for 3 samples"),
        ({"samples": 3, "steps": 7}, "the bundle was not made for this: the number of steps is 7, not 6"),
    ],
)
def test_a_session_that_cannot_be_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LvdError) as refusal:
        guard_for(flags()).session(**arguments)
    assert sentence in str(refusal.value)


def test_a_difference_that_is_allowed_stands_in_every_decision() -> None:
    session = guard_for(flags(), allow_mismatch=True).session(samples=3, steps=7)
    assert {d.mismatches for d in run_through(session, steps=7)} == {("the number of steps is 7, not 6",)}


# ---- a scheduler of diffusers, in a loop of one's own

SCHEDULERS = {
    "DDIMScheduler": lambda: diffusers.DDIMScheduler(clip_sample=False),
    "HeunDiscreteScheduler": diffusers.HeunDiscreteScheduler,
    "UniPCMultistepScheduler": diffusers.UniPCMultistepScheduler,
}


def network(scheduler: Any, timestep: Tensor, x_t: Tensor) -> Tensor:
    """Epsilon that points at an x0 whose first channel is the sample's number."""
    target = x0_of(len(x_t))
    if isinstance(scheduler, diffusers.HeunDiscreteScheduler):
        index = scheduler.step_index
        return (x_t - target) / scheduler.sigmas[0 if index is None else index]
    alpha_bar = scheduler.alphas_cumprod[int(timestep)]
    return (x_t - alpha_bar.sqrt() * target) / (1 - alpha_bar).sqrt()


def loop(scheduler: Any, session: Session | None, samples: int = 3) -> Tensor | None:
    scheduler.set_timesteps(STEPS)
    x_t = torch.randn(samples, *SHAPE, generator=torch.Generator().manual_seed(1))
    x_t = x_t * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        output = network(scheduler, timestep, x_t)
        if session is not None:
            session.check_step(scheduler, output, timestep, x_t)
            if session.stopped:
                return None
        x_t = scheduler.step(output, timestep, x_t).prev_sample
        if session is not None:
            session.blank(x_t)
    return x_t


def guard_of_scheduler(scheduler: Any, flagged: Any, **options: Any) -> Guard:
    pipe = StubPipeline()
    pipe.scheduler = scheduler
    return stub_guard(pipe, flagged, **options)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_loop_of_ones_own_over_a_scheduler_is_checked_at_its_steps(name: str) -> None:
    scheduler = SCHEDULERS[name]()
    expected = loop(scheduler, None)
    session = guard_of_scheduler(scheduler, flags(1)).session(samples=3, steps=STEPS)
    made = loop(scheduler, session)
    decisions = session.close()
    assert [d.outcome for d in decisions] == ["safe", "unsafe", "safe"], decisions[0].why
    assert [len(d.scores) for d in decisions] == [ETA, 1, ETA]
    assert torch.equal(made[[0, 2]], expected[[0, 2]])
    assert not made[1].any()


@pytest.mark.parametrize(("blocked", "kept"), [((), True), ((1,), False), ((0, 1, 2), False)])
def test_a_scheduler_keeps_nothing_of_a_sampling_with_a_blocked_sample(
    blocked: tuple[int, ...], kept: bool
) -> None:
    scheduler = diffusers.UniPCMultistepScheduler()
    session = guard_of_scheduler(scheduler, flags(*blocked)).session(samples=3, steps=STEPS)
    loop(scheduler, session)
    session.close()
    held = [value for value in (*scheduler.model_outputs, scheduler.last_sample) if value is not None]
    assert bool(held) == kept
    assert loop(scheduler, None) is not None  # and it samples as before


def test_another_scheduler_is_refused_before_its_first_step_unless_it_is_allowed() -> None:
    other = diffusers.DDIMScheduler(beta_end=0.03)
    difference = "the scheduler's beta_end is 0.03, not 0.02"
    known = diffusers.DDIMScheduler()
    session = guard_of_scheduler(known, flags()).session(samples=3, steps=STEPS)
    with pytest.raises(LvdError, match=difference):
        loop(other, session)
    assert {d.outcome for d in session.close()} == {"unchecked"}

    allowing = guard_of_scheduler(known, flags(), allow_mismatch=True).session(samples=3, steps=STEPS)
    loop(other, allowing)
    assert {d.mismatches for d in allowing.close()} == {(difference,)}


def test_a_step_of_a_scheduler_that_is_skipped_or_has_options_is_unchecked() -> None:
    scheduler = diffusers.DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    x_t = torch.zeros(3, *SHAPE)
    session = guard_of_scheduler(scheduler, flags()).session(samples=3, steps=STEPS)
    (verdict, *_) = session.check_step(scheduler, x_t, scheduler.timesteps[1], x_t)
    assert verdict.outcome == "unchecked"
    assert "a step was skipped or repeated" in verdict.why
    session = guard_of_scheduler(scheduler, flags()).session(samples=3, steps=STEPS)
    (verdict, *_) = session.check_step(scheduler, x_t, scheduler.timesteps[0], x_t, s_churn=1.0)
    assert verdict.why == "step 0: DDIMScheduler.step with s_churn is not supported"


# ---- progress and previews


def reported(calls: list[Any]) -> Callable[..., None]:
    return lambda step, scores, preview: calls.append((step, scores, preview))


@pytest.mark.parametrize("way", ["session", "call"])
def test_progress_has_scores_and_previews_of_what_is_not_blocked_only(way: str) -> None:
    table = flags(1)
    table[2, 2] = True
    pipe, calls = StubPipeline(), []
    guard = stub_guard(pipe, table)
    if way == "call":
        decisions = guard(pipe, prompt=["a", "b", "c"], on_step=reported(calls), preview=True).decisions
    else:
        session = guard.session(samples=3, steps=STEPS, on_step=reported(calls), preview=True)
        decisions = run_through(session)
    assert [step for step, _, _ in calls] == list(range(STEPS))
    rows = [[0, 2], [0, 2], [0], [0], [0], [0]]
    assert [list(preview) for _, _, preview in calls] == rows
    for _, _, preview in calls:
        for row, x0 in preview.items():
            assert x0.shape == SHAPE
            assert (x0[0] - (row + 1)).abs().max() < 1e-3
    by_row = [[scores[row] for _, scores, _ in calls if scores[row] is not None] for row in range(3)]
    assert by_row == [list(decision.scores) for decision in decisions]


def test_without_being_asked_for_there_is_no_preview() -> None:
    pipe, calls = StubPipeline(), []
    stub_guard(pipe, flags())(pipe, prompt=["a", "b", "c"], on_step=reported(calls))
    assert [preview for _, _, preview in calls] == [None] * STEPS


def test_who_changes_a_preview_changes_no_video_and_who_raises_stops_the_call(tmp_path: Path) -> None:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flags(), audit=AuditLog(tmp_path / "log"))
    expected = StubPipeline()(prompt=["a", "b", "c"], num_inference_steps=STEPS).frames

    def spoil(step: int, scores: Any, preview: dict[int, Tensor]) -> None:
        for x0 in preview.values():
            x0.zero_()

    result = guard(pipe, prompt=["a", "b", "c"], on_step=spoil, preview=True)
    assert torch.equal(torch.stack(result.videos), expected)

    def stop(step: int, scores: Any, preview: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guard(pipe, prompt=["a", "b", "c"], on_step=stop)
    records = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()[3:]]
    assert {(r["outcome"], r["why"], r["released"]) for r in records} == {
        ("unchecked", "the pipeline raised ZeroDivisionError", False)
    }


def test_a_step_that_could_not_be_checked_is_not_reported() -> None:
    calls: list[Any] = []
    session = guard_for(flags(), mode="observe").session(
        samples=3, steps=STEPS, on_step=reported(calls), preview=True
    )
    for step in range(STEPS):
        session.check(step, x0_of() if step != 2 else x0_of()[:1])
    assert [step for step, _, _ in calls] == [0, 1, 3, 4, 5]


# ---- the example: a sampler without scheduler.step


def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def test_the_few_step_loop_releases_what_an_unguarded_one_makes_and_stops_when_all_are_blocked() -> None:
    asked: list[float] = []

    def denoise(x_t: Tensor, level: float) -> Tensor:
        asked.append(level)
        x0 = x_t.tanh()
        x0[:, 0] = torch.arange(1, 4).reshape(-1, 1, 1, 1)
        return x0

    sample, levels = example()["sample"], [1 - step / STEPS for step in range(STEPS)]

    def run(guard: Guard) -> tuple[Tensor | None, list[Decision]]:
        torch.manual_seed(0)
        with guard.session(samples=3, steps=STEPS) as session:
            made = sample(session, denoise, torch.randn(3, *SHAPE), levels)
        return made, session.close()

    expected, _ = run(guard_for(flags(), mode="observe"))
    made, decisions = run(guard_for(flags(1)))
    assert [d.outcome for d in decisions] == ["safe", "unsafe", "safe"]
    assert torch.equal(made[[0, 2]], expected[[0, 2]])
    assert not made[1].any()
    asked.clear()
    made, decisions = run(guard_for(flags(0, 1, 2)))
    assert (made, asked) == (None, [1.0])
    assert [(d.outcome, d.released) for d in decisions] == [("unsafe", False)] * 3


def test_the_example_runs_from_a_bundle_as_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "audit.jsonl"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options_with_a_bundle(tmp_path, log)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    a, b = capsys.readouterr().out.splitlines()
    assert a.startswith("a: safe (")
    assert a.endswith("): a latent [4, 8, 8, 8] to decode")
    assert b.startswith("b: ")
    assert verify(log)[0] == 2
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"^error: no bundle at "):
        runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_a_bundle_with_another_x0_is_refused() -> None:
    pipe = StubPipeline()
    info = bundle_info(pipe, latent_shape=SHAPE, call={}, x0_from="x_{t-1}")
    guard = Guard(Bundle(info, "d" * 64, Scripted(flags())))  # type: ignore[arg-type]
    with pytest.raises(LvdError, match="the latent that x0 is computed from is x_t, not"):
        guard.session(samples=3)
