"""One call owns a scheduler: calls that share one neither hear each other's steps nor miss their own."""

import asyncio
import json
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_guard import PROMPTS, Recognises, flagged_rows, generators, guard_of, is_whole, outcomes, sample
from torch import Tensor

from conftest import StubPipeline, stub_guard
from lvd.errors import LvdError
from lvd.guard import AuditLog, GuardResult
from lvd.sampling.tap import intercept_step, tap_x0

STEPS = 6  # of `bundle_info`
UNSAFE, SAFE = flagged_rows(1, 0), flagged_rows(1)


class Turns:
    """Threads that go on one at a time, each until its next `pause`, in an order drawn from a seed."""

    def __init__(self, seed: int, threads: int) -> None:
        self._draw = random.Random(seed)
        self._waiting: set[int] = set()
        self._left = threads
        self._running: int | None = None
        self._changed = threading.Condition()

    def pause(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._waiting.add(me)
            self._running = None if self._running == me else self._running
            self._next()
            assert self._changed.wait_for(lambda: self._running == me, timeout=120)
            self._waiting.remove(me)

    def end(self) -> None:
        with self._changed:
            self._left -= 1
            self._running = None
            self._next()

    def _next(self) -> None:
        """Nobody goes on before all have come."""
        if self._running is None and self._waiting and len(self._waiting) == self._left:
            self._running = self._draw.choice(sorted(self._waiting))
        self._changed.notify_all()


class Paused(StubPipeline):
    """Pauses before it samples (as in `encode_prompt`), before every step and before it returns."""

    def __init__(self, scheduler: Any, pause: Callable[[], None]) -> None:
        super().__init__()
        self.scheduler = scheduler
        self._pause = pause

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._pause()
        self.disturb = lambda step, latents: (self._pause(), latents)[1]
        videos = super().__call__(*args, **kwargs)
        self._pause()
        return videos


def held(scheduler: Any) -> bool:
    return "step" in vars(scheduler)


def unguarded_video() -> Tensor:
    return StubPipeline()(prompt=["one"], num_inference_steps=STEPS, return_dict=False)[0][0]


@pytest.mark.parametrize("b_is_unsafe", [True, False])
def test_a_call_that_begins_while_another_holds_the_scheduler_is_refused(
    tmp_path: Path, b_is_unsafe: bool
) -> None:
    """A samples to its end while B, which shares its scheduler, waits in `encode_prompt`."""
    inside, go_on = threading.Event(), threading.Event()
    a = StubPipeline()

    def wait_in_a(step: int, latents: Tensor) -> Tensor:
        if step == 0:
            inside.set()
            assert go_on.wait(60)
        return latents

    a.disturb = wait_in_a
    b = Paused(a.scheduler, lambda: None)
    log = AuditLog(tmp_path / "audit.jsonl")
    with ThreadPoolExecutor(1) as pool:
        of_a = pool.submit(stub_guard(a, SAFE, audit=log), a, prompt="one")
        assert inside.wait(60)
        with pytest.raises(LvdError, match="the DDIMScheduler is held by another guarded or tapped call"):
            stub_guard(b, UNSAFE if b_is_unsafe else SAFE, audit=log)(b, prompt="one")
        go_on.set()
        result = of_a.result(60)
    assert b.steps == 0
    assert outcomes(result) == ["safe"]
    assert is_whole(result.videos[0], unguarded_video())
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 1
    assert not held(a.scheduler)
    assert outcomes(stub_guard(b, UNSAFE)(b, prompt="one")) == ["unsafe"]


@pytest.mark.parametrize("seed", range(0, 200, 50))
def test_no_unsafe_video_comes_out_of_200_interleavings_of_four_threads(seed: int) -> None:
    counts = {"released": 0, "refused": 0, "unsafe": 0, "disturbed": 0}
    for run in range(seed, seed + 50):
        draw = random.Random(run)
        scheduler = StubPipeline().scheduler
        turns = Turns(run, threads=4)
        unsafe = [draw.random() < 0.5 for _ in range(4)]
        guarded = [draw.random() < 0.85 for _ in range(4)]

        def call(thread: int) -> GuardResult | str:
            pipe = Paused(scheduler, turns.pause)  # noqa: B023
            try:
                turns.pause()  # noqa: B023
                if not guarded[thread]:  # noqa: B023
                    pipe(prompt=["one"], num_inference_steps=STEPS)
                    return "unguarded"
                return stub_guard(pipe, UNSAFE if unsafe[thread] else SAFE)(pipe, prompt="one")  # noqa: B023
            except LvdError as refusal:
                return str(refusal)
            finally:
                turns.end()  # noqa: B023

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(call, range(4)))
        for thread, result in enumerate(results):
            if isinstance(result, str):
                counts["refused"] += "is held by" in result
                counts["disturbed"] += "in the middle of the call" in result
                assert result == "unguarded" or "held by" in result or "in the middle of the call" in result
                continue
            (video,), (decision,) = result.videos, result.decisions
            assert decision.released == (video is not None) == (decision.outcome == "safe")
            assert not (unsafe[thread] and decision.released), f"interleaving {run}"
            if decision.released:
                assert is_whole(video, unguarded_video())
            counts["released"] += decision.released
            counts["unsafe"] += decision.outcome == "unsafe"
        assert not held(scheduler)
        plain = Paused(scheduler, lambda: None)
        assert torch.equal(plain(prompt=["one"], num_inference_steps=STEPS).frames[0], unguarded_video())
    assert min(counts.values()) > 0, counts  # all of it happened


def test_by_option_calls_wait_for_each_other() -> None:
    scheduler = StubPipeline().scheduler
    barrier = threading.Barrier(4, timeout=60)

    def call(thread: int) -> GuardResult:
        pipe = Paused(scheduler, lambda: None)
        guard = stub_guard(pipe, UNSAFE if thread % 2 else SAFE, wait_seconds=float("inf"))
        barrier.wait()
        return guard(pipe, prompt="one")

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(call, range(4)))
    assert [outcomes(result) for result in results] == [["safe"], ["unsafe"]] * 2
    assert [result.videos[0] is None for result in results] == [False, True] * 2
    assert all(is_whole(results[thread].videos[0], unguarded_video()) for thread in (0, 2))
    assert not held(scheduler)


def test_a_wait_ends() -> None:
    pipe = StubPipeline()
    with tap_x0(pipe.scheduler, lambda *heard: None), ThreadPoolExecutor(1) as pool:
        of_b = pool.submit(stub_guard(pipe, SAFE, wait_seconds=0.01), pipe, prompt="one")
        with pytest.raises(LvdError, match="is held by another"):
            of_b.result(60)
    assert pipe.steps == 0


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_wait_of_no_length_is_refused(seconds: float) -> None:
    with pytest.raises(LvdError, match=f"wait_seconds={seconds} must be 0 or more"):
        stub_guard(StubPipeline(), SAFE, wait_seconds=seconds)


def test_an_unguarded_call_in_another_thread_is_refused_and_the_guarded_one_hands_out_nothing(
    tmp_path: Path,
) -> None:
    pipe = StubPipeline()
    intruder = Paused(pipe.scheduler, lambda: None)
    raised: list[BaseException | None] = []

    def intrude(step: int, latents: Tensor) -> Tensor:
        if step == 2:
            with ThreadPoolExecutor(1) as pool:
                raised.append(pool.submit(intruder, prompt=["one"], num_inference_steps=STEPS).exception(60))
        return latents

    pipe.disturb = intrude
    guard = stub_guard(pipe, SAFE, audit=AuditLog(tmp_path / "audit.jsonl"))
    with pytest.raises(LvdError, match="another thread stepped this DDIMScheduler"):
        guard(pipe, prompt="one")
    (refusal,) = raised
    assert "this DDIMScheduler is held by a guarded or tapped call in another thread" in str(refusal)
    (record,) = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (record["outcome"], record["released"]) == ("unchecked", False)
    assert not held(pipe.scheduler)


@pytest.mark.parametrize("steps", [STEPS, STEPS + 1])
def test_timesteps_that_are_set_in_the_middle_of_a_call_leave_it_unchecked(steps: int) -> None:
    pipe = StubPipeline()

    def set_anew(step: int, latents: Tensor) -> Tensor:
        if step == 3:
            pipe.scheduler.set_timesteps(steps)
        return latents

    pipe.disturb = set_anew
    result = stub_guard(pipe, SAFE)(pipe, prompt="one")
    assert result.videos == [None]
    (decision,) = result.decisions
    assert decision.why == "step 3: the scheduler was set to other timesteps in the middle of the call"


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("half", [False, True])
def test_timesteps_that_are_set_between_the_last_check_and_its_step_leave_it_unchecked(
    half: bool, lag: int
) -> None:
    """As by an unguarded call in another thread, which is refused only at its first step; or half-way so."""
    pipe = StubPipeline()
    original = pipe.scheduler.step

    def step(model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        if timestep == 0 and half:
            pipe.scheduler.num_inference_steps = 3
        elif timestep == 0:
            pipe.scheduler.set_timesteps(3)
        return original(model_output, timestep, sample)

    pipe.scheduler.step = step
    result = stub_guard(pipe, SAFE, lag=lag)(pipe, prompt="one")
    assert result.videos == [None]
    (decision,) = result.decisions
    assert decision.why == "step 5: the scheduler was set to other timesteps in the middle of the call"
    assert not pipe.decoded[0].any()


@pytest.mark.parametrize("stops_at", [1, 2, None])
def test_a_guard_that_heard_the_steps_of_a_call_within_its_own_hands_out_nothing(
    stops_at: int | None,
) -> None:
    """Such as of a pipeline that draws its first frame with another of the same scheduler."""
    inner = StubPipeline()
    flagged = flagged_rows(1)
    if stops_at is not None:
        flagged[0, stops_at] = True
    found: list[GuardResult] = []

    def call_inner() -> None:
        if not found:
            found.append(stub_guard(inner, flagged)(inner, prompt="one"))

    outer = Paused(inner.scheduler, call_inner)
    result = stub_guard(outer, SAFE)(outer, prompt="one")
    assert outcomes(found[0]) == ["safe" if stops_at is None else "unsafe"]
    assert (outcomes(result), result.videos) == (["unchecked"], [None])
    assert not held(inner.scheduler)


def test_interceptors_of_one_thread_end_in_any_order() -> None:
    for seed in range(50):
        draw = random.Random(seed)
        scheduler = StubPipeline().scheduler
        scheduler.set_timesteps(STEPS)
        stacks = [ExitStack() for _ in range(4)]
        heard: list[list[int]] = [[] for _ in stacks]
        for stack, steps in zip(stacks, heard, strict=True):
            stack.enter_context(tap_x0(scheduler, lambda step, timestep, x0, steps=steps: steps.append(step)))
        order = draw.sample(range(4), 4)
        x_t = torch.zeros(1, 2, 1, 2, 2)
        for count, ending in enumerate(order):
            scheduler.step(x_t, scheduler.timesteps[count], x_t)
            stacks[ending].close()
        assert [len(heard[ending]) for ending in order] == [1, 2, 3, 4]
        assert not held(scheduler)


def test_a_wrapper_of_somebody_else_stays_and_steps_unheard_afterwards() -> None:
    scheduler = StubPipeline().scheduler
    scheduler.set_timesteps(STEPS)
    heard: list[int] = []
    with tap_x0(scheduler, lambda step, timestep, x0: heard.append(step)):
        theirs = scheduler.step
        scheduler.step = lambda *args, **kwargs: theirs(*args, **kwargs)
        x_t = torch.zeros(1, 2, 1, 2, 2)
        scheduler.step(x_t, scheduler.timesteps[0], x_t)
    wrapper = scheduler.step
    scheduler.step(x_t, scheduler.timesteps[1], x_t)
    assert heard == [0]
    assert vars(scheduler)["step"] is wrapper


def test_guarded_calls_of_asyncio_are_refused_or_wait_as_threads_do() -> None:
    async def two_calls(**options: Any) -> tuple[GuardResult, GuardResult | BaseException]:
        """The second begins while the first holds their scheduler; the first goes on when it can."""
        scheduler = StubPipeline().scheduler
        inside, go_on = threading.Event(), threading.Event()
        first = Paused(scheduler, lambda: (inside.set(), go_on.wait(60))[1])
        second = Paused(scheduler, lambda: None)
        of_first = asyncio.create_task(asyncio.to_thread(stub_guard(first, SAFE), first, prompt="one"))
        assert await asyncio.to_thread(inside.wait, 60)
        of_second = asyncio.create_task(
            asyncio.to_thread(stub_guard(second, UNSAFE, **options), second, prompt="one")
        )
        if not options:
            await asyncio.wait([of_second])
        go_on.set()
        results = await asyncio.gather(of_first, of_second, return_exceptions=True)
        assert not held(scheduler)
        return results

    first, second = asyncio.run(two_calls())
    assert outcomes(first) == ["safe"]
    assert "is held by another" in str(second)
    first, second = asyncio.run(two_calls(wait_seconds=float("inf")))
    assert (outcomes(first), outcomes(second)) == (["safe"], ["unsafe"])
    assert second.videos == [None]


def test_tasks_of_one_event_loop_do_not_hear_each_other() -> None:
    scheduler = StubPipeline().scheduler
    scheduler.set_timesteps(STEPS)
    x_t = torch.zeros(1, 2, 1, 2, 2)
    heard: list[int] = []

    async def listen(entered: asyncio.Event, other_is_done: asyncio.Event) -> None:
        with tap_x0(scheduler, lambda step, timestep, x0: heard.append(step)):
            entered.set()
            await other_is_done.wait()

    async def other(entered: asyncio.Event, done: asyncio.Event) -> None:
        await entered.wait()
        try:
            with pytest.raises(LvdError, match="is held by another"):
                intercept_step(scheduler, lambda call: call.proceed(), wait_seconds=60.0).__enter__()
            with pytest.raises(LvdError, match="held by a guarded or tapped call"):
                scheduler.step(x_t, scheduler.timesteps[0], x_t)
        finally:
            done.set()

    async def both() -> None:
        entered, done = asyncio.Event(), asyncio.Event()
        await asyncio.gather(listen(entered, done), other(entered, done))

    asyncio.run(both())
    assert heard == []
    assert not held(scheduler)


def test_pipelines_made_by_from_pipe_do_not_let_each_others_videos_out(tiny_pipeline: Any) -> None:
    import diffusers

    sibling = diffusers.AnimateDiffPipeline.from_pipe(tiny_pipeline)
    sibling.set_progress_bar_config(disable=True)
    assert sibling.scheduler is tiny_pipeline.scheduler
    expected, x0 = sample(tiny_pipeline, output_type="np")
    waiting, go_on = threading.Event(), threading.Event()
    encode = sibling.encode_prompt

    def wait_in_encode(*args: Any, **kwargs: Any) -> Any:
        waiting.set()
        assert go_on.wait(120)
        return encode(*args, **kwargs)

    sibling.encode_prompt = wait_in_encode
    call = {"prompt": PROMPTS, "output_type": "np"}
    all_unsafe = guard_of(sibling, Recognises(flagged_rows(3, 0, 1, 2), x0))
    with ThreadPoolExecutor(1) as pool:
        of_b = pool.submit(all_unsafe, sibling, generator=generators(), **call)
        assert waiting.wait(120)
        all_safe = guard_of(tiny_pipeline, Recognises(flagged_rows(3), x0))
        with pytest.raises(LvdError, match="is held by another"):
            all_safe(tiny_pipeline, generator=generators(), **call)
        go_on.set()
        result = of_b.result(120)
    assert (outcomes(result), result.videos) == (["unsafe"] * 3, [None] * 3)
    assert not held(tiny_pipeline.scheduler)
    result = all_safe(tiny_pipeline, generator=generators(), **call)
    assert outcomes(result) == ["safe"] * 3
    assert np.array_equal(np.stack(result.videos), expected)
