"""The recorded clips are what their captions say."""

import sys
from collections import Counter

import numpy as np
import pytest

from lvd.demo.recorder import record_clips, recorder
from lvd.demo.scenes import (
    FRAMES,
    HINTS,
    MOTIONS,
    PLACES,
    SIZE,
    SUBJECTS,
    Scene,
    all_captions,
    captions_of,
    random_scene,
)
from lvd.errors import LvdError


@pytest.fixture(scope="module")
def one_of_each() -> tuple[list[Scene], np.ndarray, np.ndarray]:
    """A clip of every subject, together in every place and motion."""
    pytest.importorskip("vizdoom")
    places, motions = list(PLACES), list(MOTIONS)
    scenes = [
        Scene(subject, places[i % len(places)], motions[i % len(motions)])
        for i, subject in enumerate(SUBJECTS)
    ]
    return scenes, *record_clips(scenes, seed=3)


def test_every_caption_reads_differently() -> None:
    texts = {caption.text for caption in all_captions()}
    assert len(texts) == len(all_captions()) == (len(SUBJECTS) + len(HINTS)) * len(PLACES) * len(MOTIONS)
    assert "red pillar in the blue room, camera panning left" in texts


def test_place_and_motion_say_nothing_about_safety() -> None:
    looks = {unsafe: Counter[tuple[str, str]]() for unsafe in (True, False, None)}
    for caption in all_captions():
        looks[caption.unsafe][caption.place, caption.motion] += 1
    for count in looks.values():
        assert len(count) == len(PLACES) * len(MOTIONS)
        assert len(set(count.values())) == 1


def test_a_hint_names_no_subject() -> None:
    for hint in HINTS:
        assert not any(name in hint for name in SUBJECTS)


def test_every_subject_has_captions_of_every_kind() -> None:
    for subject in SUBJECTS:
        captions = captions_of(Scene(subject, "blue room", "at rest"))
        assert [caption.text for caption in captions["named"]] == [
            f"{subject} in the blue room, camera at rest"
        ]
        assert [caption.subjects for caption in captions["hinted"]] == [(subject,)]
        assert all(len(caption.subjects) > 1 for caption in captions["open"])
        assert len(captions["open"]) >= 2


def test_open_captions_leave_safety_to_the_noise() -> None:
    for caption in all_captions():
        assert (caption.unsafe is None) == (caption.kind == "open")


def test_clips_depend_on_seed_and_place_in_the_list_alone(
    one_of_each: tuple[list[Scene], np.ndarray, np.ndarray],
) -> None:
    scenes, frames, shares = one_of_each
    again, shares_again = record_clips(scenes[:3], seed=3)
    np.testing.assert_array_equal(again, frames[:3])
    np.testing.assert_array_equal(shares_again, shares[:3])
    other, _ = record_clips(scenes[:1], seed=4)
    assert (other != frames[:1]).any()


def test_the_subject_is_in_every_frame(one_of_each: tuple[list[Scene], np.ndarray, np.ndarray]) -> None:
    scenes, frames, shares = one_of_each
    assert frames.shape == (len(scenes), FRAMES, SIZE, SIZE, 3)
    assert frames.dtype == np.uint8
    for scene, share in zip(scenes, shares, strict=True):
        if scene.subject == "empty room":
            assert (share == 0).all()
        else:
            assert (share > 0.04).all(), scene


def test_the_camera_moves_as_the_caption_says() -> None:
    pytest.importorskip("vizdoom")
    scenes = {motion: Scene("medkit", "stone cell", motion) for motion in MOTIONS}
    frames, shares = record_clips(list(scenes.values()), seed=0)
    clip = dict(zip(scenes, frames.astype(np.int64), strict=True))
    share = dict(zip(scenes, shares, strict=True))

    def green_centre(frame: np.ndarray) -> float:
        """The column around which the medkit's green lies."""
        green = np.clip(frame[..., 1] - frame[..., 0] - 30, 0, None).sum(axis=0)
        return float((green * np.arange(SIZE)).sum() / green.sum())

    def across(motion: str) -> float:
        return green_centre(clip[motion][-1]) - green_centre(clip[motion][0])

    assert across("panning left") > 8  # what one looks at moves to the right
    assert across("panning right") < -8
    assert share["coming closer"][-1] > 1.3 * share["coming closer"][0]
    assert share["backing off"][-1] < share["backing off"][0] / 1.3
    np.testing.assert_array_equal(clip["at rest"][0], clip["at rest"][-1])


def test_fresh_scenes_follow_their_random_generator() -> None:
    drawn = [random_scene(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_without_vizdoom_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(LvdError, match=r"pip install 'lvd\[demo\]'"), recorder():
        pass
