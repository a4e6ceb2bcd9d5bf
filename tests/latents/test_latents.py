"""The capture on disk gives back what was written, and nothing that was tampered with or is not whole."""

import json
import math
import pickle
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from conftest import SHAPE, STEPS, capture_info, latents_of, make_samples, of_version_1, write_capture
from lvd.capture.labels import label
from lvd.errors import LvdError
from lvd.files import file_sha256
from lvd.latents import journal, writer
from lvd.latents.format import SPLITS, UNLABELLED, Categories, read_info, read_samples, write_samples
from lvd.latents.journal import Entry
from lvd.latents.reader import CaptureReader, StepReader
from lvd.latents.splits import (
    FRACTIONS,
    assign_splits,
    count_near_duplicates,
    default_prompt_id,
    fold,
    near_copies,
)
from lvd.latents.verify import verify
from lvd.latents.writer import to_float16
from lvd.report.capture_tables import print_labels

COUNT = 12
SAMPLE_BYTES = 2 * int(np.prod(SHAPE))

NewCapture = Callable[..., Path]


@pytest.fixture
def sharded(new_capture: NewCapture, monkeypatch: pytest.MonkeyPatch) -> Path:
    """12 samples in shards of 5, 5 and 2 a step."""
    monkeypatch.setattr(writer, "SHARD_BYTES", 5 * SAMPLE_BYTES + 1)
    return new_capture(COUNT)


def written() -> np.ndarray[Any, Any]:
    return latents_of(make_samples(COUNT)).numpy()


def same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return a.dtype == b.dtype == np.float16 and np.array_equal(a.view(np.uint16), b.view(np.uint16))


def test_what_is_read_is_what_was_written(sharded: Path) -> None:
    reader = CaptureReader(sharded)
    assert sorted(p.name for p in (sharded / "step_00").iterdir()) == [f"shard_000{i}.h5" for i in range(3)]
    assert reader.info == capture_info()
    assert reader.samples == make_samples(COUNT)
    for step in range(STEPS):
        latents = reader.step(step)
        assert len(latents) == COUNT
        assert same_bits(np.stack([latents[row] for row in range(COUNT)]), written()[:, step])


def test_rows_are_read_in_the_order_asked(sharded: Path) -> None:
    rows = [11, 0, 5, 4, 4, 10]
    assert same_bits(CaptureReader(sharded).step(1).read(rows), written()[rows, 1])


def test_samples_are_stored_in_the_order_of_samples_csv_however_they_arrived(tmp_path: Path) -> None:
    samples, x0 = make_samples(COUNT), latents_of(make_samples(COUNT))
    writer.begin(tmp_path, capture_info(), samples)
    for rows in ([7, 3, 11], [0, 1, 2, 4], [10, 9, 8, 6, 5]):
        journal.append(tmp_path, [samples[row].sample_id for row in rows], x0[rows])
    writer.finish(tmp_path)
    assert same_bits(CaptureReader(tmp_path).step(2).read(range(COUNT)), written()[:, 2])


def test_prompts_survive_samples_csv(tmp_path: Path) -> None:
    samples = [
        writer.Sample("a", "p1", 'commas, "quotes"\nand a new line', 2**62, ("alpha", "beta"), "train"),
        writer.Sample("b", "p2", "ünï 🎈 \r\nreturn", 0, (), "test"),
    ]
    writer.begin(tmp_path, capture_info(), samples)
    assert read_samples(tmp_path) == samples


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_survives_samples_csv(prompts: list[str]) -> None:
    samples = [writer.Sample(f"s{i}", f"p{i}", text, i, (), "train") for i, text in enumerate(prompts)]
    with TemporaryDirectory() as folder:
        write_samples(Path(folder), samples)
        assert read_samples(Path(folder)) == samples


def test_the_manifest_says_what_the_shards_are(sharded: Path) -> None:
    shards = json.loads((sharded / "manifest.json").read_text())["shards"]
    assert [(shard["step"], shard["count"]) for shard in shards] == [
        (step, count) for step in range(STEPS) for count in (5, 5, 2)
    ]
    for shard in shards:
        path = sharded / shard["path"]
        assert (shard["bytes"], shard["sha256"]) == (path.stat().st_size, file_sha256(path))


def test_shards_of_a_mebibyte_take_hardly_more_than_their_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 2**20)
    samples = make_samples(2 * 2**20 // SAMPLE_BYTES)
    writer.begin(tmp_path, capture_info(), samples)
    journal.append(tmp_path, [s.sample_id for s in samples], latents_of(samples))
    writer.finish(tmp_path)
    shards = sorted(tmp_path.glob("step_*/*.h5"))
    assert len(shards) == 2 * STEPS
    for shard in shards:
        assert 2**20 < shard.stat().st_blocks * 512 <= 1.02 * 2**20


def test_a_finished_capture_keeps_no_journal_and_no_partial_files(sharded: Path) -> None:
    assert sorted(path.name for path in sharded.iterdir()) == sorted(
        ["capture.json", "samples.csv", "manifest.json", "step_00", "step_01", "step_02"]
    )
    assert not [path for path in sharded.rglob("*") if path.suffix == ".tmp"]


def test_x0_is_a_read_only_view(sharded: Path) -> None:
    x0 = CaptureReader(sharded).step(0)[0]
    with pytest.raises(ValueError, match="read-only"):
        x0[:] = 0


@pytest.mark.parametrize("row", [-1, COUNT])
def test_a_row_outside_the_capture_is_an_index_error(sharded: Path, row: int) -> None:
    with pytest.raises(IndexError):
        CaptureReader(sharded).step(0)[row]


@pytest.mark.parametrize("row", [-1, COUNT])
def test_a_row_outside_a_capture_of_one_shard_is_an_index_error(new_capture: NewCapture, row: int) -> None:
    with pytest.raises(IndexError):
        CaptureReader(new_capture(COUNT)).step(0)[row]


def test_an_open_step_reader_pickles_without_its_maps(sharded: Path) -> None:
    step = CaptureReader(sharded).step(0)
    step[0]
    data = pickle.dumps(step)
    assert len(data) < SAMPLE_BYTES * COUNT / 4
    assert same_bits(pickle.loads(data).read(range(COUNT)), written()[:, 0])


class Latents(Dataset[torch.Tensor]):
    def __init__(self, step: StepReader) -> None:
        self.step = step

    def __len__(self) -> int:
        return len(self.step)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(self.step[row].copy())


def test_dataloader_workers_read_the_same(sharded: Path) -> None:
    step = CaptureReader(sharded).step(0)
    step[0]  # opened before the fork
    loader = DataLoader(Latents(step), batch_size=5, num_workers=2, multiprocessing_context="fork")
    assert same_bits(torch.cat(list(loader)).numpy(), written()[:, 0])


def test_finish_refuses_while_a_sample_is_missing(tmp_path: Path) -> None:
    samples = make_samples(COUNT)
    writer.begin(tmp_path, capture_info(), samples)
    journal.append(tmp_path, [s.sample_id for s in samples[:7]], latents_of(samples)[:7])
    with pytest.raises(LvdError, match="lacks 5 samples, the first is s007"):
        writer.finish(tmp_path)
    assert not writer.is_complete(tmp_path)


def test_a_batch_that_was_not_committed_does_not_count_and_is_written_again(tmp_path: Path) -> None:
    samples = make_samples(COUNT)
    writer.begin(tmp_path, capture_info(), samples)
    ids = [s.sample_id for s in samples]
    journal.append(tmp_path, ids[:7], latents_of(samples)[:7])
    torn = tmp_path / "journal" / "batch_000001.tmp"
    torn.mkdir()
    (torn / "step_02.safetensors").write_bytes(b"half")
    (torn / "samples.json").write_text(json.dumps(ids[7:]))
    assert journal.journalled(tmp_path) == set(ids[:7])
    journal.append(tmp_path, ids[7:], latents_of(samples)[7:])
    writer.finish(tmp_path)
    assert same_bits(CaptureReader(tmp_path).step(2).read(range(COUNT)), written()[:, 2])


def test_a_batch_without_all_its_steps_is_never_committed(tmp_path: Path) -> None:
    x0 = latents_of(make_samples(2))
    with Entry(tmp_path, ["a", "b"], STEPS) as entry:
        entry.add(0, x0[:, 0])
        with pytest.raises(LvdError, match=r"x0 of step 2 of samples a to b is .*, expected step 1"):
            entry.add(2, x0[:, 2])
        with pytest.raises(LvdError, match="x0 of step 1 of samples a to b is"):
            entry.add(1, x0[:, 1, :1])
        with pytest.raises(LvdError, match="has 1 of 3 steps: it cannot count"):
            entry.commit()
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("spoil", ["step_01.safetensors", "samples.json"])
def test_a_damaged_journal_is_named(tmp_path: Path, spoil: str) -> None:
    samples = make_samples(4)
    writer.begin(tmp_path, capture_info(), samples)
    journal.append(tmp_path, [s.sample_id for s in samples], latents_of(samples))
    (tmp_path / "journal" / "batch_000000" / spoil).write_bytes(b"{")
    with pytest.raises(LvdError, match=r"batch_000000.* is not readable: .*; remove .* and go on"):
        writer.finish(tmp_path)
    assert not writer.is_complete(tmp_path)


def everything_below(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


# What a reader refuses. Every file is a real one, spoiled; where a person who tampers would make the manifest
# agree, it does, so that it is the intended check that refuses. Hostile HDF5: test_hostile.py.


def shard_of(capture: Path) -> Path:
    return capture / "step_01" / "shard_0001.h5"


def agree(capture: Path, path: Path) -> None:
    manifest = json.loads((capture / "manifest.json").read_text())
    for shard in manifest["shards"]:
        if capture / shard["path"] == path:
            shard.update(bytes=path.stat().st_size, sha256=file_sha256(path))
    (capture / "manifest.json").write_text(json.dumps(manifest))


def read_step(capture: Path) -> None:
    CaptureReader(capture).step(1).read(range(COUNT))


def refuses(capture: Path, file: Path, sentence: str) -> None:
    with pytest.raises(LvdError, match=sentence) as refusal:
        read_step(capture)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_truncated_shard_is_refused(sharded: Path) -> None:
    path = shard_of(sharded)
    path.write_bytes(path.read_bytes()[:-100])
    refuses(sharded, path, "the manifest says")


@pytest.mark.parametrize("kept", [0, 10, 3000])
def test_a_truncated_shard_that_the_manifest_agrees_with_is_refused(sharded: Path, kept: int) -> None:
    path = shard_of(sharded)
    path.write_bytes(path.read_bytes()[:kept])
    agree(sharded, path)
    refuses(sharded, path, "not a readable shard")


def test_a_missing_shard_is_refused(sharded: Path) -> None:
    shard_of(sharded).unlink()
    refuses(sharded, shard_of(sharded), "is missing: the manifest lists it")


def test_a_spoiled_shard_does_not_spoil_the_other_steps(sharded: Path) -> None:
    shard_of(sharded).unlink()
    assert same_bits(CaptureReader(sharded).step(2).read(range(COUNT)), written()[:, 2])


def change_manifest(capture: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    manifest = json.loads((capture / "manifest.json").read_text())
    manifest["shards"] = [shard for shard in manifest["shards"] if keep(shard)]
    (capture / "manifest.json").write_text(json.dumps(manifest))


def test_a_shard_that_is_not_listed_does_not_count(sharded: Path) -> None:
    change_manifest(sharded, lambda shard: shard["path"] != "step_01/shard_0001.h5")
    refuses(sharded, sharded / "step_01", "holds 7 samples, samples.csv has 12")


def test_a_step_that_is_not_listed_is_not_there(sharded: Path) -> None:
    change_manifest(sharded, lambda shard: shard["step"] != 1)
    refuses(sharded, sharded, "has no step 1: it has 0..2")


def test_a_stray_shard_changes_nothing(sharded: Path) -> None:
    stray = sharded / "step_01" / "shard_0003.h5"
    stray.write_bytes(shard_of(sharded).read_bytes())
    assert same_bits(CaptureReader(sharded).step(1).read(range(COUNT)), written()[:, 1])


def test_a_capture_without_a_manifest_is_not_complete(sharded: Path) -> None:
    (sharded / "manifest.json").unlink()
    refuses(sharded, sharded, "is not complete: run capture.py again")


def test_a_capture_that_is_not_there_is_named(tmp_path: Path) -> None:
    refuses(tmp_path / "mine", tmp_path / "mine", "no capture at .*: make it with capture.py name=mine")


@pytest.mark.parametrize("name", ["capture.json", "manifest.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b"[" * 99_999])
def test_bad_json_is_refused(sharded: Path, name: str, content: bytes) -> None:
    (sharded / name).write_bytes(content)
    refuses(sharded, sharded / name, re.escape(name))


LISTED = {"path": "step_01/shard_0001.h5", "step": 1, "count": 5, "bytes": 10, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "shards",
    [
        *(None, {}, [1], [{"path": "x"}], [{"surprise": 1}]),
        *(
            [{**LISTED, **change}]
            for change in (
                {"path": "../../etc/passwd"},
                {"path": "/step_01/shard_0001.h5"},
                {"path": "step_02/shard_0001.h5"},
                {"step": -1, "path": "step_-1/shard_0001.h5"},
                {"count": 0},
                {"count": -5},
                {"count": 5.0},
                {"count": True},
                {"bytes": "10"},
                {"sha256": "0"},
            )
        ),
    ],
)
def test_a_manifest_of_another_form_is_refused(sharded: Path, shards: Any) -> None:
    (sharded / "manifest.json").write_text(json.dumps({"format_version": 1, "shards": shards}))
    refuses(sharded, sharded / "manifest.json", "manifest")


@pytest.mark.parametrize(("labelled", "nameless"), [(True, ()), (False, UNLABELLED)])
def test_a_capture_of_version_1_means_what_it_meant(
    new_capture: NewCapture, labelled: bool, nameless: Categories
) -> None:
    capture = new_capture(8)
    now = read_samples(capture), read_info(capture)
    of_version_1(capture, labelled=labelled)
    samples = [replace(s, categories=s.categories if s.is_unsafe else nameless) for s in now[0]]
    assert (read_samples(capture), read_info(capture)) == (samples, now[1])
    assert verify(capture) == []
    labels = capture.parent / "labels.csv"
    labels.write_text("sample_id,category\ns002,safe\n")
    label(capture, labels, seed=0, unnamed="keep")
    assert (read_samples(capture)[2].is_safe, read_info(capture), verify(capture)) == (True, now[1], [])
    assert json.loads((capture / "capture.json").read_text())["format_version"] == 2


def test_no_label_is_a_fault_of_version_2(new_capture: NewCapture) -> None:
    capture = new_capture(8)
    path = capture / "samples.csv"
    path.write_text(path.read_text().replace(",safe,", ",,", 1))
    with pytest.raises(LvdError, match=r"samples.csv line 4: sample s002 has neither categories nor safe"):
        read_samples(capture)


@pytest.mark.parametrize(
    ("categories", "states"),
    [
        (UNLABELLED, (False, False, False, False)),
        ((), (True, True, False, False)),
        (("alpha",), (True, False, True, False)),
        (("alpha", "beta"), (True, False, True, True)),
    ],
)
def test_a_label_is_one_of_three_and_comes_back(
    new_capture: NewCapture, categories: Categories, states: tuple[bool, ...]
) -> None:
    capture = new_capture(8)
    write_samples(capture, [replace(sample, categories=categories) for sample in read_samples(capture)])
    sample = read_samples(capture)[0]
    assert sample.categories == categories
    assert (sample.is_labelled, sample.is_safe, sample.is_unsafe, sample.has("beta")) == states


def test_an_unlabelled_sample_has_no_truth_value() -> None:
    sample = replace(make_samples(1)[0], categories=UNLABELLED)
    with pytest.raises(TypeError, match="neither safe nor unsafe"):
        assert not sample.categories


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 3},
        {"format_version": 1},
        {"latent_shape": [4, 4]},
        {"latent_shape": None},
        {"latent_shape": [4, 4, 8, -8]},
        {"latent_shape": [4, 4, 8, 8.0]},
        {"steps": 0},
        {"steps": "3"},
        {"recorded_steps": 4},
        {"recorded_steps": 0},
        {"surprise": 1},
    ],
)
def test_a_capture_json_of_another_form_is_refused(sharded: Path, change: dict[str, Any]) -> None:
    path = sharded / "capture.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refuses(sharded, path, "is not a capture.json of format version 1")


def test_a_prompt_of_a_megabyte_in_samples_csv_is_read(tmp_path: Path) -> None:
    """Captures that were made before prompts had a bound; csv's own is 131072 characters."""
    (sample,) = make_samples(1)
    write_samples(tmp_path, [replace(sample, prompt="b" * 2**20)])
    assert read_samples(tmp_path) == [replace(sample, prompt="b" * 2**20)]


def test_samples_csv_must_be_there(sharded: Path) -> None:
    (sharded / "samples.csv").unlink()
    refuses(sharded, sharded / "samples.csv", "is missing")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("sample_id,prompt_id", "id,prompt_id", "must have the columns"),
        ("s000,", "s000,extra,", "line 2"),
        (",train\n", "\n", "line 2 has 5 fields, the header 6"),
        (",train\n", ",somewhere\n", "bad split or seed of sample"),
        ("s000,prompt number 0,prompt number 0,0", "s000,p,prompt,zero", "bad split or seed of sample s000"),
        ("s000,", "s\udcff000,", "samples.csv"),
    ],
)
def test_a_spoiled_samples_csv_is_refused(sharded: Path, old: str, new: str, sentence: str) -> None:
    path = sharded / "samples.csv"
    text = path.read_text()
    assert old in text
    path.write_bytes(text.replace(old, new, 1).encode(errors="surrogateescape"))
    refuses(sharded, path, sentence)


def test_categories_are_known_by_name_and_by_index(capture: Path) -> None:
    info = read_info(capture)
    assert [info.category_index(category) for category in ("alpha", "beta", 0, "1")] == [0, 1, 0, 1]
    for unknown in ("gamma", 2, "-1", ""):
        with pytest.raises(LvdError, match=r"the capture has 0=alpha, 1=beta"):
            info.category_index(unknown)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_x0_that_is_not_finite_is_refused(value: float) -> None:
    x0 = torch.zeros(2, 3)
    x0[1, 2] = value
    with pytest.raises(LvdError, match="x0 of step 3 holds NaN or Inf"):
        to_float16(x0, "step 3")


def test_x0_too_large_for_float16_is_refused() -> None:
    with pytest.raises(LvdError, match=r"x0 of step 3 reaches 7e\+04, more than float16 holds"):
        to_float16(torch.tensor([0.0, -7e4]), "step 3")


def test_float16_keeps_the_largest_value_it_holds() -> None:
    x0 = to_float16(torch.tensor([65504.0, -1.0]), "step 3")
    assert x0.dtype == torch.float16
    assert x0.tolist() == [65504.0, -1.0]


VARIANTS = [
    "A red three, drifting up!",
    "a RED three drifting up",
    " a\tred  three - drifting\nup ",
    "ａ red three drifting up…",
]


def test_case_space_and_punctuation_do_not_make_another_prompt() -> None:
    assert len({fold(prompt) for prompt in VARIANTS}) == 1
    assert len({default_prompt_id(prompt) for prompt in VARIANTS}) == 1
    assert fold("a red three drifting down") != fold(VARIANTS[0])


def test_near_copies_are_those_with_most_content_words_in_common() -> None:
    prompts = [
        "a red three drifting left",
        "a red three, drifting to the left!",
        "a red four drifting left",
        "drifting left: the red three",
        "two wolves run over a frozen lake at night under a full moon",
        "Two wolves run over the frozen lake by night, under a full yellow moon.",
        "two wolves sleep in a warm den at noon under a green hill",
        "the",
        "of the",
    ]
    assert sorted(near_copies(prompts)) == [(0, 1), (0, 3), (4, 5)]


def test_a_capture_tells_how_many_prompts_are_near_duplicates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["a red three drifting left", "A red three, drifting left!", "drifting left: the red three"]
    samples = make_samples(8)
    for number, prompt in enumerate([*prompts, "a blue boat on a lake", "a blue boat at the lake"]):
        samples[number] = replace(samples[number], prompt=prompt)
    assert count_near_duplicates(samples) == 4  # of the first two, which are the same prompt, one counts
    capture = write_capture(tmp_path / "mine", 8)
    write_samples(capture, samples)
    print_labels(capture, {})
    assert "4 prompts are near-duplicates of another one" in capsys.readouterr().out
    write_samples(capture, [replace(sample, categories=UNLABELLED) for sample in samples])
    print_labels(capture, {})
    assert "4 prompts are near-duplicates of another one" in capsys.readouterr().out
    write_samples(capture, make_samples(8))
    print_labels(capture, {})
    assert "near-duplicates" not in capsys.readouterr().out


def test_prompts_of_one_template_are_no_near_copies() -> None:
    things = [f"thing{number}" for number in range(60)]
    prompts = [
        f"a cinematic photo of a {thing} walking slowly through a dark forest at night, heavy rain, fog, 4k"
        for thing in things
    ]
    assert near_copies(prompts) == []
    assert len(set(assign_splits(prompts, prompts, [()] * 60, seed=0))) == 3
    assert near_copies([*prompts, prompts[7].replace("a dark", "the dark") + "!"]) == [(7, 60)]


@settings(max_examples=100)
@given(st.lists(st.lists(st.sampled_from("klmnopqrstuvwxyz"), min_size=1, max_size=12), max_size=25))
def test_near_copies_are_found_as_by_comparing_all_pairs(words: list[list[str]]) -> None:
    sets = [frozenset(of_prompt) for of_prompt in words]
    parts = [{number} for number in range(len(sets))]

    def connect(a: int, b: int) -> None:
        one, other = next(p for p in parts if a in p), next(p for p in parts if b in p)
        if one is not other:
            parts.remove(other)
            one |= other

    near = near_copies([" ".join(of_prompt) for of_prompt in words])
    for a, b in near:
        connect(a, b)
    found = sorted(map(sorted, parts))
    different = set(sets)
    count = {word: sum(word in other for other in different) for word in "klmnopqrstuvwxyz"}

    def weight(words: frozenset[str]) -> float:
        return sum(min(1.0, math.log1p(len(different) / count[word]) / math.log(11)) for word in words)

    def alike(a: int, b: int) -> bool:
        return weight(sets[a] & sets[b]) >= 0.8 * weight(sets[a] | sets[b]) - 1e-12

    assert all(sets[a] == sets[b] or alike(a, b) for a, b in near)
    for b, of_b in enumerate(sets):
        for a, of_a in enumerate(sets[:b]):
            if alike(a, b) and len(of_a & of_b) >= 0.7 * len(of_a | of_b):
                connect(a, b)
    assert found == sorted(map(sorted, parts))


def test_planted_leaks_all_stay_in_one_split() -> None:
    """The same text, a near copy, and the same prompt with another seed, of each of 100 prompts."""
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("river", "stone", "lamp", "wolf", "glass") for b in "abcdefghijklmnop"]
    originals = [rng.sample(words, 10) for _ in range(100)]
    prompts = [
        text
        for of_prompt in originals
        for text in (
            " ".join(of_prompt),
            "The " + ", ".join(of_prompt).upper() + "!",
            " ".join([*of_prompt[::-1], "slowly"]),
            " ".join(of_prompt),
        )
    ]
    ids = [f"p{number}" for number in range(len(prompts))]
    splits = assign_splits(prompts, ids, [()] * len(prompts), seed=1)
    assert all(len(set(splits[at : at + 4])) == 1 for at in range(0, len(prompts), 4))
    assert set(splits) == set(SPLITS)


ROW = st.tuples(
    st.sampled_from(["A cat.", "a cat", "a  CAT!", "a dog", "A dog?", "a cow", "a hen", "!!", "?"]),
    st.sampled_from(["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"]),
    st.sampled_from([(), ("alpha",), ("beta",), ("alpha", "beta")]),
)


@settings(max_examples=150)
@given(rows=st.lists(ROW, min_size=1, max_size=40), seed=st.integers(0, 2**32 - 1))
def test_no_prompt_and_no_prompt_id_is_in_two_splits(
    rows: list[tuple[str, str, tuple[str, ...]]], seed: int
) -> None:
    prompts, prompt_ids, categories = (list(column) for column in zip(*rows, strict=True))
    splits = assign_splits(prompts, prompt_ids, categories, seed)
    assert len(splits) == len(rows)
    assert set(splits) <= set(SPLITS)
    for keys in ([fold(prompt) for prompt in prompts], prompt_ids):
        assert len(set(zip(keys, splits, strict=True))) == len(set(keys))
    assert splits == assign_splits(prompts, prompt_ids, categories, seed)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), samples_a_prompt=st.sampled_from([1, 2, 4]))
def test_a_balanced_capture_has_its_shares_and_every_class_in_every_split(
    seed: int, samples_a_prompt: int
) -> None:
    names = ("alpha", "beta", "gamma", "delta", "epsilon")
    prompts = [f"prompt {i // samples_a_prompt}" for i in range(560)]
    classes = [(names[i // 56],) if i < 280 else () for i in range(560)]
    splits = assign_splits(prompts, prompts, classes, seed)
    for of_class in (classes, [bool(categories) for categories in classes]):
        sizes = Counter(of_class)
        dealt = Counter(zip(of_class, splits, strict=True))
        for members, size in sizes.items():
            for split, fraction in zip(SPLITS, FRACTIONS, strict=True):
                assert abs(dealt[members, split] - fraction * size) <= 2 * samples_a_prompt
    assert Counter(splits)["train"] == pytest.approx(336, abs=2 * samples_a_prompt)


def test_another_seed_deals_another_way() -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    dealt = {tuple(assign_splits(prompts, prompts, [()] * 40, seed)) for seed in range(5)}
    assert len(dealt) == 5
