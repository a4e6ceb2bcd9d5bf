"""A model of ComfyUI under a session of the guard: each sampling is checked, and what is blocked is blank.

ComfyUI's samplers report each step's x0 after guidance (`denoised`) to a callback, once a step, in the space
of the network's own latents. That is the space in which a scheduler of diffusers steps the same network, so
that x0 is compared as it is; `process_latent_out` comes after the sampling.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.guard import Decision, Guard, Session

# Pipelines of diffusers whose scheduler steps latents in the space of this latent format of ComfyUI.
SAME_SPACE = {
    "HunyuanVideo": ("HunyuanVideoPipeline",),
    "Mochi": ("MochiPipeline",),
    "Wan21": ("WanModularPipeline", "WanPipeline"),
}


class _Stopped(BaseException):
    """All rows are blocked. Not an Exception: a sampler must not catch it."""


def guard_model(model: Any, guard: Guard, show: Callable[[str], None]) -> Any:
    """A clone of a ModelPatcher whose samplings are guarded; `show` gets what was decided of each.

    Raises:
        LvdError: the bundle was not made from this model's kind of latents.
    """
    known = type(model.model.latent_format).__name__
    made_from = guard.bundle.info.origin.pipeline_class
    if made_from not in SAME_SPACE.get(known, ()):
        raise LvdError(f"the bundle was made from {made_from}, and the model's latents are {known}'s")
    guarded = model.clone()

    def around(
        execute: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *rest: Any
    ) -> Tensor:
        mask, callback, *others = rest
        session = guard.session(samples=len(noise), steps=len(sigmas) - 1)
        if mask is not None:
            session.fail("a part of the latent is kept (a noise mask), which a capture does not do")
        sampling = _Sampling(session, callback)
        samples: Tensor | None = None
        with session:
            try:
                samples = execute(noise, latent, sampler, sigmas, mask, sampling.step, *others)
                decisions = session.close(videos=len(samples))
            except _Stopped:
                decisions = session.abort("the sampling was stopped")
        withheld = [row for row, decision in enumerate(decisions) if not decision.released]
        sampling.blank(withheld)
        if samples is None or len(samples) != len(noise):  # in no known order: nothing of them is handed out
            samples, withheld = torch.zeros_like(noise), []
        samples[withheld] = 0
        _tell(show, decisions)
        return samples

    guarded.add_wrapper_with_key("outer_sample", "lvd", around)
    return guarded


class _Sampling:
    """The callback of one sampling, and what it has let through."""

    def __init__(self, session: Session, callback: Callable[..., None] | None) -> None:
        self._session = session
        self._callback = callback
        self._shown: Tensor | None = None  # a preview, and a second output of some samplers

    def step(self, step: int, x0: Tensor, x_t: Tensor, steps: int) -> None:
        verdicts = self._session.check(step, x0, x_t)
        self._session.blank(x_t)
        if self._session.stopped:
            self.blank(range(len(x0)))
            raise _Stopped
        if self._callback is not None:
            self._shown, x_t = x0.clone(), x_t.clone()
            hidden = [row for row, said in enumerate(verdicts) if said.blocked or said.outcome is None]
            self.blank(hidden)  # of what is not decided yet, a preview may show what will be blocked
            x_t[hidden] = 0
            self._callback(step, self._shown, x_t, steps)

    def blank(self, rows: Sequence[int]) -> None:
        if self._shown is not None:
            self._shown[list(rows)] = 0


def _tell(show: Callable[[str], None], decisions: Sequence[Decision]) -> None:
    """One line a row. A browser that cannot be reached changes nothing about what is withheld."""
    lines = [
        f"{row}: {decision.outcome} ({decision.why}): {'released' if decision.released else 'withheld'}"
        for row, decision in enumerate(decisions)
    ]
    try:
        show("\n".join(lines))
    except Exception:
        logging.getLogger(__name__).warning("the decisions could not be shown: %s", "; ".join(lines))
