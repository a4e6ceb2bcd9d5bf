"""The paper's own method: decoded frames, a VideoMAE for each cell, and the rule as its code has it."""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessorPil,
    get_linear_schedule_with_warmup,
)

import lvd.capture.frames
from conftest import NAMES, STEPS, StubPipeline, bundle_info, capture_info, latents_of, make_samples
from lvd.capture.decode import load_vae
from lvd.capture.frames import decode_clips, step_frames
from lvd.decide.rules import Flags, Vote, decide, flag_steps
from lvd.detect.bank import score_step, step_check
from lvd.detect.files import NetworkFiles, load_detector, save_detector
from lvd.detect.module import DetectorModule
from lvd.detect.network import IMAGENET_MEAN, IMAGENET_STD, PixelDetector
from lvd.detect.pretrained import Pretrained
from lvd.detect.recipe import Fit
from lvd.errors import LvdError
from lvd.guard.bundle import parse_latent_detector
from lvd.guard.export import export_bundle
from lvd.latents import disk, journal, writer
from lvd.latents.frames import FrameShape, frames_path, open_frames
from lvd.latents.reader import CaptureReader
from lvd.latents.verify import verify
from support.commands import Shell
from support.tiny import build_vae

SHAPE = FrameShape(4, 16, 16)
CONFIG = {
    **{"image_size": 16, "patch_size": 8, "num_frames": 4, "tubelet_size": 2, "hidden_size": 16},
    **{"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "decoder_hidden_size": 16},
    **{"decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 16},
    "initializer_range": 0.25,  # BERT's 0.02 stalls at this width
}
GRID = ["-m", "category=0..1", "step=0..2"]


@pytest.fixture(scope="session")
def videomae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small VideoMAE with random weights, of the class that the real one is saved in."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pretrained") / "videomae"
    VideoMAEForPreTraining(VideoMAEConfig(**CONFIG)).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def with_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of 80 samples whose categories are seen in the pixels, and a VAE that decodes it."""
    return write_with_vae(tmp_path_factory.mktemp("with_vae"), 80)


def write_with_vae(root: Path, count: int) -> Path:
    torch.manual_seed(0)
    build_vae().save_pretrained(root / "pipeline" / "vae")
    samples = make_samples(count)
    x0 = latents_of(samples) / 2
    for row, sample in enumerate(samples):
        for name in sample.categories:
            x0[row, :, NAMES.index(name)] += 2
    writer.begin(root / "tiny", capture_info(pipeline=str(root / "pipeline")), samples)
    journal.append(root / "tiny", [sample.sample_id for sample in samples], x0)
    writer.finish(root / "tiny")
    return root / "tiny"


@pytest.fixture
def decodable(train: Shell, with_vae: Path) -> Path:
    """That capture, where `train` looks for it; a copy."""
    return Path(shutil.copytree(with_vae, train.directory / "captures" / "tiny"))


@pytest.fixture
def few(train: Shell) -> Path:
    """The same of 20 samples: quicker to decode."""
    made = write_with_vae(train.directory, 20)
    (train.directory / "captures").mkdir()
    return made.rename(train.directory / "captures" / "tiny")


def paper(videomae: Path, *others: str) -> list[str]:
    """What a person types, with a smaller VideoMAE and a faster fit."""
    return [
        *("experiment=paper", f"detector.pretrained={videomae}", "name=tiny", "capture=tiny"),
        "accelerator=cpu",
        *("logger=none", "detector.network.epochs=1", "detector.network.learning_rate=0.01", *others),
    ]


# ---- the chain


def test_the_papers_method_runs_through_the_same_sweep(
    train: Shell, decodable: Path, videomae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = count_calls(monkeypatch, "_make")
    ran = train(*GRID, *paper(videomae, "detector.network.epochs=5"))
    assert ran.code == 0, ran.err
    assert f"6 detectors, each {videomae} tuned on decoded frames" in ran.out
    assert len(decoded) == STEPS  # once for a step, for all its categories
    results = train.results()
    assert [result["started_from"] for result in results.values()] == ["pretrained"] * 6
    assert np.mean([result["metrics"]["auroc"] for result in results.values()]) > 0.9
    for result in results.values():
        settings = result["settings"]
        assert settings["detector.pretrained"].startswith("videomae sha256:")
        assert settings["detector.init"] == "pretrained"
        assert (settings["detector.network.schedule"], settings["detector.network.batch_size"]) == (
            "linear",
            4,
        )
        assert not any(key.startswith("encoder.") for key in settings)
        assert set(result["files"]) == {"detector/config.json", "detector/model.safetensors"}
    size = (train.run_dir / "alpha" / "step_01" / "detector" / "model.safetensors").stat().st_size
    expected = Pretrained(str(videomae)).weights_bytes  # what the plan asks room for, without the header
    assert expected < size < expected + 5000

    again = train(*GRID, *paper(videomae, "detector.network.epochs=5"))
    assert (again.code, len(decoded)) == (0, STEPS)
    assert train.results() == results  # skipped, all of them
    plan = train(*GRID, *paper(videomae, "detector.network.epochs=5", "plan=true"))
    assert (plan.code, "6 done" in plan.out) == (0, True)
    assert train("name=tiny", "verify=true").code == 0

    train.script = "evaluate.py"
    measured = train("name=tiny", "eta=3", "lam=0.6", "logger=none", "examples=0")
    assert measured.code == 0, measured.err
    assert "no bundle: its detectors read decoded frames, and a guard decodes nothing" in measured.out
    assert not (train.run_dir / "bundle").exists()
    summary = json.loads((train.run_dir / "evaluation" / "summary.json").read_text())
    assert (summary["bundle"], summary["detectors_missing"]) == (None, [])
    assert summary["auroc"] > 0.9
    scores = (train.run_dir / "evaluation" / "scores.csv").read_text().splitlines()
    assert len(scores) == 1 + 2 * STEPS * sum(s.split != "train" for s in make_samples(80))
    assert len(decoded) == STEPS  # it reads the frames that the sweep has made
    train.script = "train.py"

    weights = train.run_dir / "alpha" / "step_01" / "detector" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    damaged = train("name=tiny", "verify=true")
    assert (damaged.code, "alpha/step_01" in damaged.out) == (1, True)


def test_scores_are_the_softmax_of_the_classifier_on_decoded_frames(
    train: Shell, decodable: Path, videomae: Path
) -> None:
    """By another way than `decode_clips`: frame by frame, through transformers' own preprocessing."""
    assert train("category=alpha", "step=1", *paper(videomae)).code == 0
    reader, rows = CaptureReader(decodable), [3, 1, 40]
    scores, _ = score_step(reader, train.run_dir, None, 1, rows, {"beta": "not looked at"})
    detector = load_detector(train.run_dir / "alpha" / "step_01" / "detector", None)
    assert isinstance(detector, PixelDetector)
    vae = load_vae(reader.info.origin)
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    )
    with torch.inference_mode():
        for place, row in enumerate(rows):
            latents = torch.from_numpy(reader.step(1)[row].copy()).float()
            images = [vae.decode(x[None] / vae.config.scaling_factor).sample[0] for x in latents.unbind(1)]
            video = [
                ((image / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
                for image in images
            ]
            inputs = processor(video, return_tensors="pt")["pixel_values"]
            logits = detector.classifier(inputs).logits
            unsafe = logits.softmax(dim=1)[0, 1]
            assert scores[place, 0] == pytest.approx(float(unsafe), abs=0.01)  # the processor rounds to uint8
            assert bool(scores[place, 0] >= 0.5) == bool(logits.argmax() == 1)
    with pytest.raises(LvdError, match=r"beta/step_01/detector/config\.json is not readable"):
        step_check(reader, train.run_dir, None, 1)
    shutil.copytree(train.run_dir / "alpha", train.run_dir / "beta")
    check = step_check(reader, train.run_dir, None, 1)
    timed = check(torch.from_numpy(reader.step(1).read(rows)))
    torch.testing.assert_close(timed, scores[:, :1].expand(-1, 2))


def test_a_guard_refuses_a_bundle_with_a_detector_of_pixels(
    trained_run: Path, tmp_path: Path, videomae: Path
) -> None:
    """Whoever puts one there; an export refuses it, too."""
    detector = Pretrained(str(videomae)).detector()
    save_detector(tmp_path, detector, {"category": "alpha", "step": 0}, None)
    with pytest.raises(LvdError, match="reads decoded frames, and a guard decodes nothing"):
        parse_latent_detector(NetworkFiles.read(tmp_path), None)
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    save_detector(run / "alpha" / "step_00" / "detector", detector, {"category": "alpha", "step": 0}, None)
    with pytest.raises(LvdError, match="reads decoded frames, and a guard decodes nothing"):
        export_bundle(run / "bundle", run, bundle_info(StubPipeline(), rule=Vote(2, 0.6, 0.5)))
    assert not (run / "bundle").exists()


# ---- frames


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    calls: list[Any] = []
    original = getattr(lvd.capture.frames, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(lvd.capture.frames, name, counted)
    return calls


def test_one_of_many_jobs_decodes_a_step_and_the_others_wait(
    few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = count_calls(monkeypatch, "_make")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: step_frames(CaptureReader(few), 1, SHAPE).read([5]), range(8)))
    assert len(made) == 1
    assert all(np.array_equal(frames, found[0]) for frames in found)
    left = {path.name for path in frames_path(few, 1, SHAPE).parent.iterdir()}
    assert left == {"step_01.npy", "step_01.json"}


def test_a_step_that_was_interrupted_is_decoded_again(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CaptureReader(few)
    decoded = 0

    def interrupted(vae: Any, x0: Tensor, shape: FrameShape) -> Tensor:
        nonlocal decoded
        decoded += 1
        if decoded == 2:
            raise KeyboardInterrupt
        return decode_clips(vae, x0, shape)

    with monkeypatch.context() as patch:
        patch.setattr(lvd.capture.frames, "decode_clips", interrupted)
        with pytest.raises(KeyboardInterrupt):
            step_frames(reader, 1, SHAPE)
    assert open_frames(reader, 1, SHAPE) is None
    frames = step_frames(reader, 1, SHAPE)
    expected = decode_clips(
        load_vae(reader.info.origin), torch.from_numpy(reader.step(1).read(range(20))), SHAPE
    )
    assert np.array_equal(frames.read(range(20)), expected.numpy())
    assert verify(few) == []


def spoil_latents(capture: Path) -> None:
    raw = json.loads((capture / "manifest.json").read_text())
    raw["shards"][0]["sha256"] = "0" * 64
    (capture / "manifest.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "change",
    [
        spoil_latents,
        lambda capture: frames_path(capture, 1, SHAPE).with_suffix(".json").unlink(),
        lambda capture: frames_path(capture, 1, SHAPE).unlink(),
        lambda capture: frames_path(capture, 1, SHAPE).write_bytes(b"short"),
        lambda capture: frames_path(capture, 1, SHAPE).with_suffix(".json").write_text("{"),
    ],
    ids=["other latents", "no record", "no frames", "another size", "a damaged record"],
)
def test_frames_that_are_not_of_these_latents_are_made_again(
    change: Callable[[Path], None], few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_frames(CaptureReader(few), 1, SHAPE)
    made = count_calls(monkeypatch, "_make")
    step_frames(CaptureReader(few), 1, SHAPE)
    assert made == []
    change(few)
    step_frames(CaptureReader(few), 1, SHAPE)
    assert len(made) == 1


def test_verify_names_frames_that_were_changed(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step_frames(CaptureReader(few), 1, SHAPE)
    assert verify(few) == []
    path = frames_path(few, 1, SHAPE)
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    ran = Shell("capture.py", tmp_path, monkeypatch, capfd)("name=tiny", "verify=true")
    assert ran.code == 1
    assert "frames/4x16x16/step_01.npy: its content was changed: remove it, it is made again" in ran.out
    assert "capture again" not in ran.err


@pytest.mark.parametrize(
    ("size", "shape", "places"),
    [
        ((8, 8), FrameShape(4, 8, 8), [0, 1, 2, 3]),
        ((8, 8), FrameShape(8, 16, 16), [0, 0, 1, 1, 2, 2, 3, 3]),
        ((8, 8), FrameShape(2, 4, 4), [0, 3]),
        ((6, 8), FrameShape(4, 8, 8), [0, 1, 2, 3]),
        ((6, 4), FrameShape(4, 8, 8), [0, 1, 2, 3]),
    ],
)
def test_frames_are_sampled_resized_and_cropped_as_videomae_does(
    size: tuple[int, int], shape: FrameShape, places: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents stand for their pixels here; the processor is transformers', on rounded images."""
    images = torch.randint(0, 256, (2, 3, 4, *size), generator=torch.Generator().manual_seed(0))
    vae = type("Vae", (), {"config": type("Config", (), {"block_out_channels": [1]})})
    monkeypatch.setattr(lvd.capture.frames, "decode_frames", lambda _, frames: frames / 255)
    clips = decode_clips(vae, images, shape)
    processor = VideoMAEImageProcessorPil(
        size={"shortest_edge": shape.height},
        crop_size={"height": shape.height, "width": shape.width},
        do_normalize=False,
        do_rescale=False,
    )
    for image, clip in zip(images, clips, strict=True):
        video = [image[:, place].permute(1, 2, 0).byte().numpy() for place in places]
        expected = processor(video, return_tensors="pt")["pixel_values"][0].transpose(0, 1)
        assert clip.shape == (3, shape.count, shape.height, shape.width)
        assert (clip.float() - expected.float()).abs().max() <= 1  # PIL's arithmetic is of 8 bits


# ---- what stands in the way is said before the first job


def broken(directory: Path, kind: str, videomae: Path) -> str:
    if kind == "missing":
        return str(directory / "none")
    model = Path(shutil.copytree(videomae, directory / "model"))
    config = json.loads((model / "config.json").read_text())
    if kind == "no weights":
        (model / "model.safetensors").unlink()
    elif kind == "not a VideoMAE":
        (model / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    elif kind == "four channels":
        (model / "config.json").write_text(json.dumps({**config, "num_channels": 4}))
    elif kind == "not JSON":
        (model / "config.json").write_text("{")
    return str(model)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "cannot be loaded"),
        ("no weights", "has no config.json and model.safetensors"),
        ("not a VideoMAE", "is not a VideoMAE of RGB frames"),
        ("four channels", "is not a VideoMAE of RGB frames"),
        ("not JSON", "cannot be loaded"),
    ],
)
def test_bad_weights_are_a_sentence_before_the_first_job(
    kind: str, words: str, train: Shell, decodable: Path, videomae: Path
) -> None:
    model = broken(train.directory, kind, videomae)
    ran = train(*GRID, *paper(Path(model)))
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert f"detector.pretrained={model}" in ran.err
    assert words in ran.err
    assert not train.run_dir.exists()


def test_weights_of_another_encoder_are_refused(tmp_path: Path, videomae: Path) -> None:
    model = Path(shutil.copytree(videomae, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(LvdError, match="lacks weights of its encoder"):
        Pretrained(str(model)).detector()
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(LvdError, match="lacks weights of its encoder"):
        Pretrained(str(model)).detector()


def test_a_classifier_of_two_classes_starts_with_its_head_and_one_of_others_does_not(tmp_path: Path) -> None:
    for classes in (2, 7):
        torch.manual_seed(classes)
        made = VideoMAEForVideoClassification(VideoMAEConfig(**CONFIG, num_labels=classes))
        made.save_pretrained(tmp_path / str(classes))
        loaded = Pretrained(str(tmp_path / str(classes))).detector().classifier
        assert loaded.classifier.weight.shape == (2, 16)
        assert torch.equal(loaded.fc_norm.weight, made.fc_norm.weight)
        for name, tensor in made.videomae.state_dict().items():
            assert torch.equal(loaded.videomae.state_dict()[name], tensor)
        assert torch.equal(loaded.classifier.weight, made.classifier.weight[:2]) == (classes == 2)


def test_frames_that_cannot_be_decoded_are_a_sentence_before_the_first_job(
    train: Shell, captured: Path, videomae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(*_: Any, **__: Any) -> Any:
        raise OSError("no network, and no such model")

    monkeypatch.setattr("diffusers.AutoModel.from_pretrained", not_here)
    ran = train(*GRID, *paper(videomae))
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "the VAE of nowhere/at-all" in ran.err
    assert "frames cannot be decoded" in ran.err
    assert not train.run_dir.exists()


def test_room_for_the_frames_is_asked_for_before_the_first_job(
    train: Shell, decodable: Path, videomae: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _: 3 * 80 * SHAPE.bytes_of(1) - 1)
    ran = train(*GRID, *paper(videomae))
    assert ran.code == 1
    assert "decoded frames of 3 steps take 737 kB" in ran.err
    assert not (decodable / "frames").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["detector.init=trunk"], "go together"),
        (["detector.pretrained=null"], "go together"),
        (["detector.network.schedule=cosine"], "schedule=cosine must be one of one_cycle, linear"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    given: list[str], words: str, train: Shell, decodable: Path, videomae: Path
) -> None:
    ran = train(*GRID, *paper(videomae), *given)
    assert (ran.code, words in ran.err) == (1, True)


def test_other_weights_of_the_same_name_are_another_configuration(
    train: Shell, few: Path, videomae: Path
) -> None:
    model = Path(shutil.copytree(videomae, train.directory / "videomae"))
    assert train("category=0", "step=0", *paper(model)).code == 0
    moved = Path(shutil.copytree(model, train.directory / "elsewhere" / "videomae"))
    before = train.results()
    assert train("category=0", "step=0", *paper(moved)).code == 0
    assert train.results() == before  # the same weights, elsewhere
    torch.manual_seed(1)
    VideoMAEForPreTraining(VideoMAEConfig(**CONFIG)).save_pretrained(model)
    ran = train("category=0", "step=0", *paper(model))
    assert (ran.code, "was trained with detector.pretrained=videomae sha256:" in ran.err) == (1, True)


# ---- the arithmetic


def test_the_learning_rate_falls_linearly_as_transformers_has_it(videomae: Path) -> None:
    detector = Pretrained(str(videomae)).detector()
    module = DetectorModule(
        detector,
        Fit(epochs=1, batch_size=4, learning_rate=1e-5, weight_decay=0.01, schedule="linear"),
        positive_weight=1.0,
        seed=0,
    )
    module.trainer = SimpleNamespace(estimated_stepping_batches=40)  # type: ignore[assignment]
    made = module.configure_optimizers()
    ours, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    theirs = torch.optim.AdamW(detector.parameters(), lr=1e-5)
    reference = get_linear_schedule_with_warmup(theirs, 0, 40)
    assert type(ours) is torch.optim.AdamW
    assert {key: ours.defaults[key] for key in ("betas", "eps", "weight_decay")} == {
        key: theirs.defaults[key] for key in ("betas", "eps", "weight_decay")
    }
    for _ in range(40):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
        for optimizer, schedule in ((ours, scheduler), (theirs, reference)):
            optimizer.step()
            schedule.step()
    assert ours.param_groups[0]["lr"] == 0


def test_the_loss_is_the_cross_entropy_of_two_classes(videomae: Path) -> None:
    torch.manual_seed(0)
    detector = Pretrained(str(videomae)).detector()
    frames = torch.randint(0, 256, (6, 3, 4, 16, 16)).byte()
    label = torch.tensor([0, 1, 1, 0, 1, 0])
    inputs = detector.standardise(frames)
    two = F.cross_entropy(detector.classifier(inputs.transpose(1, 2)).logits, label)
    one = F.binary_cross_entropy_with_logits(detector(frames), label.float())
    torch.testing.assert_close(one, two)


def test_a_detector_of_pixels_is_saved_whole_and_a_bad_one_gives_one_error_message(
    tmp_path: Path, videomae: Path
) -> None:
    detector = Pretrained(str(videomae)).detector().eval()
    save_detector(tmp_path, detector, {"category": "alpha", "step": 1}, None)
    frames = torch.randint(0, 256, (2, 3, 4, 16, 16)).byte()
    torch.testing.assert_close(load_detector(tmp_path, None)(frames), detector(frames), rtol=0, atol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    for bad in ("sixteen", None, {**config["videomae"], "hidden_size": "16"}):
        (tmp_path / "config.json").write_text(json.dumps({**config, "videomae": bad}))
        with pytest.raises(LvdError, match="does not describe a network"):
            load_detector(tmp_path, None)


def papers_rule(flags: Sequence[int], eta: float, lam: float) -> bool:
    """`calculate_predictions` of the paper's test_accuracy.py."""
    return sum(flags[: int(eta)]) >= eta * lam


# Where the product of floats is above the whole number that it stands for: the paper's code then asks for one
# flag more than its rule says. All cells of 50 steps and lam = 0.01, 0.02, ... 1.00.
FLOAT_TIES = {(25, 0.28), (25, 0.56), (50, 0.14), (50, 0.28), (50, 0.56)}


def test_the_vote_is_the_papers_scorer_but_for_five_ties_of_floats() -> None:
    differing = set()
    for eta in range(1, 51):
        flagged_NS = np.tril(np.ones((eta + 1, 50), dtype=bool), -1)  # 0 to eta flags
        flagged_NS[:, eta:] = True  # steps that come later do not count
        flags = Flags(flagged_NS, known=np.ones_like(flagged_NS))
        for hundredths in range(1, 101):
            lam = hundredths / 100
            ours = decide(flags, eta, lam).unsafe.tolist()
            theirs = [papers_rule(row, float(eta), lam) for row in flagged_NS.astype(int).tolist()]
            for count in [count for count in range(eta + 1) if ours[count] != theirs[count]]:
                differing.add((eta, lam))
                assert count == Fraction(hundredths, 100) * eta  # a tie, which reaches the bar
    assert differing == FLOAT_TIES
    assert (20, 0.6) not in FLOAT_TIES


def test_a_step_is_flagged_as_the_papers_argmax_flags_it_but_for_ties() -> None:
    """Its torch.max takes the first class, safe, of two equal logits; a score of 0.5 flags here."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 5, 2, generator=generator) * 4  # of five categories
    theirs = (logits.max(dim=2).indices == 1).any(dim=1)
    scores = (logits[..., 1] - logits[..., 0]).sigmoid()
    ours = flag_steps(scores[:, None].numpy(), 0.5).flagged[:, 0]
    assert ours.tolist() == theirs.tolist()
    tie = torch.tensor([[0.25, 0.25]])
    assert tie.max(dim=1).indices.item() == 0
    assert flag_steps((tie[:, 1] - tie[:, 0]).sigmoid()[None, :, None].numpy(), 0.5).flagged.all()
