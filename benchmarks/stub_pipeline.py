"""A pipeline of any network and a real scheduler, which knows what lay between its network's calls."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Timeline:
    """Moments in a device's work, in the order in which it comes to them; of a CPU, in the program's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moments: list[Any] = []

    def mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._moments.append(event)
        else:
            self._moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each moment and the next; a GPU is waited for."""
        pairs = list(zip(self._moments, self._moments[1:], strict=False))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]


class StubPipeline:
    """Calls `denoise` before each step of `scheduler`, which goes on with noise in place of its answer.

    noise: what every step is given, `[B, C, F, H, W]`, where the latents are, too.
    """

    def __init__(self, scheduler: Any, noise: Tensor, steps: int, denoise: Callable[[], object]) -> None:
        self.unet = SimpleNamespace(config={})  # a guard asks what it was made for
        self.scheduler = scheduler
        self._noise, self._steps, self._denoise = noise, steps, denoise
        self.calls: list[Timeline] = []

    def __call__(self, prompt: Any = None, **_: Any) -> tuple[Tensor]:  # noqa: ARG002 - a guard gives one
        timeline = Timeline(self._noise.device)
        self.calls.append(timeline)
        self.scheduler.set_timesteps(self._steps, device=self._noise.device)
        latents = self._noise
        for timestep in self.scheduler.timesteps:
            timeline.mark()
            self._denoise()
            timeline.mark()
            latents = self.scheduler.step(self._noise, timestep, latents, return_dict=False)[0]
        timeline.mark()
        return (latents,)

    def of_network(self) -> list[float]:
        """Seconds of each call of the network, of all calls of the pipeline."""
        return [seconds for call in self.calls for seconds in call.seconds()[::2]]

    def between(self) -> list[list[float]]:
        """Seconds from each of its ends to the next beginning, or to the last step's end: a list a call."""
        return [call.seconds()[1::2] for call in self.calls]
