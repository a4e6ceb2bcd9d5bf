"""A pipeline of diffusers, classic or modular, under a session: its call, its steps, its videos."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lvd.errors import LvdError
from lvd.guard.admission import refuse_arguments, repeats_of
from lvd.guard.compaction import Compaction, check_compacts
from lvd.guard.decision import Decision
from lvd.guard.options import GuardOptions
from lvd.guard.session import OnStep, Session
from lvd.sampling.caches import caching_networks
from lvd.sampling.call import call_arguments, call_for_videos, free_models, prompt_argument
from lvd.sampling.fingerprint import Pipeline, guiders
from lvd.sampling.pipelines import check_supported
from lvd.sampling.tap import StepCall, intercept_step

if TYPE_CHECKING:
    from lvd.guard.guard import Guard


@dataclass(frozen=True)
class GuardResult:
    """One entry a sample, in the pipeline's order."""

    videos: list[Any]  # in the form of `output_type`; None where nothing was released
    decisions: list[Decision]


class _Stopped(BaseException):
    """Nothing of this batch will be released. Not an Exception: a pipeline must not catch it."""


def call_under_guard(
    guard: "Guard",
    pipe: Pipeline,
    prompt: str | Sequence[str] | None,
    arguments: Mapping[str, Any],
    *,
    on_step: OnStep | None,
    preview: bool,
    options: GuardOptions,
) -> GuardResult:
    """Call `pipe(prompt=prompt, **arguments)` in a session of `guard`, which says what it raises."""
    origin = guard.bundle.info.origin
    check_supported(pipe)
    refuse_arguments(pipe, arguments)
    if options.compact:
        check_compacts(pipe)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
    given = prompt_argument(pipe, prompts) if prompts else {}
    prompts = prompts or [""] * _images(arguments)
    if not prompts:
        raise LvdError("there is no prompt: give one, or a list of them")
    call = {key: value for key, value in arguments.items() if value is not None}
    call = call_arguments(pipe, origin.steps, origin.guidance, origin.call, len(prompts), call)
    samples = len(prompts) * repeats_of(arguments)
    session = guard.session(
        samples=samples,
        steps=origin.steps_of(arguments),
        prompts=[prompt for prompt in prompts for _ in range(repeats_of(arguments))],
        begins_late="strength" in call,
        mismatches=origin.mismatches(pipe, arguments),
        schedule_mismatches=origin.schedule_mismatches(pipe, arguments),
        on_step=on_step,
        preview=preview,
    )

    compaction = Compaction(samples) if options.compact else None

    def around(step: StepCall) -> Any:
        """Check a step, then let the scheduler make it; what is blocked does not come out of it."""
        if compaction is not None:
            compaction.kept = None  # what `on_step` computes is not of this sampling
        session.check_call(step)
        if session.stopped:
            raise _Stopped
        output = step.proceed()
        session.check_made(step)
        if session.blocked and not session.blank_output(output):
            raise _Stopped
        if compaction is not None:
            compaction.leave_out(session.blocked)
        return output

    compacted = nullcontext() if compaction is None else compaction.of(pipe)
    with intercept_step(pipe.scheduler, around, wait_seconds=options.wait_seconds), compacted, session:
        session.clear_when_withheld(pipe.scheduler, *guiders(pipe), caching=caching_networks(pipe))
        videos, decisions = _sample(pipe, {**given, **call}, session)
    released = [_own_copy(videos[row]) if d.released else None for row, d in enumerate(decisions)]
    return GuardResult(released, decisions)


def _sample(pipe: Pipeline, call: Mapping[str, Any], session: Session) -> tuple[Any, list[Decision]]:
    """The videos of a call and what is decided of them. What the pipeline raises is recorded, and goes on."""
    try:
        videos = call_for_videos(pipe, call)
    except _Stopped:
        free_models(pipe)
        # Stopped by this session, nothing is left to fail.
        return None, session.abort("the sampling was stopped by another guard")
    except BaseException as error:
        free_models(pipe)
        session.abort(f"the pipeline raised {type(error).__name__}")
        raise
    return videos, session.close(videos=len(videos))


def _images(arguments: Mapping[str, Any]) -> int:
    """How many images a call without prompts is given."""
    given = arguments.get("image")
    if isinstance(given, list | tuple) or (isinstance(given, Tensor) and given.ndim == 4):
        return len(given)
    return int(given is not None)


def _own_copy(video: Any) -> Any:
    """A video that keeps no view of the others of its batch."""
    if isinstance(video, Tensor):
        return video.clone()
    return video.copy() if hasattr(video, "copy") else video
