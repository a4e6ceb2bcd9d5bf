"""Whether a pipeline, its scheduler and a call are those that a bundle was made for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from lvd.errors import LvdError
from lvd.guard.bundle import BundleInfo
from lvd.latents.format import X_T
from lvd.sampling.caches import step_caches, unreadable_caches
from lvd.sampling.call import guidance_argument, takes
from lvd.sampling.fingerprint import Pipeline, fingerprint, plain_config
from lvd.sampling.pipelines import makes_one_of_a_prompt
from lvd.sampling.weights import weights_digests
from lvd.sampling.x0 import Scheduler

# What a caller may choose at every request; any other argument must be as it was in the capture.
_FREE_ARGUMENTS = (
    *("generator", "latents", "negative_prompt", "output_type"),
    *("image", "video", "num_videos_per_prompt", "num_images_per_prompt"),
)


def pipeline_mismatches(info: BundleInfo, pipe: Pipeline, arguments: Mapping[str, Any]) -> list[str]:
    """How this pipeline and call differ from those of the bundle's capture, in words."""
    found = [*_difference("the pipeline", type(pipe).__name__, info.pipeline_class)]
    networks = fingerprint(pipe)
    if not info.fingerprint:
        found.append("the capture was imported and does not know its networks")
    for name in sorted(info.fingerprint.keys() | networks.keys()):
        if info.fingerprint and networks.get(name) != info.fingerprint.get(name):
            found.append(f"the {name} is another network than the capture's")
    found += _weights_mismatches(info, pipe)
    found += _cache_mismatches(info, pipe)
    found += scheduler_mismatches(info, pipe.scheduler)
    found += x0_mismatches(info)
    known = {"num_inference_steps": info.steps, **guidance_argument(pipe, info.guidance), **info.call}
    for key, value in arguments.items():
        if key not in _FREE_ARGUMENTS and value is not None:
            found += _difference(key, value, known.get(key))
    return found


def scheduler_mismatches(info: BundleInfo, scheduler: Scheduler) -> list[str]:
    """How a scheduler differs from that of the bundle's capture."""
    found = [*_difference("the scheduler", type(scheduler).__name__, info.scheduler)]
    config = plain_config(scheduler.config)
    for key in sorted(info.scheduler_config.keys() | config.keys()):
        found += _difference(f"the scheduler's {key}", config.get(key), info.scheduler_config.get(key))
    return found


def session_mismatches(info: BundleInfo, steps: int) -> list[str]:
    """How a session of so many steps differs from the bundle's capture, as far as it can be seen."""
    return [*_difference("the number of steps", steps, info.steps), *x0_mismatches(info)]


def x0_mismatches(info: BundleInfo) -> list[str]:
    """An imported capture may have computed x0 from another latent than a guard does."""
    return [*_difference("the latent that x0 is computed from", X_T, info.x0_from)]


def refuse_mismatches(found: Sequence[str], *, allowed: bool) -> None:
    """Refuse what a bundle was not made for.

    Raises:
        LvdError: names every difference.
    """
    if found and not allowed:
        raise LvdError(
            f"the bundle was not made for this: {'; '.join(found)} "
            "(allow_mismatch=True goes on all the same, and every decision says so)"
        )


def refuse_arguments(pipe: Pipeline, arguments: Mapping[str, Any]) -> None:
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
    if repeats_of(arguments) > 1 and makes_one_of_a_prompt(pipe):
        raise LvdError(
            f"{name} makes one video of a prompt, whatever num_videos_per_prompt says: "
            "call it once for each video"
        )


def repeats_of(arguments: Mapping[str, Any]) -> int:
    """How many videos a call makes of each prompt."""
    return arguments.get("num_videos_per_prompt") or arguments.get("num_images_per_prompt") or 1


def _weights_mismatches(info: BundleInfo, pipe: Pipeline) -> Iterator[str]:
    """Nothing where the capture did not record weights. They are read anew for every call."""
    if not info.weights:
        return
    try:
        weights = weights_digests(pipe)
    except LvdError as error:
        yield str(error)
        return
    for name in sorted(info.weights.keys() | weights.keys()):
        if weights.get(name) != info.weights.get(name):
            yield f"the {name} has other weights than the capture's"


def _cache_mismatches(info: BundleInfo, pipe: Pipeline) -> Iterator[str]:
    caches = step_caches(pipe)
    for name in sorted(info.step_caches.keys() | caches.keys()):
        there, known = caches.get(name), info.step_caches.get(name)
        if there is None and known is not None:
            yield f"the {name} caches no steps, and the capture's did ({known['config']})"
        elif there is not None and known is None:
            yield f"the {name} caches steps ({there['config']}), and the capture's did not"
        elif there is not None and known is not None:
            for key in sorted(there.keys() | known.keys()):
                yield from _difference(f"the {name}'s step cache's {key}", there.get(key), known.get(key))
    for name, cache in unreadable_caches(pipe).items():
        yield f"the {name} caches steps ({cache}), and the capture's did not"


def _difference(what: str, there: Any, known: Any) -> Iterator[str]:
    if isinstance(there, Tensor | np.ndarray):  # captures hold plain values
        yield f"{what} is an array of shape {tuple(there.shape)}, not {known}"
    elif there != known:
        yield f"{what} is {there}, not {known}"
