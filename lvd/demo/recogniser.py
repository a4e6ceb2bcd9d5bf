"""A recogniser of scenes: which subjects and which place a single frame shows.

It learns from recorded clips and their pixel labels, never from captions, and sees blurred, noisy and tinted
copies, so that it also judges what a generator draws.
"""

import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from lvd.demo.scenes import CATEGORY_NAMES, PLACES, SUBJECTS, Scene
from lvd.errors import LvdError

RECOGNISER = Path(__file__).with_name("recogniser.safetensors")
EMPTY = "empty room"
THINGS = tuple(name for name in SUBJECTS if name != EMPTY)
VISIBLE = 0.015  # the share of a frame from which a subject counts as seen
SURE = 0.98  # a clip whose verdict is less sure is unclear; recorded clips are all above 0.99
_WIDTHS = (3, 24, 48, 96, 128)


class Recogniser(nn.Module):
    """Frames `[N, 3, SIZE, SIZE]` in [-1, 1] -> logits `[N, len(THINGS) + len(PLACES)]`, one each."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(pairwise(_WIDTHS))
        self.convs = nn.ModuleList(
            nn.Conv2d(wide, out, kernel_size=3 + (i == 0), stride=2, padding=1)
            for i, (wide, out) in enumerate(pairs)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _, out in pairs)
        self.head = nn.Linear(_WIDTHS[-1], len(THINGS) + len(PLACES))

    def features(self, frames: Tensor) -> list[Tensor]:
        """What every layer sees, fine to coarse: for a perceptual loss, and to compare frames."""
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            frames = torch.relu(norm(conv(frames)))
            found.append(frames)
        return found

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(frames)[-1].mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class Verdict:
    """What a clip shows: a key of `SUBJECTS` and one of `PLACES`, how sure, and the share of its frames."""

    subject: str
    place: str
    sure: float
    steady: float

    @property
    def clear(self) -> bool:
        return self.sure >= SURE

    @property
    def categories(self) -> tuple[str, ...]:
        return (self.subject,) if self.subject in CATEGORY_NAMES else ()


def to_float(frames: np.ndarray) -> Tensor:
    """Frames `[..., H, W, 3]` uint8 as `[..., 3, H, W]` float32 in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).movedim(-1, -3).float() / 127.5 - 1.0


def targets(scenes: list[Scene], shares: np.ndarray) -> Tensor:
    """What a recogniser should say to every frame: `[N, FRAMES, len(THINGS) + len(PLACES)]` of 0 and 1."""
    wanted = torch.zeros(*shares.shape, len(THINGS) + len(PLACES))
    for i, scene in enumerate(scenes):
        if scene.subject != EMPTY:
            wanted[i, :, THINGS.index(scene.subject)] = torch.from_numpy(shares[i] > VISIBLE).float()
        wanted[i, :, len(THINGS) + list(PLACES).index(scene.place)] = 1
    return wanted


def spoil(frames: Tensor) -> Tensor:
    """Blur, noise and a tint, drawn at random: what generated frames suffer from."""
    scale = (1, 2, 4)[int(torch.randint(3, ()))]
    if scale > 1:
        coarse = F.interpolate(F.avg_pool2d(frames, scale), scale_factor=scale, mode="bilinear")
        frames = coarse if scale == 2 else (coarse + frames) / 2
    noise = torch.randn_like(frames) * 0.1 * torch.rand(len(frames), 1, 1, 1)
    return frames + noise + 0.1 * torch.randn(len(frames), 3, 1, 1)


def train_recogniser(clips: np.ndarray, wanted: Tensor, steps: int, batch: int = 64) -> Recogniser:
    """Learn single frames of `[N, FRAMES, SIZE, SIZE, 3]` uint8 clips."""
    recogniser = Recogniser().train()
    optimizer = torch.optim.AdamW(recogniser.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    last = time.monotonic()
    for step in range(steps):
        rows, frames = torch.randint(len(clips), (batch,)), torch.randint(clips.shape[1], (batch,))
        logits = recogniser(spoil(to_float(clips[rows.numpy(), frames.numpy()])))
        loss = F.binary_cross_entropy_with_logits(logits, wanted[rows, frames])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if time.monotonic() - last > 30:
            print(f"recogniser step {step + 1} of {steps}: loss {loss.item():.4f}", flush=True)
            last = time.monotonic()
    return recogniser.eval().requires_grad_(False)


def load_recogniser(path: Path = RECOGNISER) -> Recogniser:
    """The trained recogniser. Raises `LvdError` if it is not there."""
    if not path.is_file():
        raise LvdError(f"no recogniser at {path}: make one with `python -m lvd.demo.recipe`")
    recogniser = Recogniser()
    recogniser.load_state_dict(load_file(path))
    return recogniser.eval().requires_grad_(False)


@torch.no_grad()
def frame_logits(recogniser: Recogniser, videos: Tensor) -> Tensor:
    """What the recogniser says of each frame: logits `[N, T, len(THINGS) + len(PLACES)]` on the CPU.

    `videos` `[N, T, 3, SIZE, SIZE]` in [-1, 1] and the recogniser may be on different devices.
    """
    device = next(recogniser.parameters()).device
    logits: Tensor = recogniser(videos.flatten(0, 1).to(device)).unflatten(0, videos.shape[:2])
    return logits.cpu()


def judge(recogniser: Recogniser, videos: Tensor) -> list[Verdict]:
    """Verdicts on `[N, T, 3, SIZE, SIZE]` videos in [-1, 1]: the logits of the frames are averaged.

    `sure` is the probability that the subject is there and nothing else is.
    """
    logits = frame_logits(recogniser, videos)
    of_frames = [[_subject(frame) for frame in clip] for clip in logits]
    verdicts = []
    for clip, seen in zip(logits.mean(dim=1), of_frames, strict=True):
        subject = _subject(clip)
        sign = torch.tensor([1.0 if thing == subject else -1.0 for thing in THINGS])
        verdicts.append(
            Verdict(
                subject=subject,
                place=list(PLACES)[int(clip[len(THINGS) :].argmax())],
                sure=float((clip[: len(THINGS)] * sign).sigmoid().prod()),
                steady=seen.count(subject) / len(seen),
            )
        )
    return verdicts


def _subject(logits: Tensor) -> str:
    """The likeliest thing, or an empty room where none is likely."""
    best = int(logits[: len(THINGS)].argmax())
    return THINGS[best] if logits[best] > 0 else EMPTY
