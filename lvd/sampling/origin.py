"""How latents are made: what a capture records of it, and what a guard compares a pipeline and a call with.

A capture's and a bundle's JSON have the fields of an `Origin` among their own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lvd.errors import LvdError
from lvd.sampling.call import own_arguments
from lvd.sampling.fingerprint import BLOCKS, Pipeline, fingerprint, plain_config

if TYPE_CHECKING:  # it imports torch, and commands read capture.json without
    from lvd.sampling.noise import Scheduler

X_T = "x_t"  # a step's latent, as it was sampled
X_PREV = "x_t-1"  # the one after it, which gives a wrong x0: lvd/uvd/repair.py
NOISED_CLIP = "noised clip"  # x_t of a real clip under noise: lvd/sampling/noised.py
_OF_CLIPS = (
    "its rates are of real clips, so that it guards nothing before it is evaluated on generated videos "
    "(evaluate.py with capture=NAME)"
)

# What a caller may choose at every request; any other argument must be as it was in the capture.
FREE_ARGUMENTS = (
    *("generator", "latents", "negative_prompt", "output_type"),
    *("image", "video", "num_videos_per_prompt", "num_images_per_prompt"),
)
_STEPS = "num_inference_steps"


@dataclass(frozen=True)
class Origin:
    """The pipeline, its scheduler and its call: all that x0 `[C, F, H, W]` depends on beside a sample."""

    pipeline: str  # repository id or directory
    revision: str | None
    pipeline_class: str
    call: dict[str, Any]  # the arguments of every pipeline call: height, width, num_frames, ...
    scheduler: str  # class name
    scheduler_config: dict[str, Any]
    fingerprint: dict[str, str]  # of the networks that denoise: their classes and configurations
    layout: str  # the axes of the latent that the scheduler steps
    steps: int
    guidance: float | None  # None: as the pipeline is guided by itself
    latent_shape: tuple[int, int, int, int]  # C, F, H, W
    x0_from: str = X_T  # the latent that x0 was computed from
    layout_given: bool = False  # by hand: lvd does not know the pipeline's class
    step_caches: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the networks that have one
    weights: dict[str, str] = field(default_factory=dict)  # digests of the networks', or not known
    noise_levels: tuple[float, ...] | None = None  # of x_t at each stored step, 1 to 0; None: not recorded

    @classmethod
    def split(cls, raw: Mapping[str, Any]) -> tuple["Origin", dict[str, Any]]:
        """An origin, and what else is in a JSON object that has its fields among others.

        Raises:
            KeyError, TypeError or ValueError: it is not one.
        """
        names = {each.name for each in fields(cls)}
        own = {name: value for name, value in raw.items() if name in names}
        channels, frames, height, width = own["latent_shape"]
        if any(type(size) is not int or size < 1 for size in (channels, frames, height, width, own["steps"])):
            raise ValueError
        levels = own.get("noise_levels")
        if levels is not None:
            levels = tuple(map(float, levels))
            if not (1 <= len(levels) <= own["steps"] and all(0 <= level <= 1 for level in levels)):
                raise ValueError
        shape = (channels, frames, height, width)
        origin = cls(**{**own, "latent_shape": shape, "noise_levels": levels})
        return origin, {name: value for name, value in raw.items() if name not in names}

    def steps_of(self, arguments: Mapping[str, Any]) -> int:
        """How many steps a call with these arguments runs: as many as in the capture, unless it asks for more
        or fewer than the capture's calls did. They may have asked for more than they ran (`strength`).
        """
        asked: int | None = arguments.get(_STEPS)
        if asked in (None, self.call.get(_STEPS, self.steps)):
            return self.steps
        return asked

    def mismatches(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> list[str]:
        """How a pipeline and the arguments of its call differ from these but in their schedule, in words."""
        found = [*_difference("the pipeline", type(pipe).__name__, self.pipeline_class)]
        networks = fingerprint(pipe)
        if not self.fingerprint:
            found.append("the capture was imported and does not know its networks")
        for name in sorted(self.fingerprint.keys() | networks.keys()):
            if self.fingerprint and networks.get(name) != self.fingerprint.get(name):
                other = "is another network" if name != BLOCKS else "are others, or set otherwise,"
                found.append(f"the {name} {other} than the capture's")
        found += self._weights_mismatches(pipe)
        found += self._cache_mismatches(pipe)
        known = own_arguments(pipe, self.steps, self.guidance, self.call)
        for key, value in arguments.items():
            if key not in (*FREE_ARGUMENTS, _STEPS) and value is not None:
                found += _difference(key, value, known.get(key))
        return found

    def schedule_mismatches(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> list[str]:
        """How the noise levels of the steps of such a call may differ from these, in words."""
        found = self.scheduler_mismatches(pipe.scheduler)
        if (asked := arguments.get(_STEPS)) is not None:
            found += _difference(_STEPS, asked, self.call.get(_STEPS, self.steps))
        return found

    def scheduler_mismatches(self, scheduler: "Scheduler") -> list[str]:
        """How a scheduler differs from this one, in words."""
        found = [*_difference("the scheduler", type(scheduler).__name__, self.scheduler)]
        config = plain_config(scheduler.config)
        for key in sorted(self.scheduler_config.keys() | config.keys()):
            found += _difference(f"the scheduler's {key}", config.get(key), self.scheduler_config.get(key))
        return found

    def steps_mismatches(self, steps: int) -> list[str]:
        """How a sampling of so many steps differs from this one."""
        return [*_difference("the number of steps", steps, self.steps)]

    def x0_mismatches(self) -> list[str]:
        """Why a guard, which computes x0 from what is sampled, is not measured by such latents, in words."""
        if self.x0_from == NOISED_CLIP:
            return [_OF_CLIPS]
        return [*_difference("the latent that x0 is computed from", X_T, self.x0_from)]

    def _weights_mismatches(self, pipe: Pipeline) -> Iterator[str]:
        """Nothing where the capture did not record weights. They are compared at every call."""
        from lvd.sampling.weights import weights_digests

        if not self.weights:
            return
        try:
            weights = weights_digests(pipe)
        except LvdError as error:
            yield str(error)
            return
        for name in sorted(self.weights.keys() | weights.keys()):
            if weights.get(name) != self.weights.get(name):
                yield f"the {name} has other weights than the capture's"

    def _cache_mismatches(self, pipe: Pipeline) -> Iterator[str]:
        from lvd.sampling.caches import step_caches, unreadable_caches

        caches = step_caches(pipe)
        for name in sorted(self.step_caches.keys() | caches.keys()):
            there, known = caches.get(name), self.step_caches.get(name)
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
    from torch import Tensor

    if isinstance(there, Tensor | np.ndarray):  # captures hold plain values
        yield f"{what} is an array of shape {tuple(there.shape)}, not {known}"
    elif there != known:
        yield f"{what} is {there}, not {known}"
