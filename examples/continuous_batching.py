"""Guard an engine that batches continuously: requests come and go between steps, each with its own scheduler.

    python examples/continuous_batching.py runs/mine/bundle

`GuardedSteps` goes over a pipeline with the methods of vllm-omni's step execution (prepare_encode,
denoise_step, step_scheduler, post_decode), and opens a session a request. The engine and the pipeline here
are stand-ins with random weights: they show the loop, and no video.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.guard import AuditLog, Decision, Guard, Session


class WithheldError(Exception):
    """Nothing of a request comes out. The engine takes the request out of its batch and answers with this."""

    def __init__(self, decisions: Sequence[Decision]) -> None:
        super().__init__("; ".join(decision.outcome for decision in decisions))
        self.decisions = decisions


# What an engine may hand out beside the video, of all rows and steps.
TRAJECTORY = ("trajectory_latents", "trajectory_decoded", "trajectory_log_probs", "trajectory_timesteps")
WARM_UP = "dummy_req_id"  # of the request that vllm-omni makes when it starts, of two steps


class GuardedSteps:
    """Mix it in before a pipeline: `class Guarded(GuardedSteps, Pipeline)`, and give it a `guard`."""

    guard: Guard

    def forward(self, *_: Any, **__: Any) -> None:
        """What vllm-omni calls for a request that it excludes from step execution."""
        raise RuntimeError("only step execution is under guard")

    def step_scheduler(self, state: Any, noise_pred: Tensor, **options: Any) -> None:
        if state.request_id == WARM_UP:  # whoever asks for it: nothing of it is left
            super().step_scheduler(state, noise_pred, **options)  # type: ignore[misc]
            state.latents = torch.zeros_like(state.latents)
            return
        session = state.extra.get("session") or self._open(state)
        try:
            session.check_step(state.scheduler, noise_pred, state.current_timestep, state.latents)
            if session.stopped:
                raise WithheldError(session.abort("all are blocked"))
            super().step_scheduler(state, noise_pred, **options)  # type: ignore[misc]
            session.blank(state.latents)
        except Exception as error:
            state.latents = torch.zeros_like(state.latents)  # an engine may copy it all the same
            session.abort(f"the step raised {type(error).__name__}")
            raise

    def _open(self, state: Any) -> Session:
        rows = len(state.latents)
        prompt = state.prompt if isinstance(state.prompt, str) else state.prompt["prompt"]
        session = self.guard.session(samples=rows, steps=state.total_steps, prompts=[prompt] * rows)
        state.extra["session"] = session
        return session

    def post_decode(self, state: Any, **options: Any) -> Any:
        if state.request_id == WARM_UP:
            return _video_alone(super().post_decode(state, **options))  # type: ignore[misc]
        with state.extra.pop("session") as session:
            made = super().post_decode(state, **options)  # type: ignore[misc]
            decisions = session.close(videos=len(made.output))
        withheld = [row for row, decision in enumerate(decisions) if not decision.released]
        if withheld:
            made.output[withheld] = 0
            made = _video_alone(made)
        if len(withheld) == len(decisions):
            raise WithheldError(decisions)
        made.decisions = decisions
        return made


def _video_alone(made: Any) -> Any:
    """What was made, without the steps that led to it."""
    for name in TRAJECTORY:
        if hasattr(made, name):
            setattr(made, name, None)
    return made


# ---- stand-ins


@dataclass
class Request:
    """What the engine keeps of a request from step to step."""

    prompt: str | dict[str, Any]
    seed: int
    videos: int = 1
    request_id: str = ""
    latents: Tensor | None = None
    timesteps: Any = ()
    scheduler: Any = None
    step_index: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        return len(self.timesteps)

    @property
    def current_timestep(self) -> Any:
        return self.timesteps[self.step_index]


@dataclass
class Made:
    """What a request gets."""

    output: Tensor  # [B, ...]
    decisions: Sequence[Decision] = ()


class StandIn:
    """A pipeline with step execution, without a text encoder, a decoder and a trained network."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self._origin = guard.bundle.info.origin

    def prepare_encode(self, state: Request, **_: Any) -> Request:
        scheduler_class = getattr(diffusers, self._origin.scheduler)
        state.scheduler = scheduler_class.from_config(self._origin.scheduler_config)
        state.scheduler.set_timesteps(self._origin.steps)
        state.timesteps = state.scheduler.timesteps
        noise = torch.Generator().manual_seed(state.seed)
        state.latents = torch.randn(state.videos, *self._origin.latent_shape, generator=noise)
        return state

    def denoise_step(self, states: Sequence[Request]) -> Tensor:
        return 0.1 * torch.cat([state.latents for state in states])

    def step_scheduler(self, state: Request, noise_pred: Tensor, **_: Any) -> None:
        made = state.scheduler.step(noise_pred, state.current_timestep, state.latents, return_dict=False)
        state.latents = made[0]
        state.step_index += 1

    def post_decode(self, state: Request, **_: Any) -> Made:
        return Made(state.latents.clone())


class Guarded(GuardedSteps, StandIn):
    """What the engine is given."""


def serve(pipeline: Any, requests: Sequence[Request], at_once: int = 2) -> list[Made | Exception]:
    """The engine: each step of the network is of all requests that are there, and a new one comes at each."""
    waiting, running = list(enumerate(requests)), []
    answers: dict[int, Made | Exception] = {}
    while waiting or running:
        if waiting and len(running) < at_once:
            number, state = waiting.pop(0)
            running.append((number, pipeline.prepare_encode(state)))
        noise = pipeline.denoise_step([state for _, state in running])
        parts = noise.split([len(state.latents) for _, state in running])
        for (number, state), part in zip(list(running), parts, strict=True):
            try:
                pipeline.step_scheduler(state, part)
                if state.step_index >= state.total_steps:
                    answers[number] = pipeline.post_decode(state)
            except Exception as error:
                answers[number] = error
        running = [each for each in running if each[0] not in answers]
    return [answers[number] for number in range(len(requests))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Continuous batching under guard.")
    parser.add_argument("bundle", help="what evaluate.py exported")
    parser.add_argument("--digest", help="the bundle's digest, as evaluate.py printed it")
    parser.add_argument("--audit", help="a log of the decisions")
    parser.add_argument("--prompt", nargs="+", default=["a cat", "a dog", "a bird"])
    arguments = parser.parse_args()
    audit = None if arguments.audit is None else AuditLog(arguments.audit)
    try:
        guard = Guard.from_pretrained(arguments.bundle, digest=arguments.digest, audit=audit)
        requests = [Request(prompt, seed) for seed, prompt in enumerate(arguments.prompt)]
        answers = serve(Guarded(guard), requests)
    except LvdError as error:
        raise SystemExit(f"error: {error}") from None
    for request, answer in zip(requests, answers, strict=True):
        made = f"a latent {list(answer.output.shape)} to decode" if isinstance(answer, Made) else "withheld"
        print(f"{request.prompt}: {made} ({'' if isinstance(answer, Made) else answer})".replace(" ()", ""))


if __name__ == "__main__":
    main()
