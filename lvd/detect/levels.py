"""Steps of another sampler, or of another number of steps, among those that detectors were trained at.

A step is told by the noise level of its x_t (`noise_level` in `lvd.sampling.noise`), which compares between
samplers. Its *position* is where that level lies among the trained steps: 7 is step 7, 7.5 is half-way to the
next.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lvd.errors import LvdError

_ROUNDING = 1e-6  # of a noise level


def same_levels(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether steps have the same noise levels, but for rounding."""
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=0, atol=_ROUNDING))


@dataclass(frozen=True)
class TrainedLevels:
    """The noise levels of the trained steps, from the first.

    Raises:
        LvdError: they do not fall from step to step, and so cannot tell steps apart.
    """

    levels: tuple[float, ...]

    @classmethod
    def of(cls, levels: Sequence[float] | None) -> "TrainedLevels":
        """Raises: LvdError, also where they were not recorded (None)."""
        if levels is None:
            raise LvdError(
                "by_noise_level: the bundle does not know the noise levels of its steps, since its capture "
                "was made before they were recorded: capture and train again"
            )
        return cls(tuple(levels))

    def __post_init__(self) -> None:
        if not (np.diff(self.levels) < 0).all():
            raise LvdError("the noise levels of the trained steps do not fall from step to step")

    def position(self, level: float) -> float:
        """Where a noise level lies among the trained steps.

        What lies outside, by no more than the distance to the next trained step, counts as the end: samplers
        of one model begin and end at slightly different levels.

        Raises:
            LvdError: it lies further outside.
        """
        first, last = self.levels[0], self.levels[-1]
        margins = -np.diff(self.levels) if len(self.levels) > 1 else np.zeros(1)
        if not last - margins[-1] <= level <= first + margins[0]:
            raise LvdError(
                f"noise level {level:.4f} lies outside of those that the detectors were trained at, "
                f"{first:.4f} to {last:.4f}"
            )
        levels = np.array(self.levels)
        nearest = int(np.abs(levels - level).argmin())
        if abs(levels[nearest] - level) <= _ROUNDING:
            return float(nearest)
        return float(np.interp(-level, -levels, np.arange(len(levels))))

    def positions(self, levels: Sequence[float]) -> list[float]:
        """Those of several noise levels; raises as `position` does, and says of which step."""
        found = []
        for step, level in enumerate(levels):
            try:
                found.append(self.position(level))
            except LvdError as error:
                raise LvdError(f"step {step}: {error}") from None
        return found


class TrainedSteps:
    """One sampling run, step by step, as trained steps, which a rule decides by whatever the sampler's are.

    A trained step's logits lie between those of the checks on its either side, by position; before the first
    check and after the sampler's last step, they are those of the nearest. Without `levels`, the sampler's
    steps are the trained ones.
    """

    def __init__(self, levels: TrainedLevels | None, steps: int) -> None:
        self._levels = levels
        self._steps = steps  # of the sampler
        self.known = 0  # trained steps that the checks so far tell of
        self.position: float = -1  # of the last check
        self._reached: float = 0  # position of the sampler's last step, checked or not
        self._before: tuple[float, dict[int, Tensor]] = -1, {}  # of the last check, and its logits by sample

    def advance(self, step: int, level: Callable[[], float | None]) -> range:
        """The trained steps that a check of the sampler's `step` tells of; none: it need not be checked.

        `level` gives the step's noise level; without `levels` it is not asked.

        Raises:
            LvdError: as `TrainedLevels.position` does, or the level rises from a step to the next.
        """
        if self._levels is None:
            self.position = step
            told = range(step, step + 1)
        else:
            noise_level = level()
            assert noise_level is not None
            position = self._levels.position(noise_level)
            if position < self._reached:
                raise LvdError(f"noise level {noise_level:.4f} is above that of the step before")
            self._reached = position
            last = len(self._levels.levels) if step == self._steps - 1 else int(position) + 1
            told = range(self.known, last)
            if told:
                self.position = position
        self.known = max(self.known, told.stop)
        return told

    def between(self, logits_BK: Tensor, samples: Sequence[int], told: range) -> list[Tensor]:
        """Logits `[B, K]` of each trained step that a check tells of, from those that the check found.

        `samples` are the numbers of those that were checked; each was checked before, unless none was.
        """
        if self._levels is None:
            return [logits_BK]
        position, before = self._before
        self._before = self.position, dict(zip(samples, logits_BK, strict=True))
        if not before:
            return [logits_BK for _ in told]
        before_BK = torch.stack([before[sample] for sample in samples])
        distance = self.position - position
        shares = [1.0 if step >= self.position else (step - position) / distance for step in told]
        return [logits_BK if share == 1.0 else torch.lerp(before_BK, logits_BK, share) for share in shares]
