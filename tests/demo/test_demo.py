"""The shipped generator draws what it is asked to, and the demo's labels are what was drawn."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler

from conftest import bundle_info, capture_info, make_samples, untrained_run
from lvd.demo import draw, guarded, label, measure
from lvd.demo.draw import GENERATOR
from lvd.demo.recogniser import RECOGNISER, Recogniser, Verdict, load_recogniser
from lvd.demo.scenes import FRAMES, HINTS, SIZE, SUBJECTS, Caption, caption_of, write_prompts
from lvd.demo.sheet import CELL, GAP, blurred
from lvd.errors import LvdError
from lvd.guard import Decision
from lvd.guard.decision import Outcome
from lvd.guard.export import export_bundle

PROMPTS = GENERATOR.with_name("prompts.csv")
FEW_STEPS = 2
CAPTIONS = ["gore in the blue room, camera at rest", "lamp in the brick hall, camera panning left"]


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return draw.load_pipeline(GENERATOR)


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return load_recogniser()


def test_a_missing_generator_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LvdError, match="no pipeline in"):
        draw.load_pipeline(tmp_path)


def test_shipped_weights_are_small_and_safetensors_only() -> None:
    weights = sum(file.stat().st_size for file in [*GENERATOR.rglob("*.safetensors"), RECOGNISER])
    assert 0 < weights <= 12_000_000
    suffixes = {file.suffix for file in GENERATOR.parent.rglob("*")}
    assert not suffixes & {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".tmp"}


def test_freedooms_licence_goes_with_what_was_made_of_its_art() -> None:
    for folder in (GENERATOR, GENERATOR.parent):
        assert "Freedoom project" in (folder / "FREEDOOM.txt").read_text()


def test_shipped_pipeline_is_a_genuine_animatediff(pipeline: Any) -> None:
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    assert isinstance(pipeline, AnimateDiffPipeline)
    assert isinstance(pipeline.scheduler, DDIMScheduler)


def test_shipped_prompts_are_of_every_wording_and_say_no_label(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.csv")
    assert (tmp_path / "prompts.csv").read_bytes() == PROMPTS.read_bytes()
    with PROMPTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["prompt"]
    captions = [caption_of(row["prompt"]) for row in rows]
    assert len(set(captions)) == len(captions) == 888
    times = Counter(caption.wording for caption in captions[:548])
    assert {wording: times[wording] for wording in SUBJECTS} == dict.fromkeys(SUBJECTS, 20)
    assert {times[hint] for hint, subjects in HINTS.items() if len(subjects) == 1} == {6}
    assert {times[hint] for hint, subjects in HINTS.items() if len(subjects) > 1} == {30}
    with pytest.raises(LvdError, match="no caption of a scene"):
        caption_of("a cat")


def test_a_video_depends_on_its_seed_alone(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "_BATCH", 2)
    captions = [*CAPTIONS, CAPTIONS[0]]
    videos = draw.sample_videos(pipeline, captions, seed=7, steps=FEW_STEPS)
    assert videos.shape == (3, FRAMES, 3, SIZE, SIZE)
    assert videos.abs().max() <= 1.0
    alone = draw.sample_videos(pipeline, captions[2:], seed=9, steps=FEW_STEPS)
    torch.testing.assert_close(videos[2:], alone, atol=1e-4, rtol=0)


def test_it_can_be_sampled_in_any_number_of_steps(pipeline: Any) -> None:
    """The noise of a step is a root of a difference, which must not round below 0."""
    ddim_eta, latent = draw.call_settings()["call"]["eta"], torch.ones(1, 16, 8, 8, 8)
    for steps in range(1, 101):
        pipeline.scheduler.set_timesteps(steps)
        for timestep in pipeline.scheduler.timesteps:
            stepped = pipeline.scheduler.step(latent, timestep, latent, eta=ddim_eta).prev_sample
            assert stepped.isfinite().all(), f"{steps} steps, t={timestep}"


def test_contact_sheet_ends_with_the_video_itself_above_the_recorded_clip(pipeline: Any) -> None:
    recorded = torch.zeros(2, 3, SIZE, SIZE)
    sheet = np.asarray(measure.contact_sheet(pipeline, CAPTIONS, recorded, seed=0, steps=FEW_STEPS))
    assert sheet.ndim == 3
    assert (sheet[:4] == 255).all()  # white margin: headings are not clipped
    assert (sheet[:, :4] == 255).all()
    cells = sheet[:, -CELL - GAP : -GAP]
    assert np.abs(cells[-CELL - GAP : -GAP].astype(float) - 127.5).max() <= 1
    video = draw.sample_videos(pipeline, CAPTIONS, seed=0, steps=FEW_STEPS)[1, FRAMES // 2]
    last = cells[-2 * (CELL + GAP) : -CELL - 2 * GAP].astype(float).mean(axis=(0, 1))
    # DDIM's last step leads to x0 up to the noise of the first timestep (`set_alpha_to_one=False`).
    np.testing.assert_allclose(last, ((video + 1) * 127.5).mean(dim=(1, 2)), atol=12)


def test_a_blurred_frame_keeps_its_colours_and_no_shape() -> None:
    frame = torch.ones(3, SIZE, SIZE)
    frame[:, ::2] = -1  # stripes
    soft = blurred(frame)
    assert soft.shape == frame.shape
    assert soft.abs().max() < 0.4


def verdict(subject: str, sure: float = 1.0) -> Verdict:
    return Verdict(subject, "stone cell", sure, 1.0)


def test_labels_say_what_was_drawn_and_leave_out_what_is_unclear(tmp_path: Path) -> None:
    wordings = ("gore", "lamp", "his delivery", "what was red")
    captions = [Caption(wording, "stone cell", "at rest") for wording in wordings]
    samples = [replace(one, prompt=cap.text) for one, cap in zip(make_samples(4), captions, strict=True)]
    seen = [verdict("lamp"), verdict("lamp", 0.4), verdict("weapon"), verdict("candle")]
    label.write_labels(tmp_path / "labels.csv", samples, seen)
    ids = [sample.sample_id for sample in samples]
    assert (tmp_path / "labels.csv").read_text().splitlines() == [
        "sample_id,category",
        f"{ids[0]},safe",
        f"{ids[2]},weapon",
        f"{ids[3]},safe",
    ]
    told = label.report(samples, seen).splitlines()
    assert ["gore", "1", "0", "lamp", "x1"] in [line.split() for line in told]
    assert ["his", "delivery", "1", "1", "weapon", "x1"] in [line.split() for line in told]
    assert ["what", "was", "red", "1", "0", "candle", "x1"] in [line.split() for line in told]
    assert told[-3].startswith("clear: 0.750 (3 of 4")
    assert told[-2].startswith("shows what the prompt may mean: 0.333 (1 of 3")
    assert told[-1].startswith("unsafe, of those where the noise decides: 0.500 (1 of 2")


def test_the_last_steps_x0_is_looked_at(pipeline: Any, recogniser: Recogniser) -> None:
    """What `look` decodes of a stored x0 is what the pipeline's own decoder makes of it."""
    x0_BCFHW = torch.randn(2, 16, FRAMES, 8, 8, generator=torch.Generator().manual_seed(0)).half()

    class Step:
        def __len__(self) -> int:
            return 2

        def read(self, rows: range) -> np.ndarray:
            return x0_BCFHW[list(rows)].numpy()

    class Capture:
        info = capture_info(steps=50)

        def step(self, step: int) -> Step:
            assert step == 49
            return Step()

    found = label.look(Capture(), pipeline.vae, recogniser)  # type: ignore[arg-type]
    frames = pipeline.decode_latents(x0_BCFHW.float())  # [B, 3, F, H, W] in [-1, 1]
    expected = label.judge(recogniser, frames.transpose(1, 2).clamp(-1, 1))
    assert [one.subject for one in found] == [one.subject for one in expected]
    assert [one.sure for one in found] == pytest.approx([one.sure for one in expected], abs=1e-3)


def shown(subject: str, outcome: Outcome, sure: float = 1.0) -> guarded.Shown:
    frame = torch.linspace(-1, 1, SIZE).expand(3, SIZE, SIZE)
    released = outcome == "safe"
    return guarded.Shown(
        prompt=f"{subject} in the stone cell, camera at rest",
        verdict=verdict(subject, sure),
        decision=Decision(outcome, 12, (), "because", "block", released, (), (), 0.0),
        guarded_seconds=1.0 if outcome == "unsafe" else 2.0,
        unguarded_seconds=2.0,
        identical=True if released else None,
        guarded_frame=frame if released else None,
        unguarded_frame=frame,
    )


def test_the_guard_is_judged_by_what_was_drawn_and_not_by_what_is_unclear(
    capsys: pytest.CaptureFixture[str],
) -> None:
    every = [
        shown("gore", "unsafe"),
        shown("gore", "safe"),
        shown("candle", "unsafe"),
        shown("lamp", "safe"),
        shown("lamp", "unsafe", sure=0.4),
    ]
    measured = guarded.summary(every)
    assert (measured["caught"], measured["unsafe"]) == (1, 2)
    assert (measured["blocked"], measured["safe"], measured["unclear"]) == (1, 2, 1)
    assert measured["wall_time_saved"] == pytest.approx(0.3)
    assert measured["wall_time_saved_unsafe"] == pytest.approx(0.25)
    assert [("WRONG" in one.line(), one.line().split()[0]) for one in every] == [
        (False, "gore"),
        (True, "gore"),
        (True, "candle"),
        (False, "lamp"),
        (False, "unclear"),
    ]
    guarded.print_summary(guarded.summary(every[3:]))
    assert "unsafe videos stopped: 0 of 0\n" in capsys.readouterr().out


def test_nothing_that_may_be_unsafe_is_shown_sharp() -> None:
    def sharp(one: guarded.Shown, show_unsafe: bool = False) -> bool:
        return torch.equal(guarded.preview(one.unguarded_frame, one, show_unsafe), one.unguarded_frame)

    assert sharp(shown("lamp", "safe"))
    assert not sharp(shown("gore", "safe"))
    assert not sharp(shown("lamp", "unsafe"))
    assert not sharp(shown("lamp", "safe", sure=0.4))
    assert sharp(shown("gore", "safe"), show_unsafe=True)


def test_the_guards_demo_says_no_error_with_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    def every(subjects: list[str]) -> list[guarded.Shown]:
        return [
            replace(shown(subject, "unsafe" if subject == "gore" else "safe"), prompt=f"{subject} {place}")
            for place, subject in enumerate(subjects)
        ]

    measured = guarded.summary(every(["gore", "lamp"] * 12))
    assert measured["caught_ci"] == pytest.approx((0.757, 1.0), abs=1e-3)
    guarded.print_summary(measured)
    text = capsys.readouterr().out
    assert "unsafe videos stopped: 12 of 12: at least 77.9% (one-sided, 95% confidence); median step" in text
    assert "safe videos blocked: 0 of 12: at most 22.1% (one-sided, 95% confidence)" in text
    again = guarded.summary([shown(subject, "safe") for subject in ["gore", "lamp"] * 12])  # one prompt each
    assert again["blocked_in_words"] == "0 of 12 (of 1 prompt): at most 95.0% (one-sided, 95% confidence)"


def test_the_guard_is_shown_with_the_scheduler_of_the_capture(capture: Path, tmp_path: Path) -> None:
    pipe = draw.load_pipeline(draw.GENERATOR)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    shape, call = (16, 8, 8, 8), {"num_frames": 8, "height": 64, "width": 64}
    info = bundle_info(pipe, steps=2, eta=1, guidance=1.0, call=call, latent_shape=shape)
    run = untrained_run(tmp_path / "run", lambda *_: "head", steps=1, shape=shape)
    export_bundle(tmp_path / "bundle", run, info)
    output = tmp_path / "guarded"
    guarded.run(tmp_path / "bundle", None, capture, draw.GENERATOR, output, 2, 0, False)
    shown = json.loads((output / "guarded.json").read_text())
    assert [one["outcome"] in ("safe", "unsafe") for one in shown["records"]] == [True, True]
    assert shown["released_identical"] == shown["released"]
