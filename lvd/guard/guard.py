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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.guard.audit import AuditLog
from lvd.guard.bundle import Bundle, BundleInfo, Detectors, load_bundle
from lvd.guard.watch import Decision, Mode, Stopped, Watch
from lvd.latents.format import X_T
from lvd.sampling.call import call_arguments, guidance_argument, prompt_argument, takes
from lvd.sampling.fingerprint import Pipeline, fingerprint, plain_config, step_caches
from lvd.sampling.pipelines import check_supported, makes_one_of_a_prompt
from lvd.sampling.state import StateBefore
from lvd.sampling.tap import intercept_step

# What a caller may choose at every request; any other argument must be as it was in the capture.
_FREE_ARGUMENTS = (
    *("generator", "latents", "negative_prompt", "output_type"),
    *("image", "video", "num_videos_per_prompt", "num_images_per_prompt"),
)

_log = logging.getLogger(__name__)


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
        watch = Watch(
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


def _sample(pipe: Pipeline, call: Mapping[str, Any], watch: Watch, record: Callable[..., Any]) -> Any:
    """The videos of a call under `watch`, or None where it stopped the sampling.

    What the pipeline raises is recorded and goes through.
    """
    try:
        output = pipe(return_dict=False, **call)
    except Stopped:
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
