"""Real clips in place of what a pipeline samples: read, encoded by its VAE, noised to each step's level."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvd.capture.container import missing_bytes
from lvd.capture.encode import encode_clip
from lvd.capture.resize import fitted, spread
from lvd.capture.source import FRAMES, Source
from lvd.errors import LvdError
from lvd.latents.format import Sample
from lvd.sampling.call import free_models, inputs_of, takes
from lvd.sampling.fingerprint import Pipeline
from lvd.sampling.noised import Start, find_start, noised_steps
from lvd.sampling.pipelines import latent_size, layout_of, made_from_input

_INSTEAD = "copy it again, or write what is left to a new file (ffmpeg -i OLD NEW) and name that"


@dataclass(frozen=True)
class ClipReading:
    """How clips are read: of `seconds` in their middle, or whole."""

    seconds: float | None = None

    def settings(self) -> dict[str, Any]:
        """What capture.json says of it."""
        return {"seconds": self.seconds}


@dataclass(frozen=True)
class ClipSize:
    """What the generator makes of a video, in pixels and frames."""

    frames: int
    height: int
    width: int

    @classmethod
    def of(cls, pipe: Pipeline, call: dict[str, Any]) -> "ClipSize":
        """What a pipeline makes in a call.

        Raises:
            LvdError: neither the call nor the pipeline says it.
        """
        given = {**inputs_of(pipe), **call}
        frames = next((name for name in FRAMES if name in given), FRAMES[0])
        sizes: list[Any] = [given.get(name) for name in (frames, "height", "width")]
        if not all(type(size) is int for size in sizes):
            raise LvdError(
                "clips are made as large as the generator's videos: "
                f"give {frames}, height and width in pipeline.call"
            )
        return cls(*sizes)


@dataclass(frozen=True)
class NoisedClips:
    """A batch of clips on its way into a sampling."""

    frames_BFHWC: Any  # what people see of them, in [0, 1]
    latents: Tensor  # the argument of the pipeline's call
    steps: AbstractContextManager[None]  # open during the call


class ClipSource:
    """Makes a pipeline's sampling begin, at every step, from clips."""

    def __init__(self, pipe: Pipeline, reading: ClipReading, folder: Path, source: Source) -> None:
        """Clips in `folder`, for a pipeline that was loaded as `source` says.

        Raises:
            LvdError: the pipeline makes its videos from images or videos, takes no latents, or it is not
                known how large its videos are.
        """
        if (made_from := made_from_input(pipe)) is not None:
            raise LvdError(
                f"{type(pipe).__name__} makes a video from one {made_from}, which clips do not have: "
                "source=clips needs a pipeline of prompts"
            )
        if not takes(pipe, "latents"):
            raise LvdError(f"{type(pipe).__name__} takes no latents to begin with: source=clips needs that")
        self._pipe, self._reading, self._folder = pipe, reading, folder
        self._layout = layout_of(type(pipe).__name__, source.layout)
        self._latent_size = latent_size(pipe, self._layout, source.call)
        self._size = ClipSize.of(pipe, source.call)
        self._start: Start | None = None

    def noised(self, batch: Sequence[Sample], call: Callable[..., Any]) -> NoisedClips:
        """The clips of `batch` under noise of the samples' seeds; `call` calls the pipeline for them.

        Raises:
            LvdError: a clip cannot be read or encoded, or the pipeline does not begin with given latents.
        """
        shape = self._size
        clips = []
        for sample in batch:
            path = self._folder / sample.video
            clips.append(read_clip(path, shape.frames, self._reading.seconds, (shape.height, shape.width)))
        device = self._pipe._execution_device  # where offloaded models run
        x0 = torch.cat([encode_clip(self._pipe.vae, clip, device) for clip in clips])
        free_models(self._pipe)
        if self._start is None:
            self._start = find_start(call, self._pipe.scheduler, x0, self._layout, self._latent_size)
            free_models(self._pipe)
        x0 = x0.to(self._start.device)
        noise = torch.stack(
            [torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(s.seed)) for s in batch]
        ).to(x0.device)
        return NoisedClips(
            np.stack([clip.permute(0, 2, 3, 1).numpy() for clip in clips]),
            self._start.latents(x0, noise, self._layout),
            noised_steps(self._pipe.scheduler, x0, noise, self._layout),
        )


def check_clip(path: Path) -> None:
    """Refuse a file that is no clip before a pipeline is loaded for it; only its headers are read.

    Raises:
        LvdError: it holds no video, was cut short, or is a still image.
    """
    import av

    try:
        if missing := missing_bytes(path):
            raise LvdError(_cut_short(path, missing))
        with _open(path) as file:
            videos = len(file.streams.video)
            frames = len(list(islice(_packets(file), 2))) if videos else 0
    except (av.FFmpegError, OSError, ValueError) as error:
        raise LvdError(_unreadable(path, error)) from None
    if not videos:
        raise LvdError(f"{path} holds no video")
    _refuse_one_frame(path, frames)


def read_clip(path: Path, count: int, seconds: float | None, size: tuple[int, int]) -> Tensor:
    """`count` frames `[count, 3, H, W]` of a video file, float32 in [0, 1].

    They are taken evenly from the first to the last, of `seconds` in the middle if it is longer, resized to
    cover `size` (height, width), and cropped in the middle. Of fewer than `count`, some are repeated.

    Raises:
        LvdError: the file is no video, or is damaged, or only one frame of it would be taken.
    """
    import av

    try:
        with _open(path) as file:
            packets = list(_packets(file))
            times = sorted(packet.pts for packet in packets if packet.pts is not None)
            base = file.streams.video[0].time_base
        if not packets:
            raise LvdError(f"{path} holds no frames")
        if packets[-1].is_corrupt:
            raise LvdError(f"{path} was cut short: its last frame is not whole; {_INSTEAD}")
        if count > 1:
            _refuse_one_frame(path, len(packets))
        first, last = 0, len(packets) - 1
        if seconds is not None and base is not None and len(times) == len(packets):
            middle, half = (times[0] + times[-1]) / 2, seconds / float(base) / 2
            inside = [place for place, time in enumerate(times) if abs(time - middle) <= half]
            first, last = (inside[0], inside[-1]) if inside else (last // 2, last // 2)
        if first == last and count > 1:
            raise LvdError(
                f"{path} has no two frames in its middle {seconds} seconds, and nothing would move: "
                "give more clip_seconds, or leave the clip out"
            )
        chosen = [first + place for place in spread(last - first + 1, count)]
        images: dict[int, Tensor] = {}
        with _open(path) as file:
            for place, frame in enumerate(islice(file.decode(video=0), last + 1)):
                if place in chosen:
                    picture = torch.from_numpy(_upright(frame)).permute(2, 0, 1)[None].float() / 255
                    images[place] = fitted(picture, *size)[0].clamp(0, 1)
    except (av.FFmpegError, IndexError, OSError, ValueError) as error:
        raise LvdError(_unreadable(path, error)) from None
    missing = len(set(chosen) - images.keys())
    if missing:
        raise LvdError(f"{path} is damaged: {missing} of {len(set(chosen))} frames cannot be decoded")
    return torch.stack([images[place] for place in chosen])


def _open(path: Path) -> Any:
    """A file whatever it is called: `a:b.mp4` is no protocol."""
    import av

    return av.open(f"file:{path}")


def _packets(file: Any) -> Iterator[Any]:
    """A frame each, as they are stored; those that a player leaves out are not among them."""
    return (packet for packet in file.demux(video=0) if packet.size and not packet.is_discard)


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} is not a video that can be read: {' '.join(str(error).split())}"


def _refuse_one_frame(path: Path, frames: int) -> None:
    if frames == 1:
        raise LvdError(f"{path} holds one frame: a still image is no clip, leave it out of the prompts file")


def _cut_short(path: Path, missing: int) -> str:
    """What is said of a file that lacks so many bytes: also how many frames are left, if that can be told."""
    import av

    there = path.stat().st_size
    left = ""
    with suppress(av.FFmpegError, IndexError, OSError, ValueError), _open(path) as file:
        stream, seconds = file.streams.video[0], (file.duration or 0) / 1e6
        packets = [packet for packet in _packets(file) if not packet.is_corrupt]
        ends = [packet.pts + (packet.duration or 0) for packet in packets if packet.pts is not None]
        reached = float(max(ends, default=0) * (stream.time_base or 0))
        if stream.frames > len(packets):
            left = f", with {len(packets)} of {stream.frames} frames"
        elif reached < seconds:
            left = f", with {len(packets)} frames, {reached:.3g} of {seconds:.3g} seconds"
        else:
            left = f", with {len(packets)} frames"
    there_are = f"{there:,} of {there + missing:,} bytes are there" if missing > 1 else "its end is missing"
    return f"{path} was cut short: {there_are}{left}; {_INSTEAD}"


def _upright(frame: Any) -> Any:
    """RGB `[H, W, 3]` as a player shows it: phones write how they were held beside the pictures."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
