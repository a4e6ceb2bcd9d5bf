"""Whether a video file is whole: its container's own sizes against its end."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lvd.capture.clips import check_clip, read_clip
from lvd.capture.container import missing_bytes
from lvd.errors import LvdError

FRAMES = 12
EVEN = [100 * frame for frame in range(FRAMES)]  # milliseconds
UNEVEN = [50 * frame * (frame + 1) for frame in range(FRAMES)]

Muxed = tuple[str, str, dict[str, str]]  # the container's ending, the codec, and the muxer's options

TOLD: list[Muxed] = [
    ("mp4", "libx264", {}),
    ("mp4", "libx264", {"movflags": "+faststart"}),
    ("mov", "mjpeg", {}),
    ("mkv", "libx264", {}),
    ("webm", "libvpx", {}),
    ("webm", "libvpx-vp9", {}),
    ("avi", "mpeg4", {}),
    ("gif", "gif", {}),
]
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def write(file: Any, muxed: Muxed, times: list[int], sound: bool = False) -> None:
    ending, codec, options = muxed
    noise = np.random.default_rng(0)
    form = {"mkv": "matroska"}.get(ending, ending)
    with av.open(file, "w", format=form, options=options) as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, PIXELS.get(codec, "yuv420p")
        track: Any = container.add_stream("aac", rate=48000) if sound else None
        if codec != "mpeg4":
            stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            picture = noise.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:  # longer than the pictures
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate = 48000
            for place in range(100):
                silence.pts = 1024 * place
                container.mux(track.encode(silence))
            container.mux(track.encode())


@pytest.mark.parametrize("times", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("muxed", TOLD, ids=lambda muxed: "-".join([*muxed[:2], *muxed[2].values()]))
def test_a_whole_file_is_a_clip_and_one_that_was_cut_short_anywhere_is_refused(
    muxed: Muxed, times: list[int], tmp_path: Path
) -> None:
    path = tmp_path / f"clip.{muxed[0]}"
    write(str(path), muxed, times)
    check_clip(path)
    assert len(read_clip(path, 4, None, (32, 32))) == 4
    whole = path.read_bytes()
    for length in range(16, 80):  # within the headers, there may be no video in it
        path.write_bytes(whole[:length])
        with pytest.raises(LvdError, match=r"was cut short: |is not a video that can be read: "):
            check_clip(path)
    for length in (*range(16, len(whole), max(1, len(whole) // 40)), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LvdError, match=r"was cut short: ([\d,]+ of [\d,]+ bytes are there|its end is)"):
            check_clip(path)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_sound_that_is_longer_than_the_pictures_is_no_sign(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{ending}"
    write(str(path), (ending, "libx264", {}), EVEN, sound=True)
    check_clip(path)


@pytest.mark.parametrize(
    "muxed",
    [
        ("mkv", "libx264", {"live": "1"}),
        ("webm", "libvpx", {"live": "1"}),
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ],
    ids=lambda muxed: muxed[0],
)
def test_a_file_that_was_made_to_be_streamed_is_a_clip(muxed: Muxed, tmp_path: Path) -> None:
    streamed = io.BytesIO()
    write(streamed, muxed, EVEN)
    path = tmp_path / f"clip.{muxed[0]}"
    path.write_bytes(streamed.getvalue())
    check_clip(path)
    assert len(read_clip(path, 4, None, (32, 32))) == 4


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "gif"])
def test_what_a_program_appended_is_no_sign(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{ending}"
    write(str(path), next(muxed for muxed in TOLD if muxed[0] == ending), EVEN)
    path.write_bytes(path.read_bytes() + b"\x7f of the camera: where, when, and how it was held")
    check_clip(path)


@pytest.mark.parametrize("start", [b"", b"\x1a\x45\xdf\xa3", b"GIF89a", b"RIFF", bytes(100), b"\xff" * 100])
def test_what_no_container_is_lacks_nothing_that_it_has_said(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(start)
    assert missing_bytes(path) == (1 if start == b"GIF89a" else 0)
