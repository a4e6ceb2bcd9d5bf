"""Labels that tell the truth: what nobody has looked at is in no training, no calibration and no rate."""

import csv
import json
import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import FIVE, NAMES, write_capture
from lvd.capture.agreement import alpha_by_category, consensus, krippendorff_alpha
from lvd.capture.labels import label
from lvd.capture.prompts import PromptsFile, read_prompts
from lvd.detect.bank import score_grid
from lvd.detect.data import TrunkData, label_matrix
from lvd.detect.rows import cell_rows, labelled_rows, left_out
from lvd.errors import LvdError
from lvd.latents.format import UNLABELLED, Categories, read_samples
from lvd.latents.reader import CaptureReader
from lvd.latents.splits import assign_splits, prompt_keys
from lvd.sweep.trained_on import TrainedOn, read_trained_on
from support.commands import Shell

SMALL = ["encoder.width=32", "encoder.layers=2", "trunk.batches=10", "trunk.fit.epochs=2"]
SMALL += ["detector.head.epochs=5", "logger=none", "name=tiny"]


def write_labels(capture: Path, *rows: str, header: str = "sample_id,category") -> Path:
    path = capture.parent / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture
def capture_command(
    train: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Shell:
    """capture.py, in the directory in which `train` runs."""
    return Shell("capture.py", train.directory, monkeypatch, capfd)


@pytest.fixture
def evaluate_command(
    train: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Shell:
    return Shell("evaluate.py", train.directory, monkeypatch, capfd)


@pytest.fixture
def planted(train: Shell) -> tuple[Path, set[str]]:
    """60 samples, whose truth is known, and 20 of them labelled; with the ids of the other 40."""
    capture = write_capture(train.directory / "captures" / "tiny", 60, labelled=False)
    truth = {f"s{i:03d}": NAMES[i % 4] if i % 4 < 2 else "safe" for i in range(60)}  # as conftest makes them
    rows = [f"{sample_id},{category}" for sample_id, category in list(truth.items())[:20]]
    write_labels(capture, *rows)
    return capture, set(list(truth)[20:])


# The planted case, through the commands


def test_of_60_samples_with_20_labelled_40_are_in_no_rate(
    planted: tuple[Path, set[str]], train: Shell, capture_command: Shell, evaluate_command: Shell
) -> None:
    capture, unlabelled = planted
    ran = capture_command("name=tiny", f"labels={capture.parent / 'labels.csv'}")
    assert (ran.code, ran.err) == (0, "")
    assert "does not name 40 of 60 samples: they are unlabelled" in ran.out
    assert "40 of 60 samples are unlabelled: they are left out of training, calibration and every" in ran.out
    samples = read_samples(capture)
    assert {s.sample_id for s in samples if not s.is_labelled} == unlabelled
    assert {s.split for s in samples if not s.is_labelled} == {"train", "val", "test"}

    for task in (["task=trunk"], ["-m", "category=0..1", "step=0..2"]):
        ran = train(*SMALL, *task)
        assert ran.code == 0, ran.err
        assert "40 of 60 samples are unlabelled" in ran.out
    count = {split: sum(s.split == split and s.is_labelled for s in samples) for split in ("train", "val")}
    for result in train.results().values():
        assert result["sizes"]["train"] <= count["train"]

    ran = evaluate_command("name=tiny", "eta=2", "logger=none")
    assert ran.code == 0, ran.err
    assert "unlabelled samples of tiny are in no rate and no calibration: " in ran.out
    with (train.run_dir / "evaluation" / "scores.csv").open() as file:
        scored = {row["sample_id"] for row in csv.DictReader(file)}
    assert scored
    assert not scored & unlabelled
    summary = read_json(train.run_dir / "evaluation" / "summary.json")
    assert sum(summary["n_unlabelled"].values()) == 40
    card = (train.run_dir / "bundle" / "README.md").read_text(encoding="utf-8")
    assert f"({summary['n_unlabelled']['test']} unlabelled ones are in no rate)" in card
    assert summary["n_test"] == sum(s.split == "test" and s.is_labelled for s in samples)
    assert "unlabelled samples of tiny are in no rate" in (
        train.run_dir / "evaluation" / "report.html"
    ).read_text(encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def test_the_old_meaning_has_to_be_asked_for_and_is_said(
    planted: tuple[Path, set[str]], capture_command: Shell
) -> None:
    capture, unnamed = planted
    labels = capture.parent / "labels.csv"
    labels.write_text("".join(line for line in labels.open() if "safe" not in line))
    ran = capture_command("name=tiny", f"labels={labels}")
    assert "says safe of no sample: if it lists the unsafe ones of all, add unnamed=safe" in ran.out
    assert not any(sample.is_safe for sample in read_samples(capture))
    ran = capture_command("name=tiny", f"labels={labels}", "unnamed=safe")
    assert "is read unnamed=safe: 50 samples that it does not name are taken as safe" in ran.out
    assert unnamed <= {sample.sample_id for sample in read_samples(capture) if sample.is_safe}
    ran = capture_command("name=tiny", f"labels={labels}")
    assert "50 of these had a label: unnamed=keep keeps it" in ran.out


def test_the_papers_columns_list_the_unsafe_ones_of_all_and_that_is_said(
    train: Shell, capture_command: Shell
) -> None:
    capture = write_capture(train.directory / "captures" / "tiny", 12, labelled=False, category_names=FIVE)
    labels = write_labels(capture, "0,3,,5,", header="1,2,3,4,5")
    ran = capture_command("name=tiny", f"labels={labels}")
    assert "lists the unsafe ones of all samples by its columns: 9 samples that it does not name" in ran.out
    assert sum(sample.is_safe for sample in read_samples(capture)) == 9
    capture_command("name=tiny", f"labels={labels}", "unnamed=unlabelled")
    assert [s.sample_id for s in read_samples(capture) if s.is_labelled] == ["s000", "s003", "s005"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["labels=l.csv", "unnamed=unsafe"], "unnamed=unsafe must be one of unlabelled, safe, keep"),
        (["labels=l.csv", "agreement=0.5"], "agreement=0.5 must be greater than 0.5 and at most 1"),
        (["verify=true", "unnamed=safe"], "unnamed= goes with labels=FILE.csv"),
        (["prompts=p.csv", "pipeline.category_names=[unlabelled]"], "unlabelled is reserved"),
        (
            ["source=uvd", "pred_x0=p", "labels=l", "agreement=1"],
            "agreement= goes with labels=FILE.csv of an",
        ),
    ],
)
def test_a_mistake_gives_one_error_message(
    arguments: list[str], sentence: str, capture_command: Shell
) -> None:
    ran = capture_command("name=tiny", *arguments)
    assert ran.code == 1
    assert sentence in ran.err


# Where nothing is learned from an unlabelled sample


@pytest.fixture
def partly(tmp_path: Path) -> CaptureReader:
    """80 samples, of which every third is unlabelled."""
    capture = CaptureReader(write_capture(tmp_path / "captures" / "tiny", 80))
    capture.samples = [
        replace(sample, categories=UNLABELLED) if row % 3 == 0 else sample
        for row, sample in enumerate(capture.samples)
    ]
    return capture


def test_rows_and_weights_leave_unlabelled_samples_out(partly: CaptureReader) -> None:
    unlabelled = set(range(0, 80, 3))
    assert left_out(partly.samples) == (
        "27 of 80 samples are unlabelled: they are left out of training, calibration and every rate"
    )
    for split in ("train", "val", "test"):
        assert not unlabelled & set(labelled_rows(partly.samples, split))
        for name in NAMES:
            rows, _ = cell_rows(partly.samples, name, split, "all", 0)
            assert rows
            assert not unlabelled & set(rows)
    target, weight = label_matrix(partly.samples, range(80), NAMES)
    assert not target[::3].any()
    assert not weight[::3].any()
    assert weight[[row for row in range(80) if row % 3]].any(dim=1).all()


def test_a_trunk_draws_no_unlabelled_sample(partly: CaptureReader) -> None:
    data = TrunkData(partly, batches=50, epochs=1, batch_size=8, val_steps=[0], workers=0, seed=0)
    loaders = data.train_dataloader(), data.val_dataloader()
    drawn = [pair for loader in loaders for batch in loader.batch_sampler for pair in batch]
    assert drawn
    assert not {row for row, _ in drawn} & set(range(0, 80, 3))


def test_prompts_of_unlabelled_samples_were_not_trained_on(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "captures" / "tiny", 12)
    row, named = next((s.sample_id, s) for s in read_samples(capture) if s.split == "train")
    assert prompt_keys(named) <= TrainedOn.of(capture).trained
    label(capture, write_labels(capture, f"{row},unlabelled"), seed=0, unnamed="keep")
    assert not prompt_keys(named) & TrainedOn.of(capture).trained


def test_an_unlabelled_sample_is_scored_with_no_split(partly: CaptureReader, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        score_grid(partly, tmp_path / "run", {"test": [0, 1]}, {})


# Splits


def test_the_unlabelled_ones_are_dealt_by_themselves_and_to_every_split() -> None:
    prompts = [f"prompt number {i}" for i in range(60)]
    given: list[Categories] = [UNLABELLED, ("alpha",), ()]
    categories = [given[i % 3] for i in range(60)]
    splits = assign_splits(prompts, prompts, categories, seed=0)
    for one in given:
        dealt = [split for split, its in zip(splits, categories, strict=True) if its == one]
        assert [dealt.count(split) for split in ("train", "val", "test")] == [12, 4, 4]


def test_splits_stay_from_the_first_category_on(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "captures" / "tiny", 40, labelled=False)

    def splits(*rows: str, seed: int) -> list[str]:
        label(capture, write_labels(capture, *rows), seed=seed, unnamed="keep")
        return [sample.split for sample in read_samples(capture)]

    all_safe = splits(*(f"s{i:03d},safe" for i in range(20)), seed=1)
    first = splits(*(f"s{i:03d},alpha" for i in range(20, 30)), seed=2)
    assert first != all_safe  # no category could be balanced before
    assert splits("s030,beta", "s000,beta", seed=3) == first


# What a file says


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            ["s000,safe", "s000,alpha"],
            "row 2: sample s000 is alpha, and in a row before safe, by one",
        ),
        (
            ["s000,beta", "s000,safe"],
            "row 2: sample s000 is safe, and in a row before beta, by one",
        ),
        (["s000,safe|alpha"], "row 1: safe stands alone, not with alpha"),
        (["s000,unlabelled|safe"], "row 1: safe stands alone, not with unlabelled"),
        (["s000,|"], "row 1: '|' names no category"),
        (["s000,Safe"], "row 1: unknown category 'Safe', use alpha, beta, safe or unlabelled"),
        (["nobody,safe"], "row 1: the capture has no sample 'nobody'"),
    ],
)
def test_a_label_that_says_two_things_or_none_is_refused(
    tmp_path: Path, rows: list[str], sentence: str
) -> None:
    capture = write_capture(tmp_path / "captures" / "tiny", 4)
    before = (capture / "samples.csv").read_bytes()
    with pytest.raises(LvdError) as refusal:
        label(capture, write_labels(capture, *rows), seed=0)
    assert sentence in str(refusal.value)
    assert (capture / "samples.csv").read_bytes() == before


def test_a_prompts_file_may_say_unlabelled_and_an_empty_cell_is_safe(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt,categories\na,alpha\nb,\nc,unlabelled\nd,safe\n")
    samples = read_prompts(PromptsFile(tmp_path / "p.csv"), NAMES, seed=0)
    assert [sample.categories for sample in samples] == [("alpha",), (), UNLABELLED, ()]
    (tmp_path / "s.csv").write_text("prompt,categories\ne,unlabelled\n")
    safe = PromptsFile(tmp_path / "s.csv")
    with pytest.raises(LvdError, match=r"s.csv row 1 names unlabelled, but safe_prompts are safe"):
        read_prompts(PromptsFile(tmp_path / "p.csv"), NAMES, seed=0, safe=safe)


# Several annotators

A, B, BOTH, NONE = frozenset(["alpha"]), frozenset(["beta"]), frozenset(NAMES), frozenset[str]()


@pytest.mark.parametrize(
    ("judgements", "agreement", "found"),
    [
        ([], None, UNLABELLED),
        ([], 1.0, UNLABELLED),
        ([NONE], None, ()),
        ([A], None, ("alpha",)),
        ([A, A, NONE], None, ("alpha",)),
        ([A, NONE], None, UNLABELLED),
        ([A, NONE, NONE], None, ()),
        ([BOTH, A], None, UNLABELLED),  # a tie about beta
        ([BOTH, A, BOTH], None, ("alpha", "beta")),
        ([A, B, NONE], None, UNLABELLED),  # two of three found it unsafe
        ([A, A, B], None, ("alpha",)),
        ([A, A, NONE], 0.75, UNLABELLED),
        ([A, A, A, NONE], 0.75, ("alpha",)),
        ([NONE, NONE, NONE, A], 0.75, ()),
        ([A, A, A, NONE], 1.0, UNLABELLED),
        ([A] * 7 + [NONE] * 3, 0.7, ("alpha",)),  # 0.7 * 10 is 7, whatever floats say
    ],
)
def test_a_label_is_what_most_annotators_say(
    judgements: list[frozenset[str]], agreement: float | None, found: Categories
) -> None:
    assert consensus(judgements, NAMES, agreement) == found


def test_annotators_make_labels_and_their_disagreements_are_listed(
    train: Shell, capture_command: Shell
) -> None:
    capture = write_capture(train.directory / "captures" / "tiny", 12, labelled=False)
    said = {
        "s000": ("alpha", "alpha", "safe"),
        "s001": ("safe", "safe", "safe"),
        "s002": ("alpha", "beta", "safe"),
        "s003": ("alpha", "beta", ""),
        "s004": ("beta", "", "unlabelled"),
    }
    rows = [
        f"{sample_id},{category},{who}"
        for sample_id, by in said.items()
        for who, category in zip(("ann", "bob", "eve"), by, strict=True)
    ]
    labels = write_labels(capture, *rows, header="sample_id,category,annotator")
    ran = capture_command("name=tiny", f"labels={labels}")
    assert ran.code == 0, ran.err
    labelled = {s.sample_id: s.categories for s in read_samples(capture) if s.is_labelled}
    assert labelled == {"s000": ("alpha",), "s001": (), "s004": ("beta",)}
    assert "unlabelled, as their annotators do not agree enough: 2 samples" in ran.out
    assert "s002 unlabelled (ann: alpha, bob: beta, eve: safe)" in ran.out
    assert "Krippendorff's alpha" in ran.out
    with (capture / "disagreements.csv").open() as file:
        listed = list(csv.DictReader(file))
    assert [tuple(row.values()) for row in listed] == [
        ("s000", "alpha", "ann", "alpha"),
        ("s000", "alpha", "bob", "alpha"),
        ("s000", "safe", "eve", "alpha"),
        ("s002", "alpha", "ann", "unlabelled"),
        ("s002", "beta", "bob", "unlabelled"),
        ("s002", "safe", "eve", "unlabelled"),
        ("s003", "alpha", "ann", "unlabelled"),
        ("s003", "beta", "bob", "unlabelled"),
    ]

    capture_command("name=tiny", f"labels={labels}", "agreement=0.6")
    assert read_samples(capture)[0].categories == ("alpha",)
    capture_command("name=tiny", f"labels={labels}", "agreement=0.7")
    assert read_samples(capture)[0].categories is UNLABELLED
    without_eve = [row for row in rows if not row.endswith("eve")]
    labels = write_labels(capture, *without_eve, header="sample_id,category,annotator")
    capture_command("name=tiny", f"labels={labels}")
    assert {s.sample_id: s.categories for s in read_samples(capture) if s.is_labelled} == labelled
    write_labels(capture, "s000,alpha,ann", header="sample_id,category,annotator")
    capture_command("name=tiny", f"labels={labels}")
    assert not (capture / "disagreements.csv").exists()


def test_one_annotator_less_changes_what_is_learned_from_where_it_was_decisive(
    planted: tuple[Path, set[str]], train: Shell, capture_command: Shell
) -> None:
    capture, _ = planted
    truth = {f"s{i:03d}": NAMES[i % 4] if i % 4 < 2 else "safe" for i in range(60)}
    wrong = {"alpha": "safe", "beta": "safe", "safe": "beta"}
    said = {(who, sample): label for sample, label in truth.items() for who in ("ann", "bob", "eve")}
    decided, contested, outvoted = (set(list(truth)[start::6]) for start in (0, 1, 2))
    for sample in truth:
        if sample in decided:  # by eve: the other two contradict each other
            said["bob", sample] = wrong[truth[sample]]
        elif sample in contested:  # by eve: bob did not judge it
            said["eve", sample] = wrong[truth[sample]]
            del said["bob", sample]
        elif sample in outvoted:
            said["eve", sample] = wrong[truth[sample]]

    scratch = ["detector.init=scratch", "detector.network.epochs=1"]

    def learn(*annotators: str) -> dict[str, str]:
        """Label and train by what these say; returns the split of each labelled sample."""
        rows = [f"{sample},{label},{who}" for (who, sample), label in said.items() if who in annotators]
        labels = write_labels(capture, *rows, header="sample_id,category,annotator")
        assert capture_command("name=tiny", f"labels={labels}").code == 0
        samples = read_samples(capture)
        ran = train(*SMALL, "category=alpha", "step=0", *scratch)
        assert ran.code == 0, ran.err
        (result,) = train.results().values()
        assert result["sizes"]["train"] == len(cell_rows(samples, "alpha", "train", "balanced", 0)[0])
        learned = [sample for sample in samples if sample.is_labelled and sample.split == "train"]
        keys = frozenset[str]().union(*map(prompt_keys, learned))
        assert read_trained_on(train.run_dir, result["data"]).trained == keys
        return {sample.sample_id: sample.split for sample in samples if sample.is_labelled}

    with_eve = learn("ann", "bob", "eve")
    assert with_eve.keys() == truth.keys() - contested
    without = learn("ann", "bob")
    assert without.keys() == truth.keys() - decided
    both = with_eve.keys() & without.keys()
    assert {sample: with_eve[sample] for sample in both} == {sample: without[sample] for sample in both}
    assert {with_eve[sample] for sample in decided} == {"train", "val", "test"}


# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): the worked examples
BINARY = ["0100000010", "1110010000"]


def units(annotators: Sequence[str]) -> list[list[str]]:
    return [[value for value in column if value != "."] for column in zip(*annotators, strict=True)]


def test_krippendorffs_own_examples() -> None:
    assert krippendorff_alpha(units(BINARY)) == pytest.approx(0.095, abs=5e-4)
    nominal = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    assert krippendorff_alpha(units(nominal)) == pytest.approx(0.743, abs=5e-4)


def pairwise_alpha(given: list[list[Hashable]]) -> float:
    """By its definition: how often two values of a unit differ, and any two values that are paired."""
    paired = [unit for unit in given if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    observed = sum(sum(a != b for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in paired)
    expected = np.mean([a != b for a, b in permutations(values, 2)])
    return float(1 - observed / len(values) / expected)


@pytest.mark.parametrize("seed", range(20))
def test_alpha_is_one_less_the_ratio_of_observed_and_expected_pairs(seed: int) -> None:
    rng = random.Random(seed)
    given: list[list[Hashable]] = [
        [rng.choice("abc") for _ in range(rng.randrange(5))] for _ in range(rng.randrange(8, 20))
    ]
    found = krippendorff_alpha(given)
    assert found is not None
    assert math.isclose(found, pairwise_alpha(given), abs_tol=1e-12)


def test_alpha_of_nothing_to_compare_is_none() -> None:
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["a"], ["b"]]) is None
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    assert alpha_by_category({"s": {"ann": A}}, NAMES) == {}
    found = alpha_by_category({"s": {"ann": A, "bob": A}, "t": {"ann": NONE, "bob": NONE}}, NAMES)
    assert found == {"alpha": 1, "beta": None, "safe": 1}
