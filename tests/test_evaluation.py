import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import Shell, wandb_records
from conftest import NAMES, STEPS
from PIL import Image

from lvd.capture.decode import decode_frames, load_vae
from lvd.errors import LvdError
from lvd.evaluation import Evaluation, evaluate
from lvd.guard.bundle import load_bundle
from lvd.latents.reader import CaptureReader

DOCUMENTED = {
    *("n_test", "eta", "lam", "accuracy", "accuracy_ci", "tpr", "fpr", "auroc", "steps_mean_unsafe"),
    *("compute_saved", "per_category"),
}
ADDITIONS = {"n_unchecked", "tpr_ci", "fpr_ci", "threshold", "max_fpr", "detectors", "detectors_missing"}
HOLES = [("alpha", 0), ("beta", 2)]


@dataclass(frozen=True)
class Done:
    """An evaluation and what it left in its directory."""

    evaluation: Evaluation
    summary: dict[str, Any]
    scores: pd.DataFrame
    page: str


def do(
    capture: Path,
    run: Path,
    *,
    eta: int = 2,
    lam: float = 0.6,
    show_unsafe: bool = False,
    max_fpr: float | None = None,
) -> Done:
    evaluation = evaluate(
        capture,
        run,
        eta=eta,
        lam=lam,
        threshold=0.5,
        max_fpr=max_fpr,
        examples=6,
        show_unsafe=show_unsafe,
    )
    directory = run / "evaluation"
    assert evaluation.report == directory / "report.html"
    return Done(
        evaluation,
        json.loads((directory / "summary.json").read_text()),
        pd.read_csv(directory / "scores.csv").fillna({"label": ""}),
        evaluation.report.read_text(encoding="utf-8"),
    )


@pytest.fixture(scope="session")
def shown_capture(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny capture, with a pipeline on this machine whose VAE decodes its latents."""
    from lvd.demo.recipe import build_vae

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("shown")
    build_vae().save_pretrained(root / "pipeline" / "vae")
    (root / "pipeline" / "model_index.json").write_text(
        json.dumps({"_class_name": "AnimateDiffPipeline", "vae": ["diffusers", "AutoencoderKL"]})
    )
    shown = Path(shutil.copytree(capture, root / "captures" / "tiny"))
    info = json.loads((shown / "capture.json").read_text())
    (shown / "capture.json").write_text(json.dumps({**info, "pipeline": str(root / "pipeline")}))
    return shown


@pytest.fixture(scope="session")
def done(shown_capture: Path, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    return do(shown_capture, Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("whole") / "tiny")))


@pytest.fixture
def own_run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "runs" / "tiny"))


@pytest.fixture
def holed_run(own_run: Path) -> Path:
    for name, step in HOLES:
        shutil.rmtree(own_run / name / f"step_{step:02d}" / "detector")
    return own_run


def auroc_of(positive: pd.Series, negative: pd.Series) -> float:
    return float(np.mean([(a > b) + (a == b) / 2 for a in positive for b in negative]))


def recompute(scores: pd.DataFrame, eta: int, lam: float) -> dict[str, Any]:
    """The summary from the scores of the test split, one sample after the other."""
    needed = Fraction(str(lam)) * eta
    rows = []
    for _, sample in scores[scores.split == "test"].groupby("sample_id"):
        by_step = sample.sort_values("step").groupby("step").score
        sure = by_step.apply(lambda values: bool((values >= 0.5).any())).to_numpy()
        maybe = sure | by_step.apply(lambda values: bool(values.isna().any())).to_numpy()
        counts = np.cumsum(sure[:eta])
        unsafe, safe = counts[-1] >= needed, maybe[:eta].sum() < needed
        rows.append(
            {
                "label": bool(sample.label.iloc[0]),
                "categories": sample.label.iloc[0].split("|"),
                "checked": unsafe or safe,
                "blocked": unsafe,
                "steps": int(np.argmax(counts >= needed)) + 1 if unsafe else STEPS,
                "count": counts[-1],
            }
        )
    table = pd.DataFrame(rows)
    checked = table[table.checked]
    unsafe, safe = checked[checked.label], checked[~checked.label]
    caught = unsafe[unsafe.blocked]
    measured = {
        "n_test": len(table),
        "n_unchecked": int((~table.checked).sum()),
        "accuracy": (checked.blocked == checked.label).mean(),
        "tpr": unsafe.blocked.mean(),
        "fpr": safe.blocked.mean(),
        "auroc": auroc_of(unsafe["count"], safe["count"]),
        "steps_mean_unsafe": caught.steps.mean(),
        "compute_saved": 1 - table.steps.sum() / (STEPS * len(table)),
        "n": {name: int(checked.categories.map(lambda c, n=name: n in c).sum()) for name in NAMES},
    }
    return {key: None if value != value else value for key, value in measured.items()}  # NaN: nothing there


def agrees(summary: dict[str, Any], scores: pd.DataFrame) -> None:
    expected = recompute(scores, summary["eta"], summary["lam"])
    assert {name: values["n"] for name, values in summary["per_category"].items()} == expected.pop("n")
    assert {key: summary[key] for key in expected} == pytest.approx(expected)


# ---- a whole grid


def test_the_summary_has_the_documented_keys(done: Done) -> None:
    assert set(done.summary) == DOCUMENTED | ADDITIONS
    assert set(done.summary["per_category"]) == set(NAMES)
    assert all(set(values) == {"n", "tpr", "tpr_ci"} for values in done.summary["per_category"].values())
    assert (done.summary["eta"], done.summary["lam"], done.summary["threshold"]) == (2, 0.6, 0.5)
    assert (done.summary["detectors"], done.summary["detectors_missing"]) == (6, [])


def test_the_summary_agrees_with_the_scores(done: Done) -> None:
    agrees(done.summary, done.scores)
    assert done.summary["n_unchecked"] == 0
    assert done.summary["accuracy"] > 0.8  # the capture has a signal
    for key in ("accuracy", "tpr", "fpr"):
        low, high = done.summary[f"{key}_ci"]
        assert 0 <= low <= done.summary[key] <= high <= 1


def test_the_scores_are_of_every_val_and_test_sample(done: Done, capture: Path) -> None:
    assert list(done.scores.columns) == ["sample_id", "split", "label", "step", "category", "score"]
    expected = {
        (s.sample_id, s.split, "|".join(s.categories), step, name)
        for s in CaptureReader(capture).samples
        if s.split != "train"
        for step in range(STEPS)
        for name in NAMES
    }
    rows = list(done.scores.drop(columns="score").itertuples(index=False, name=None))
    assert len(rows) == len(expected)
    assert set(rows) == expected
    assert done.scores.score.between(0, 1).all()


def test_a_detector_is_measured_on_its_category_and_safe_samples(done: Done) -> None:
    test = done.scores[done.scores.split == "test"]
    for row in done.evaluation.cells.itertuples():
        cell = test[(test.category == row.category) & (test.step == row.step)]
        positive, safe = cell[cell.label == row.category].score, cell[cell.label == ""].score
        assert row.n == len(positive) + len(safe)
        assert row.auroc == pytest.approx(auroc_of(positive, safe))
        assert row.accuracy == pytest.approx(((positive >= 0.5).mean() + (safe < 0.5).mean()) / 2)
    assert len(done.evaluation.cells) == len(NAMES) * STEPS


def test_the_report_says_what_was_measured(done: Done) -> None:
    assert f"{done.summary['accuracy']:.3f}" in done.page
    assert f"{done.summary['accuracy']:.1%}" in done.page
    assert "detectors are missing" not in done.page


# ---- no unsafe picture is in the page


def embedded(page: str) -> set[bytes]:
    """The pixels of every image in the page, plotly's own code aside."""
    images = re.findall(r'<img[^>]* src="data:image/png;base64,([^"]+)" alt="step', page)
    return {Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").tobytes() for image in images}


def sharp(capture: Path, *, unsafe: bool) -> set[bytes]:
    """The pixels of the decoded middle frame of every such test sample at every step."""
    reader = CaptureReader(capture)
    vae = load_vae(reader.info)
    rows = [r for r, s in enumerate(reader.samples) if s.split == "test" and bool(s.categories) == unsafe]
    found = set()
    for row in rows:
        latents = np.stack([reader.step(step)[row][:, 2] for step in range(STEPS)])
        for image in decode_frames(vae, torch.from_numpy(latents).float()):
            found.add((image.permute(1, 2, 0) * 255).round().byte().numpy().tobytes())
    return found


def test_unsafe_examples_are_in_the_page_only_when_asked_for(
    done: Done, shown_capture: Path, own_run: Path
) -> None:
    unsafe, safe = sharp(shown_capture, unsafe=True), sharp(shown_capture, unsafe=False)
    assert len(unsafe) == 8 * STEPS
    pictures = embedded(done.page)
    assert pictures & safe  # the comparison does find a picture that is there
    assert len(pictures) > len(pictures & safe)  # unsafe examples are there,
    assert not pictures & unsafe  # blurred
    asked = do(shown_capture, own_run, show_unsafe=True)
    assert embedded(asked.page) & unsafe
    assert embedded(asked.page) <= safe | unsafe
    assert asked.summary == done.summary


def test_without_a_vae_the_report_says_so(capture: Path, own_run: Path) -> None:
    plain = do(capture, own_run)
    assert "the VAE of nowhere/at-all is not on this machine" in plain.page
    assert embedded(plain.page) == set()


# ---- holes


@pytest.mark.parametrize(("eta", "lam"), [(3, 1.0), (2, 0.6), (1, 0.1)])
def test_holes_are_missing_never_zero(capture: Path, holed_run: Path, eta: int, lam: float) -> None:
    holed = do(capture, holed_run, eta=eta, lam=lam)
    agrees(holed.summary, holed.scores)
    if lam == 1.0:
        assert 0 < holed.summary["n_unchecked"] < holed.summary["n_test"]
    assert holed.summary["detectors"] == 4
    assert holed.summary["detectors_missing"] == ["alpha step_00: not trained", "beta step_02: not trained"]
    assert "2 detectors are missing" in holed.page
    missing = holed.scores[holed.scores.score.isna()]
    assert set(zip(missing.category, missing.step, strict=True)) == set(HOLES)


def test_a_hole_is_empty_in_the_table_and_the_heatmap(
    shown_capture: Path, holed_run: Path, done: Done
) -> None:
    holed = do(shown_capture, holed_run)
    cells = holed.evaluation.cells.set_index(["category", "step"])
    whole = done.evaluation.cells.set_index(["category", "step"])
    assert cells.loc[HOLES, ["auroc", "accuracy"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(cells.drop(HOLES), whole.drop(HOLES))
    drawn = np.array(holed.evaluation.heatmap.data[0].z, dtype=float)
    assert [(NAMES[row], int(step)) for row, step in np.argwhere(np.isnan(drawn))] == HOLES


def test_the_threshold_of_max_fpr_is_chosen_on_val(capture: Path, own_run: Path) -> None:
    chosen = do(capture, own_run, max_fpr=0.25)
    threshold = chosen.evaluation.threshold
    assert (chosen.summary["threshold"], chosen.summary["max_fpr"]) == (threshold, 0.25)
    val = chosen.scores[(chosen.scores.split == "val") & (chosen.scores.step < 2)]
    second = val.groupby(["sample_id", "label", "step"]).score.max().groupby(["sample_id", "label"]).min()
    safe = second[second.index.get_level_values("label") == ""]  # eta 2, lam 0.6: both steps are needed
    assert (safe >= threshold).mean() <= 0.25
    assert (safe.sort_values().iloc[: -len(safe) // 4] < threshold).all()
    assert load_bundle(own_run / "bundle").info.threshold == threshold


def test_the_bundle_gives_the_scores_that_were_measured(capture: Path, own_run: Path) -> None:
    done = do(capture, own_run)
    bundle = load_bundle(own_run / "bundle", done.evaluation.bundle)
    assert (bundle.info.eta, bundle.info.lam, bundle.info.measured["n_test"]) == (
        2,
        0.6,
        done.summary["n_test"],
    )
    reader = CaptureReader(capture)
    table = done.scores.set_index(["sample_id", "step", "category"]).score
    for step in range(2):
        for row, sample in enumerate(reader.samples):
            if sample.split == "test":
                x0 = torch.from_numpy(reader.step(step)[row])[None]
                scores = bundle.detectors(step, x0).sigmoid()[0].tolist()
                assert scores == pytest.approx([table[sample.sample_id, step, n] for n in NAMES], abs=1e-4)


def test_there_is_no_bundle_while_a_deciding_detector_is_missing(capture: Path, holed_run: Path) -> None:
    (holed_run / "bundle").mkdir()  # of an earlier evaluation
    assert do(capture, holed_run).evaluation.bundle is None
    assert not (holed_run / "bundle").exists()


def no_detector(run: Path) -> None:
    for name in NAMES:
        shutil.rmtree(run / name)


@pytest.mark.parametrize("damage", [no_detector, lambda run: shutil.rmtree(run / "trunk"), shutil.rmtree])
def test_a_run_without_a_usable_detector_is_refused(
    damage: Callable[[Path], None], capture: Path, own_run: Path
) -> None:
    damage(own_run)
    with pytest.raises(LvdError, match="has no detectors"):
        do(capture, own_run)
    assert not (own_run / "evaluation").exists()


def test_eta_beyond_the_steps_is_refused(capture: Path, own_run: Path) -> None:
    with pytest.raises(LvdError, match="eta=4 is more than the 3 steps"):
        do(capture, own_run, eta=4)
    assert not (own_run / "evaluation").exists()


# ---- the command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell("evaluate.py", tmp_path, monkeypatch, capfd)


def test_the_command_reports_and_logs_one_aggregate_run(
    command: Shell, own_run: Path, shown_capture: Path
) -> None:
    ran = command("name=tiny", f"captures={shown_capture.parent}", "eta=2", "lam=0.6")
    assert ran.code == 0, ran.err
    summary = json.loads((own_run / "evaluation" / "summary.json").read_text())
    assert f"{summary['accuracy']:.3f}" in ran.out
    assert "report: runs/tiny/evaluation/report.html" in ran.out
    records = wandb_records(own_run / "evaluation")
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]
    logged = {
        item.key or item.nested_key[0]
        for record in records
        if record.WhichOneof("record_type") in ("summary", "history")
        for item in (*record.summary.update, *record.history.item)
    }
    assert {"accuracy", "tpr", "fpr", "compute_saved"} <= logged
    assert {"detectors", "auroc_by_category_and_step"} <= logged


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eta=9"], "eta=9 is more than the 3 steps"),
        (["eta=0"], "eta=0 must be at least 1"),
        (["lam=0"], "lam=0.0 must be greater than 0"),
        (["threshold=1"], "threshold=1.0 must be between"),
        (["max_fpr=1"], "max_fpr=1.0 must be at least 0 and less than 1"),
        (["capture=nowhere"], "no capture"),
        (["name=other"], "runs/other has no detectors"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], words: str, command: Shell, own_run: Path, shown_capture: Path
) -> None:
    shutil.copytree(shown_capture, command.directory / "captures" / "tiny")
    ran = command("name=tiny", "capture=tiny", "eta=2", "logger=none", *arguments)
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("error: ")
    assert words in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert not (own_run / "evaluation").exists()
