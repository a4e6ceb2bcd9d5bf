"""Real clips in place of sampling: what is stored is what the network says of the clip under noise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from lvd.capture.clips import ClipReading, check_clip, read_clip
from lvd.capture.labels import with_splits
from lvd.capture.load import load_pipeline
from lvd.capture.preview import find_preview
from lvd.capture.prompts import PromptsFile, read_prompts
from lvd.capture.recorder import record
from lvd.capture.source import Columns, Recording, Source
from lvd.errors import LvdError
from lvd.latents.format import Sample, read_info, read_samples
from lvd.latents.reader import CaptureReader
from lvd.latents.verify import verify
from lvd.sweep.trained_on import TrainedOn

NAMES = ("alpha", "beta")
CALL = {"num_frames": 4, "height": 32, "width": 32}
STEPS = 4

WriteClip = Callable[..., Path]


@pytest.fixture
def write_clip(tmp_path: Path) -> WriteClip:
    """A video whose frame i has the grey level `levels[i]`, ten frames a second."""

    def write(name: str, levels: list[int], size: tuple[int, int] = (48, 64), red: bool = False) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            for level in levels:
                picture = np.full((*size, 3), level, np.uint8)
                if red:
                    picture[:, : size[1] // 8, 0] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def source(tiny_pipeline_path: Path) -> Source:
    return Source(
        path=str(tiny_pipeline_path),
        device="cpu",
        layout="BCFHW",
        steps=STEPS,
        guidance=5.0,
        call=CALL,
        category_names=list(NAMES),
    )


@pytest.fixture
def clips(write_clip: WriteClip) -> list[Sample]:
    """Three clips; two of them in one batch."""
    for number in range(3):
        write_clip(f"c{number}.mp4", [40 * number + 10 * frame for frame in range(6)])
    return [
        Sample(f"v{i}", f"p{i}", prompt, 100 + i, (NAMES[i % 2],), "train", video=f"c{i}.mp4")
        for i, prompt in enumerate(("a red three", "", "a white one"))
    ]


def latents(capture: Path) -> torch.Tensor:
    """`[steps, N, C, F, H, W]`"""
    reader = CaptureReader(capture)
    rows = range(len(reader.samples))
    return torch.from_numpy(np.stack([reader.step(step).read(rows) for step in range(STEPS)])).float()


def expected_x0(pipe: Any, clip: torch.Tensor, sample: Sample) -> list[torch.Tensor]:
    """By hand: the VAE, DDPM's forward process, the network with and without the prompt, DDIM's formula."""
    encoded = pipe.vae.encode(clip * 2 - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    x0 = encoded.transpose(0, 1)[None]
    noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(sample.seed))
    with_prompt, without = pipe.encode_prompt(sample.prompt, "cpu", 1, True, negative_prompt=None)
    pipe.scheduler.set_timesteps(STEPS)
    found = []
    for timestep in pipe.scheduler.timesteps:
        alpha_bar = pipe.scheduler.alphas_cumprod[timestep]
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
        told, untold = (
            pipe.unet(
                x_t, timestep, encoder_hidden_states=text.repeat_interleave(CALL["num_frames"], 0)
            ).sample
            for text in (with_prompt, without)
        )
        output = untold + 5.0 * (told - untold)
        found.append((x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt())
    return found


@torch.no_grad()
def test_a_capture_of_clips_holds_what_the_network_predicts_of_them_under_noise(
    clips: list[Sample], source: Source, tiny_pipeline: Any, tmp_path: Path
) -> None:
    capture = tmp_path / "real"
    record(source, clips, capture, Recording(batch_size=2), folder=tmp_path, clips=ClipReading())
    assert verify(capture) == []
    assert read_samples(capture) == clips
    info = read_info(capture)
    assert (info.origin.x0_from, info.clips) == ("noised clip", {"seconds": None})
    stored = latents(capture)
    for row, sample in enumerate(clips):
        clip = read_clip(tmp_path / sample.video, 4, None, (32, 32))
        for step, x0 in enumerate(expected_x0(tiny_pipeline, clip, sample)):
            torch.testing.assert_close(stored[step, row], x0[0], rtol=2e-3, atol=5e-3)


def test_clips_stand_beside_generated_videos_and_are_all_of_the_train_split(
    clips: list[Sample], source: Source, tmp_path: Path
) -> None:
    generated = [Sample(f"g{i}", f"g{i}", "a blue two", i, (), "val") for i in range(2)]
    both, alone = tmp_path / "both", tmp_path / "alone"
    mixed = [generated[0], *clips[:2], generated[1]]
    record(source, mixed, both, Recording(preview=True), folder=tmp_path, clips=ClipReading(seconds=0.3))
    record(source, generated, alone, Recording(batch_size=1))
    torch.testing.assert_close(latents(both)[:, [0, 3]], latents(alone), rtol=0, atol=0)
    assert read_info(both).origin.x0_from == "x_t"
    assert all(find_preview(both, sample.sample_id) for sample in mixed)

    many = [Sample(f"g{i}", f"g{i}", f"prompt number {i}", i, (), "") for i in range(40)]
    twin = replace(many[7], sample_id="twin", video="twin.mp4")
    splits = {s.sample_id: s.split for s in with_splits([*many, *clips, twin], seed=0)}
    assert {splits[s.sample_id] for s in (*clips, twin, many[7])} == {"train"}
    assert {splits[s.sample_id] for s in many} == {"train", "val", "test"}
    assert len({s.split for s in with_splits([replace(s, video="v.mp4") for s in many], seed=0)}) == 3


def test_what_learned_from_clips_is_measured_on_generated_videos_as_of_one_origin(
    clips: list[Sample], source: Source, tmp_path: Path
) -> None:
    real, made = tmp_path / "real", tmp_path / "made"
    record(source, clips, real, Recording(), folder=tmp_path, clips=ClipReading())
    record(source, [replace(sample, video="") for sample in clips], made, Recording())
    assert TrainedOn.of(real).other_origin(read_info(made)) == []
    assert TrainedOn.of(made).other_origin(read_info(real)) == ["x0_from"]


def test_an_interrupted_capture_of_clips_goes_on_and_another_reading_is_refused(
    clips: list[Sample], source: Source, tmp_path: Path
) -> None:
    capture = tmp_path / "real"
    whole = (tmp_path / "c2.mp4").read_bytes()
    (tmp_path / "c2.mp4").write_bytes(b"not a video")
    with pytest.raises(LvdError, match=r"c2\.mp4 is not a video that can be read"):
        record(source, clips, capture, Recording(batch_size=1), folder=tmp_path, clips=ClipReading())
    assert not capture.exists() or not (capture / "capture.json").exists()  # before anything is made
    (tmp_path / "c2.mp4").write_bytes(whole)
    record(source, clips, capture, Recording(batch_size=1), folder=tmp_path, clips=ClipReading())
    with pytest.raises(LvdError, match=r"exists with clips=\{'seconds': None\}, not \{'seconds': 1.0\}"):
        record(source, clips, capture, Recording(), folder=tmp_path, clips=ClipReading(seconds=1.0))


def test_clips_of_no_known_size_are_refused(clips: list[Sample], source: Source, tmp_path: Path) -> None:
    sizeless = replace(source, call={"height": 32, "width": 32, "num_frames": None})
    with pytest.raises(LvdError, match="give num_frames, height and width"):
        record(sizeless, clips, tmp_path / "real", Recording(), folder=tmp_path, clips=ClipReading())


def test_a_pipeline_that_is_offloaded_captures_clips_too_and_sends_back_what_it_encoded_with(
    clips: list[Sample], source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, offloaded = tmp_path / "held", tmp_path / "offloaded"
    record(source, clips, held, Recording(), folder=tmp_path, clips=ClipReading())
    source = replace(source, offload=True)
    pipe = load_pipeline(source)
    pipe.enable_model_cpu_offload(device="cpu")
    events: list[str] = []
    encode, free = pipe.vae.encode, pipe.maybe_free_model_hooks
    monkeypatch.setattr(pipe.vae, "encode", lambda *given: (events.append("encode"), encode(*given))[1])
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: (events.append("free"), free())[1])
    record(source, clips, offloaded, Recording(), folder=tmp_path, clips=ClipReading(), pipe=pipe)
    # All clips are encoded; calls that do not end find how the pipeline begins; then comes a whole one.
    assert events == ["encode"] * 3 + ["free"] * 3
    torch.testing.assert_close(latents(offloaded), latents(held), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["still.png", "still.gif", "still.mp4"])
def test_a_still_image_is_no_clip(
    name: str, clips: list[Sample], source: Source, write_clip: WriteClip, tmp_path: Path
) -> None:
    if name.endswith(".mp4"):
        write_clip(name, [100])
    else:
        Image.new("RGB", (64, 48), "red").save(tmp_path / name)
    named = [*clips[:2], replace(clips[2], video=name)]
    with pytest.raises(LvdError, match=rf"{name} holds one frame.*a still image is no clip"):
        record(source, named, tmp_path / "real", Recording(), folder=tmp_path, clips=ClipReading())
    assert not (tmp_path / "real" / "capture.json").exists()


@pytest.mark.parametrize("name", ["a:b.mp4", "http:c.mp4", "-d.mp4", "e%03d.mp4", "f gé.mp4"])
def test_a_clip_may_have_any_name(
    name: str, write_clip: WriteClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(name, [0, 100, 200])
    monkeypatch.chdir(tmp_path)
    check_clip(Path(name))
    assert len(read_clip(Path(name), 2, None, (32, 32))) == 2


def test_so_few_seconds_that_nothing_moves_are_refused(write_clip: WriteClip) -> None:
    path = write_clip("slow.mp4", [0, 50, 100])
    with pytest.raises(LvdError, match=r"slow\.mp4 has no two frames in its middle 0\.05 seconds"):
        read_clip(path, 4, 0.05, (32, 32))
    assert len(read_clip(path, 1, 0.05, (32, 32))) == 1  # a generator of single frames


def test_a_clip_that_was_cut_short_is_refused_before_anything_is_made(
    clips: list[Sample], source: Source, write_clip: WriteClip, tmp_path: Path
) -> None:
    path = write_clip("c2.mkv", list(range(200)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with av.open(str(path)) as file:
        left = sum(1 for _ in file.decode(video=0))
    assert 2 < left < 200  # which it was taken for
    named = [*clips[:2], replace(clips[2], video="c2.mkv")]
    told = (
        rf"c2\.mkv was cut short: {len(whole) * 2 // 3:,} of {len(whole):,} bytes are there, with {left} "
        r"frames, 11\.\d of 20 seconds; copy it again, or write what is left to a new file"
    )
    with pytest.raises(LvdError, match=told):
        record(source, named, tmp_path / "real", Recording(), folder=tmp_path, clips=ClipReading())
    assert not (tmp_path / "real" / "capture.json").exists()


def test_a_capture_of_clips_needs_clips(source: Source, tmp_path: Path) -> None:
    prompts_only = [Sample("v0", "p0", "a red three", 1, (), "train")]
    with pytest.raises(LvdError, match="no row of the prompts file names a video"):
        record(source, prompts_only, tmp_path / "real", Recording(), clips=ClipReading())


def test_the_prompts_file_names_clips_with_or_without_captions(write_clip: WriteClip, tmp_path: Path) -> None:
    write_clip("c0.mp4", [0, 10]), write_clip("c1.mp4", [20, 30])
    (tmp_path / "clips.csv").write_text("video,categories\nc0.mp4,alpha\nc1.mp4,\nc0.mp4,alpha\n")
    samples = read_prompts(PromptsFile(tmp_path / "clips.csv", Columns()), NAMES, seed=3)
    assert [(s.prompt, s.video, s.seed) for s in samples] == [
        ("", "c0.mp4", 3),
        ("", "c1.mp4", 4),
        ("", "c0.mp4", 5),
    ]
    assert samples[0].prompt_id == samples[2].prompt_id != samples[1].prompt_id  # the same clip: one split


def levels(frames_FCHW: torch.Tensor) -> list[int]:
    return (frames_FCHW.mean(dim=(1, 2, 3)) * 255).round().int().tolist()


@pytest.mark.parametrize(
    ("count", "seconds", "expected"),
    [
        (3, None, [0, 100, 200]),
        (2, None, [0, 200]),
        (3, 0.41, [80, 100, 120]),  # 0.41 s in the middle of 2.1 s: five frames, 80 to 120
        (3, 60.0, [0, 100, 200]),
    ],
)
def test_frames_are_taken_evenly_from_the_middle(
    count: int, seconds: float | None, expected: list[int], write_clip: WriteClip
) -> None:
    path = write_clip("long.mp4", list(range(0, 201, 10)))
    found = levels(read_clip(path, count, seconds, (32, 32)))
    expected = [80, 100, 120] if seconds == 0.41 else expected
    assert all(abs(one - other) <= 3 for one, other in zip(found, expected, strict=True))


def test_a_short_clip_repeats_its_frames_and_a_wide_one_is_cropped(write_clip: WriteClip) -> None:
    path = write_clip("wide.mp4", [50, 150], size=(32, 128), red=True)
    frames = read_clip(path, 4, None, (32, 32))
    assert frames.shape == (4, 3, 32, 32)
    assert all(abs(a - b) <= 3 for a, b in zip(levels(frames), [50, 50, 150, 150], strict=True))
    assert float(frames[:, 0].sub(frames[:, 1]).abs().max()) < 0.05  # the red edge is out of the picture
