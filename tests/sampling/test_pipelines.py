"""Every video pipeline: captured as it samples, guarded without a trace, or refused by name."""

import copy
import hashlib
import inspect
import json
import math
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from conftest import MEASURED, Scripted, StubPipeline, bundle_info, stub_guard
from lvd.capture.inputs import load_inputs
from lvd.capture.load import load_pipeline
from lvd.capture.prompts import PromptsFile, read_prompts
from lvd.capture.recorder import record
from lvd.capture.source import Lora, Recording, Source
from lvd.config import CaptureConfig
from lvd.decide.rules import Vote
from lvd.detect.files import save_detector
from lvd.detect.network import EncoderConfig, NetworkDetector
from lvd.errors import LvdError
from lvd.guard import Guard
from lvd.guard.bundle import Bundle
from lvd.guard.export import export_bundle
from lvd.latents import writer
from lvd.latents.format import CaptureInfo, read_info, read_samples
from lvd.sampling.caches import step_caches
from lvd.sampling.call import call_arguments, call_for_videos, guidance_argument, prompt_argument, takes
from lvd.sampling.fingerprint import fingerprint, is_modular, plain_config
from lvd.sampling.layout import LAYOUTS, to_BCFHW
from lvd.sampling.pipelines import (
    LAYOUT_OF,
    REFUSED,
    check_supported,
    latent_size,
    layout_of,
    makes_one_of_a_prompt,
)
from lvd.sampling.weights import weights_digests
from lvd.sampling.x0 import supported_schedulers
from lvd.typed import typed
from support.pipeline_runs import (
    blocked_one_and_left_the_other,
    blocking_one,
    capture,
    does_the_same_a_step_late,
    ends_on_its_last_x0,
    guard,
    is_what_it_heard,
    left_behind,
    random_bundle,
    tiny_source,
    with_origin,
    write_prompts,
)
from support.pipelines import TINY, Tiny, picture

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(path.stem for path in (CONF / "pipeline").glob("*.yaml") if path.stem != "demo")
PAPER = ("distorted_weird", "terrifying", "pornographic", "violent_bloody", "political")
OFTEN = (  # one of each layout, one from an image, one that begins late
    "CogVideoXPipeline",
    "LTXPipeline",
    "LTXImageToVideoPipeline",
    "TextToVideoSDPipeline",
    "WanVideoToVideoPipeline",
)


def by_name(name: str) -> Tiny:
    return next(tiny for tiny in TINY if tiny.name == name)


# ---- run end to end


@pytest.mark.parametrize(
    "tiny",
    [pytest.param(tiny, marks=[] if tiny.name in OFTEN else pytest.mark.long, id=tiny.name) for tiny in TINY],
)
def test_a_pipeline_is_captured_and_guarded(tiny: Tiny, tmp_path: Path) -> None:
    captured = capture(tiny, tmp_path)
    assert captured.info.origin.pipeline_class == tiny.pipeline_class
    assert captured.info.origin.latent_shape == tiny.latent_shape
    assert captured.info.origin.layout == LAYOUT_OF[tiny.pipeline_class]
    assert is_what_it_heard(captured)
    assert ends_on_its_last_x0(captured)

    guarded = guard(captured)
    assert sorted(guarded.outcomes) == ["safe", "unsafe"], guarded.why
    assert blocked_one_and_left_the_other(guarded)
    assert left_behind(captured, guarded) == []
    assert does_the_same_a_step_late(captured, guarded)


def test_every_known_pipeline_is_run() -> None:
    assert {tiny.pipeline_class for tiny in TINY} == set(LAYOUT_OF)


def test_what_is_known_is_not_refused() -> None:
    assert not set(LAYOUT_OF) & set(REFUSED)


# ---- layouts


@given(layout=st.sampled_from(LAYOUTS), shape=st.tuples(*[st.integers(1, 5)] * 5))
def test_every_layout_becomes_BCFHW_as_a_view(layout: Any, shape: tuple[int, ...]) -> None:
    batch, channels, frames, rows, columns = shape
    x = torch.arange(math.prod(shape)).reshape(shape)
    stepped = {
        "BCFHW": x,
        "BFCHW": x.permute(0, 2, 1, 3, 4),
        "BFHWC": x.permute(0, 2, 3, 4, 1),
        "(BF)CHW": x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, rows, columns),
        "B(FHW)C": x.permute(0, 2, 3, 4, 1).reshape(batch, frames * rows * columns, channels),
    }[layout].contiguous()
    turned = to_BCFHW(stepped, layout, (frames, rows, columns))
    assert torch.equal(turned, x)
    assert turned.data_ptr() == stepped.data_ptr()


@pytest.mark.parametrize(
    ("shape", "layout", "grid", "sentence"),
    [
        ((2, 3, 4, 5, 6), "B(FHW)C", (4, 5, 6), "layout B(FHW)C has 3 axes"),
        ((9, 3, 5, 6), "(BF)CHW", (4, 5, 6), "steps 9 frames, which are not videos of 4"),
        ((2, 119, 3), "B(FHW)C", (4, 5, 6), "steps 119 tokens, which are not 4 frames of 5 x 6"),
        ((2, 120, 3), "B(FHW)C", None, "cannot be taken apart without the number of frames"),
    ],
)
def test_a_latent_that_is_not_as_its_layout_says_is_refused(
    shape: tuple[int, ...], layout: Any, grid: Any, sentence: str
) -> None:
    with pytest.raises(LvdError) as refusal:
        to_BCFHW(torch.zeros(shape), layout, grid)
    assert sentence in str(refusal.value)


class Unheard:
    """A pipeline of a class that nobody knows."""

    scheduler = None

    def __call__(self, prompt: str, num_frames: int = 8) -> None: ...


def test_the_layout_of_an_unknown_pipeline_has_to_be_given() -> None:
    with pytest.raises(
        LvdError, match=r"^Unheard is not proved to work, .* set pipeline.layout to one of BCFHW"
    ):
        layout_of("Unheard")
    assert layout_of("Unheard", "BFCHW") == "BFCHW"
    assert latent_size(Unheard(), "BFCHW", {}) is None
    assert latent_size(Unheard(), "(BF)CHW", {}) == (8, 0, 0)
    with pytest.raises(LvdError, match=r"layout B\(FHW\)C of Unheard cannot be taken apart"):
        latent_size(Unheard(), "B(FHW)C", {})


@pytest.fixture
def unknown_wan(monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """A pipeline that lvd works with, as if nobody had tried it yet."""
    monkeypatch.delitem(LAYOUT_OF, "WanPipeline")
    return by_name("WanPipeline")


def test_a_class_that_nobody_tried_is_refused_before_anything_is_loaded(unknown_wan: Tiny) -> None:
    source = replace(ready("wan"), path="nowhere/at-all")
    with pytest.raises(LvdError, match=r"^WanPipeline is not proved to work, and how its latents lie is not"):
        load_pipeline(source)


def test_with_a_layout_by_hand_it_is_captured_and_capture_bundle_and_guard_say_so(
    unknown_wan: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(LvdError, match="WanPipeline is not proved to work"):
        capture(unknown_wan, tmp_path)
    captured = capture(replace(unknown_wan, layout="BCFHW"), tmp_path)
    assert captured.info.origin.layout_given
    assert json.loads((captured.capture / "capture.json").read_text())["layout_given"] is True

    bundle = random_bundle(captured.info, 1 - 1e-9)
    assert bundle.info.origin.layout_given
    (decision, _) = captured.guarded(Guard(bundle), captured.batches()[0]).decisions
    assert decision.outcome == "safe"
    assert decision.mismatches == ()
    assert decision.notes == ("the layout BCFHW of WanPipeline was given by hand, and is not proved",)
    card = (export_bundle_of(captured.info, tmp_path) / "README.md").read_text()
    assert "(stepped as BCFHW, given by hand)" in " ".join(card.split())


def export_bundle_of(info: CaptureInfo, directory: Path) -> Path:
    """The bundle of a run with one untrained detector."""
    encoder = EncoderConfig(info.origin.latent_shape, width=8, layers=1, heads=1, patch=2, tubelet=1)
    for name in ("alpha", "beta"):
        save_detector(directory / "run" / name / "step_00" / "detector", NetworkDetector(encoder), {}, None)
    made_for = replace(random_bundle(info, 0.5).info, rule=Vote(1, 0.5, 0.5), measured=MEASURED)
    export_bundle(directory / "bundle", directory / "run", made_for)
    return directory / "bundle"


def test_a_layout_that_is_the_class_s_own_is_not_by_hand_and_old_captures_do_not_say(tmp_path: Path) -> None:
    captured = capture(replace(by_name("WanPipeline"), layout="BCFHW"), tmp_path)
    path = captured.capture / "capture.json"
    raw = json.loads(path.read_text())
    assert raw.pop("layout_given") is False
    path.write_text(json.dumps(raw))
    assert read_info(captured.capture).origin.layout_given is False


def test_every_video_class_of_diffusers_is_supported_or_refused_with_a_reason() -> None:
    """A release of diffusers that has others fails here: each new class wants to be read, and tried."""
    assert video_classes() | modular_video_classes() == {*LAYOUT_OF, *REFUSED}


def video_classes() -> set[str]:
    """By their source, since some are not there without a library that nothing here needs."""
    found = set()
    for path in (Path(diffusers.__file__).parent / "pipelines").rglob("pipeline*.py"):
        for text in re.split(r"^(?=class )", path.read_text(), flags=re.MULTILINE)[1:]:
            (name,) = re.match(r"class (\w+)", text).groups()  # type: ignore[union-attr]
            call = re.search(r"^    def __call__\((.*?)^    \)", text, re.MULTILINE | re.DOTALL)
            if not name.endswith("Pipeline") or call is None:
                continue
            frames = re.search(r"^ +(num_frames|video_length|frames|video):", call[1], re.MULTILINE)
            if frames or "Video" in name or "VideoProcessor(" in text:
                found.add(name)
    return found


def modular_video_classes() -> set[str]:
    """Those whose blocks take a number of frames: each family of them is in a folder of its own."""
    found = set()
    for path in (Path(diffusers.__file__).parent / "modular_pipelines").glob("*/modular_pipeline.py"):
        blocks = "".join(each.read_text() for each in path.parent.glob("*.py"))
        if re.search(r"""(InputParam\(|name=)\s*"num_frames"|VideoProcessor""", blocks):
            found |= set(re.findall(r"^class (\w+ModularPipeline)\(", path.read_text(), re.MULTILINE))
    return found


# ---- refused by name


@pytest.mark.parametrize("name", REFUSED)
def test_a_pipeline_without_one_run_of_steps_is_refused_by_name(name: str) -> None:
    pipe = object.__new__(getattr(diffusers, name))
    with pytest.raises(LvdError) as refusal:
        check_supported(pipe)
    assert str(refusal.value) == f"{name} is not supported: {REFUSED[name]}"


def test_a_refused_class_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    source = replace(ready("wan"), pipeline_class="WanAnimatePipeline")
    with pytest.raises(
        LvdError, match=r"^WanAnimatePipeline is not supported: it samples a video in segments"
    ):
        load_pipeline(source)


def test_free_init_is_refused_by_name_while_it_is_on(tiny_pipeline: Any) -> None:
    tiny_pipeline.enable_free_init(num_iters=2)
    with pytest.raises(
        LvdError, match=r"FreeInit of AnimateDiffPipeline is not supported: .*disable_free_init"
    ):
        check_supported(tiny_pipeline)
    tiny_pipeline.disable_free_init()
    check_supported(tiny_pipeline)


def test_an_ip_adapter_is_refused_by_name_while_it_is_loaded(tiny_pipeline: Any) -> None:
    tiny_pipeline.load_ip_adapter(
        [random_ip_adapter(tiny_pipeline.unet)], subfolder="", weight_name="", image_encoder_folder=None
    )
    with pytest.raises(LvdError, match=r"IP-Adapter of AnimateDiffPipeline is not supported: .*unload_ip_ad"):
        check_supported(tiny_pipeline)
    tiny_pipeline.unload_ip_adapter()
    check_supported(tiny_pipeline)


def random_ip_adapter(unet: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Weights in the form of the published ones: keys and values for every attention to text."""
    width, tokens, seen = unet.config.cross_attention_dim, 4, 16
    image_proj = {
        **{"proj.weight": torch.randn(tokens * width, seen), "proj.bias": torch.randn(tokens * width)},
        **{"norm.weight": torch.randn(width), "norm.bias": torch.randn(width)},
    }
    to_text = [name for name in unet.attn_processors if "attn2" in name and "motion_modules" not in name]
    attention = {}
    for number, name in enumerate(to_text):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            attention[f"{2 * number + 1}.{part}.weight"] = torch.randn(hidden, width)
    return {"image_proj": image_proj, "ip_adapter": attention}


def test_a_guard_refuses_free_init_before_anything_is_sampled(tiny_pipeline: Any) -> None:
    info = bundle_info(tiny_pipeline)
    tiny_pipeline.enable_free_init(num_iters=2)
    with pytest.raises(LvdError, match="FreeInit"):
        Guard(Bundle(info, "d" * 64, Scripted([])), allow_mismatch=True)(tiny_pipeline, prompt="one")  # type: ignore[arg-type]


def test_free_noise_takes_one_prompt_a_call(tiny_pipeline: Any) -> None:
    tiny_pipeline._free_noise_context_length = 8
    with pytest.raises(LvdError, match="FreeNoise of AnimateDiffPipeline takes one prompt a call"):
        prompt_argument(tiny_pipeline, ["one", "two"])
    assert prompt_argument(tiny_pipeline, ["one"]) == {"prompt": "one"}


# ---- pipelines of other kinds, under a guard


class FromImages(StubPipeline):
    """No prompts, guidance by another name, and videos that come bare: like Stable Video Diffusion."""

    def __call__(  # type: ignore[override]
        self, image: Any, num_inference_steps: int, max_guidance_scale: float, return_dict: bool
    ) -> Any:
        prompts = [""] * (len(image) if isinstance(image, list) else 1)
        return super().__call__(prompts, num_inference_steps, max_guidance_scale, return_dict=False)[0]


def test_a_pipeline_without_prompts_is_guarded_by_its_images() -> None:
    pipe = FromImages()
    flagged = np.zeros((2, 6), bool)
    flagged[1] = True
    guard = stub_guard(pipe, flagged)
    result = guard(pipe, image=[picture(0), picture(1)])
    assert [decision.outcome for decision in result.decisions] == ["safe", "unsafe"]
    expected = StubPipeline()(prompt=["", ""], num_inference_steps=6, return_dict=False)[0]
    assert torch.equal(result.videos[0], expected[0])
    assert result.videos[1] is None
    assert pipe.received[0]["guidance_scale"] == 5.0
    with pytest.raises(LvdError, match="there is no prompt"):
        guard(pipe)


class BeginningLate(StubPipeline):
    """Leaves the first steps of its schedule out, as a video does that is noised in part."""

    first = 4

    def __call__(self, *args: Any, strength: float, **others: Any) -> Any:
        self.order = lambda timesteps: timesteps[self.first :]
        return super().__call__(*args, **others)


@pytest.mark.parametrize(
    ("first", "outcome", "why"),
    [
        (4, "safe", "0 of the first 4 steps flagged, 1 of 4 are needed"),
        (3, "unchecked", "step 0: timestep 600 where 500 should come: a step was skipped or repeated"),
        (5, "unchecked", "step 0: timestep 400 where 500 should come: a step was skipped or repeated"),
    ],
)
def test_a_guard_knows_with_which_step_a_sampler_begins_that_begins_late(
    first: int, outcome: str, why: str
) -> None:
    pipe = BeginningLate()
    pipe.first = first
    guard = stub_guard(pipe, np.zeros((1, 6), bool), {"call": {"num_inference_steps": 10, "strength": 0.6}})
    for said in ({}, {"num_inference_steps": 10}):  # as captured, said or not
        (decision,) = guard(pipe, prompt="one", **said).decisions
        assert (decision.outcome, decision.why) == (outcome, why)


# ---- step caches

CACHES: dict[str, dict[str, Any]] = {
    "FasterCacheConfig": {
        **{"spatial_attention_block_skip_range": 2, "tensor_format": "BCFHW"},
        "current_timestep_callback": lambda: 500,
    },
    "FirstBlockCacheConfig": {},
    "MagCacheConfig": {"num_inference_steps": 4, "calibrate": True},
    "PyramidAttentionBroadcastConfig": {
        "spatial_attention_block_skip_range": 2,
        "current_timestep_callback": lambda: 500,
    },
    "SeaCacheConfig": {},
    "TaylorSeerCacheConfig": {},
    "TextKVCacheConfig": {},
}
CACHING = "LattePipeline"  # on which all of them can be switched on


def test_every_cache_of_diffusers_is_tried() -> None:
    source = inspect.getsource(diffusers.CacheMixin.enable_cache)
    assert set(re.findall(r"isinstance\(config, (\w+)\)", source)) == set(CACHES)


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_that_the_capture_had_not_is_refused_until_it_is_off(cache: str) -> None:
    pipe = by_name(CACHING).build()
    guard = Guard(random_guarded(pipe))
    pipe.transformer.enable_cache(getattr(diffusers, cache)(**CACHES[cache]))
    told = f"the transformer caches steps ({cache}), and the capture's did not"
    with pytest.raises(LvdError, match=re.escape(told)):
        guard(pipe, prompt="one")
    pipe.transformer.disable_cache()
    with pytest.raises(Passed):
        guard(pipe, prompt="one")


@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_that_the_capture_had_is_asked_for(cache: str) -> None:
    pipe = by_name(CACHING).build()
    pipe.transformer.enable_cache(getattr(diffusers, cache)(**CACHES[cache]))
    known = step_caches(pipe)
    assert known == json.loads(json.dumps(known))
    bundle = random_guarded(pipe)
    guard = Guard(with_origin(bundle, step_caches=known))
    with pytest.raises(Passed):
        guard(pipe, prompt="one")
    pipe.transformer.disable_cache()
    told = f"the transformer caches no steps, and the capture's did ({cache})"
    with pytest.raises(LvdError, match=re.escape(told)):
        guard(pipe, prompt="one")


def test_another_option_of_a_cache_is_refused() -> None:
    pipe = by_name(CACHING).build()
    bundle = random_guarded(pipe)
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    known = {"transformer": {"config": "FirstBlockCacheConfig", "threshold": 0.2}}
    guard = Guard(with_origin(bundle, step_caches=known))
    with pytest.raises(LvdError, match=r"the transformer's step cache's threshold is 0\.1, not 0\.2"):
        guard(pipe, prompt="one")


def test_a_capture_records_its_cache_and_its_guard_works_under_the_same(tmp_path: Path) -> None:
    tiny = by_name(CACHING)
    plain = capture(tiny, tmp_path)
    options = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [0, 1000]}
    step_cache = {"config": "PyramidAttentionBroadcastConfig", **options}
    (tmp_path / "cached").mkdir()
    cached = capture(replace(tiny, step_cache=step_cache), tmp_path / "cached")
    assert cached.info.parts == {"step_cache": step_cache}
    assert cached.info.origin.step_caches == step_caches(cached.pipe)
    assert cached.info.origin.step_caches["transformer"].items() >= step_cache.items()
    assert not torch.equal(cached.x0(), plain.x0())
    assert is_what_it_heard(cached)

    guarded = guard(cached)
    assert blocked_one_and_left_the_other(guarded)
    assert left_behind(cached, guarded) == []
    with pytest.raises(LvdError, match=r"the transformer caches no steps, and the capture's did \(Pyramid"):
        plain.guarded(Guard(random_bundle(cached.info, 0.5)), plain.batches()[0])
    with pytest.raises(LvdError, match=r"exists with parts=.*give the settings it was begun with"):
        writer.check_same(cached.capture, {"parts": {}}, cached.reader.samples)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_cache_of_a_modular_pipeline_keeps_nothing_of_a_withheld_video(
    stopped: bool, tmp_path: Path
) -> None:
    """Unguarded, it keeps the network's features of the last step."""

    def components() -> dict[str, Any]:
        parts = by_name("LTXModularPipeline").components()
        transformer = parts["transformer"]
        return {**parts, "transformer": type(transformer).from_config(transformer.config, num_layers=3)}

    step_cache = {"config": "FirstBlockCacheConfig", "threshold": 0.05}
    tiny = replace(by_name("LTXModularPipeline"), components=components, step_cache=step_cache)
    cached = capture(tiny, tmp_path)
    (batch,) = cached.batches()

    def kept() -> int:
        registries = [getattr(m, "_diffusers_hook", None) for m in cached.pipe.transformer.modules()]
        hooks = [hook for registry in registries if registry for hook in registry.hooks.values()]
        managers = [hook.state_manager for hook in hooks if hasattr(hook, "state_manager")]
        states = [state for manager in managers for state in manager._state_cache.values()]
        return sum(isinstance(value, torch.Tensor) for state in states for value in vars(state).values())

    cached.sample(batch, "latent")
    assert kept()
    blocking = Guard(random_bundle(cached.info, 1e-9)) if stopped else blocking_one(cached)
    outcomes = [decision.outcome for decision in cached.guarded(blocking, batch).decisions]
    assert sorted(outcomes) == ["unsafe" if stopped else "safe", "unsafe"]
    assert not kept()


@pytest.mark.parametrize(
    ("name", "step_cache", "sentence"),
    [
        (CACHING, {"config": "NoCacheConfig"}, "names no config of a step cache in diffusers"),
        (CACHING, {"threshold": 0.1}, "names no config of a step cache in diffusers"),
        (CACHING, {"config": "FirstBlockCacheConfig", "bound": 1}, "unexpected keyword argument 'bound'"),
        (
            "AnimateDiffPipeline",
            {"config": "FirstBlockCacheConfig"},
            "no part of AnimateDiffPipeline has step",
        ),
    ],
)
def test_a_cache_that_cannot_be_switched_on_is_refused(
    name: str, step_cache: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    source = tiny_source(replace(by_name(name), step_cache=step_cache), tmp_path)
    with pytest.raises(LvdError, match=f"cannot be loaded: .*{sentence}"):
        load_pipeline(source)


class Passed(Exception):  # noqa: N818
    """The guard went on to call the pipeline."""


def random_guarded(pipe: Any) -> Bundle:
    """A bundle that is made for `pipe`, whose next call raises `Passed`."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise Passed

    base = type(pipe)
    call.__signature__ = inspect.signature(base.__call__)  # type: ignore[attr-defined]
    info = bundle_info(pipe, call={})
    pipe.__class__ = type(base.__name__, (base,), {"__call__": call})
    return Bundle(info, "d" * 64, Scripted([]))  # type: ignore[arg-type]


def test_a_cache_that_was_applied_past_the_network_is_refused_too() -> None:
    pipe = by_name(CACHING).build()
    guard = Guard(random_guarded(pipe))
    diffusers.hooks.apply_first_block_cache(pipe.transformer, diffusers.FirstBlockCacheConfig())
    with pytest.raises(LvdError, match=r"the transformer caches steps \(FBCBlockHook\)"):
        guard(pipe, prompt="one")

    other = by_name(CACHING).build()
    other_guard = Guard(random_guarded(other))
    other.transformer._is_cached = True  # as Cache-DiT and ParaAttention leave it
    with pytest.raises(LvdError, match=r"the transformer caches steps \(Cache-DiT or ParaAttention\)"):
        other_guard(other, prompt="one")


def test_each_of_two_networks_is_looked_at() -> None:
    pipe = by_name("WanPipeline, two stages").build()
    guard = Guard(random_guarded(pipe))
    pipe.transformer_2.enable_cache(diffusers.TaylorSeerCacheConfig())
    with pytest.raises(LvdError, match="the transformer_2 caches steps"):
        guard(pipe, prompt="one")


def test_under_a_cache_that_is_allowed_every_decision_says_so(tmp_path: Path) -> None:
    captured = capture(by_name(CACHING), tmp_path)
    guard = Guard(random_bundle(captured.info, 1 - 1e-9), allow_mismatch=True)
    cache = "PyramidAttentionBroadcastConfig"
    captured.pipe.transformer.enable_cache(getattr(diffusers, cache)(**CACHES[cache]))
    (decision, _) = captured.guarded(guard, captured.batches()[0]).decisions
    assert decision.outcome == "safe"
    assert decision.mismatches == (f"the transformer caches steps ({cache}), and the capture's did not",)


def test_a_capture_under_a_cache_that_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    pipe = load_pipeline(tiny_source(by_name(CACHING), tmp_path))
    diffusers.hooks.apply_first_block_cache(pipe.transformer, diffusers.FirstBlockCacheConfig())
    with pytest.raises(LvdError, match=r"caches steps \(FBCBlockHook\), .* is not captured"):
        capture(by_name(CACHING), tmp_path, pipe=pipe)
    assert not (tmp_path / "capture" / "capture.json").exists()


# ---- several videos of a prompt


@pytest.mark.parametrize(
    "tiny",
    [
        pytest.param(
            tiny, marks=[] if tiny.name in ("LTXPipeline", "CogVideoXPipeline") else pytest.mark.long
        )
        for tiny in TINY
    ],
    ids=str,
)
def test_a_pipeline_makes_as_many_videos_of_a_prompt_as_it_is_known_to(tiny: Tiny, tmp_path: Path) -> None:
    pipe = tiny.build()
    (name, *_) = [n for n in ("num_videos_per_prompt", "num_images_per_prompt") if takes(pipe, n)] or [""]
    if not name:
        return
    source = tiny_source(tiny, tmp_path)
    first, *_ = read_prompts(PromptsFile(write_prompts(tiny, tmp_path)), ("alpha",), seed=0)
    if tiny.free_noise:
        pipe.enable_free_noise(**tiny.free_noise)
    call = call_arguments(pipe, source.steps, source.guidance, source.call, 1, load_inputs(first, tmp_path))
    call |= prompt_argument(pipe, [first.prompt])
    output_type = "pt" if is_modular(pipe) else "latent"
    try:
        made = len(call_for_videos(pipe, {**call, name: 2, "output_type": output_type}))
    except (AssertionError, RuntimeError):  # shapes that do not fit
        made = 0
    assert makes_one_of_a_prompt(pipe) == (made != 2)


def test_several_videos_of_a_prompt_are_refused_where_one_would_come(tiny_pipeline: Any) -> None:
    guard = Guard(random_guarded(tiny_pipeline))
    told = "AnimateDiffPipeline makes one video of a prompt, whatever num_videos_per_prompt says"
    with pytest.raises(LvdError, match=told):
        guard(tiny_pipeline, prompt="one", num_videos_per_prompt=2)
    with pytest.raises(Passed):
        guard(tiny_pipeline, prompt="one", num_videos_per_prompt=1)


def test_an_argument_that_the_pipeline_has_not_is_refused_by_name() -> None:
    pipe = by_name("TextToVideoSDPipeline").build()
    with pytest.raises(LvdError, match=r"^TextToVideoSDPipeline takes no num_videos_per_prompt$"):
        Guard(random_guarded(pipe))(pipe, prompt="one", num_videos_per_prompt=2)


# ---- adapters


def test_a_guard_notices_what_was_plugged_in_after_the_capture(tiny_pipeline: Any) -> None:
    plain = fingerprint(tiny_pipeline)
    tiny_pipeline._free_noise_context_length, tiny_pipeline._free_noise_context_stride = 8, 4
    assert fingerprint(tiny_pipeline) != plain
    tiny_pipeline.disable_free_noise()
    assert fingerprint(tiny_pipeline) == plain


@pytest.mark.parametrize(
    ("name", "network"),
    [("WanPipeline", "transformer"), pytest.param("AnimateDiffPAGPipeline", "unet", marks=pytest.mark.long)],
)
def test_a_lora_is_captured_recorded_and_recognised(name: str, network: str, tmp_path: Path) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    tiny = by_name(name)
    without = capture(tiny, tmp_path)
    adapted = getattr(without.pipe, network)
    adapted.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"))
    for parameter, values in adapted.named_parameters():
        if "lora_B" in parameter:
            torch.nn.init.normal_(values)
    type(without.pipe).save_lora_weights(
        tmp_path / "lora", get_peft_model_state_dict(adapted), weight_name="mine.safetensors"
    )

    lora = Lora(path=str(tmp_path / "lora"), weight_name="mine.safetensors", scale=0.5)
    (tmp_path / "with").mkdir()
    with_lora = capture(replace(tiny, loras=(lora,)), tmp_path / "with")
    assert with_lora.info.parts == {"loras": [lora.given()]}
    assert with_lora.info.origin.fingerprint != without.info.origin.fingerprint
    assert not torch.equal(with_lora.x0(), without.x0())
    assert is_what_it_heard(with_lora)
    assert blocked_one_and_left_the_other(guard(with_lora))

    bundle = random_bundle(without.info, 0.5)
    with pytest.raises(LvdError, match=f"the {network} is another network than the capture's"):
        with_lora.guarded(Guard(bundle), with_lora.batches()[0])


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA of the tiny Wan, that changes what the network answers."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    path = tmp_path_factory.mktemp("lora")
    pipe = by_name("WanPipeline").build()
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    type(pipe).save_lora_weights(path, get_peft_model_state_dict(pipe.transformer))
    return path


def wan_with(lora: Path, *names: str, scales: tuple[float, ...] = ()) -> Any:
    pipe = by_name("WanPipeline").build()
    for name in names:
        pipe.load_lora_weights(lora, adapter_name=name)
    if names:
        pipe.set_adapters(list(names), list(scales or [1.0] * len(names)))
    return pipe


def test_the_fingerprint_without_adapters_is_the_one_of_old_bundles() -> None:
    pipe = by_name("WanPipeline").build()
    described = json.dumps(
        [type(pipe.transformer).__name__, plain_config(pipe.transformer.config)], sort_keys=True
    )
    assert fingerprint(pipe) == {"transformer": hashlib.sha256(described.encode()).hexdigest()}
    compiled = SimpleNamespace(transformer=SimpleNamespace(_orig_mod=pipe.transformer))
    assert fingerprint(compiled) == fingerprint(pipe)


STATES: dict[str, Callable[[Any], None]] = {
    "loaded": lambda pipe: None,
    "at another scale": lambda pipe: pipe.set_adapters(["mine"], [0.5]),
    "switched off": lambda pipe: pipe.disable_lora(),
    "fused": lambda pipe: pipe.fuse_lora(components=["transformer"]),
    "fused at another scale": lambda pipe: pipe.fuse_lora(components=["transformer"], lora_scale=0.5),
    "fused, then unloaded": lambda pipe: (
        pipe.fuse_lora(components=["transformer"]),
        pipe.unload_lora_weights(),
    ),
    "fused at another scale, then unloaded": lambda pipe: (
        pipe.fuse_lora(components=["transformer"], lora_scale=0.5),
        pipe.unload_lora_weights(),
    ),
    "fused, then unfused": lambda pipe: (
        pipe.fuse_lora(components=["transformer"]),
        pipe.unfuse_lora(components=["transformer"]),
    ),
}


def test_every_state_of_an_adapter_has_a_fingerprint_of_its_own(lora: Path) -> None:
    plain = by_name("WanPipeline").build()
    found = {"none": fingerprint(plain)["transformer"]}
    for state, bring_about in STATES.items():
        pipe = wan_with(lora, "mine")
        bring_about(pipe)
        found[state] = fingerprint(pipe)["transformer"]
    assert len(set(found.values())) == len(found)

    fused = wan_with(lora, "mine")
    fused.fuse_lora(components=["transformer"])
    fused.unload_lora_weights()
    shared = diffusers.WanPipeline.from_pipe(fused)  # knows nothing of the adapter, and has its weights
    assert fingerprint(shared)["transformer"] == found["fused, then unloaded"]


def test_an_adapter_that_is_back_as_it_was_is_the_same(lora: Path) -> None:
    pipe = wan_with(lora, "mine")
    before = fingerprint(pipe)
    pipe.set_adapters(["mine"], [0.5])
    pipe.disable_lora()
    pipe.enable_lora()
    pipe.set_adapters(["mine"], [1.0])
    assert fingerprint(pipe) == before
    assert fingerprint(wan_with(lora, "mine")) == before
    pipe.unload_lora_weights()
    assert fingerprint(pipe) == fingerprint(by_name("WanPipeline").build())


def test_which_of_two_adapters_is_active_is_recognised(lora: Path) -> None:
    both = wan_with(lora, "one", "two")
    found = [fingerprint(both)]
    both.set_adapters(["one"])
    found.append(fingerprint(both))
    both.set_adapters(["two"])
    found.append(fingerprint(both))
    found += [
        fingerprint(wan_with(lora, "one", "two", scales=(1.0, 0.5))),
        fingerprint(wan_with(lora, "one")),
    ]
    assert len({one["transformer"] for one in found}) == len(found)


# ---- of modular pipelines


def test_other_blocks_settings_and_guiders_are_recognised() -> None:
    pipe = by_name("Wan22ModularPipeline").build()
    guard = Guard(with_origin(random_guarded(pipe), guidance=None))
    pipe.guider_2.disable()
    with pytest.raises(LvdError, match="the guider_2 is another network than the capture's"):
        guard(pipe, prompt="one")
    pipe.guider_2.enable()
    pipe.register_to_config(boundary_ratio=0.5)
    with pytest.raises(LvdError, match="the blocks are others, or set otherwise, than the capture's"):
        guard(pipe, prompt="one")
    for argument in ("state", "output"):
        with pytest.raises(LvdError, match=f"{argument} does not go with a guard"):
            guard(pipe, prompt="one", **{argument: "latents"})
    blocks = diffusers.Wan22ModularPipeline().blocks
    blocks.sub_blocks.insert("again", blocks.sub_blocks["decode"], 3)
    other = blocks.init_pipeline()
    assert fingerprint(other)["blocks"] != fingerprint(diffusers.Wan22ModularPipeline())["blocks"]


# ---- weights


def test_weights_that_were_recorded_are_compared_at_every_call(tmp_path: Path) -> None:
    captured = capture(by_name("WanPipeline"), tmp_path, weights=True)
    assert captured.info.origin.weights == weights_digests(captured.pipe)
    assert list(captured.info.origin.weights) == ["transformer"]
    batch = captured.batches()[0]
    guard = Guard(random_bundle(captured.info, 1 - 1e-9))
    assert [d.outcome for d in captured.guarded(guard, batch).decisions] == ["safe", "safe"]

    with torch.no_grad():
        next(captured.pipe.transformer.parameters()).view(-1)[0] += 1e-3
    told = "the transformer has other weights than the capture's"
    with pytest.raises(LvdError, match=told):
        captured.guarded(guard, batch)
    allowing = Guard(random_bundle(captured.info, 1 - 1e-9), allow_mismatch=True)
    assert {d.mismatches for d in captured.guarded(allowing, batch).decisions} == {(told,)}
    without = Guard(with_origin(random_bundle(captured.info, 1 - 1e-9), weights={}))
    assert [d.outcome for d in captured.guarded(without, batch).decisions] == ["safe", "safe"]


def test_another_adapter_of_the_same_name_and_another_dtype_are_other_weights(lora: Path) -> None:
    one, other = wan_with(lora, "mine"), wan_with(lora, "mine")
    assert weights_digests(one) == weights_digests(other)
    with torch.no_grad():
        for name, values in other.transformer.named_parameters():
            if "lora_B" in name:
                values += 0.1
    assert fingerprint(one) == fingerprint(other)
    assert weights_digests(one) != weights_digests(other)
    assert weights_digests(one) != weights_digests(SimpleNamespace(transformer=one.transformer.half()))


def test_of_a_large_network_a_sample_of_each_tensor_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvd.sampling.weights._WHOLE", 30)
    monkeypatch.setattr("lvd.sampling.weights._SAMPLED", 5)
    network = torch.nn.Linear(21, 1, bias=True)  # 22 numbers: read whole
    pipe = SimpleNamespace(unet=network)

    def noticed(network: torch.nn.Linear, position: int) -> bool:
        pipe.unet = network
        before = weights_digests(pipe)
        with torch.no_grad():
            network.weight.view(-1)[position] += 1
        return weights_digests(pipe) != before

    assert all(noticed(network, position) for position in range(21))
    large = torch.nn.Linear(41, 1)
    assert [position for position in range(41) if noticed(large, position)] == [0, 10, 20, 30, 40]


EDITS: dict[str, Callable[[torch.nn.Linear], object]] = {
    "in place": lambda layer: layer.weight.view(-1)[1].add_(1),
    "in inference mode": torch.inference_mode()(lambda layer: layer.bias.add_(1)),
    "loaded": lambda layer: layer.load_state_dict({"weight": torch.zeros(90, 9), "bias": torch.ones(90)}),
    "another parameter": lambda layer: setattr(layer, "bias", torch.nn.Parameter(layer.bias + 1)),
    "another parameter in its memory": lambda layer: setattr(
        layer, "bias", torch.nn.Parameter(layer.bias.data.add_(torch.eye(90)[1]))
    ),
    "other data": lambda layer: setattr(layer.weight, "data", layer.weight + torch.eye(90, 9)),
    "as peft merges": lambda layer: layer.weight.data.add_(1e-3),
    "in another dtype": lambda layer: layer.double(),
}


@pytest.mark.parametrize("name", EDITS)
def test_weights_are_read_once_and_again_when_they_have_changed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    monkeypatch.setattr(
        "lvd.sampling.weights.hashlib", SimpleNamespace(sha256=lambda: digests.append(1) or hashlib.sha256())
    )
    layer = torch.nn.Linear(9, 90)
    pipe = SimpleNamespace(unet=layer)
    before = weights_digests(pipe)
    assert weights_digests(SimpleNamespace(transformer=layer))["transformer"] == before["unet"]
    assert len(digests) == 1
    with torch.no_grad():
        EDITS[name](layer)
    after = weights_digests(pipe)
    assert after != before
    assert after == weights_digests(pipe) == weights_digests(SimpleNamespace(unet=copy.deepcopy(layer)))
    assert len(digests) == 3


def test_weights_whose_changes_are_not_counted_are_read_at_every_call() -> None:
    with torch.inference_mode():
        layer = torch.nn.Linear(90, 9)
        before = weights_digests(SimpleNamespace(unet=layer))
        layer.weight[0, 1] += 1
        assert weights_digests(SimpleNamespace(unet=layer)) != before


def test_weights_that_are_elsewhere_are_refused() -> None:
    pipe = by_name("WanPipeline").build()
    bundle = random_guarded(pipe)
    guard = Guard(with_origin(bundle, weights=weights_digests(pipe)))
    pipe.transformer.to("meta")
    with pytest.raises(LvdError, match="the weights of the transformer cannot be read: "):
        guard(pipe, prompt="one")


# ---- guidance by another name, or none


def test_guidance_goes_by_the_name_that_the_pipeline_has() -> None:
    assert guidance_argument(by_name("WanPipeline").build(), 4.0) == {"guidance_scale": 4.0}
    assert guidance_argument(by_name("StableVideoDiffusionPipeline").build(), 3.0) == {
        "max_guidance_scale": 3.0
    }
    with pytest.raises(LvdError, match=r"Unheard takes no guidance_scale: set pipeline.guidance=null"):
        guidance_argument(Unheard(), 3.0)
    assert guidance_argument(Unheard(), None) == {}
    assert call_arguments(Unheard(), 5, None, {}, 2) == {"num_inference_steps": 5}


# ---- the ready files


def ready(name: str) -> Source:
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        config = typed(compose("capture", [f"pipeline={name}", "prompts=prompts.csv"]), CaptureConfig)
    return config.pipeline


@pytest.mark.parametrize("name", FILES)
def test_a_ready_file_is_a_call_that_its_pipeline_takes(name: str) -> None:
    source = ready(name)
    assert source.category_names == list(PAPER)
    kind = getattr(diffusers, source.pipeline_class)
    parameters = inspect.signature(kind.__call__).parameters
    assert source.pipeline_class in LAYOUT_OF
    assert set(source.call) <= set(parameters)
    assert source.guidance is None or {"guidance_scale", "max_guidance_scale"} & set(parameters)
    assert {"height", "width"} <= set(source.call)
    assert source.revision is not None
    components = set(inspect.signature(kind.__init__).parameters)
    assert set(source.dtypes) <= components
    assert ("motion_adapter" in components) == (source.motion_adapter is not None)
    if source.scheduler is not None:
        assert source.scheduler in supported_schedulers()
        taken = inspect.signature(getattr(diffusers, source.scheduler).__init__).parameters
        assert set(source.scheduler_config) <= set(taken)
    if "strength" in source.call:
        assert source.steps == int(source.call["num_inference_steps"] * source.call["strength"])


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_a_ready_file_runs_on_tiny_weights_of_its_class(name: str, tmp_path: Path) -> None:
    """With its own scheduler, guidance, options and mixed dtypes: only smaller, shorter, without adapters."""
    source = ready(name)
    tiny = next(
        tiny
        for tiny in TINY
        if tiny.pipeline_class == source.pipeline_class and bool(tiny.free_noise) == bool(source.free_noise)
    )
    small = tiny_source(tiny, tmp_path)
    source = replace(
        source,
        path=small.path,
        revision=None,
        motion_adapter=None,
        loras=[],
        device="cpu",
        dtype=source.dtype if source.dtypes else "float32",  # half precision alone is slow on a CPU
        steps=small.steps,
        call={**source.call, **tiny.call},
        free_noise=small.free_noise,
    )
    samples = read_prompts(PromptsFile(write_prompts(tiny, tmp_path)), PAPER, seed=0)
    recording = Recording(batch_size=1, preview=True)
    record(source, samples[:1], tmp_path / "capture", recording, folder=tmp_path)
    info = read_info(tmp_path / "capture")
    assert info.origin.latent_shape == tiny.latent_shape
    assert info.origin.scheduler == source.scheduler or source.scheduler is None
    assert len(list((tmp_path / "capture" / "preview").glob("*.mp4"))) == 1


def test_the_papers_own_sampling_is_in_the_ready_files() -> None:
    for name in ("animatediff", "magictime"):
        source = ready(name)
        assert (source.steps, source.guidance) == (50, 8.5)
        assert source.call == {
            **{"num_frames": 16, "height": 512, "width": 512},
            "negative_prompt": "worst quality, low quality, letterboxed",
        }
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
        assert source.scheduler == "DDIMScheduler"
        assert source.scheduler_config.items() >= {**betas, "steps_offset": 1, "clip_sample": False}.items()


# ---- images and videos in a prompts file


def test_a_column_of_images_through_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = by_name("CogVideoXImageToVideoPipeline")
    tiny_source(tiny, tmp_path)
    (tmp_path / "inputs").mkdir()
    write_prompts(tiny, tmp_path / "inputs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that what the command sets is undone
    settings = {"path": tmp_path / "pipeline", "revision": "null", "dtype": "float32", "steps": 3}
    sizes = {"num_frames": 9, "height": 32, "width": 64, "max_sequence_length": 16}
    arguments = [
        *("pipeline=cogvideox_i2v", "prompts=../inputs/prompts.csv", "name=mine", "weights=true"),
        *(f"pipeline.{key}={value}" for key, value in settings.items()),
        *(f"++pipeline.call.{key}={value}" for key, value in sizes.items()),
    ]
    monkeypatch.setattr(sys, "argv", ["capture.py", *arguments])
    runpy.run_path(str(CONF.parent / "capture.py"), run_name="__main__")
    assert "2 samples without labels" in " ".join(capsys.readouterr().out.split())
    capture_dir = tmp_path / "elsewhere" / "captures" / "mine"
    assert read_info(capture_dir).origin.latent_shape == tiny.latent_shape
    assert list(read_info(capture_dir).origin.weights) == ["transformer"]
    assert [sample.image for sample in read_samples(capture_dir)] == ["first.png", "second.png"]


def test_samples_of_one_image_are_in_one_split_and_those_without_a_prompt_are_not_alike(
    tmp_path: Path,
) -> None:
    for seed in range(30):
        picture(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "prompts.csv").write_text(
        "image\n" + "".join(f"{seed}.png\n" for seed in range(30)) + "copy.png\n"
    )
    samples = read_prompts(PromptsFile(tmp_path / "prompts.csv"), ("alpha",), seed=0)
    assert {sample.split for sample in samples} == {"train", "val", "test"}
    assert samples[0].prompt_id == samples[30].prompt_id
    assert samples[0].split == samples[30].split
    assert len({sample.prompt_id for sample in samples}) == 30


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image\nnone.png\n", "row 1: no such image: "),
        ("prompt,image\na cat,prompts.csv\n", "row 1: {}/prompts.csv is not an image that can be read"),
        ("video\nnone.gif\n", "row 1: no such video: "),
        ("image,seed\n,3\n", "row 1: the prompt is empty"),
    ],
)
def test_an_input_that_is_not_there_or_none_is_refused_before_anything_is_loaded(
    tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "prompts.csv").write_text(text)
    with pytest.raises(LvdError) as refusal:
        read_prompts(PromptsFile(tmp_path / "prompts.csv"), ("alpha",), seed=0)
    assert sentence.format(tmp_path) in str(refusal.value)


def test_images_are_kept_with_the_samples_and_a_capture_with_others_is_refused(tmp_path: Path) -> None:
    captured = capture(by_name("CogVideoXImageToVideoPipeline"), tmp_path)
    samples = captured.reader.samples
    assert [sample.image for sample in samples] == ["first.png", "second.png"]
    others = [replace(samples[0], image="second.png"), samples[1]]
    with pytest.raises(
        LvdError, match=f"exists with other samples .first difference: sample {samples[0].sample_id}"
    ):
        writer.check_same(captured.capture, {}, others)


def test_a_pipeline_that_takes_no_image_refuses_the_call(tmp_path: Path) -> None:
    with pytest.raises(
        LvdError, match=r"the pipeline refused the call: .*unexpected keyword argument 'image'"
    ):
        capture(replace(by_name("WanPipeline"), inputs="image"), tmp_path)
    assert not (tmp_path / "capture").exists()


# ---- what the docs say


def test_the_docs_list_every_file_pipeline_and_refusal() -> None:
    text = (CONF.parent / "docs" / "generators.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    assert [row[0].strip("`") for row in rows if row[0].strip("`") in FILES] == FILES
    listed = {row[0]: row for row in rows if len(row) == 7 and row[0] != "pipeline"}
    assert list(listed) == [tiny.name for tiny in TINY]
    for tiny in TINY:
        assert listed[tiny.name][3:] == [
            str(list(tiny.latent_shape)),
            LAYOUT_OF[tiny.pipeline_class],
            "yes",
            "yes",
        ]
    assert {row[0]: row[1] for row in rows if row[0] in REFUSED} == REFUSED
    assert {row[0] for row in rows if row[0].endswith("Scheduler")} == set(supported_schedulers())
