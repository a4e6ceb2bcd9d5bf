"""Decode a step's x0 to the frames that a detector of pixels reads: once, by the job that comes first."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvd.capture.decode import decode_frames, frames_at_once, load_vae
from lvd.capture.resize import fitted, spread
from lvd.files import atomic_file
from lvd.latents import disk, lock
from lvd.latents.frames import FrameShape, StepFrames, frames_path, open_frames, write_record
from lvd.latents.reader import CaptureReader

_ROWS = 16  # videos at once; only their fitted frames are held together


def step_frames(
    capture: CaptureReader, step: int, shape: FrameShape, device: torch.device | None = None
) -> StepFrames:
    """The frames of every sample at one step, made when they are not there.

    Of many processes one makes them, and the others wait. A killed one leaves nothing that counts.

    Raises:
        LvdError: the VAE cannot be had or does not decode frame by frame, or there is no room.
    """
    path = frames_path(capture.directory, step, shape)
    found = open_frames(capture, step, shape)
    if found is None:
        with disk.translate_errors(capture.directory), lock.in_turn(path.with_name(f".{path.stem}.lock")):
            found = open_frames(capture, step, shape)
            if found is None:
                _make(capture, step, shape, path, device or torch.device("cpu"))
                found = StepFrames(path, len(capture.samples), shape)
    return found


def decode_clips(vae: Any, x0_BCFHW: Tensor, shape: FrameShape) -> Tensor:
    """The frames `[B, 3, F', H', W']` uint8 of x0 as captured, on the CPU.

    Of a video's frames, `shape.count` are taken evenly from the first to the last; fewer are repeated. A
    frame is resized by its shorter side (bilinear, antialiased) and cropped in the middle, as VideoMAE's own
    preprocessing does.
    """
    x0 = x0_BCFHW.float()[:, :, spread(x0_BCFHW.shape[2], shape.count)]
    frames = [
        _as_bytes(fitted(decode_frames(vae, part), shape.height, shape.width))
        for part in x0.transpose(1, 2).flatten(0, 1).split(frames_at_once(vae, x0))
    ]
    clips_BFCHW: Tensor = torch.cat(frames).unflatten(0, (len(x0), shape.count))
    return clips_BFCHW.transpose(1, 2)


def inference_device(accelerator: str) -> torch.device:
    """Where frames are decoded and trained networks run, by Lightning's word for where a job trains."""
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def _make(capture: CaptureReader, step: int, shape: FrameShape, path: Path, device: torch.device) -> None:
    samples = len(capture.samples)
    disk.need(path.parent, shape.bytes_of(samples), f"decoding step {step} to frames")
    vae = load_vae(capture.info.origin, download=True).to(device)
    latents = capture.step(step)
    path.with_suffix(".json").unlink(missing_ok=True)
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a killed process: this one has the lock
        left.unlink()
    with atomic_file(path) as partial:
        frames = np.lib.format.open_memmap(
            partial, "w+", np.uint8, (samples, 3, shape.count, shape.height, shape.width)
        )
        for start in range(0, samples, _ROWS):
            rows = range(start, min(start + _ROWS, samples))
            frames[rows] = decode_clips(vae, torch.from_numpy(latents.read(rows)), shape).numpy()
        frames.flush()
        del frames
    write_record(capture, path)


def _as_bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().byte()
