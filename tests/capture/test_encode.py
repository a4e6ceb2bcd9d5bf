"""A clip is encoded to the latent that its pipeline would decode: scaled by the pipeline's own means."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch import Tensor

from lvd.capture.clips import ClipReading
from lvd.capture.encode import encode_clip
from lvd.capture.recorder import record
from lvd.capture.source import Recording
from lvd.errors import LvdError
from lvd.latents.format import Sample, read_info
from lvd.latents.verify import verify
from lvd.sampling.call import call_arguments, call_for_videos, prompt_argument
from lvd.sampling.layout import from_BCFHW
from lvd.sampling.pipelines import layout_of
from lvd.sampling.tap import StepCall, intercept_step
from support.pipeline_runs import tiny_source
from support.pipelines import TINY, Tiny

OFTEN = (  # one of each layout, of each way to scale, and of other names for the number of frames
    *("CogVideoXPipeline", "LTXPipeline", "LattePipeline", "TextToVideoSDPipeline"),
    *("WanImageToVideoPipeline", "WanModularPipeline", "WanPipeline"),
)
OF_PROMPTS = [tiny for tiny in TINY if not tiny.inputs and tiny.name == tiny.pipeline_class]
FROM_INPUTS = [tiny for tiny in TINY if tiny.inputs]
STEPS = 2


def by_name(name: str) -> Tiny:
    return next(tiny for tiny in TINY if tiny.name == name)


def often(tiny: Tiny) -> Any:
    return pytest.param(tiny, marks=[] if tiny.name in OFTEN else pytest.mark.long, id=tiny.name)


def scaled(tiny: Tiny) -> Tiny:
    """The pipeline, its autoencoder with a factor, means and deviations of its own where it has any."""

    def components() -> dict[str, Any]:
        parts = tiny.components()
        vae = parts["vae"]
        if "scaling_factor" in vae.config:
            vae.register_to_config(scaling_factor=0.37)
        if "latents_mean" in dict(vae.named_buffers()):
            vae.latents_mean.copy_(torch.linspace(-1, 1, len(vae.latents_mean)))
            vae.latents_std.copy_(torch.linspace(0.5, 2, len(vae.latents_std)))
        elif type(vae).__name__ in ("AutoencoderKLMochi", "AutoencoderKLWan"):
            channels = tiny.latent_shape[0]
            vae.register_to_config(
                latents_mean=torch.linspace(-1, 1, channels).tolist(),
                latents_std=torch.linspace(0.5, 2, channels).tolist(),
            )
        if tiny.vae_tiling:
            vae.enable_tiling()
        return parts

    return replace(tiny, components=components)


def a_clip(tiny: Tiny) -> Tensor:
    names = ("num_frames", "frames", "video_length")
    frames = next(tiny.call[name] for name in names if name in tiny.call)
    size = (frames, 3, tiny.call["height"], tiny.call["width"])
    return torch.rand(size, generator=torch.Generator().manual_seed(4))


class _Decoding(BaseException):
    """Ends a call where its pipeline begins to decode. Not an Exception: a pipeline must not catch it."""


def decoded(pipe: Any, tiny: Tiny, x0_BCFHW: Tensor) -> Tensor:
    """What a pipeline gives to its autoencoder when its last step ends on this latent."""
    latent = from_BCFHW(x0_BCFHW, layout_of(tiny.pipeline_class))
    given: list[Tensor] = []

    def ends_on_x0(step: StepCall) -> Any:
        sample = step.arguments["sample"]
        assert latent.shape == sample.shape
        output = step.proceed()
        if isinstance(output, tuple):
            return (latent.to(sample.dtype), *output[1:])
        output.prev_sample = latent.to(sample.dtype)
        return output

    def decode(z: Tensor, *_: Any, **__: Any) -> Any:
        given.append(z)
        raise _Decoding

    call = call_arguments(pipe, STEPS, tiny.guidance, tiny.arguments(), 1)
    call |= {**prompt_argument(pipe, ["a red three"]), "generator": [torch.Generator().manual_seed(0)]}
    with (
        intercept_step(pipe.scheduler, ends_on_x0),
        patch.object(pipe.vae, "decode", decode),
        pytest.raises(_Decoding),
    ):
        call_for_videos(pipe, {**call, "output_type": "pt"})
    return given[0]


@pytest.mark.parametrize("tiny", [often(tiny) for tiny in OF_PROMPTS])
@torch.no_grad()
def test_an_encoded_clip_is_what_its_pipeline_decodes_as_the_autoencoders_own_mean(tiny: Tiny) -> None:
    pipe, clip = scaled(tiny).build(), a_clip(tiny)
    pipe.set_progress_bar_config(disable=True)
    x0 = encode_clip(pipe.vae, clip).clone()
    assert (tuple(x0.shape[1:]), x0.dtype) == (tiny.latent_shape, torch.float32)
    z = decoded(pipe, tiny, x0)
    if z.ndim == 4:  # an autoencoder of images
        own = pipe.vae.encode(2 * clip - 1).latent_dist.mode()[: len(z)]
    else:
        own = pipe.vae.encode((2 * clip - 1).transpose(0, 1)[None]).latent_dist.mode()
    assert float((own - x0[0].transpose(0, 1)[: len(own)] if z.ndim == 4 else own - x0).abs().max()) > 0.1
    torch.testing.assert_close(z.float(), own, rtol=1e-4, atol=1e-4)


@contextmanager
def encoders_say_their_mean() -> Iterator[None]:
    """Where a pipeline draws from what its encoder says, it gets the mean."""
    with patch.object(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()):
        yield


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("AnimateDiffVideoToVideoPipeline", "BFCHW"),
        ("CogVideoXVideoToVideoPipeline", "BFCHW"),
        ("WanVideoToVideoPipeline", "BCFHW"),
    ],
)
@torch.no_grad()
def test_a_clip_is_encoded_as_a_pipeline_of_videos_encodes_it(name: str, axes: Any) -> None:
    tiny = by_name(name)
    pipe = scaled(tiny).build()
    pipe.set_progress_bar_config(disable=True)
    size = (8, tiny.call["height"], tiny.call["width"], 3)
    frames = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    noised: list[Tensor] = []

    def add_noise(original: Tensor, *_: Any) -> Tensor:
        noised.append(original)
        raise _Decoding

    call = call_arguments(pipe, tiny.steps, tiny.guidance, tiny.arguments(), 1)
    with (
        encoders_say_their_mean(),
        patch.object(pipe.scheduler, "add_noise", add_noise),
        pytest.raises(_Decoding),
    ):
        pipe(video=[Image.fromarray(frame) for frame in frames], prompt=["a red three"], **call)
    ours = encode_clip(pipe.vae, torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(from_BCFHW(ours, axes), noised[0], rtol=1e-4, atol=1e-4)


def test_an_autoencoder_that_overflows_in_half_precision_encodes_in_full_and_is_half_again() -> None:
    vae, clip = by_name("AnimateDiffSDXLPipeline").components()["vae"].half(), torch.rand(2, 3, 32, 64)
    assert vae.config.force_upcast
    found = encode_clip(vae, clip)
    assert vae.dtype == torch.float16
    torch.testing.assert_close(found, encode_clip(vae.float(), clip), rtol=1e-5, atol=1e-6)


def test_an_autoencoder_that_is_offloaded_encodes_where_its_pipeline_runs() -> None:
    tiny = by_name("LTXPipeline")
    vae = tiny.components()["vae"]
    cpu_offload_with_hook(vae, torch.device("meta"))  # as enable_model_cpu_offload does it for a GPU
    assert vae.device.type == "cpu"
    x0 = encode_clip(vae, a_clip(tiny), torch.device("meta"))
    assert (x0.device.type, tuple(x0.shape[1:])) == ("meta", tiny.latent_shape)


def test_allegros_autoencoder_encodes_in_tiles_alone() -> None:
    tiny = by_name("AllegroPipeline")
    with pytest.raises(LvdError, match=r"AutoencoderKLAllegro encodes in tiles alone: set pipeline.vae_til"):
        encode_clip(tiny.build().vae, a_clip(tiny))


def test_an_autoencoder_whose_scaling_is_not_known_is_refused_by_name() -> None:
    vae = diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,))
    with pytest.raises(LvdError, match="clips cannot be encoded by AutoencoderKLTemporalDecoder"):
        encode_clip(vae, torch.rand(2, 3, 16, 16))


# Whole captures


@pytest.fixture
def clips(tmp_path: Path) -> list[Sample]:
    """A video, and two samples of it."""
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        for level in range(12):
            picture = np.full((32, 64, 3), 20 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return [Sample(f"v{n}", f"p{n}", "a red three", n, (), "train", video="clip.mp4") for n in range(2)]


Capture = Callable[[Tiny], Path]


@pytest.fixture
def capture(clips: list[Sample], tmp_path: Path) -> Capture:
    def captured(tiny: Tiny) -> Path:
        source = tiny_source(tiny, tmp_path)
        record(
            replace(source, steps=STEPS),
            clips,
            tmp_path / "real",
            Recording(batch_size=tiny.batch_size),
            folder=tmp_path,
            clips=ClipReading(),
        )
        return tmp_path / "real"

    return captured


@pytest.mark.parametrize("tiny", [often(tiny) for tiny in OF_PROMPTS])
def test_a_pipeline_of_prompts_is_captured_from_clips(tiny: Tiny, capture: Capture) -> None:
    real = capture(tiny)
    assert verify(real) == []
    origin = read_info(real).origin
    assert (origin.latent_shape, origin.x0_from) == (tiny.latent_shape, "noised clip")


@pytest.mark.parametrize("tiny", [often(tiny) for tiny in FROM_INPUTS])
def test_a_pipeline_of_images_or_videos_is_refused_by_name(tiny: Tiny, capture: Capture) -> None:
    with pytest.raises(LvdError) as refusal:
        capture(tiny)
    assert str(refusal.value) == (
        f"{tiny.pipeline_class} makes a video from one {tiny.inputs}, which clips do not have: "
        "source=clips needs a pipeline of prompts"
    )


def test_a_number_of_frames_that_the_pipeline_rounds_is_refused(capture: Capture) -> None:
    tiny = by_name("WanPipeline")
    with pytest.raises(LvdError, match=r"in pipeline\.call that the pipeline neither rounds nor pads"):
        capture(replace(tiny, call={**tiny.call, "num_frames": 8}))
