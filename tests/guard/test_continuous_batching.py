"""examples/continuous_batching.py: a session a request, where requests come and go between steps."""

import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import StubPipeline, stub_guard
from lvd.errors import LvdError
from lvd.guard import AuditLog, Guard
from lvd.guard.audit import records, verify
from support.commands import ROOT
from support.examples import options_with_a_bundle

EXAMPLE = ROOT / "examples" / "continuous_batching.py"
STEPS = 6  # of `bundle_info`


@pytest.fixture
def example() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(EXAMPLE)))


@pytest.fixture
def serve(example: SimpleNamespace) -> Callable[..., list[Any]]:
    """Serve requests for these numbers of samples, whose x0 have the number in their first channel."""

    class Numbered(example.StandIn):
        def denoise_step(self, states: Sequence[Any]) -> Tensor:
            return torch.cat([self._noise(state) for state in states])

        def _noise(self, state: Any) -> Tensor:
            if state.prompt == f"NaN at {state.step_index}":
                return state.latents * torch.nan
            x0 = state.latents.tanh()
            x0[:, 0] = torch.tensor(state.extra["numbers"]).reshape(-1, 1, 1, 1)
            alpha_bar = state.scheduler.alphas_cumprod[int(state.current_timestep)]
            return (state.latents - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()

    class Guarded(example.GuardedSteps, Numbered):
        pass

    def run(
        guard: Guard, *requests: tuple[str, list[int]], guarded: bool = True, at_once: int = 2
    ) -> list[Any]:
        made = [
            example.Request(prompt, seed, len(numbers), extra={"numbers": numbers})
            for seed, (prompt, numbers) in enumerate(requests)
        ]
        return example.serve((Guarded if guarded else Numbered)(guard), made, at_once)

    return run


REQUESTS = (("safe", [1]), ("both", [1, 2]), ("unsafe", [2]), ("NaN at 3", [1]), ("late", [1]))


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_every_request_is_decided_by_itself_whatever_shares_its_batch(
    at_once: int, serve: Callable[..., list[Any]], example: SimpleNamespace, tmp_path: Path
) -> None:
    flagged, log = np.zeros((2, STEPS), bool), tmp_path / "audit.jsonl"
    flagged[1, 2:] = True
    guard = stub_guard(StubPipeline(), flagged, audit=AuditLog(log))
    plain = serve(guard, *REQUESTS, guarded=False, at_once=at_once)
    safe, both, unsafe, broken, late = serve(guard, *REQUESTS, at_once=at_once)
    assert torch.equal(safe.output, plain[0].output)
    assert torch.equal(both.output[0], plain[1].output[0])
    assert not both.output[1].any()
    assert [d.outcome for d in both.decisions] == ["safe", "unsafe"]
    assert [str(each) for each in (unsafe, broken)] == ["unsafe", "unchecked"]
    assert (unsafe.decisions[0].step, broken.decisions[0].step) == (2, 3)
    assert torch.equal(late.output, plain[4].output)
    verify(log)
    outcomes = sorted((record["outcome"], record["released"]) for record in records(log))
    assert outcomes == [("safe", True)] * 3 + [("unchecked", False)] + [("unsafe", False)] * 2


def test_a_request_with_another_scheduler_or_that_fails_leaves_the_others_alone(
    serve: Callable[..., list[Any]], example: SimpleNamespace, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    guard = stub_guard(StubPipeline(), np.zeros((1, STEPS), bool), audit=AuditLog(log))

    class Failing(example.StandIn):
        def prepare_encode(self, state: Any) -> Any:
            state = super().prepare_encode(state)
            if state.prompt == "other steps":
                state.scheduler.set_timesteps(3)
                state.timesteps = state.scheduler.timesteps
            return state

        def step_scheduler(self, state: Any, noise_pred: Tensor) -> None:
            if state.prompt == "fails" and state.step_index == 2:
                raise RuntimeError("out of memory")
            super().step_scheduler(state, noise_pred)

        def denoise_step(self, states: Sequence[Any]) -> Tensor:
            return torch.cat([self._noise(state) for state in states])

        def _noise(self, state: Any) -> Tensor:
            alpha_bar = state.scheduler.alphas_cumprod[int(state.current_timestep)]
            return (state.latents - alpha_bar.sqrt()) / (1 - alpha_bar).sqrt()  # x0 is 1

    class Guarded(example.GuardedSteps, Failing):
        pass

    requests = [example.Request(prompt, 0) for prompt in ("fails", "other steps", "safe")]
    failed, other, safe = example.serve(Guarded(guard), requests)
    assert isinstance(failed, RuntimeError)
    assert isinstance(other, LvdError)
    assert "the number of steps is 3, not 6" in str(other)
    assert [d.outcome for d in safe.decisions] == ["safe"]
    first = next(records(log))
    assert (first["outcome"], first["why"]) == ("unchecked", "the step raised RuntimeError")
    assert not requests[0].latents.any()


def test_of_the_engines_own_warm_up_nothing_is_left_and_nothing_is_recorded(
    example: SimpleNamespace, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    guard = stub_guard(StubPipeline(), np.zeros((1, STEPS), bool), audit=AuditLog(log))

    class TwoSteps(example.Guarded):
        def prepare_encode(self, state: Any) -> Any:
            state = super().prepare_encode(state)
            state.scheduler.set_timesteps(2)
            state.timesteps = state.scheduler.timesteps
            return state

    warm_up = example.Request({"prompt": "dummy run"}, 0, request_id="dummy_req_id")
    (made,) = example.serve(TwoSteps(guard), [warm_up])
    assert not made.output.any()
    assert not log.exists() or not list(records(log))


@pytest.mark.parametrize(("flagged", "kept"), [((), True), ((1,), False)])
def test_the_steps_on_the_way_to_a_withheld_video_are_withheld_too(
    flagged: tuple[int, ...], kept: bool, example: SimpleNamespace
) -> None:
    """vllm-omni hands out the latents of each step where a request asks for them."""
    table = np.zeros((2, STEPS), bool)
    table[list(flagged), 2] = True
    guard = stub_guard(StubPipeline(), table)

    class Recording(example.StandIn):
        def denoise_step(self, states: Sequence[Any]) -> Tensor:
            (state,) = states
            alpha_bar = state.scheduler.alphas_cumprod[int(state.current_timestep)]
            x0 = torch.arange(1.0, 1 + len(state.latents)).reshape(-1, 1, 1, 1, 1)
            return (state.latents - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()

        def step_scheduler(self, state: Any, noise_pred: Tensor) -> None:
            super().step_scheduler(state, noise_pred)
            state.extra.setdefault("latents", []).append(state.latents.clone())

        def post_decode(self, state: Any) -> Any:
            made = super().post_decode(state)
            made.trajectory_latents = torch.stack(state.extra["latents"])
            return made

    class Guarded(example.GuardedSteps, Recording):
        pass

    requests = [example.Request("both", 0, 2), example.Request("", 0, 1, request_id="dummy_req_id")]
    both, warm_up = example.serve(Guarded(guard), requests, at_once=1)
    assert [d.released for d in both.decisions] == [True, kept]
    assert (both.trajectory_latents is not None) == kept
    assert both.output[0].any()
    assert warm_up.trajectory_latents is None


def test_what_bypasses_the_steps_is_refused(example: SimpleNamespace) -> None:
    guard = stub_guard(StubPipeline(), np.zeros((1, STEPS), bool))
    with pytest.raises(RuntimeError, match="only step execution is under guard"):
        example.Guarded(guard).forward("a request")


def test_a_prompt_may_be_a_dictionary(example: SimpleNamespace, tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    guard = stub_guard(
        StubPipeline(), np.zeros((1, STEPS), bool), audit=AuditLog(log, prompts=True), allow_mismatch=True
    )
    example.serve(example.Guarded(guard), [example.Request({"prompt": "a cat"}, 0)])
    assert [record["prompt"] for record in records(log)] == ["a cat"]


def test_the_example_runs_from_a_bundle_as_it_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "audit.jsonl"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *options_with_a_bundle(tmp_path, log)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    for prompt, line in zip("ab", capsys.readouterr().out.splitlines(), strict=True):
        assert line == f"{prompt}: a latent [1, 4, 8, 8, 8] to decode"
    assert verify(log)[0] == 2
