"""Get x0 back from what the paper's public code, py85252876/UVD, saves in its place.

That code samples with DDIM, without noise of its own (ddim_eta = 0) and without clipping. In each step it
calls the scheduler twice, the second time with what the first one returned:

    y = scheduler.step(eps, t, x_t).prev_sample              pred_xt.pth: the latent after the step
    p = scheduler.step(eps, t, y).pred_original_sample       pred_x0.pth

Let a = sqrt(alpha_bar) and s = sqrt(1 - alpha_bar) at t, and a', s' the same at the timestep that the step
goes to. Then DDIM (Song et al., 2021, eq. 12) is

    x_t = a x0 + s eps,    y = a' x0 + s' eps,    and so    p = (y - s eps) / a = (a' x0 - (s - s') eps) / a

which is not x0, but x0 made larger by a'/a, less noise that is not in it any more. p and y together know both
unknowns: eps = (y - a p) / s, and

    x0 = (y - s' eps) / a' = ((1 - s'/s) y + (s' a / s) p) / a'

Both weights are from 0 to 1, so that no error is made larger. For that, `pred_xt[n, i]` has to be y: the
latent of video n just after step i, of the same run, as the code saves it. This can be checked: a x0 + s eps,
the latent before step i, has to be `pred_xt[n, i - 1]`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.noise import Scheduler

# What schedulers of Stable Diffusion's family differ in. Betas go in pairs, beta_start and beta_end.
_MAY_DIFFER: dict[str, tuple[Any, ...]] = {
    "set_alpha_to_one": (True, False),
    "steps_offset": (0, 1),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "betas": ((0.00085, 0.012), (0.0001, 0.02), (0.0015, 0.0195)),
    "rescale_betas_zero_snr": (False, True),
}


@dataclass(frozen=True)
class DdimStep:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) where a step begins, and where it goes to."""

    a: float
    s: float
    a_next: float
    s_next: float


def repair(
    pred_x0: Tensor, pred_xt: Tensor, step: DdimStep, before: Tensor | None = None
) -> tuple[Tensor, float]:
    """The x0 of a step from what the paper's code saved, and how far off its files are.

    `pred_x0` is p and `pred_xt` is y of that step, of any one shape, float32 or float64; `before` is y of the
    step before it. The second value is how far the latent that the step began with, as p and y have it, lies
    from `before`, as a share of the step's own length; 0.0 without `before`.
    """
    off = 0.0
    a, s, a_next, s_next = step.a, step.s, step.a_next, step.s_next
    x0 = ((1 - s_next / s) * pred_xt + (s_next * a / s) * pred_x0) / a_next
    if before is not None:
        x_t = a * x0 + (pred_xt - a * pred_x0)
        off = float((x_t - before).norm() / (pred_xt - before).norm().clamp_min(torch.finfo(x0.dtype).tiny))
    return x0, off


def ddim_steps(scheduler: Scheduler, steps: int) -> list[DdimStep]:
    """The noise levels of a DDIM run.

    Raises:
        LvdError: the scheduler is none that the repair is known for.
    """
    config = scheduler.config
    plain = type(scheduler).__name__ == "DDIMScheduler" and config.prediction_type == "epsilon"
    if not plain or config.clip_sample or config.thresholding:
        raise LvdError(
            "pred_xt repairs what a DDIMScheduler made that predicts epsilon and neither clips nor "
            "thresholds: pipeline=... names another"
        )
    scheduler.set_timesteps(steps)
    length = config.num_train_timesteps // steps
    found = []
    for timestep in scheduler.timesteps.tolist():
        to = timestep - length
        alpha_bar = float(scheduler.alphas_cumprod[timestep])
        alpha_bar_next = float(scheduler.alphas_cumprod[to] if to >= 0 else scheduler.final_alpha_cumprod)
        found.append(
            DdimStep(
                math.sqrt(alpha_bar),
                math.sqrt(1 - alpha_bar),
                math.sqrt(alpha_bar_next),
                math.sqrt(1 - alpha_bar_next),
            )
        )
    return found


def fitting_config(
    scheduler: Scheduler, pred_x0: Tensor, pred_xt: Tensor, allowed: float
) -> dict[str, Any] | None:
    """Which keys of a scheduler's configuration have to differ for a video's files to go together.

    `pred_x0` and `pred_xt` `[steps, C, F, H, W]` are what the paper's code saved of one video; a step may be
    as far off as `allowed`, in the measure of `repair`. Returns the fewest keys that fit, and of those the
    best; None: none of those that usually differ do.
    """
    steps = len(pred_x0)
    found: dict[int, list[tuple[float, dict[str, Any]]]] = {}
    for changes in _changes(dict(scheduler.config)):
        try:
            levels = ddim_steps(type(scheduler).from_config(dict(scheduler.config), **changes), steps)
        except (IndexError, ValueError):  # timesteps that the scheduler does not have
            continue
        worst = 0.0
        for step in range(steps - 1, 0, -1):  # the last one tells most of them apart
            before, after = pred_xt[step - 1].float(), pred_xt[step].float()
            worst = max(worst, repair(pred_x0[step].float(), after, levels[step], before)[1])
            if not worst <= allowed:
                break
        else:
            found.setdefault(len(changes), []).append((worst, changes))
    if not found:
        return None
    return min(found[min(found)], key=lambda fit: fit[0])[1]


def _changes(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every choice of what may differ, as the keys in which it does differ from `config`."""
    for values in product(*_MAY_DIFFER.values()):
        chosen = dict(zip(_MAY_DIFFER, values, strict=True))
        chosen["beta_start"], chosen["beta_end"] = chosen.pop("betas")
        yield {key: value for key, value in chosen.items() if config.get(key) != value}
