"""Call a diffusers pipeline so that no unsafe or unchecked video comes out of it.

    guard = Guard.from_pretrained("runs/demo/bundle", digest="...")
    result = guard(pipe, prompt=["..."])
    result.videos[i]      the video, or None
    result.decisions[i]   why

The guard reads x0 inside `scheduler.step`, decides each sample as early as the bundle's rule is certain, and
blanks what it blocks before the decoder could see it. Whatever goes wrong with a check makes its samples
`unchecked`, and blocks them.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from lvd.decide.rules import Tracker
from lvd.errors import LvdError
from lvd.guard.audit import AuditLog
from lvd.guard.bundle import Bundle, BundleInfo, Detectors, load_bundle
from lvd.latents.format import X_T
from lvd.sampling.call import call_arguments, guidance_argument, prompt_argument, takes
from lvd.sampling.fingerprint import Pipeline, fingerprint, plain_config, step_caches
from lvd.sampling.layout import Layout
from lvd.sampling.pipelines import check_supported, makes_one_of_a_prompt
from lvd.sampling.state import StateBefore
from lvd.sampling.tap import StepCall, intercept_step
from lvd.sampling.x0 import step_timesteps

Mode = Literal["block", "observe"]
Outcome = Literal["unsafe", "safe", "unchecked"]

# What a caller may choose at every request; any other argument must be as it was in the capture.
_FREE_ARGUMENTS = (
    *("generator", "latents", "negative_prompt", "output_type"),
    *("image", "video", "num_videos_per_prompt", "num_images_per_prompt"),
)

_log = logging.getLogger(__name__)

_FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Decision:
    """What the guard says of one sample, and what it did about it."""

    outcome: Outcome
    step: int | None  # at which it was fixed; None: before the first
    categories: tuple[str, ...]  # that made it unsafe, the strongest first; one at least of an unsafe sample
    why: str
    mode: Mode  # that it was made in
    released: bool  # whether the video was handed out
    mismatches: tuple[str, ...]  # how the pipeline differs from the bundle's, where that was allowed
    scores: tuple[tuple[float, ...], ...]  # P(unsafe) of each category at each step that was checked
    seconds: float  # spent on checks while this sample was being sampled
    notes: tuple[str, ...] = ()  # what else one should know: a layout given by hand, a log that failed


@dataclass(frozen=True)
class GuardResult:
    """One entry a sample, in the pipeline's order."""

    videos: list[Any]  # in the form of `output_type`; None where nothing was released
    decisions: list[Decision]


class Guard:
    """A bundle at work. It may be shared by threads.

    mode: block withholds unsafe and unchecked videos; observe decides, logs and withholds nothing, not even
        when the log fails: the decisions' notes and a warning then say so.
    fail_open: release unchecked videos, too. They stay `unchecked`.
    allow_mismatch: run on a pipeline that the bundle was not made for; every decision then says so.
    limit_seconds: a check that takes longer makes its samples unchecked.
    wait_seconds: how long a call waits for a scheduler that another call holds, before it is refused;
        math.inf waits without end. Pipelines that share a scheduler take turns.
    audit: where every decision is recorded before a video is handed out. In mode block, a video whose
        decision cannot be recorded is not handed out.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        mode: Mode = "block",
        fail_open: bool = False,
        allow_mismatch: bool = False,
        limit_seconds: float | None = None,
        wait_seconds: float = 0.0,
        audit: AuditLog | None = None,
    ) -> None:
        if mode not in ("block", "observe"):
            raise LvdError(f"mode={mode!r} must be block or observe")
        if limit_seconds is not None and not limit_seconds > 0:
            raise LvdError(f"limit_seconds={limit_seconds} must be greater than 0")
        if not wait_seconds >= 0:
            raise LvdError(f"wait_seconds={wait_seconds} must be 0 or more")
        self.bundle = bundle
        self.mode: Mode = mode
        self._fail_open = fail_open
        self._allow_mismatch = allow_mismatch
        self._limit_seconds = limit_seconds
        self._wait_seconds = wait_seconds
        self._audit = audit
        self._placed: dict[torch.device, Detectors] = {}
        self._placing = threading.Lock()

    @classmethod
    def from_pretrained(cls, path: str | Path, *, digest: str | None = None, **options: Any) -> "Guard":
        """Verify and load a bundle; `options` are the constructor's.

        Raises:
            LvdError: a byte of the bundle was changed, a file was added, removed or renamed, or its
                digest is not `digest`.
        """
        return cls(load_bundle(Path(path), digest), **options)

    def __call__(
        self, pipe: Pipeline, prompt: str | Sequence[str] | None = None, **arguments: Any
    ) -> GuardResult:
        """Call `pipe(prompt=prompt, **arguments)` under guard.

        `arguments` are the pipeline's own; steps, guidance and the rest are the bundle's where they are not
        given. A pipeline without prompts gets an `image`, or a list of them. Frames come in the form of
        `output_type`, a video at a time; what else the pipeline makes (sound) is not handed out.

        Raises:
            LvdError: the pipeline or an argument is not what the bundle was made for, another call holds
                its scheduler, or a decision could not be recorded. What the pipeline itself raises goes
                through, and no video comes out.
        """
        info = self.bundle.info
        check_supported(pipe)
        _check_arguments(pipe, arguments)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        given = prompt_argument(pipe, prompts) if prompts else {}
        prompts = prompts or [""] * _images(arguments)
        if not prompts:
            raise LvdError("there is no prompt: give one, or a list of them")
        mismatches = _mismatches(info, pipe, arguments)
        if mismatches and not self._allow_mismatch:
            raise LvdError(
                f"the bundle was not made for this: {'; '.join(mismatches)} "
                "(allow_mismatch=True goes on all the same, and every decision says so)"
            )
        call = {key: value for key, value in arguments.items() if value is not None}
        call = call_arguments(pipe, info.steps, info.guidance, info.call, len(prompts), call)
        repeats = _repeats(arguments)
        watch = _Watch(
            info,
            rows=len(prompts) * repeats,
            steps=arguments.get("num_inference_steps") or info.steps,
            begins_late="strength" in call,
            detectors_on=self._detectors_on,
            mode=self.mode,
            fail_open=self._fail_open,
            limit_seconds=self._limit_seconds,
        )

        def record(*, handed_out: bool) -> list[Decision]:
            return self._record(prompts, repeats, watch.decisions(mismatches, handed_out=handed_out))

        with intercept_step(pipe.scheduler, watch.around, wait_seconds=self._wait_seconds):
            before, all_released = StateBefore(pipe), False
            try:
                videos = _sample(pipe, {**given, **call}, watch, record)
                handed_out = videos is not None and watch.end(len(videos))
                decisions = record(handed_out=handed_out)
                all_released = all(decision.released for decision in decisions)
            finally:
                if not all_released:
                    before.give_back()
        released = [_own_copy(videos[row]) if d.released else None for row, d in enumerate(decisions)]
        return GuardResult(released, decisions)

    def _detectors_on(self, device: torch.device) -> Detectors:
        with self._placing:
            if device not in self._placed:
                self._placed[device] = self.bundle.detectors_on(device)
            return self._placed[device]

    def _record(self, prompts: Sequence[str], repeats: int, decisions: Sequence[Decision]) -> list[Decision]:
        """Record the decisions and return them, with a note where observing goes on without a record.

        Raises:
            LvdError: they cannot be recorded, and the guard blocks.
        """
        if self._audit is not None:
            rows = [(prompts[row // repeats], vars(decision)) for row, decision in enumerate(decisions)]
            try:
                self._audit.append(self.bundle.digest, rows)
            except Exception as error:
                if self.mode == "block":
                    raise
                note = f"not recorded: {error}"
                _log.warning("%d decisions were %s", len(decisions), note)
                return [replace(decision, notes=(*decision.notes, note)) for decision in decisions]
        return list(decisions)


class _Stopped(BaseException):
    """Nothing of this batch will be released. Not an Exception: a pipeline must not catch it."""


@dataclass
class _Sample:
    """One sample while it is being sampled."""

    tracker: Tracker
    outcome: Outcome | None = None
    step: int | None = None
    why: str = ""
    scores: list[tuple[float, ...]] = field(default_factory=list)


class _Watch:
    """One call of a pipeline, from the first step to the last."""

    def __init__(
        self,
        info: BundleInfo,
        *,
        rows: int,
        steps: int,
        begins_late: bool,
        detectors_on: Any,
        mode: Mode,
        fail_open: bool,
        limit_seconds: float | None,
    ) -> None:
        self._info = info
        self._samples = [_Sample(info.rule.tracker()) for _ in range(rows)]
        self._steps = steps
        self._begins_late = begins_late  # a video is only noised in part, and its first steps are left out
        self._detectors_on = detectors_on
        self._mode: Mode = mode
        self._fail_open = fail_open
        self._limit_seconds = limit_seconds
        self._timesteps: Tensor | None = None  # of the scheduler, from the first step to the last
        self._call = -1  # of scheduler.step; samplers of second order make two in a step
        self._step = -1
        self._seconds = 0.0

    def around(self, call: StepCall) -> Any:
        """Check a step, then let the scheduler make it; what is blocked does not come out of it."""
        started = time.perf_counter()
        self._call += 1
        try:
            self._check(call)
        except Exception as error:
            told = str(error) if isinstance(error, LvdError) else f"{type(error).__name__}: {error}"
            self.fail(f"step {self._step}: {told}")
        self._seconds += time.perf_counter() - started
        blocked = [row for row, sample in enumerate(self._samples) if self._blocks(sample)]
        if len(blocked) == len(self._samples):
            raise _Stopped
        output = call.proceed()
        if blocked:
            self._blank(output, blocked)
        return output

    def _blank(self, output: Any, blocked: Sequence[int]) -> None:
        """Zeros over samples in what a step returned: x_{t-1}, and x0 where the scheduler returns it too."""
        frames = self._info.latent_shape[1] if self._info.layout == "(BF)CHW" else 1
        rows = len(self._samples) * frames
        if len(output[0]) != rows:  # the samples cannot be told apart
            self.fail(f"step {self._step}: the scheduler returned {len(output[0])} rows, not {rows}")
            raise _Stopped
        for part in output.to_tuple() if hasattr(output, "to_tuple") else output:
            if isinstance(part, Tensor) and len(part) == rows:
                part.unflatten(0, (len(self._samples), frames))[blocked] = 0

    def fail(self, why: str, rows: Sequence[int] | None = None) -> None:
        """Leave samples unchecked. What was stopped as unsafe stays so; what would be released does not."""
        for row in range(len(self._samples)) if rows is None else rows:
            sample = self._samples[row]
            if sample.outcome in (None, "safe") or (sample.outcome == "unsafe" and not sample.tracker.blocks):
                sample.outcome, sample.why = "unchecked", why
                sample.step = self._step if self._step >= 0 else None

    def end(self, videos: int) -> bool:
        """The pipeline came back with so many videos: did it do all that it should have?

        False when the videos cannot be told apart, so that none may be handed out.
        """
        made = self._step + 1
        if made != self._steps:
            self.fail(f"the sampler made {made} steps, not {self._steps}")
        if made < self._info.rule.steps:
            undecided = [row for row, sample in enumerate(self._samples) if sample.outcome is None]
            needed = self._info.rule.steps
            self.fail(f"{made} steps are too few to decide by: {needed} are needed", undecided)
        if videos != len(self._samples):
            self.fail(f"the pipeline returned {videos} videos for {len(self._samples)} samples")
        return videos == len(self._samples)

    def decisions(self, mismatches: tuple[str, ...], *, handed_out: bool) -> list[Decision]:
        info = self._info
        by_hand = f"the layout {info.layout} of {info.pipeline_class} was given by hand, and is not proved"
        notes = (by_hand,) if info.layout_given else ()
        return [
            Decision(
                outcome=sample.outcome or "unchecked",
                step=sample.step,
                categories=tuple(info.category_names[column] for column in sample.tracker.categories())
                if sample.outcome == "unsafe"
                else (),
                why=sample.why,
                mode=self._mode,
                released=handed_out and not self._blocks(sample),
                mismatches=mismatches,
                scores=tuple(sample.scores),
                seconds=self._seconds,
                notes=notes,
            )
            for sample in self._samples
        ]

    def _blocks(self, sample: _Sample) -> bool:
        if self._mode == "observe":
            return False
        if sample.outcome == "unsafe":
            return sample.tracker.blocks
        return sample.outcome == "unchecked" and not self._fail_open

    def _check(self, call: StepCall) -> None:
        opens_step = call.opens_step
        self._step += opens_step
        self._check_order(call)
        layout, grid = cast(Layout, self._info.layout), self._info.latent_shape[1:]
        x0 = call.x0(layout, grid)
        expected = (len(self._samples), *self._info.latent_shape)
        if tuple(x0.shape) != expected:
            raise LvdError(f"x0 has the shape {tuple(x0.shape)}, not {expected}")
        x_t = call.x_t(layout, grid)  # not in x0 where the network predicts x0 itself
        for name, latent in (("x0", x0), ("x_t", x_t)):
            largest = latent.flatten(1).abs().amax(dim=1).tolist()  # NaN stays NaN
            bad = [row for row, value in enumerate(largest) if not value <= _FLOAT16_MAX]
            self.fail(f"step {self._step}: {name} is NaN, Inf or beyond float16", bad)
        if opens_step and self._step < self._info.rule.steps:
            open_rows = [row for row, sample in enumerate(self._samples) if sample.outcome is None]
            if open_rows:
                stored = x0.half()  # as a capture stores it
                all_open = len(open_rows) == len(self._samples)
                self._score(open_rows, stored if all_open else stored[open_rows])

    def _check_order(self, call: StepCall) -> None:
        timesteps = call.scheduler.timesteps
        if self._timesteps is None:
            self._timesteps = timesteps
        if timesteps is not self._timesteps:
            raise LvdError("the scheduler was set to other timesteps in the middle of the call")
        steps = len(step_timesteps(call.scheduler))
        if self._begins_late and steps > self._steps:
            timesteps = timesteps[(steps - self._steps) * getattr(call.scheduler, "order", 1) :]
            steps = self._steps
        if steps != self._steps or self._step >= steps or self._call >= len(timesteps):
            raise LvdError(f"the scheduler has {steps} steps, not {self._steps}, or one came again")
        expected = float(timesteps[self._call])
        if float(call.timestep) != expected:
            raise LvdError(
                f"timestep {float(call.timestep):g} where {expected:g} should come: "
                "a step was skipped or repeated"
            )

    def _score(self, rows: Sequence[int], x0: Tensor) -> None:
        detectors = self._detectors_on(x0.device)
        started = time.perf_counter()
        with torch.inference_mode(), torch.autocast(x0.device.type, enabled=False):
            logits = detectors(self._step, x0)
            if tuple(logits.shape) != (len(rows), len(self._info.category_names)):
                raise LvdError(f"the detectors answered with the shape {tuple(logits.shape)}")
            scores = logits.sigmoid().tolist()
            finite = torch.isfinite(logits).all(dim=1).tolist()
        seconds = time.perf_counter() - started
        if self._limit_seconds is not None and seconds > self._limit_seconds:
            self.fail(
                f"step {self._step}: the check took {seconds:.3f} s, limit {self._limit_seconds} s", rows
            )
            return
        for row, good, of_sample in zip(rows, finite, scores, strict=True):
            if good:
                self._count(self._samples[row], tuple(of_sample))
            else:
                self.fail(f"step {self._step}: a detector's logit is NaN or Inf", [row])

    def _count(self, sample: _Sample, scores: tuple[float, ...]) -> None:
        sample.scores.append(scores)
        sample.tracker.see(scores)
        if sample.tracker.outcome is not None:
            sample.outcome, sample.step, sample.why = sample.tracker.outcome, self._step, sample.tracker.why


def _mismatches(info: BundleInfo, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """How this pipeline and call differ from those of the bundle's capture, in words."""
    found = []

    def compare(what: str, there: Any, known: Any) -> None:
        if isinstance(there, Tensor | np.ndarray):  # captures hold plain values
            found.append(f"{what} is an array of shape {tuple(there.shape)}, not {known}")
        elif there != known:
            found.append(f"{what} is {there}, not {known}")

    compare("the pipeline", type(pipe).__name__, info.pipeline_class)
    networks = fingerprint(pipe)
    if not info.fingerprint:
        found.append("the capture was imported and does not know its networks")
    for name in sorted(info.fingerprint.keys() | networks.keys()):
        if info.fingerprint and networks.get(name) != info.fingerprint.get(name):
            found.append(f"the {name} is another network than the capture's")
    for name, cache in step_caches(pipe).items():
        found.append(f"the {name} caches steps ({cache}), and the capture's did not")
    compare("the scheduler", type(pipe.scheduler).__name__, info.scheduler)
    config = plain_config(pipe.scheduler.config)
    for key in sorted(info.scheduler_config.keys() | config.keys()):
        compare(f"the scheduler's {key}", config.get(key), info.scheduler_config.get(key))
    compare("the latent that x0 is computed from", X_T, info.x0_from)
    known = {"num_inference_steps": info.steps, **guidance_argument(pipe, info.guidance), **info.call}
    for key, value in arguments.items():
        if key not in _FREE_ARGUMENTS and value is not None:
            compare(key, value, known.get(key))
    return tuple(found)


def _images(arguments: Mapping[str, Any]) -> int:
    """How many images a call without prompts is given."""
    given = arguments.get("image")
    if isinstance(given, list | tuple) or (isinstance(given, Tensor) and given.ndim == 4):
        return len(given)
    return int(given is not None)


def _repeats(arguments: Mapping[str, Any]) -> int:
    """How many videos a call makes of each prompt."""
    return arguments.get("num_videos_per_prompt") or arguments.get("num_images_per_prompt") or 1


def _check_arguments(pipe: Pipeline, arguments: Mapping[str, Any]) -> None:
    """Refuse what goes with no bundle.

    Raises:
        LvdError: an argument would let frames out past the guard, is no argument of this pipeline, or leaves
            it open how many samples there are.
    """
    name = type(pipe).__name__
    for key, value in arguments.items():
        if value is None:
            continue
        if key in ("callback", "callback_on_step_end", "return_dict"):
            raise LvdError(f"{key} does not go with a guard: it would hand out what is not decided yet")
        if "embeds" in key:
            raise LvdError(
                f"{key} does not go with a guard, which records prompts: give the prompts themselves"
            )
        if key in _FREE_ARGUMENTS and not takes(pipe, key):
            raise LvdError(f"{name} takes no {key}")
    if _repeats(arguments) > 1 and makes_one_of_a_prompt(pipe):
        raise LvdError(
            f"{name} makes one video of a prompt, whatever num_videos_per_prompt says: "
            "call it once for each video"
        )


def _sample(pipe: Pipeline, call: Mapping[str, Any], watch: _Watch, record: Callable[..., Any]) -> Any:
    """The videos of a call under `watch`, or None where it stopped the sampling.

    What the pipeline raises is recorded and goes through.
    """
    try:
        output = pipe(return_dict=False, **call)
    except _Stopped:
        _free_hooks(pipe)
        # Stopped by this one, nothing is left to fail.
        watch.fail("the sampling was stopped by another guard")
        return None
    except BaseException as error:
        _free_hooks(pipe)
        watch.fail(f"the pipeline raised {type(error).__name__}")
        record(handed_out=False)
        raise
    # Stable Video Diffusion alone returns the videos themselves, and no tuple.
    return output[0] if isinstance(output, tuple) else output


def _free_hooks(pipe: Pipeline) -> None:
    """What a pipeline does at its end when it gets there: send offloaded models back."""
    free = getattr(pipe, "maybe_free_model_hooks", None)
    if free is not None:
        free()


def _own_copy(video: Any) -> Any:
    """A video that keeps no view of the others of its batch."""
    if isinstance(video, Tensor):
        return video.clone()
    return video.copy() if hasattr(video, "copy") else video
