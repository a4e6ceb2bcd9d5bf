"""Frames of decoded x0, kept beside the latents: derived from them, once for each step.

frames/16x224x224/step_07.npy    uint8 [N, 3, F, H, W], in row order
frames/16x224x224/step_07.json   written last: what it was made of, its size and digest

Without its record, or with one of other latents, a step's frames do not count: `lvd.capture.frames` makes
them again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lvd.errors import LvdError
from lvd.files import file_sha256, has_fields, read_json, step_name, write_json
from lvd.latents.reader import CaptureReader

FOLDER = "frames"
Uint8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FrameShape:
    """What a detector of frames reads of a video: how many, and their pixels."""

    count: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.count}x{self.height}x{self.width}"

    def bytes_of(self, samples: int) -> int:
        return samples * 3 * self.count * self.height * self.width


@dataclass(frozen=True)
class FramesRecord:
    """What a step's frames were made of, and what they are."""

    latents: str  # `CaptureReader.latents_digest`
    pipeline: str  # whose VAE decoded them
    revision: str | None
    bytes: int
    sha256: str


class StepFrames:
    """The frames of one step: `read(rows)` is `[len(rows), 3, F, H, W]` uint8, from a map of the file."""

    def __init__(self, path: Path, samples: int, shape: FrameShape) -> None:
        self._path = path
        self._shape = (samples, 3, shape.count, shape.height, shape.width)

    def read(self, rows: Sequence[int]) -> Uint8:
        """Copy `rows` into one array."""
        return np.stack([self._map[row] for row in rows])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_map"}

    @cached_property
    def _map(self) -> Uint8:
        try:
            frames: Uint8 = np.load(self._path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise LvdError(f"{self._path} is not readable: {error}; remove it, it is made again") from None
        if frames.shape != self._shape or frames.dtype != np.uint8:
            raise LvdError(
                f"{self._path} is {frames.dtype} {frames.shape}, expected uint8 {self._shape}: "
                "remove it, it is made again"
            )
        return frames


def frames_path(capture: Path, step: int, shape: FrameShape) -> Path:
    return capture / FOLDER / str(shape) / f"{step_name(step)}.npy"


def open_frames(capture: CaptureReader, step: int, shape: FrameShape) -> StepFrames | None:
    """A step's frames, or None: they are still to be made, or were made of other latents."""
    path = frames_path(capture.directory, step, shape)
    record = _read_record(path)
    if record is None or (record.latents, record.pipeline, record.revision) != _origin(capture):
        return None
    if not path.is_file() or path.stat().st_size != record.bytes:
        return None
    return StepFrames(path, len(capture.samples), shape)


def write_record(capture: CaptureReader, path: Path) -> None:
    """Let the frames at `path` count, as they stand there now."""
    record = FramesRecord(*_origin(capture), bytes=path.stat().st_size, sha256=file_sha256(path))
    write_json(path.with_suffix(".json"), asdict(record))


def changed_frames(capture: Path) -> Iterator[Path]:
    """The files of frames that are not as their records say, below the capture. Reads every byte."""
    for path in sorted((capture / FOLDER).glob("*/step_*.npy")):
        record = _read_record(path)
        if record is not None and file_sha256(path) != record.sha256:
            yield path.relative_to(capture)


def _origin(capture: CaptureReader) -> tuple[str, str, str | None]:
    origin = capture.info.origin
    return capture.latents_digest, origin.pipeline, origin.revision


def _read_record(path: Path) -> FramesRecord | None:
    try:
        raw = read_json(path.with_suffix(".json"), missing="")
    except LvdError:
        return None
    return FramesRecord(**raw) if has_fields(raw, FramesRecord) else None
