"""The table of how guards fail says what they do: every cell that is called measured is measured here."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PyramidAttentionBroadcastConfig,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from test_guard import flagged_rows, is_whole, prompts, unflagged, unguarded
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

import lvd.guard.watch
from conftest import StubPipeline, bundle_info, stub_guard
from lvd.demo import text
from lvd.errors import LvdError
from lvd.guard import AuditLog, Guard, table
from lvd.guard.bundle import Bundle
from lvd.guard.table import ANSWERS, FAULTS, MEASURED, OTHERS, OURS, Answer, Other
from support import tiny
from support.commands import ROOT
from support.pipelines import TINY

CHECKER, NUDENET, COSMOS = OTHERS


def test_the_table_has_a_cell_for_every_fault_and_a_source_for_every_cell() -> None:
    assert set(OURS) == set(FAULTS)
    assert set(OURS.values()) <= set(ANSWERS)
    for other in OTHERS:
        assert set(other.cells) == set(FAULTS)
        for cell in other.cells.values():
            assert cell.answer in ANSWERS
            assert cell.source == MEASURED or ".py" in cell.source
    assert not any(cell.source == MEASURED for cell in COSMOS.cells.values())


def test_the_documentation_has_the_table_as_it_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["table", "--sources"])
    table.main()
    page = (ROOT / "docs" / "guard.md").read_text()
    for block in capsys.readouterr().out.strip().split("\n\n"):
        assert block in page


# ---- ours


def ours(call: Callable[[], Any], pipe: StubPipeline) -> Answer:
    """What a guarded call of two prompts, of which the first may be unsafe, does."""
    try:
        result = call()
    except LvdError:
        return "raises" if pipe.steps else "refused"
    first, second = result.decisions
    assert (first.released, result.videos[0]) == (False, None)
    if first.outcome == "unchecked":
        assert (second.outcome, result.videos[1]) == ("unchecked", None)
        assert first.why
        return "withheld"
    assert (first.outcome, second.outcome, second.released) == ("unsafe", "safe", True)
    return "blocked"


def spoilt(answer: Callable[[Tensor], Any]) -> Answer:
    """The detectors' answer to the second step is another."""
    pipe = StubPipeline()
    guard = stub_guard(pipe, unflagged(2), limit_seconds=60)
    guard.bundle.detectors.spoil = lambda step, logits: answer(logits) if step == 1 else logits
    return ours(lambda: guard(pipe, prompt=prompts(2)), pipe)


def called(flagged: Any, options: dict[str, Any] | None = None, **arguments: Any) -> Answer:
    pipe = StubPipeline()
    guard = stub_guard(pipe, flagged, **(options or {}))
    return ours(lambda: guard(pipe, prompt=prompts(2), **arguments), pipe)


def of_bundle(spoil: Callable[[Path], Any], bundle: Path, folder: Path) -> Answer:
    copy = shutil.copytree(bundle, folder / "copy")
    spoil(copy)
    with pytest.raises(LvdError):
        Guard.from_pretrained(copy)
    return "refused"


def change_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def boom(*_: Any) -> Any:
    raise RuntimeError("boom")


def with_a_cache() -> Answer:
    pipe = next(each for each in TINY if each.name == "CogVideoXPipeline").build()
    guard = Guard(Bundle(bundle_info(pipe), "d" * 64, torch.nn.Identity()))
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        )
    )
    sampled = SimpleNamespace(steps=0)
    pipe.scheduler.step = lambda *args, **kwargs: setattr(sampled, "steps", 1)
    with pytest.raises(LvdError, match="caches steps"):
        guard(pipe, prompt=prompts(2))
    assert not sampled.steps
    return "refused"


@pytest.mark.parametrize("fault", FAULTS)
def test_ours(fault: str, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(lvd.guard.watch, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    bundle, detector = exported / "bundle", Path("alpha", "step_00", "model.safetensors")

    def late(logits: Tensor) -> Tensor:
        now[0] += 3600
        return logits

    def nan_latents() -> Answer:
        pipe = StubPipeline()
        guard = stub_guard(pipe, unflagged(2))
        pipe.disturb = lambda step, latents: latents * torch.nan if step == 1 else latents
        return ours(lambda: guard(pipe, prompt=prompts(2)), pipe)

    def one_of_two() -> Answer:
        pipe = StubPipeline()
        result = stub_guard(pipe, flagged_rows(2, 0))(pipe, prompt=prompts(2))
        assert is_whole(result.videos[1], unguarded(2)[1])
        return ours(lambda: result, pipe)

    measured: dict[str, Callable[[], Answer]] = {
        "missing": lambda: of_bundle(lambda copy: (copy / detector).unlink(), bundle, tmp_path),
        "changed": lambda: of_bundle(lambda copy: change_a_byte(copy / detector), bundle, tmp_path),
        "none": lambda: spoilt(lambda logits: None),
        "nan": lambda: spoilt(lambda logits: logits * torch.nan),
        "raises": lambda: spoilt(boom),
        "late": lambda: spoilt(late),
        "latent": nan_latents,
        "cache": with_a_cache,
        "output": lambda: called(flagged_rows(2, 0), output_type="latent"),
        "callback": lambda: called(unflagged(2), callback_on_step_end=lambda *_: {}),
        "embeds": lambda: called(unflagged(2), prompt_embeds=torch.zeros(2, 1, 1)),
        "log": lambda: called(unflagged(2), {"audit": AuditLog(tmp_path)}),
        "unsafe": one_of_two,
    }
    assert measured[fault]() == OURS[fault]


# ---- diffusers' safety checker


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny StableDiffusionPipeline with random weights, whose checker finds nothing."""
    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=CLIPTextConfig(**small).to_dict(),
        vision_config=CLIPVisionConfig(**small, image_size=32, patch_size=8).to_dict(),
        projection_dim=8,
    )
    pipe = StableDiffusionPipeline(
        vae=tiny.build_vae(),
        text_encoder=tiny.build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=text.TEXT_WIDTH,
            norm_num_groups=8,
            attention_head_dim=4,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=StableDiffusionSafetyChecker(config),
        feature_extractor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
    path = tmp_path_factory.mktemp("stable_diffusion")
    pipe.save_pretrained(path)
    return path


def load(saved: Path, **parts: Any) -> Any:
    pipe: Any = StableDiffusionPipeline.from_pretrained(saved, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def finds_all(pipe: Any) -> Any:
    pipe.safety_checker.concept_embeds_weights.data.fill_(-2)  # a cosine is never below
    return pipe


def pictures(pipe: Any, **arguments: Any) -> tuple[Any, Any]:
    """Two of them, and what is said of each."""
    generator = torch.Generator().manual_seed(0)
    call = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np", **arguments}
    out = pipe(["a red one", "a blue two"], generator=generator, **call)
    return out.images, out.nsfw_content_detected


def checkers(pipe: Any, **arguments: Any) -> Answer:
    """What becomes of both pictures."""
    try:
        images, said = pictures(pipe, **arguments)
    except Exception:
        return "raises"
    if said is None:
        return "out, said"
    if all(said):
        assert not np.any(images)
        return "black"
    assert not any(said)
    return "out"


def seen_by_a_callback(pipe: Any) -> Answer:
    """The pictures are all black, and were seen before."""
    seen: list[Tensor] = []

    def callback(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"].clone())
        return tensors

    assert checkers(finds_all(pipe), callback_on_step_end=callback) == "black"
    assert len(seen) == 2
    assert all(latents.any() for latents in seen)
    return "out"


def one_is_black(pipe: Any) -> Answer:
    """The checker knows the first picture alone."""
    checker, embeds = pipe.safety_checker, []
    hook = checker.visual_projection.register_forward_hook(lambda *given: embeds.append(given[-1]))
    plain, _ = pictures(pipe)
    hook.remove()
    first, second = embeds[0]
    checker.concept_embeds.data[:] = first
    checker.concept_embeds_weights.data.fill_((1 + torch.cosine_similarity(first, second, dim=0)) / 2)
    images, said = pictures(pipe)
    assert said == [True, False]
    assert not images[0].any()
    assert np.array_equal(images[1], plain[1])
    return "black"


def with_nan(pipe: Any) -> Any:
    pipe.safety_checker.visual_projection.weight.data.fill_(torch.nan)
    return pipe


def replaced(pipe: Any, part: str, forward: Callable[..., Any]) -> Any:
    getattr(pipe, part).forward = forward
    return pipe


def changed_on_the_disk(saved: Path, folder: Path) -> Answer:
    copy = shutil.copytree(saved, folder / "copy")
    change_a_byte(copy / "safety_checker" / "model.safetensors")
    return checkers(load(copy))


@pytest.mark.parametrize("fault", [fault for fault, cell in CHECKER.cells.items() if cell.source == MEASURED])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_the_safety_checker_of_diffusers(fault: str, saved: Path, tmp_path: Path) -> None:
    assert_versions(CHECKER, diffusers)
    measured: dict[str, Callable[[], Answer]] = {
        "missing": lambda: checkers(load(saved, safety_checker=None)),
        "changed": lambda: changed_on_the_disk(saved, tmp_path),
        "none": lambda: checkers(replaced(load(saved), "safety_checker", lambda **_: None)),
        "nan": lambda: checkers(with_nan(finds_all(load(saved)))),
        "raises": lambda: checkers(replaced(load(saved), "safety_checker", boom)),
        "latent": lambda: checkers(with_nan_pixels(load(saved))),
        "output": lambda: checkers(finds_all(load(saved)), output_type="latent"),
        "callback": lambda: seen_by_a_callback(load(saved)),
        "unsafe": lambda: one_is_black(load(saved)),
    }
    assert measured[fault]() == CHECKER.cells[fault].answer


def test_without_a_fault_the_safety_checker_finds_what_it_should(saved: Path) -> None:
    assert checkers(load(saved)) == "out"
    assert checkers(finds_all(load(saved))) == "black"


def with_nan_pixels(pipe: Any) -> Any:
    decode = AutoencoderKL.decode

    def nan(latents: Tensor, **options: Any) -> Any:
        return tuple(each * torch.nan for each in decode(pipe.vae, latents, **options))

    pipe.vae.decode = nan
    return pipe


def assert_versions(other: Other, *modules: Any) -> None:
    """The table is of what is installed: after an upgrade, look again at what is read, too."""
    for module in modules:
        assert f"{module.__name__} {module.__version__}" in other.version


# ---- NudeNet, where it is installed


def findings(detector: Any, picture: Any) -> Answer:
    try:
        found = detector.detect(picture)
    except Exception:
        return "raises"
    assert found == []
    return "out"


@pytest.mark.parametrize("fault", [fault for fault, cell in NUDENET.cells.items() if cell.source == MEASURED])
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_nudenet(fault: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    nudenet = pytest.importorskip("nudenet")
    assert_versions(NUDENET, onnxruntime)
    grey = np.full((64, 64, 3), 128, np.uint8)

    def answering(run: Callable[..., Any]) -> Answer:
        detector = nudenet.NudeDetector()
        detector.onnx_session = SimpleNamespace(run=run)
        return findings(detector, grey)

    def changed() -> Answer:
        content = bytearray((Path(nudenet.__file__).parent / "320n.onnx").read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "model.onnx").write_bytes(content)
        return findings(nudenet.NudeDetector(str(tmp_path / "model.onnx")), grey)

    def missing() -> Answer:
        with pytest.raises(Exception, match="File doesn't exist"):
            nudenet.NudeDetector(str(tmp_path / "nowhere.onnx"))
        return "raises"

    measured: dict[str, Callable[[], Answer]] = {
        "missing": missing,
        "changed": changed,
        "none": lambda: answering(lambda *_: None),
        "nan": lambda: answering(lambda *_: [np.full((1, 22, 2100), np.nan, np.float32)]),
        "raises": lambda: answering(boom),
        "latent": lambda: findings(nudenet.NudeDetector(), np.full((64, 64, 3), np.nan, np.float32)),
    }
    assert measured[fault]() == NUDENET.cells[fault].answer
