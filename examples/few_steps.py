"""Guard a sampler that calls no `scheduler.step`: a model of few steps, as DMD and Self-Forcing distil them.

    python examples/few_steps.py runs/mine/bundle

Such a sampler predicts x0 from noise, adds less noise to it, and predicts again. The session is told each x0
before it is used. The network here is a stand-in with random weights: it shows the loop, and no video.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lvd.errors import LvdError
from lvd.guard import AuditLog, Guard, Session

Denoise = Callable[[Tensor, float], Tensor]  # (x_t [B, C, F, H, W], noise level in (0, 1]) -> x0


def sample(session: Session, denoise: Denoise, noise_BCFHW: Tensor, levels: Sequence[float]) -> Tensor | None:
    """The last x0 `[B, C, F, H, W]`, with zeros for what is blocked; None when all are.

    levels: the noise level of each step, falling from 1.
    """
    x_t = noise_BCFHW
    for step, level in enumerate(levels):
        x0 = denoise(x_t, level)
        session.check(step, x0, x_t, noise_level=level)
        if session.stopped:
            return None
        lower = levels[step + 1] if step + 1 < len(levels) else 0.0
        x_t = add_noise(x0, lower)
        session.blank(x_t)
    return x_t


def add_noise(x0: Tensor, level: float) -> Tensor:
    """As flow matching has it: at level 1 there is noise alone."""
    return (1 - level) * x0 + level * torch.randn_like(x0)


class StandIn(nn.Module):
    """Answers in the right shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels, channels, kernel_size=3, padding=1)

    @torch.no_grad()
    def forward(self, x_t: Tensor, level: float) -> Tensor:
        x0: Tensor = (1 - level) * x_t + level * self.convolution(x_t)
        return x0


def main() -> None:
    parser = argparse.ArgumentParser(description="A few-step sampler under guard.")
    parser.add_argument("bundle", help="what evaluate.py exported")
    parser.add_argument("--digest", help="the bundle's digest, as evaluate.py printed it")
    parser.add_argument("--audit", help="a log of the decisions")
    parser.add_argument("--prompt", nargs="+", default=["a cat", "a dog", "a bird"])
    arguments = parser.parse_args()
    audit = None if arguments.audit is None else AuditLog(arguments.audit)
    try:
        guard = Guard.from_pretrained(arguments.bundle, digest=arguments.digest, audit=audit)
        info, prompts = guard.bundle.info, arguments.prompt
        torch.manual_seed(0)
        network = StandIn(info.origin.latent_shape[0])
        noise = torch.randn(len(prompts), *info.origin.latent_shape)
        levels = [1 - step / info.origin.steps for step in range(info.origin.steps)]
        with guard.session(samples=len(prompts), prompts=prompts) as session:
            latents = sample(session, network, noise, levels)
        decisions = session.close()
    except LvdError as error:
        raise SystemExit(f"error: {error}") from None
    for row, (prompt, decision) in enumerate(zip(prompts, decisions, strict=True)):
        made = "withheld"
        if decision.released and latents is not None:
            made = f"a latent {list(latents[row].shape)} to decode"
        print(f"{prompt}: {decision.outcome} ({decision.why}): {made}")


if __name__ == "__main__":
    main()
