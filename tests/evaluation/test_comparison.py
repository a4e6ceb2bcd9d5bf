"""Runs of one capture side by side: evaluate.py compare=[a,b]."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtri

from conftest import NAMES, STEPS
from lvd.decide.intervals import wilson
from lvd.decide.paired import newcombe, paired_difference
from lvd.detect.bank import score_step, step_check
from lvd.detect.files import load_trunk, save_detector, trunk_digest
from lvd.detect.network import HeadDetector
from lvd.files import file_sha256
from lvd.latents.reader import CaptureReader
from lvd.latents.splits import prompt_keys
from lvd.sweep.results import read_result, write_result
from support.commands import Ran, Shell

# ---- the interval of a paired difference


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # Newcombe (1998), method 10
        ((1, 1, 7, 12), (-0.507, -0.026)),  # Fagerland, Lydersen & Laake (2014), airways before and after
    ],
)
def test_newcombes_interval_is_the_published_one(
    counts: tuple[int, int, int, int], interval: tuple[float, float]
) -> None:
    assert newcombe(*counts) == pytest.approx(interval, abs=5e-4)


def test_without_correlation_it_is_made_of_both_wilson_intervals() -> None:
    second, first = wilson(30, 50), wilson(20, 50)
    low = 0.2 - math.hypot(0.6 - second[0], first[1] - 0.4)
    high = 0.2 + math.hypot(second[1] - 0.6, 0.4 - first[0])
    assert newcombe(12, 18, 8, 12) == pytest.approx((low, high), abs=1e-9)


def test_runs_that_decide_alike_differ_by_zero_but_not_for_sure() -> None:
    right = np.ones(56, dtype=bool)
    found = paired_difference(right, right, np.arange(56))
    assert found is not None
    assert (found.n, found.value, found.only_first, found.only_second) == (56, 0, 0, 0)
    low, high = found.interval
    assert low == pytest.approx(-high)
    assert 0.05 < high < 0.1
    assert paired_difference(right[:0], right[:0], np.arange(0)) is None


def simulated(rng: np.random.Generator, prompts: int, each: int, rates: tuple[float, float]) -> Any:
    """Decisions of two runs: on one sample they go together, and those of one prompt, too."""
    latent = rng.normal(size=(prompts, 1)) * 0.7 + rng.normal(size=(prompts, each)) * math.sqrt(1 - 0.49)
    hits = [
        math.sqrt(0.6) * latent + math.sqrt(0.4) * rng.normal(size=(prompts, each)) < bar
        for bar in ndtri(rates)
    ]
    return hits[0].ravel(), hits[1].ravel(), np.repeat(np.arange(prompts), each)


@pytest.mark.parametrize(("prompts", "each"), [(56, 1), (40, 5)])
@pytest.mark.parametrize("rates", [(0.9, 0.95), (0.04, 0.12), (0.5, 0.6)])
def test_intervals_of_differences_hold_what_they_say(
    prompts: int, each: int, rates: tuple[float, float]
) -> None:
    """The true difference, in 93 to 99 of 100 splits: score intervals are a little wide near 0 and 1."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        found = paired_difference(*simulated(rng, prompts, each, rates))
        assert found is not None
        held += found.interval[0] <= rates[1] - rates[0] <= found.interval[1]
    print(prompts, each, rates, held)
    assert 930 <= held <= 990


def test_several_samples_of_a_prompt_are_worth_less_than_as_many_prompts() -> None:
    first, second, prompts = simulated(np.random.default_rng(1), 40, 5, (0.5, 0.6))
    first = np.repeat(first[::5], 5)  # one decision a prompt
    second = np.repeat(second[::5], 5)
    clustered = paired_difference(first, second, prompts)
    once = paired_difference(first[::5], second[::5], prompts[::5])
    independent = paired_difference(first, second, np.arange(200))
    assert clustered is not None
    assert once is not None
    assert independent is not None
    assert clustered.value == independent.value == once.value
    assert clustered.interval == pytest.approx(once.interval, abs=0.01)  # copies say nothing new
    assert np.ptp(clustered.interval) > 1.8 * np.ptp(independent.interval)


# ---- evaluate.py compare=[...]


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell("evaluate.py", tmp_path, monkeypatch, capfd)


def other_run(run: Path) -> Path:
    """A copy of a run whose heads say something else, as its results know."""
    copy = Path(shutil.copytree(run, run.with_name("other")))
    torch.manual_seed(0)
    trunk = trunk_digest(copy / "trunk")
    for name in NAMES:
        for step in range(STEPS):
            job = copy / name / f"step_{step:02d}"
            save_detector(job / "detector", HeadDetector(32), {"category": name, "step": step}, trunk)
            result = read_result(job)
            assert result is not None
            files = {path: file_sha256(job / path) for path in result.files}
            write_result(job, type(result)(**{**vars(result), "files": files, "seconds": 7.0}))
    return copy


@pytest.fixture
def two_runs(evaluate: Shell, capture: Path, trained_run: Path) -> tuple[Path, Path]:
    shutil.copytree(capture, evaluate.directory / "captures" / "tiny")
    run = Path(shutil.copytree(trained_run, evaluate.directory / "runs" / "tiny"))
    return run, other_run(run)


def compared(evaluate: Shell, *others: str) -> Ran:
    return evaluate("compare=[tiny,other]", "eta=2", "lam=0.6", "logger=none", "examples=0", *others)


def test_runs_are_laid_side_by_side(evaluate: Shell, two_runs: tuple[Path, Path]) -> None:
    ran = compared(evaluate)
    assert ran.code == 0, ran.err
    summaries = [json.loads((run / "evaluation" / "summary.json").read_text()) for run in two_runs]
    comparison = summaries[0]["comparison"]
    assert summaries[1]["comparison"] == comparison
    assert comparison["runs"] == ["tiny", "other"]

    right = [decided_rightly(rows_of(run / "evaluation" / "scores.csv"), eta=2, needed=2) for run in two_runs]
    assert right[0].keys() == right[1].keys()
    only = [
        sum(right[here][sample] and not right[1 - here][sample] for sample in right[0]) for here in (0, 1)
    ]
    both = sum(right[0][sample] and right[1][sample] for sample in right[0])
    neither = len(right[0]) - both - sum(only)
    found = comparison["rules"]["vote"]["other"]["differences"]["accuracy"]
    assert (found["only_first"], found["only_second"]) == tuple(only)
    assert found["value"] == pytest.approx((only[1] - only[0]) / len(right[0]))
    assert found["interval"] == pytest.approx(newcombe(both, only[1], only[0], neither))
    assert comparison["rules"]["vote"]["tiny"]["differences"] == {"accuracy": None, "tpr": None, "fpr": None}
    for run, summary in zip(("tiny", "other"), summaries, strict=True):
        for key in ("accuracy", "tpr_ci", "compute_saved", "steps_mean_unsafe", "auroc"):
            assert comparison["rules"]["vote"][run][key] == summary["rules"]["vote"][key]

    costs = comparison["costs"]
    trunk = read_result(two_runs[0] / "trunk")
    assert trunk is not None
    assert costs["other"]["train_seconds"] == pytest.approx(6 * 7.0 + trunk.seconds)
    files = [*two_runs[1].glob("*/step_*/detector/*"), two_runs[1] / "trunk" / "config.json"]
    files.append(two_runs[1] / "trunk" / "model.safetensors")
    assert costs["other"]["bytes"] == sum(path.stat().st_size for path in files)
    head = sum(parameter.numel() for parameter in HeadDetector(32).parameters())
    shared = sum(parameter.numel() for parameter in load_trunk(two_runs[0] / "trunk").parameters())
    assert costs["tiny"]["parameters"] == 6 * head + shared
    assert costs["tiny"]["detectors"] == 6
    assert costs["tiny"]["check_milliseconds"] > 0

    table = ran.out[ran.out.index("the runs side by side") :]
    for words in ("Accuracy, vote", "difference to tiny", "Seconds to train", "Milliseconds a checked step"):
        assert words in table
    for run in two_runs:
        page = (run / "evaluation" / "report.html").read_text()
        assert "Compared with other runs" in page
        assert "Milliseconds a checked step" in page
    rows = rows_of(two_runs[0] / "evaluation" / "comparison.csv")
    (accuracy,) = [
        row for row in rows if (row["rule"], row["run"], row["measure"]) == ("vote", "other", "accuracy")
    ]
    assert float(accuracy["difference"]) == pytest.approx(found["value"], abs=1e-5)
    assert {row["measure"] for row in rows} == {"accuracy", "tpr", "fpr", *costs["tiny"]}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def decided_rightly(scores: list[dict[str, str]], eta: int, needed: int) -> dict[str, bool]:
    """By the paper's rule, from scores.csv alone: of each test sample."""
    flagged: dict[str, set[int]] = {}
    unsafe = {}
    for row in scores:
        if row["split"] == "test":
            unsafe[row["sample_id"]] = bool(row["label"])
            steps = flagged.setdefault(row["sample_id"], set())
            if int(row["step"]) < eta and float(row["score"]) >= 0.5:
                steps.add(int(row["step"]))
    return {sample: (len(steps) >= needed) == unsafe[sample] for sample, steps in flagged.items()}


def test_a_later_evaluation_alone_leaves_no_comparison(evaluate: Shell, two_runs: tuple[Path, Path]) -> None:
    assert compared(evaluate).code == 0
    assert evaluate("name=tiny", "eta=2", "lam=0.6", "logger=none", "examples=0").code == 0
    directory = two_runs[0] / "evaluation"
    assert json.loads((directory / "summary.json").read_text())["comparison"] is None
    assert not (directory / "comparison.csv").exists()
    assert "Compared with other runs" not in (directory / "report.html").read_text()


def test_runs_of_different_captures_are_refused(evaluate: Shell, two_runs: tuple[Path, Path]) -> None:
    for path in two_runs[1].rglob("result.json"):
        raw = json.loads(path.read_text())
        path.write_text(json.dumps({**raw, "settings": {**raw["settings"], "capture": "elsewhere"}}))
    ran = compared(evaluate)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "different captures (tiny on tiny, other on elsewhere): give capture=NAME" in ran.err
    assert not (two_runs[0] / "evaluation").exists()


def test_runs_that_learned_from_different_prompts_are_refused(
    evaluate: Shell, two_runs: tuple[Path, Path], capture: Path
) -> None:
    """The second has learned from a test prompt of the first, which is left out of its rates."""
    (path,) = two_runs[1].glob("trained_on_*.json")
    raw = json.loads(path.read_text())
    tested = next(sample for sample in CaptureReader(capture).samples if sample.split == "test")
    path.write_text(json.dumps({**raw, "trained": sorted([*raw["trained"], *prompt_keys(tested)])}))
    ran = compared(evaluate)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "tiny and other have different test samples" in ran.err
    assert not (two_runs[0] / "evaluation").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("compare=[tiny]", "must name two runs or more, each once"),
        ("compare=[tiny,tiny]", "must name two runs or more, each once"),
        ("compare=[tiny,../x]", "compare=../x must be letters"),
        ("compare=[tiny,none]", "runs/none has nothing trained: train it first"),
    ],
)
def test_what_cannot_be_compared_gives_one_error_message(
    given: str, words: str, evaluate: Shell, two_runs: tuple[Path, Path]
) -> None:
    ran = evaluate(given, "eta=2", "logger=none")
    assert (ran.code, words in ran.err, ran.err.count("\n")) == (1, True, 1), ran.err


def test_a_timed_check_gives_the_grids_own_scores(capture: Path, trained_run: Path) -> None:
    reader, digest = CaptureReader(capture), trunk_digest(trained_run / "trunk")
    expected, _ = score_step(reader, trained_run, digest, 1, [3, 40], {})
    check = step_check(reader, trained_run, digest, 1)
    torch.testing.assert_close(check(torch.from_numpy(reader.step(1).read([3, 40]))), expected)
