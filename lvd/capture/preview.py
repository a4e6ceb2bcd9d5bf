"""The videos of a capture, for people who label them: `preview/<sample_id>.mp4`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lvd.capture.decode import decode_frames, frames_at_once, load_vae
from lvd.errors import LvdError
from lvd.files import atomic_file
from lvd.latents import disk
from lvd.latents.reader import CaptureReader
from lvd.progress import progress

FOLDER = "preview"
FRAMES_A_SECOND = 10.0  # of a pipeline that is not told any
_ENDINGS = (".mp4", ".webm", ".gif", ".webp")  # real videos first; earlier versions wrote .gif
_SIDE = 256  # pixels: smaller videos are enlarged to about this, as H.264 halves the colours' resolution
_ROWS = 8  # videos whose latents are read at once

Frames = npt.NDArray[np.uint8]


def find_preview(capture: Path, sample_id: str) -> Path | None:
    """The preview of a sample, whatever it was written as; None: it has none."""
    paths = (capture / FOLDER / f"{sample_id}{ending}" for ending in _ENDINGS)
    return next((path for path in paths if path.is_file()), None)


def frames_a_second(call: Mapping[str, Any]) -> float:
    """How fast a video is played, by the arguments of the pipeline's call."""
    return float(call.get("frame_rate") or call.get("fps") or FRAMES_A_SECOND)


def write_preview(capture: Path, sample_id: str, frames_FHWC: npt.NDArray[Any], rate: float) -> None:
    """Write the preview of a sample, as `write_video` does."""
    write_video(capture / FOLDER / f"{sample_id}.mp4", frames_FHWC, rate)


def write_video(path: Path, frames_FHWC: npt.NDArray[Any], rate: float) -> None:
    """Write a video, in one move: H.264 in MP4, which every browser plays. Frames are floats in [0, 1]."""
    import av

    frames = _enlarged((np.nan_to_num(frames_FHWC).clip(0, 1) * 255).round().astype(np.uint8))
    options = {"movflags": "+faststart"}
    with (
        atomic_file(path) as partial,
        av.open(str(partial), "w", format="mp4", options=options) as container,
    ):
        quality = {"crf": "18", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=round(rate), options=quality)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_missing_previews(capture: CaptureReader, device: torch.device | None = None) -> int:
    """Make the previews that a capture lacks, from x0 of its last stored step; returns how many those are.

    At the sampler's last step that is the video; at an earlier one, what it would have become.

    Raises:
        LvdError: the pipeline's VAE cannot be had or does not decode frame by frame, or there is no room.
    """
    missing = [
        row
        for row, sample in enumerate(capture.samples)
        if find_preview(capture.directory, sample.sample_id) is None
    ]
    if not missing:
        return 0
    try:
        vae = load_vae(capture.info.origin, download=True).to(device or torch.device("cpu"))
    except LvdError as error:
        raise LvdError(
            f"{len(missing)} of {len(capture.samples)} samples of {capture.directory} have no preview, and "
            f"{error}: capture with preview=true"
        ) from error
    latents = capture.step(capture.info.stored_steps - 1)
    rate = frames_a_second(capture.info.origin.call)
    with (
        disk.translate_errors(capture.directory),
        progress("decoding previews", len(missing), "videos") as advance,
    ):
        for start in range(0, len(missing), _ROWS):
            rows = missing[start : start + _ROWS]
            for row, x0_CFHW in zip(rows, torch.from_numpy(latents.read(rows)).float(), strict=True):
                images_FCHW = x0_CFHW.transpose(0, 1)
                parts = images_FCHW.split(frames_at_once(vae, images_FCHW))
                video_FCHW = torch.cat([decode_frames(vae, part) for part in parts])
                video_FHWC = video_FCHW.permute(0, 2, 3, 1).numpy()
                write_preview(capture.directory, capture.samples[row].sample_id, video_FHWC, rate)
            advance(len(rows))
    return len(missing)


def _enlarged(frames_FHWC: Frames) -> Frames:
    """By a whole factor, and with even sides, as the codec wants them."""
    height, width = frames_FHWC.shape[1:3]
    factor = max(1, _SIDE // max(height, width))
    larger = frames_FHWC.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = larger.shape[1:3]
    return np.pad(larger, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
