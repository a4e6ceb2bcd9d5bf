"""What `schedules.py` compares: the schedules, where each one's files lie, and the samples that it makes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path

from lvd.latents.format import UNLABELLED, Sample, label_text


@dataclass(frozen=True)
class Schedule:
    """A scheduler of diffusers, None: the generator's own DDIM, and its number of steps."""

    name: str
    steps: int
    scheduler: str | None = None

    def settings(self) -> list[str]:
        """Those of capture.py."""
        settings = [f"pipeline.steps={self.steps}"]
        if self.scheduler is None:
            return settings
        # The call's eta is DDIM's noise.
        return [*settings, f"pipeline.scheduler={self.scheduler}", "~pipeline.call.eta"]


SCHEDULES = {
    "ddim50": Schedule("DDIM, 50 (control)", 50),
    "ddim25": Schedule("DDIM, 25", 25),
    "ddim100": Schedule("DDIM, 100", 100),
    "euler25": Schedule("Euler, 25", 25, "EulerDiscreteScheduler"),
    "dpm25": Schedule("DPM-Solver++, 25", 25, "DPMSolverMultistepScheduler"),
    "euler8": Schedule("Euler, 8", 8, "EulerDiscreteScheduler"),
    "lcm8": Schedule("LCM, 8", 8, "LCMScheduler"),
}


@dataclass(frozen=True)
class Made:
    """What is made of one schedule, in a directory of its own."""

    schedule: Schedule
    directory: Path

    @property
    def capture(self) -> Path:
        return self.directory / "capture"

    @property
    def trunk(self) -> Path:
        return self.directory / "trunk"

    @property
    def scores(self) -> Path:
        return self.directory / "scores.safetensors"


def some_of(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """The first so many samples of each split and label in turn, in their order, all without a label."""
    kinds: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        kinds[sample.split, label_text(sample.categories)].append(sample)
    turns = chain.from_iterable(zip_longest(*kinds.values()))
    chosen = {sample.sample_id for sample in [one for one in turns if one is not None][:limit]}
    return [replace(sample, categories=UNLABELLED) for sample in samples if sample.sample_id in chosen]
