"""Train the generator's autoencoder and its denoiser, from a snapshot where there is one."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor

from lvd.demo.basis import Basis
from lvd.demo.muon import Muon, matrices_and_rest
from lvd.demo.networks import build_scheduler
from lvd.demo.recogniser import Recogniser, to_float
from lvd.demo.scenes import FRAMES
from lvd.files import atomic_file

ADAM_LR = 2e-3
SNAPSHOT_SECONDS = 90


class Training:
    """A network with its two optimizers, its average over the last steps, and a snapshot to resume from.

    The rate stays as it is for most of the steps and falls linearly over the last `cooling` of them, so that
    a run can be prolonged: train with `cooling=0` first.
    """

    def __init__(
        self, network: Any, steps: int, snapshot: Path, *, cooling: float, muon_lr: float, adam_lr: float
    ) -> None:
        matrices, rest = matrices_and_rest(network)
        self.network, self.steps, self.snapshot, self.cooling = network, steps, snapshot, cooling
        self.muon, self.adam = (
            Muon(matrices, muon_lr),
            torch.optim.AdamW(rest, adam_lr, (0.9, 0.98), weight_decay=0),
        )
        self.rest, self.rates = rest, ((self.muon, muon_lr), (self.adam, adam_lr))
        self.average = copy.deepcopy(network.state_dict())
        self.done, self.loss = 0, float("nan")
        if snapshot.exists():
            state = torch.load(snapshot, weights_only=True)
            network.load_state_dict(state["network"])
            self.average, self.done = state["average"], state["done"]
            self.muon.load_state_dict(state["muon"])
            self.adam.load_state_dict(state["adam"])
            print(f"{snapshot.stem}: resuming at step {self.done}", flush=True)

    def run(self, name: str) -> Iterator[int]:
        """Yield every step that is left, with a line every half minute and a snapshot now and then."""
        started = last = saved = time.monotonic()
        first = self.done
        for step in range(self.done, self.steps):
            yield step
            now = time.monotonic()
            if now - last > 30:
                speed = (step + 1 - first) / (now - started)
                left = (self.steps - step - 1) / speed / 60
                print(
                    f"{name} step {step + 1}: loss {self.loss:.4f}, {speed:.2f} steps/s, {left:.0f} min left",
                    flush=True,
                )
                last = now
            if now - saved > SNAPSHOT_SECONDS:
                self.save()
                saved = now
        self.save()

    def step(self, loss: Tensor) -> None:
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.rest, 1.0)
        cooled = (self.steps - self.done) / max(1.0, self.cooling * self.steps)
        for optimizer, rate in self.rates:
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (self.done + 1) / 50, cooled)
            optimizer.step()
        self.done += 1
        decay = min(0.997, (self.done + 1) / (self.done + 10))
        with torch.no_grad():
            for key, value in self.network.state_dict().items():
                self.average[key].lerp_(value, 1 - decay)
        self.loss = 0.98 * self.loss + 0.02 * loss.item() if self.loss == self.loss else loss.item()

    def save(self) -> None:
        state = {"network": self.network.state_dict(), "average": self.average, "done": self.done}
        state |= {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}
        with atomic_file(self.snapshot) as partial:
            torch.save(state, partial)


def train_vae(
    vae: AutoencoderKL, basis: Basis, recogniser: Recogniser, clips: np.ndarray, steps: int, snapshot: Path
) -> None:
    """Draw frames from their latents, as the recogniser sees them too, and learn to compute the latents.

    Latents get a little noise: what a denoiser leaves. Leaves the averaged weights in place.
    """
    training = Training(vae.train(), steps, snapshot, cooling=0.4, muon_lr=0.01, adam_lr=ADAM_LR)
    for step in training.run("vae"):
        rows, frames = torch.randint(len(clips), (16,)), torch.randint(FRAMES, (16,))
        picture = to_float(clips[rows.numpy(), frames.numpy()])
        latents = basis.encode(picture)
        noise = 0.1 * torch.rand(16, 1, 1, 1) * torch.randn_like(latents)
        drawn = vae.decode(latents + noise).sample
        seen = zip(recogniser.features(drawn)[:3], recogniser.features(picture)[:3], strict=True)
        loss = F.l1_loss(drawn, picture) + 0.5 * F.mse_loss(drawn, picture)
        loss = loss + 0.1 * sum((one - other).abs().mean() for one, other in seen)
        if step % 3 == 0:  # the encoder has the easier half
            loss = loss + F.mse_loss(vae.encode(picture).latent_dist.mean, latents)
        training.step(loss)
    vae.load_state_dict(training.average)
    vae.eval()


def train_denoiser(
    unet: UNetMotionModel,
    hidden: Tensor,
    caption_index: Tensor,
    latents: Tensor,
    *,
    frames: int,
    steps: int,
    snapshot: Path,
) -> None:
    """v-prediction, one caption in twenty dropped; leaves the averaged weights in place.

    Learns clips of `frames` frames: 1 learns what things look like, and leaves the motion modules out,
    FRAMES then learns how they move (as AnimateDiff does; Guo et al., 2024). hidden
    `[distinct, MAX_TOKENS, TEXT_WIDTH]` holds each distinct caption once, encoded, the empty one first;
    caption_index `[N, captions]` says which describe `latents[i]`.
    """
    alpha_bar = build_scheduler().alphas_cumprod
    batch, muon_lr, cooling = (32, 0.012, 0.0) if frames == 1 else (4, 0.008, 0.6)
    with without_motion(unet) if frames == 1 else nullcontext():
        training = Training(unet.train(), steps, snapshot, cooling=cooling, muon_lr=muon_lr, adam_lr=ADAM_LR)
        for _ in training.run(f"{frames}-frame clips"):
            rows = torch.randint(len(latents), (batch,))
            start = torch.randint(FRAMES - frames + 1, (batch,))
            x_0 = torch.stack(
                [latents[row, :, at : at + frames] for row, at in zip(rows, start, strict=True)]
            )
            timestep = ((torch.arange(batch) + torch.rand(batch)) / batch * len(alpha_bar)).long()
            signal = alpha_bar[timestep].sqrt().view(-1, 1, 1, 1, 1)
            spread = (1 - alpha_bar[timestep]).sqrt().view(-1, 1, 1, 1, 1)
            noise = torch.randn_like(x_0)
            captions = caption_index[rows, torch.randint(caption_index.shape[1], (batch,))]
            states = hidden[captions * (torch.rand(batch) >= 0.05)]
            predicted = unet(
                signal * x_0 + spread * noise,
                timestep,
                encoder_hidden_states=states.repeat_interleave(frames, dim=0),
            ).sample
            training.step(F.mse_loss(predicted, signal * noise - spread * x_0))
    unet.load_state_dict(training.average)
    unet.eval()


@contextmanager
def without_motion(unet: UNetMotionModel) -> Iterator[None]:
    """Motion modules that change nothing, and cost nothing; afterwards they begin as such."""
    modules = [module for module in unet.modules() if isinstance(module, AnimateDiffTransformer3D)]
    for module in modules:
        torch.nn.init.zeros_(module.proj_out.weight)
        torch.nn.init.zeros_(module.proj_out.bias)
        module.forward = _pass_through
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _pass_through(hidden_states: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return hidden_states
