"""The demo's sampler, detectors and sequential rule with gradients, for attack.py to lower margins by."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from beyond import by_subject
from pgd import Seen
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lvd.decide.sequential import _LARGEST, Sequential
from lvd.demo.recogniser import THINGS, Recogniser
from lvd.detect.ensemble import Detectors
from lvd.errors import LvdError
from lvd.guard.bundle import BundleInfo
from lvd.sampling.x0 import predict_x0


class Surrogate:
    """The sampler, the detectors and the rule, so that gradients pass through them.

    every: gradients pass through the denoiser at each so many steps; keep: the weight of the recogniser's
    loss.
    """

    def __init__(
        self,
        pipe: Any,
        info: BundleInfo,
        detectors: Detectors,
        recogniser: Recogniser,
        every: int,
        keep: float,
    ) -> None:
        if not isinstance(info.rule, Sequential):
            raise LvdError("the attack is on the sequential rule: evaluate with decision=sequential first")
        if info.origin.layout != "BCFHW":
            raise LvdError(f"the attack knows latents of the layout BCFHW, not {info.origin.layout}")
        for network in (pipe.unet, pipe.vae):
            network.requires_grad_(False)
        self._pipe, self._info, self._rule = pipe, info, info.rule
        self._detectors, self._recogniser = detectors, recogniser
        self._every, self._keep = every, keep

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """The prompts as the denoiser takes them, the empty ones first where it is guided."""
        guided = (self._info.origin.guidance or 0) > 1
        frames = self._info.origin.latent_shape[1]
        with torch.no_grad():
            given, empty = self._pipe.encode_prompt(list(prompts), self._pipe.device, 1, guided)
        return (torch.cat([empty, given]) if guided else given).repeat_interleave(frames, dim=0)

    def sample(
        self, noise_BCFHW: Tensor, embedded: Tensor, generators: list[torch.Generator]
    ) -> tuple[Tensor, Tensor]:
        """x0 of each step that the rule looks at, `[B, S, C, F, H, W]`, and the last latent.

        generators: of the noise that a sampler with ddim_eta > 0 adds at each step, one a sample.
        """
        pipe, guidance = self._pipe, self._info.origin.guidance or 0.0
        of_step = pipe.prepare_extra_step_kwargs(generators, self._info.origin.call.get("eta", 0.0))
        pipe.scheduler.set_timesteps(self._info.origin.steps, device=noise_BCFHW.device)
        latents, x0 = noise_BCFHW * pipe.scheduler.init_noise_sigma, []
        for step, timestep in enumerate(pipe.scheduler.timesteps):
            given = torch.cat([latents] * 2) if guidance > 1 else latents
            given = pipe.scheduler.scale_model_input(given, timestep)
            if step % self._every == 0 and given.requires_grad:
                output = checkpoint(self._denoise, given, timestep, embedded, use_reentrant=False)
            else:
                with torch.no_grad():
                    output = self._denoise(given, timestep, embedded)
            if guidance > 1:
                empty, prompted = output.chunk(2)
                output = empty + guidance * (prompted - empty)
            if step < self._rule.steps:
                x0.append(predict_x0(pipe.scheduler, output, timestep, latents))
            latents = pipe.scheduler.step(output, timestep, latents, **of_step).prev_sample
        return torch.stack(x0, dim=1), latents

    def _denoise(self, given: Tensor, timestep: Tensor, embedded: Tensor) -> Tensor:
        output: Tensor = self._pipe.unet(given, timestep, encoder_hidden_states=embedded).sample
        return output

    def margins(self, x0_BSCFHW: Tensor) -> Tensor:
        """The rule's margins of the categories that it blocks, `[B, S, K]`."""
        stored = _passed_over(x0_BSCFHW, x0_BSCFHW.half().float())  # as a guard sees it
        logits = [self._detectors(step, stored[:, step]) for step in range(stored.shape[1])]
        return margins(self._rule, torch.stack(logits, dim=1))

    def see(
        self, embedded: Tensor, subjects: Sequence[str], seeds: Sequence[int]
    ) -> Callable[[Tensor], Seen]:
        """What becomes of noises whose videos should go on showing their subjects."""

        def look(noise_BCFHW: Tensor) -> Seen:
            x0_BSCFHW, latents = self.sample(noise_BCFHW, embedded, generators(seeds))
            margins_BSK = self.margins(x0_BSCFHW)
            frames = self._pipe.decode_latents(latents).transpose(1, 2)  # [B, F, 3, H, W]
            logits = self._recogniser(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(dim=1)
            unsafe = [
                one.unsafe is True for one in by_subject(self._recogniser, frames.detach().clamp(-1, 1))
            ]
            return Seen(
                smooth_maximum(margins_BSK) + self._keep * unsure(logits, subjects),
                margins_BSK.detach().amax(dim=(1, 2)),
                torch.tensor(unsafe, device=noise_BCFHW.device),
            )

        return look

    def see_x0(self, x0_BSCFHW: Tensor) -> Seen:
        """What becomes of x0 that the detectors see in place of the sampler's: the video stays what it is."""
        margins_BSK = self.margins(x0_BSCFHW)
        highest = margins_BSK.detach().amax(dim=(1, 2))
        return Seen(smooth_maximum(margins_BSK), highest, torch.ones_like(highest, dtype=torch.bool))


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Of the noise that each sample's steps add; whoever knows the seed knows it beforehand."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def margins(rule: Sequential, logits_BSK: Tensor) -> Tensor:
    """How far the evidence of each category that is blocked lies above its boundary, `[B, S, K]`."""
    steps = logits_BSK.shape[1]

    def of_rule(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=logits_BSK.device)

    evidence = rule.evidence
    # Nothing is won by a logit below the lower bound; one above the upper has a way to go.
    clipped = _passed_over(logits_BSK.clamp_min(-_LARGEST), logits_BSK.clamp(-_LARGEST, _LARGEST))
    cumulated = (of_rule(evidence.weight_SK[:steps]) * clipped).cumsum(dim=1)
    found = of_rule(evidence.scale_SK[:steps]) * cumulated + of_rule(evidence.offset_SK[:steps])
    blocked = [column for column, policy in enumerate(rule.policy) if policy == "block"]
    return (found - of_rule(rule.boundary))[:, :, blocked]


def smooth_maximum(margins_BSK: Tensor) -> Tensor:
    return margins_BSK.flatten(1).logsumexp(dim=1)


def unsure(logits: Tensor, subjects: Sequence[str]) -> Tensor:
    """-log of the recogniser's probability that a subject is there and nothing else is, `[B]`."""
    there = torch.tensor([[thing == subject for thing in THINGS] for subject in subjects])
    sign = there.to(logits.device).float() * 2 - 1
    return F.softplus(-sign * logits[:, : len(THINGS)]).sum(dim=1)


def _passed_over(smooth: Tensor, exact: Tensor) -> Tensor:
    """`exact`, with the gradient of `smooth`."""
    return smooth + (exact - smooth).detach()
