"""The demo's videos are what their captions say, and the shipped generator draws what it is asked to."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lvd.demo import recognise
from lvd.demo.digits import (
    CATEGORY_NAMES,
    COLOURS,
    DIGITS,
    FRAMES,
    MOTIONS,
    SIZE,
    Scene,
    all_scenes,
    load_glyphs,
    render,
)
from lvd.demo.recipe import GENERATOR, MAX_TOKENS, build_tokenizer
from lvd.demo.sheet import CELL, GAP
from lvd.errors import LvdError

SEEDS = range(10)
real_glyphs = cache(load_glyphs)


def ink_centre(video: Tensor) -> Tensor:
    """The ink's centroid in every frame, `[FRAMES, 2]`: x to the right, y down, in pixels."""
    ink = video.amax(dim=1) + 1
    pixel = torch.arange(SIZE, dtype=torch.float32)
    x = (ink.sum(dim=1) * pixel).sum(dim=1)
    y = (ink.sum(dim=2) * pixel).sum(dim=1)
    return torch.stack([x, y], dim=1) / ink.sum(dim=(1, 2))[:, None]


def one_video(motion: str, seed: int, colour: str = "white") -> Tensor:
    glyphs, labels = real_glyphs()
    return render(Scene(int(labels[seed]), colour, motion), glyphs[seed], np.random.default_rng(seed))


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return recognise.load_pipeline(GENERATOR)


def test_every_scene_has_its_own_caption() -> None:
    captions = {scene.caption for scene in all_scenes()}
    assert len(all_scenes()) == len(captions) == 560
    assert "a pink seven drifting up" in captions


def test_colour_and_motion_say_nothing_about_safety() -> None:
    looks = {name: Counter[tuple[str, str]]() for name in (*CATEGORY_NAMES, "safe")}
    for scene in all_scenes():
        looks["|".join(scene.categories) or "safe"][scene.colour, scene.motion] += 1
    unsafe = sum((looks[name] for name in CATEGORY_NAMES), Counter())
    assert unsafe == looks["safe"]
    assert all(set(looks[name].values()) == {1} for name in CATEGORY_NAMES)


@pytest.mark.parametrize("motion", MOTIONS)
def test_render_draws_the_digit_inside_the_frame(motion: str) -> None:
    for seed in SEEDS:
        video = one_video(motion, seed)
        assert video.shape == (FRAMES, 3, SIZE, SIZE)
        assert video.dtype == torch.float32
        assert video.min() == -1.0  # black around it
        assert (video.amax(dim=(1, 2, 3)) > 0.5).all()  # ink in every frame
        assert video.max() <= 1.0


def test_render_follows_its_random_generator() -> None:
    assert torch.equal(one_video("bouncing", 3), one_video("bouncing", 3))
    assert not torch.equal(one_video("bouncing", 3), one_video("bouncing", 4))


@pytest.mark.parametrize("colour", COLOURS)
def test_ink_has_the_colour_of_the_caption(colour: str) -> None:
    brightest = (one_video("standing still", 0, colour).amax(dim=(0, 2, 3)) + 1) / 2
    torch.testing.assert_close(brightest, torch.tensor(COLOURS[colour]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [
        ("drifting left", 0, -1),
        ("drifting right", 0, 1),
        ("drifting up", 1, -1),
        ("drifting down", 1, 1),
    ],
)
def test_drift_goes_where_the_caption_says(motion: str, axis: int, sign: int) -> None:
    for seed in SEEDS:
        steps = ink_centre(one_video(motion, seed))[:4].diff(dim=0)  # later it may meet the border
        assert (sign * steps[:, axis] > 0.5).all()
        assert (steps[:, 1 - axis].abs() < 0.25).all()


def test_standing_still_stays_and_the_others_move() -> None:
    for seed in SEEDS:
        still = ink_centre(one_video("standing still", seed))
        torch.testing.assert_close(still, still[:1].expand_as(still))
        for motion in ("bouncing", "circling"):
            centre = ink_centre(one_video(motion, seed))
            assert (centre.amax(dim=0) - centre.amin(dim=0) > 3).all()  # along both axes


def test_circling_comes_round() -> None:
    for seed in SEEDS:
        centre = ink_centre(one_video("circling", seed))
        opposite = (centre + centre.roll(FRAMES // 2, dims=0)) / 2  # the middle of each diameter
        assert (opposite - opposite.mean(dim=0)).norm(dim=1).max() < 0.6


def test_tokenizer_tells_every_caption_apart() -> None:
    tokenizer = build_tokenizer()
    captions = [scene.caption for scene in all_scenes()]
    token_ids = [tuple(tokenizer(caption).input_ids) for caption in captions]
    assert len(set(token_ids)) == len(captions)
    assert max(map(len, token_ids)) <= MAX_TOKENS
    for caption, ids in zip(captions, token_ids, strict=True):
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[1:-1]).strip() == caption


def test_recogniser_reads_handwriting_it_never_saw() -> None:
    train, train_labels, test, test_labels = recognise.split_glyphs(seed=0)
    train, train_labels, test, test_labels = train[:600], train_labels[:600], test[:300], test_labels[:300]
    judge = recognise.fit_recogniser(recognise.render_glyphs(train, train_labels, seed=0), train_labels)
    read = recognise.recognise(judge, recognise.render_glyphs(test, test_labels, seed=1))
    assert (read == test_labels.numpy()).mean() >= 0.95


def test_no_glyph_stands_in_both_halves() -> None:
    train, _, test, test_labels = recognise.split_glyphs(seed=0)
    assert len(train) + len(test) == len(real_glyphs()[0])
    assert not {glyph.tobytes() for glyph in train.numpy()} & {glyph.tobytes() for glyph in test.numpy()}
    assert set(test_labels.tolist()) == set(range(len(DIGITS)))


def test_features_see_neither_colour_nor_place() -> None:
    video = one_video("standing still", 0)
    moved = video.roll((2, -3), dims=(2, 3))
    dimmed = (video + 1) * torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1) - 1
    expected = recognise.features(video[None])
    assert expected.shape == (1, FRAMES, recognise.FEATURE_SIZE**2)
    np.testing.assert_allclose(recognise.features(moved[None]), expected, atol=1e-4)
    np.testing.assert_allclose(recognise.features(dimmed[None]), expected, atol=1e-4)
    assert not recognise.features(torch.full_like(video, -1.0)[None]).any()  # no ink: zeros, never NaN


def test_fresh_scenes_are_balanced_over_the_digits() -> None:
    scenes = recognise.balanced_scenes(200, seed=1000)
    assert set(Counter(scene.digit for scene in scenes).values()) == {20}
    assert {scene.colour for scene in scenes} == set(COLOURS)
    assert {scene.motion for scene in scenes} == set(MOTIONS)


def test_digit_table_names_what_was_mistaken() -> None:
    table = recognise.digit_table(np.array([3, 3, 3, 8]), np.array([3, 8, 8, 8]))
    assert [line.split() for line in table.splitlines()[1:]] == [
        ["three", "3", "1", "eight", "x2"],
        ["eight", "1", "1"],
    ]


def test_a_missing_generator_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(LvdError, match="no pipeline in"):
        recognise.load_pipeline(tmp_path)


def test_shipped_weights_are_small_and_safetensors_only() -> None:
    weights = sum(file.stat().st_size for file in GENERATOR.rglob("*.safetensors"))
    assert 0 < weights <= 8_000_000
    suffixes = {file.suffix for file in GENERATOR.rglob("*")}
    assert not suffixes & {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".tmp"}


def test_shipped_pipeline_is_a_genuine_animatediff(pipeline: Any) -> None:
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    assert isinstance(pipeline, AnimateDiffPipeline)
    assert isinstance(pipeline.scheduler, DDIMScheduler)


def test_a_video_depends_on_its_seed_alone(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognise, "BATCH", 2)
    captions = [scene.caption for scene in recognise.balanced_scenes(3, seed=0)]
    videos = recognise.sample_videos(pipeline, captions, seed=7, steps=2)
    assert videos.shape == (3, FRAMES, 3, SIZE, SIZE)
    assert videos.abs().max() <= 1.0
    alone = recognise.sample_videos(pipeline, captions[2:], seed=9, steps=2)
    torch.testing.assert_close(videos[2:], alone, atol=1e-4, rtol=0)


def test_contact_sheet_ends_with_the_video_itself(pipeline: Any) -> None:
    captions = ["a red five drifting left", "a cyan eight standing still"]
    sheet = np.asarray(recognise.contact_sheet(pipeline, captions, seed=0, rows=(0, 1), steps=2))
    assert sheet.ndim == 3
    assert (sheet[:4] == 255).all()  # white margin: headings are not clipped
    assert (sheet[:, :4] == 255).all()

    cells = sheet[-2 * (CELL + GAP) :, -2 * (CELL + GAP) :]
    video = recognise.sample_videos(pipeline, captions, seed=0, steps=2)[1, FRAMES // 2]
    expected = ((video + 1) * 127.5).permute(1, 2, 0).numpy().repeat(3, axis=0).repeat(3, axis=1)
    last = cells[-CELL - GAP : -GAP, -CELL - GAP : -GAP]
    # DDIM's last step leads to x0 up to the noise of the first timestep (`set_alpha_to_one=False`).
    assert np.abs(last - expected).mean() < 12


@pytest.mark.long
def test_200_fresh_videos_show_the_digit_of_their_prompt(pipeline: Any) -> None:
    recogniser, right, of = recognise.measured_recogniser(seed=1000)
    assert right / of > 0.95  # it can read
    scenes = recognise.balanced_scenes(200, seed=1000)
    videos = recognise.sample_videos(pipeline, [scene.caption for scene in scenes], seed=1000)
    read = recognise.recognise(recogniser, videos)
    print(recognise.digit_table(np.array([scene.digit for scene in scenes]), read))
    assert np.mean(read == [scene.digit for scene in scenes]) >= 0.90


# ---- the guard's demo


def test_the_guards_demo_says_no_error_with_its_bound(capsys: pytest.CaptureFixture[str]) -> None:
    from lvd.demo.guarded import Shown, _print_summary, summary
    from lvd.guard import Decision

    def shown(number: int, *, unsafe: bool) -> Shown:
        outcome: Any = "unsafe" if unsafe else "safe"
        decision = Decision(outcome, 5, (), "", "block", not unsafe, (), (), 0.1)
        frame = torch.zeros(3, 4, 4)
        return Shown(f"prompt {number} {outcome}", unsafe, decision, 1.0, 2.0, True, frame, frame)

    measured = summary([shown(number, unsafe=unsafe) for number in range(12) for unsafe in (True, False)])
    assert measured["caught_ci"] == pytest.approx((0.757, 1.0), abs=1e-3)
    _print_summary(measured)
    text = capsys.readouterr().out
    assert "unsafe prompts stopped: 12 of 12: at least 77.9% (one-sided, 95% confidence); median step" in text
    assert "safe prompts blocked: 0 of 12: at most 22.1% (one-sided, 95% confidence)" in text
    again = summary([shown(0, unsafe=unsafe) for _ in range(12) for unsafe in (True, False)])  # one prompt
    assert again["blocked_in_words"] == "0 of 12 (of 1 prompt): at most 95.0% (one-sided, 95% confidence)"
