"""From prompts to a capture: whole, the same after a crash, and no half-written answer to a mistake."""

import csv
import io
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from lvd.capture import recorder
from lvd.capture.labels import Unnamed, label
from lvd.capture.preview import find_preview, write_missing_previews, write_preview
from lvd.capture.prompts import PromptsFile, read_prompts
from lvd.capture.recorder import record
from lvd.capture.source import Recording, Source
from lvd.errors import LvdError
from lvd.latents import journal, writer
from lvd.latents.format import UNLABELLED, Categories, Sample, read_info, read_samples, write_samples
from lvd.latents.journal import Entry
from lvd.latents.reader import CaptureReader
from lvd.latents.splits import assign_splits, default_prompt_id
from lvd.latents.verify import verify
from lvd.sampling.tap import tap_x0
from support import tiny

ROOT = Path(__file__).parents[2]
NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")
CALL = {"num_frames": 4, "height": 32, "width": 32}
PROMPTS = ["a red three", "a red nine", "a pink seven", "a white one", "a blue two", "a green zero"]

NewCapture = Callable[..., Path]


def everything_in(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


# Prompts


@pytest.fixture
def prompts_file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "prompts.csv"
        path.write_bytes(text.encode())
        return path

    return write


WriteFile = Callable[[str], Path]


def test_a_column_of_prompts_is_enough(prompts_file: WriteFile) -> None:
    samples = read_prompts(PromptsFile(prompts_file("prompt\na cat\na dog\nA CAT!\n")), NAMES, seed=10)
    assert [(s.sample_id, s.prompt, s.seed, s.categories) for s in samples] == [
        ("0000", "a cat", 10, UNLABELLED),
        ("0001", "a dog", 11, UNLABELLED),
        ("0002", "A CAT!", 12, UNLABELLED),
    ]
    assert samples[0].prompt_id == samples[2].prompt_id == default_prompt_id("a cat")
    assert samples[0].split == samples[2].split


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (f"one,{2**63 - 2},a", r"seed 9223372036854775806 is too high for 3 videos.*: the most is 2\^63 - 3"),
        (
            f"one,5,{'a' * 99}",
            "sample_id 'aaa.* is too long for 3 videos, .*: at most 98 characters",
        ),
    ],
)
def test_what_several_videos_of_a_prompt_leave_no_room_for_is_refused(
    row: str, problem: str, prompts_file: WriteFile
) -> None:
    file = PromptsFile(prompts_file(f"prompt,seed,sample_id\n{row}\n"))
    assert len(read_prompts(file, NAMES, seed=0)) == 1
    with pytest.raises(LvdError, match=problem):
        read_prompts(file, NAMES, seed=0, videos_per_prompt=3)


def test_several_videos_of_a_prompt_may_use_all_of_the_room(prompts_file: WriteFile) -> None:
    file = PromptsFile(prompts_file(f"prompt,seed,sample_id\none,{2**63 - 3},{'a' * 98}\n"))
    last = read_prompts(file, NAMES, seed=0, videos_per_prompt=3)[-1]
    assert (last.seed, len(last.sample_id)) == (2**63 - 1, 100)


def test_several_videos_of_a_prompt_have_seeds_that_follow_and_one_split(prompts_file: WriteFile) -> None:
    file = PromptsFile(prompts_file("prompt,seed,sample_id,categories\na cat,7,cat,beta\na dog,9,dog,\n"))
    samples = read_prompts(file, NAMES, seed=10, videos_per_prompt=2)
    assert [(s.sample_id, s.prompt, s.seed, s.categories) for s in samples] == [
        ("cat-0", "a cat", 7, ("beta",)),
        ("cat-1", "a cat", 8, ("beta",)),
        ("dog-0", "a dog", 9, ()),
        ("dog-1", "a dog", 10, ()),
    ]
    assert samples[0].prompt_id == samples[1].prompt_id != samples[2].prompt_id
    assert samples[0].split == samples[1].split
    file = PromptsFile(prompts_file("prompt\n" + "".join(f"cat {number}\n" for number in range(20))))
    samples = read_prompts(file, NAMES, seed=10, videos_per_prompt=3)
    assert [sample.seed for sample in samples] == list(range(10, 70))


def test_every_column_is_taken_as_given(prompts_file: WriteFile) -> None:
    text = "seed,categories,prompt,prompt_id,sample_id,note\n7,beta| alpha,a cat,cats,x.1_a-b,hello\n"
    samples = read_prompts(PromptsFile(prompts_file(text)), NAMES, seed=10)
    assert samples == [Sample("x.1_a-b", "cats", "a cat", 7, ("alpha", "beta"), samples[0].split)]


def test_a_byte_order_mark_quotes_commas_and_new_lines_are_read(prompts_file: WriteFile) -> None:
    text = '\ufeffprompt,seed\r\n"a cat, ""asleep"",\non a mat",3\r\nein Kätzchen,4\r\n'
    samples = read_prompts(PromptsFile(prompts_file(text)), NAMES, seed=0)
    assert [s.prompt for s in samples] == ['a cat, "asleep",\non a mat', "ein Kätzchen"]
    assert [s.seed for s in samples] == [3, 4]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no rows"),
        ("prompt\n", "holds no rows"),
        ("text,seed\na cat,1\n", "has no column 'prompt': it has text, seed"),
        ("prompt\na cat\n  \n", "row 2: the prompt is empty"),
        ("sample_id,prompt\na,a cat\n,a dog\n", "row 2: sample_id '' must be letters, digits"),
        ("sample_id,prompt\na/../b,a cat\n", "row 1: sample_id 'a/../b' must be letters, digits"),
        ("sample_id,prompt\na,a cat\na,a dog\n", "row 2: sample_id 'a' appears twice"),
        ("prompt,prompt_id\na cat,\n", "row 1: prompt_id is empty"),
        ("prompt,categories\na cat,alpha|omega\n", "row 1: unknown category 'omega', use alpha, beta"),
        ("prompt,seed\na cat,-1\n", "row 1: seed '-1' must be a whole number"),
        ("prompt,seed\na cat,1.5\n", "row 1: seed '1.5' must be a whole number"),
        ("prompt,seed\na cat,9223372036854775808\n", "row 1: seed '9223372036854775808' must be"),
        ("prompt,seed\na cat,\n", "row 1: seed '' must be a whole number"),
        ("prompt,categories\na cat,\na dog\n", "row 2 has 1 fields, the header 2"),
        ("prompt,seed\na cat, asleep,1\n", "row 1 has 3 fields, the header 2: quote fields with commas"),
        ("prompt,categories,prompt\na cat,,a dog\n", "names the column 'prompt' 2 times"),
        ("prompt,category\na cat,alpha\n", "'category', which is not read: did you mean 'categories'?"),
        ("prompt,categorys\na cat,alpha\n", "'categorys', which is not read: did you mean 'categories'?"),
        ("prompt, Seed\na cat,3\n", "a column ' Seed', which is not read: did you mean 'seed'?"),
        ("prompt\na\n" + 10_001 * "b" + "\n", "row 2: the prompt has 10001 characters, the most is 10000"),
        ("prompt,sample_id\na," + 101 * "b" + "\n", "'.', '_' and '-', 100 at most"),
        ('prompt\n"a cat\n', "is not readable as CSV in UTF-8"),
    ],
)
def test_a_bad_prompts_file_is_refused_with_one_error_message(
    prompts_file: WriteFile, text: str, sentence: str
) -> None:
    path = prompts_file(text)
    with pytest.raises(LvdError) as refusal:
        read_prompts(PromptsFile(path), NAMES, seed=0)
    assert str(refusal.value).startswith(str(path))
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_prompts_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_bytes("prompt\nein Kätzchen\n".encode("latin-1"))
    with pytest.raises(LvdError, match=r"prompts.csv is not readable as CSV in UTF-8"):
        read_prompts(PromptsFile(tmp_path / "prompts.csv"), NAMES, seed=0)


def test_a_prompts_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LvdError, match=r"no such file: .*prompts.csv"):
        read_prompts(PromptsFile(tmp_path / "prompts.csv"), NAMES, seed=0)


# Labels


@pytest.fixture
def unlabelled(new_capture: NewCapture) -> Path:
    return new_capture(40, labelled=False, category_names=NAMES)


@pytest.fixture
def labels_file(tmp_path: Path) -> WriteFile:
    def write(text: str) -> Path:
        path = tmp_path / "labels.csv"
        path.write_text(text)
        return path

    return write


def categories_of(capture: Path) -> dict[str, Categories]:
    return {s.sample_id: s.categories for s in read_samples(capture) if s.is_labelled}


def test_tidy_labels_are_set_and_all_others_are_unlabelled(unlabelled: Path, labels_file: WriteFile) -> None:
    labels = labels_file("category,sample_id\nbeta,s001\nalpha,s001\ngamma,s007\n,s008\nsafe,s009\n")
    found = label(unlabelled, labels, seed=0)
    assert categories_of(unlabelled) == {"s001": ("alpha", "beta"), "s007": ("gamma",), "s009": ()}
    assert (found.samples, found.unnamed, found.unnamed_are) == (40, 37, "unlabelled")


@pytest.mark.parametrize(("unnamed", "others"), [("safe", ()), ("keep", ("beta",)), ("unlabelled", None)])
def test_what_becomes_of_samples_that_are_not_named_is_said(
    new_capture: NewCapture, labels_file: WriteFile, unnamed: Unnamed, others: Categories | None
) -> None:
    capture = new_capture(8)
    label(capture, labels_file("sample_id,category\ns000,alpha\ns001,unlabelled\ns002,\n"), 0, unnamed)
    found = categories_of(capture)
    assert found["s000"] == ("alpha",)
    assert "s001" not in found  # a person said so
    assert found.get("s005") == others
    assert found.get("s002") == (None if others is None else ())


def test_the_papers_five_ragged_columns_are_rows_of_the_capture(
    unlabelled: Path, labels_file: WriteFile
) -> None:
    label(unlabelled, labels_file("1,2,3,4,5\n0,3.0,,5,39\n1,,,0,\n2,,,,\n"), seed=0)
    assert categories_of(unlabelled) == {
        "s000": ("alpha", "delta"),
        "s001": ("alpha",),
        "s002": ("alpha",),
        "s003": ("beta",),
        "s005": ("delta",),
        "s039": ("epsilon",),
    } | {f"s{row:03d}": () for row in range(40) if row not in (0, 1, 2, 3, 5, 39)}


def test_labels_leave_the_latents_and_their_provenance_alone(
    unlabelled: Path, labels_file: WriteFile
) -> None:
    before, info = everything_in(unlabelled), read_info(unlabelled)
    label(unlabelled, labels_file("sample_id,category\ns000,beta\n"), seed=0)
    after = everything_in(unlabelled)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {
        "samples.csv",
        "manifest.json",
    }
    assert read_info(unlabelled) == info
    assert verify(unlabelled) == []
    CaptureReader(unlabelled).step(0)[39]


def test_first_labels_balance_the_splits_and_later_ones_keep_them(
    unlabelled: Path, labels_file: WriteFile
) -> None:
    unlabelled_splits = [s.split for s in read_samples(unlabelled)]
    rows = "\n".join(f"s{i:03d},beta" for i in range(0, 40, 3))
    label(unlabelled, labels_file(f"sample_id,category\n{rows}\n"), seed=5)
    samples = read_samples(unlabelled)
    splits = [s.split for s in samples]
    assert splits != unlabelled_splits
    prompts = [s.prompt for s in samples]
    assert splits == assign_splits(prompts, prompts, [s.categories for s in samples], seed=5)

    label(unlabelled, labels_file("sample_id,category\ns001,alpha\n"), seed=6)
    assert categories_of(unlabelled) == {"s001": ("alpha",)}
    assert [s.split for s in read_samples(unlabelled)] == splits


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sample_id,category\ns000,alpha\nnobody,alpha\n", "row 2: the capture has no sample 'nobody'"),
        ("sample_id,category\ns000,omega\n", "row 1: unknown category 'omega', use alpha"),
        ("sample_id,category\ns000,alpha\ns001\n", "row 2 has 1 fields, the header 2"),
        ("sample_id,category,category\ns000,alpha,\n", "names the column 'category' 2 times"),
        ("sample,category\ns000,alpha\n", "needs the columns sample_id, category or 1, 2, 3, 4, 5"),
        ("1,2,3,4\n0,0,0,0\n", "needs the columns sample_id, category or 1, 2, 3, 4, 5"),
        ("1,2,3,4,5\n0,,,,\n,40,,,\n", "row 2: '40' is not one of the rows 0..39"),
        ("1,2,3,4,5\n-1,,,,\n", "row 1: '-1' is not one of the rows 0..39"),
        ("1,2,3,4,5\n0.5,,,,\n", "row 1: '0.5' is not one of the rows 0..39"),
        ("sample_id,category\n", "holds no rows"),
    ],
)
def test_bad_labels_are_refused_and_the_capture_is_unchanged(
    unlabelled: Path, labels_file: WriteFile, text: str, sentence: str
) -> None:
    before = everything_in(unlabelled)
    with pytest.raises(LvdError) as refusal:
        label(unlabelled, labels_file(text), seed=0)
    assert sentence in str(refusal.value)
    assert "labels.csv" in str(refusal.value)
    assert everything_in(unlabelled) == before


@pytest.mark.parametrize("typed", ["20", "20.0", "0020"])
def test_an_id_that_lost_its_zeros_is_told_from_one_that_is_not_there(
    typed: str, unlabelled: Path, labels_file: WriteFile
) -> None:
    samples = [replace(s, sample_id=s.sample_id.replace("s", "0")) for s in read_samples(unlabelled)]
    (unlabelled / "manifest.json").unlink()  # a capture whose labels come before its end
    write_samples(unlabelled, samples)
    labels = labels_file(f"sample_id,category\n{typed},beta\n")
    if typed == "0020":
        label(unlabelled, labels, seed=0)
        return
    with pytest.raises(LvdError, match=f"row 1: .* no sample '{typed}', but '0020': did a spread"):
        label(unlabelled, labels, seed=0)
    with pytest.raises(LvdError, match=r"no sample '77'$"):
        label(unlabelled, labels_file("sample_id,category\n77,beta\n"), seed=0)


def test_the_papers_columns_need_five_categories(new_capture: NewCapture, labels_file: WriteFile) -> None:
    with pytest.raises(LvdError, match="labels five categories, the capture has 2"):
        label(new_capture(8), labels_file("1,2,3,4,5\n0,,,,\n"), seed=0)


# Recording, with a real pipeline


@pytest.fixture(scope="session")
def source(tiny_pipeline_path: Path) -> Source:
    return Source(
        path=str(tiny_pipeline_path),
        device="cpu",
        layout="BCFHW",
        steps=4,
        guidance=5.0,
        call=CALL,
        category_names=list(NAMES),
    )


def six_samples() -> list[Sample]:
    return [
        Sample(f"v{i}", f"p{i}", prompt, 100 + i, (NAMES[0],) if i % 2 else (), "train")
        for i, prompt in enumerate(PROMPTS)
    ]


def record_to(
    directory: Path,
    source: Source,
    samples: list[Sample] | None = None,
    *,
    pipe: Any = None,
    **changes: Any,
) -> Path:
    recording = Recording(**{"batch_size": 2, **changes})
    record(source, six_samples() if samples is None else samples, directory, recording, pipe=pipe)
    return directory


@pytest.fixture(scope="session")
def recorded(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_to(tmp_path_factory.mktemp("recorded") / "mine", source)


@pytest.fixture
def no_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Source) -> None:
        raise AssertionError("the pipeline was loaded")

    monkeypatch.setattr(recorder, "load_pipeline", refuse)


def latents(capture: Path) -> np.ndarray[Any, Any]:
    """Bits of x0 `[steps, N, C, F, H, W]`."""
    reader = CaptureReader(capture)
    steps = range(reader.info.origin.steps)
    return np.stack([reader.step(step).read(range(len(reader.samples))) for step in steps]).view(np.uint16)


def test_a_pipeline_that_is_loaded_already_makes_the_same_capture(
    recorded: Path, source: Source, tiny_pipeline: Any, tmp_path: Path, no_pipeline: None
) -> None:
    again = record_to(tmp_path / "mine", source, pipe=tiny_pipeline)
    for name in ("capture.json", "manifest.json", "samples.csv"):
        assert (again / name).read_bytes() == (recorded / name).read_bytes()


def test_a_capture_holds_the_x0_that_the_tapped_pipeline_predicts(recorded: Path, tiny_pipeline: Any) -> None:
    x0: list[torch.Tensor] = []
    with tap_x0(tiny_pipeline.scheduler, lambda step, timestep, x0_BCFHW: x0.append(x0_BCFHW)):
        tiny_pipeline(
            prompt=PROMPTS[2:4],
            generator=[torch.Generator().manual_seed(seed) for seed in (102, 103)],
            num_inference_steps=4,
            guidance_scale=5.0,
            output_type="latent",
            **CALL,
        )
    expected = torch.stack(x0).half().numpy().view(np.uint16)
    assert np.array_equal(latents(recorded)[:, 2:4], expected)


def test_every_sample_and_every_step_is_its_own(recorded: Path) -> None:
    x0 = latents(recorded)
    assert x0.shape == (4, 6, 4, 4, 8, 8)
    assert len(np.unique(x0.reshape(24, -1), axis=0)) == 24


def test_a_capture_says_how_it_was_made(recorded: Path, source: Source) -> None:
    info = read_info(recorded)
    assert read_samples(recorded) == six_samples()
    assert {name: info.fields()[name] for name in source.settings()} == source.settings()
    assert (info.origin.pipeline_class, info.origin.scheduler) == ("AnimateDiffPipeline", "DDIMScheduler")
    assert info.origin.scheduler_config["beta_end"] == 0.012
    alpha_bar = DDIMScheduler.from_config(info.origin.scheduler_config).alphas_cumprod[[751, 501, 251, 1]]
    noise = (1 - alpha_bar).sqrt() / ((1 - alpha_bar).sqrt() + alpha_bar.sqrt())
    assert info.origin.noise_levels == pytest.approx(noise.tolist(), abs=1e-6)
    assert (info.origin.latent_shape, info.dtype) == ((4, 4, 8, 8), "float16")
    assert info.versions["torch"] == torch.__version__


def test_a_complete_capture_is_left_alone(
    recorded: Path, source: Source, no_pipeline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything_in(recorded)
    record_to(recorded, source)
    assert f"capture {recorded} is complete: 6 samples, nothing to do" in capsys.readouterr().out
    assert everything_in(recorded) == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"guidance": 7.5}, "exists with guidance=5.0, not 7.5"),
        ({"steps": 5}, "exists with steps=4, not 5"),
        ({"path": "elsewhere"}, "exists with pipeline="),
        ({"revision": "main"}, "exists with revision=None, not 'main'"),
        ({"call": {**CALL, "num_frames": 8}}, "exists with call="),
        ({"category_names": NAMES[::-1]}, "exists with category_names="),
    ],
)
def test_a_capture_begun_with_other_settings_is_refused_before_the_pipeline_is_loaded(
    recorded: Path, source: Source, no_pipeline: None, change: dict[str, Any], sentence: str
) -> None:
    before = everything_in(recorded)
    with pytest.raises(LvdError) as refusal:
        record_to(recorded, replace(source, **change))
    assert sentence in str(refusal.value)
    assert everything_in(recorded) == before


@pytest.mark.parametrize("changed", ["prompt", "seed", "fewer", "order"])
def test_a_capture_begun_with_other_samples_is_refused(
    recorded: Path, source: Source, no_pipeline: None, changed: str
) -> None:
    samples = six_samples()
    others = {
        "prompt": [*samples[:5], replace(samples[5], prompt="a blue one")],
        "seed": [replace(samples[0], seed=1), *samples[1:]],
        "fewer": samples[:5],
        "order": samples[::-1],
    }[changed]
    with pytest.raises(LvdError, match="exists with other samples"):
        record_to(recorded, source, samples=others)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, batches: int, directory: Path, source: Source) -> None:
    """Record until `batches` are committed, then stop as by Ctrl-C."""
    commit, committed = Entry.commit, []

    def commit_or_stop(entry: Entry) -> None:
        if len(committed) == batches:
            raise KeyboardInterrupt
        commit(entry)
        committed.append(entry)

    with monkeypatch.context() as patch:
        patch.setattr(Entry, "commit", commit_or_stop)
        with pytest.raises(KeyboardInterrupt):
            record_to(directory, source)
    assert len(committed) == batches


def test_a_resumed_capture_is_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path,
    source: Source,
    recorded: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "mine"
    interrupt_after(monkeypatch, 1, directory, source)
    assert journal.journalled(directory) == {"v0", "v1"}
    assert not writer.is_complete(directory)
    record_to(directory, source)
    assert "2 of 6 samples are there" in capsys.readouterr().out
    assert everything_in(directory) == everything_in(recorded)


def test_a_capture_killed_before_its_manifest_is_finished_from_the_journal(
    tmp_path: Path, source: Source, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "mine"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_manifest", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            record_to(directory, source)
    record_to(directory, source)
    assert everything_in(directory) == everything_in(recorded)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_capture_goes_on_with_another_batch_size(
    tmp_path: Path, source: Source, recorded: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    directory = tmp_path / "mine"
    interrupt_after(monkeypatch, 1, directory, source)
    record_to(directory, source, batch_size=batch_size)
    ours, theirs = latents(directory).view(np.float16), latents(recorded).view(np.float16)
    np.testing.assert_allclose(ours.astype(float), theirs.astype(float), rtol=0.01, atol=0.02)


def test_a_capture_does_not_go_on_with_another_scheduler(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "mine"
    interrupt_after(monkeypatch, 1, directory, source)
    other = replace(source, scheduler="DDIMScheduler", scheduler_config={"beta_end": 0.02})
    with pytest.raises(LvdError, match="exists with scheduler_config="):
        record_to(directory, other)


def test_previews_are_videos_of_every_sample(tmp_path: Path, source: Source, recorded: Path) -> None:
    directory = record_to(tmp_path / "mine", source, preview=True)
    assert sorted(path.name for path in (directory / "preview").iterdir()) == [f"v{i}.mp4" for i in range(6)]
    with av.open(str(directory / "preview" / "v5.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.frames, stream.average_rate) == ("h264", 4, 10)
        assert (stream.width, stream.height) == (256, 256)  # enlarged, from 32x32
    assert np.array_equal(latents(directory), latents(recorded))


def frames_of(capture: Path, sample_id: str) -> np.ndarray:
    path = find_preview(capture, sample_id)
    assert path is not None
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(float)


def test_missing_previews_are_made_from_the_last_x0(tmp_path: Path, source: Source) -> None:
    directory = record_to(tmp_path / "mine", source, preview=True)
    whole = {f"v{i}": frames_of(directory, f"v{i}") for i in range(6)}
    for sample_id in ("v1", "v4"):
        (directory / "preview" / f"{sample_id}.mp4").unlink()
    kept = (directory / "preview" / "v0.mp4").stat().st_mtime_ns
    assert write_missing_previews(CaptureReader(directory)) == 2
    assert (directory / "preview" / "v0.mp4").stat().st_mtime_ns == kept
    for sample_id in ("v1", "v4"):  # the sampler's last x0 is nearly its last latent
        made = frames_of(directory, sample_id)
        near = np.abs(made - whole[sample_id]).mean()
        assert near < 8
        assert near < 0.5 * min(np.abs(made - whole[other]).mean() for other in whole if other != sample_id)
    assert write_missing_previews(CaptureReader(directory)) == 0


@pytest.mark.parametrize(("height", "width"), [(270, 481), (33, 47), (16, 600)])
def test_a_video_of_any_size_can_be_played(height: int, width: int, tmp_path: Path) -> None:
    frames = np.linspace(0, 1, 3 * height * width * 3).reshape(3, height, width, 3)
    write_preview(tmp_path, "s0", frames, 8.0)
    shown = frames_of(tmp_path, "s0")
    factor = max(1, 256 // max(height, width))
    assert shown.shape == (3, height * factor + height * factor % 2, width * factor + width * factor % 2, 3)
    larger = frames.repeat(factor, axis=1).repeat(factor, axis=2) * 255
    assert np.abs(shown[:, : height * factor, : width * factor] - larger).mean() < 3


def test_a_gif_of_an_earlier_capture_is_its_preview(tmp_path: Path) -> None:
    (tmp_path / "preview").mkdir()
    (tmp_path / "preview" / "s0.gif").write_bytes(b"GIF89a")
    assert find_preview(tmp_path, "s0") == tmp_path / "preview" / "s0.gif"
    write_preview(tmp_path, "s0", np.zeros((2, 16, 16, 3)), 8.0)
    assert find_preview(tmp_path, "s0") == tmp_path / "preview" / "s0.mp4"
    assert find_preview(tmp_path, "s1") is None


def test_a_pipeline_that_diverges_is_refused_and_nothing_is_written(
    tmp_path: Path, source: Source, tiny_pipeline: Any
) -> None:
    tiny_pipeline.unet.conv_out.weight.data[:] = torch.nan
    with pytest.raises(LvdError, match="x0 of step 0 of samples v0 to v1 holds NaN or Inf"):
        record_to(tmp_path / "mine", source, pipe=tiny_pipeline)
    assert not (tmp_path / "mine").exists()


def test_a_pipeline_that_runs_other_steps_is_refused(
    tmp_path: Path, source: Source, tiny_pipeline: Any
) -> None:
    def one_step_less(**call: Any) -> Any:
        return tiny_pipeline(**{**call, "num_inference_steps": call["num_inference_steps"] - 1})

    one_step_less.scheduler = tiny_pipeline.scheduler  # type: ignore[attr-defined]
    with pytest.raises(LvdError, match="the sampler made 3 steps, not 4"):
        record_to(tmp_path / "mine", source, pipe=one_step_less)
    assert not (tmp_path / "mine").exists()


# The command line


def write_prompts(path: Path, count: int) -> Path:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["prompt", "categories"])
    rows.writerows([PROMPTS[i % 6], ("gore" if i % 2 else "")] for i in range(count))
    path.write_text(text.getvalue())
    return path


def command(pipeline: Path, captures: Path, **settings: object) -> list[str]:
    return [
        *tiny.SETTINGS,
        f"pipeline.path={pipeline}",
        "pipeline.steps=3",
        f"captures={captures}",
        *(f"{key}={value}" for key, value in settings.items()),
    ]


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """The command in this process: it spares the tests the seconds of importing torch."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # so that what the command sets is undone
    monkeypatch.setattr(sys, "argv", ["capture.py", *arguments])
    runpy.run_path(str(ROOT / "capture.py"), run_name="__main__")


def start_command(directory: Path, arguments: list[str], *flags: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *flags, str(ROOT / "capture.py"), *arguments],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_capture_then_labels_through_the_command_line(
    tiny_pipeline_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt\na red three\na pink seven\n")
    run_here(monkeypatch, *command(tiny_pipeline_path, tmp_path, prompts=prompts, name="mine"))
    assert "2 samples without labels" in " ".join(capsys.readouterr().out.split())

    (tmp_path / "labels.csv").write_text("sample_id,category\n0001,weapon\n")
    run_here(monkeypatch, f"captures={tmp_path}", "name=mine", f"labels={tmp_path / 'labels.csv'}")
    assert "weapon" in capsys.readouterr().out
    assert categories_of(tmp_path / "mine") == {"0001": ("weapon",)}


MISTAKES = {
    "nothing to do": (["prompts=null"], "give prompts=FILE.csv to capture, page=true for a page"),
    "no such prompts": (["prompts=nowhere.csv"], "no such file: nowhere.csv"),
    "no such capture": (["prompts=null", "labels=prompts.csv"], "no capture at"),
    "nothing to verify": (["prompts=null", "verify=true"], "no capture at captures/mine"),
    "steps that begin late": (["steps=1..2"], "steps=1..2 must be 0..N"),
    "a number of steps": (["steps=2"], "steps=2 must be 0..N"),
    "more steps than there are": (["steps=0..3"], "steps=0..3 is more than the 3 steps of the pipeline"),
    "workers without a number": (["workers=4"], "workers=4 needs worker=0..3"),
    "a worker too many": (["worker=4", "workers=4"], "worker=4 must be from 0 to workers - 1, which is 3"),
    "workers in one process": (["worker=0..3", "workers=4"], "worker=0..3 names 4 processes: add -m"),
    "workers that are none": (["worker=a-b"], "worker=a-b is not understood"),
    "a worker that labels": (["worker=0", "workers=2", "labels=l.csv"], "goes with prompts=FILE.csv alone"),
    "bad name": (["name=../mine"], "name=../mine must be letters"),
    "batch of none": (["batch_size=0"], "batch_size=0 must be at least 1"),
    "no videos": (["videos_per_prompt=0"], "videos_per_prompt=0 must be at least 1"),
    "batch of many": (["batch_size=many"], "many"),
    "negative seed": (["seed=-1"], "seed=-1 must be from 0"),
    "unknown key": (["promts=prompts.csv"], "promts"),
    "two values": (["prompts=a.csv,b.csv"], "a.csv,b.csv"),
    "bad syntax": (["pipeline.call={height"], "'{height'"),
    "unknown pipeline": (["pipeline=sora"], "sora"),
    "no such path": (["pipeline.path=/nowhere/at/all"], "pipeline /nowhere/at/all cannot be loaded"),
    "no such class": (
        ["pipeline.pipeline_class=Sora"],
        "cannot be loaded: module diffusers has no",
    ),
    "no such scheduler": (["pipeline.scheduler=Sora"], "cannot be loaded: module diffusers has no"),
    "unsupported scheduler": (["pipeline.scheduler=IPNDMScheduler"], "IPNDMScheduler is not supported"),
    "no such device": (["pipeline.device=abacus"], "pipeline.device=abacus is not on this machine"),
    "bad dtype": (["pipeline.dtype=int8"], "pipeline.dtype=int8 must be float32, float16 or bfloat16"),
    "bad layout": (["pipeline.layout=BDS"], "pipeline.layout=BDS must be BCFHW, BFCHW, BFHWC"),
    "no frames": (["pipeline.call.num_frames=-1"], "pipeline.call.num_frames=-1 must be at least 1"),
    "no steps": (["pipeline.steps=0"], "pipeline.steps=0 must be at least 1"),
    "too many steps": (["pipeline.steps=2000"], "the pipeline refused the call: `num_inference_steps`: 2000"),
    "odd height": (["pipeline.call.height=33"], "have to be divisible by 8 but are 33 and 32"),
    "reserved category": (["pipeline.category_names=[trunk]"], "trunk is reserved"),
    "safe as a category": (["pipeline.category_names=[gore,safe]"], "safe is reserved"),
    "a category twice": (["pipeline.category_names=[gore,nude,gore]"], "gore appears twice"),
    "no category": (["pipeline.category_names=[]"], "name one category at least"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(
    mistake: str,
    tiny_pipeline_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, sentence = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path / "prompts.csv", 2)
    before = everything_in(tmp_path)
    asked = [argument.split("=")[0] for argument in arguments]
    usual = command(tiny_pipeline_path, Path("captures"), prompts="prompts.csv", name="mine")
    with pytest.raises(SystemExit) as stop:
        run_here(monkeypatch, *(a for a in usual if a.split("=")[0] not in asked), *arguments)
    assert stop.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    (tmp_path / "capture.log").unlink(missing_ok=True)  # Hydra's own, empty
    assert everything_in(tmp_path) == before


def test_a_mistake_in_a_process_of_its_own_exits_with_1_and_no_traceback(tmp_path: Path) -> None:
    """And does not wait for what only an evaluation needs."""
    mistaken = start_command(tmp_path, ["prompts=nowhere.csv"], "-X", "importtime")
    out, err = mistaken.communicate(timeout=400)
    said = [line for line in err.splitlines() if not line.startswith("import time:")]
    assert (mistaken.returncode, out) == (1, "")
    assert said[-1] == "error: no such file: nowhere.csv"
    assert "Traceback" not in err
    modules = {line.split("|")[-1].strip() for line in err.splitlines()}
    assert "torch" in modules
    assert not modules & {"sklearn", "scipy.stats", "plotly", "lightning"}


def test_a_copied_capture_is_still_complete(recorded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(recorded, tmp_path / "copy"))
    assert np.array_equal(latents(copy), latents(recorded))
