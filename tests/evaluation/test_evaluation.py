import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import lvd.detect.bank
import lvd.sweep.state
from conftest import NAMES, STEPS, capture_info, latents_of, write_capture
from lvd.capture.decode import decode_frames, load_vae
from lvd.capture.labels import label
from lvd.decide.intervals import wilson
from lvd.decide.recipe import EvaluationRecipe
from lvd.decide.rules import Vote
from lvd.decide.sequential import Sequential
from lvd.detect.files import load_trunk, save_trunk, trunk_digest
from lvd.errors import LvdError
from lvd.evaluation.run import evaluate_runs
from lvd.evaluation.write import Evaluation
from lvd.files import file_sha256
from lvd.guard import Guard
from lvd.guard.bundle import load_bundle
from lvd.latents import journal, writer
from lvd.latents.format import UNLABELLED, Sample
from lvd.latents.reader import CaptureReader
from lvd.latents.splits import assign_splits, fold
from lvd.sweep.trained_on import TrainedOn, origin_of
from support.commands import Shell, wandb_records

DOCUMENTED = {
    *("n_test", "eta", "lam", "accuracy", "accuracy_ci", "tpr", "fpr", "auroc", "steps_mean_unsafe"),
    *("compute_saved", "per_category"),
}
ADDITIONS = {
    *("n_unchecked", "n_unchecked_unsafe", "n_unchecked_safe", "tpr_ci", "fpr_ci", "threshold", "max_fpr"),
    *(
        "detectors",
        "detectors_missing",
        "attribution",
        "capture",
        "trained_on",
        "n_left_out",
        "other_origin",
        "n_unlabelled",
    ),
    *(
        "decision",
        "detector",
        "rules",
        "not_calibrated",
        "bundle",
        "auroc_ci",
        "steps_checked_safe",
        "intervals",
        "n_unsafe",
        "n_safe",
    ),
    *("comparison", "n_prompts", "n_prompts_unsafe", "n_prompts_safe", "caught_in_words", "blocked_in_words"),
}
HOLES = [("alpha", 0), ("beta", 2)]


@dataclass(frozen=True)
class Done:
    """An evaluation and what it left in its directory."""

    evaluation: Evaluation
    summary: dict[str, Any]
    scores: pd.DataFrame
    page: str


RECIPE = EvaluationRecipe(eta=2, examples=6)


def do(capture: Path, run: Path, **changes: Any) -> Done:
    (evaluation,), _ = evaluate_runs(capture, [run], replace(RECIPE, **changes))
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
    from support.tiny import build_vae

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
        shutil.rmtree(own_run / name / f"step_{step:02d}")
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
        stopped = int(np.argmax(counts >= needed)) + 1 if unsafe else STEPS
        rows.append(
            {
                "label": bool(sample.label.iloc[0]),
                "categories": sample.label.iloc[0].split("|"),
                "checked": unsafe or safe,
                "unsafe": unsafe,
                "safe": safe,
                "steps": stopped,
                "sure": counts[-1],
                "possible": maybe[:eta].sum(),
                "named": named(sample[sample.step < stopped]) if unsafe else [],
            }
        )
    table = pd.DataFrame(rows)
    unsafe, safe = table[table.label], table[~table.label]
    caught = unsafe[unsafe.unsafe]
    first = [names[0] in true for names, true in zip(caught.named, caught.categories, strict=True)]
    return {
        "n_test": len(table),
        "n_unchecked": int((~table.checked).sum()),
        "n_unchecked_unsafe": int((~unsafe.checked).sum()),
        "n_unchecked_safe": int((~safe.checked).sum()),
        "accuracy": (unsafe.unsafe.sum() + safe.safe.sum()) / len(table),
        "tpr": unsafe.unsafe.mean(),
        "fpr": (~safe.safe).mean(),
        "auroc": auroc_of(unsafe["sure"], safe["possible"]),
        "steps_mean_unsafe": caught.steps.mean() if len(caught) else None,
        "compute_saved": 1 - table.steps.sum() / (STEPS * len(table)),
        "attribution": {
            "n": len(caught),
            "first_right": sum(first) / len(first) if first else None,
            "first_right_ci": pytest.approx(wilson(sum(first), len(first))) if first else None,
            "named_mean": caught.named.map(len).mean() if first else None,
        },
        "n": {name: int(table.categories.map(lambda c, n=name: n in c).sum()) for name in NAMES},
    }


def named(seen: pd.DataFrame) -> list[str]:
    """The categories by their summed log-odds at threshold 0.5: the highest, and all others from 0 up."""
    seen = seen.dropna(subset="score")
    odds = np.log(seen.score / (1 - seen.score)).groupby(seen.category).sum().sort_values(ascending=False)
    return [name for place, (name, evidence) in enumerate(odds.items()) if place == 0 or evidence >= 0]


def agrees(summary: dict[str, Any], scores: pd.DataFrame) -> None:
    expected = recompute(scores, summary["eta"], summary["lam"])
    assert {name: values["n"] for name, values in summary["per_category"].items()} == expected.pop("n")
    attribution = expected.pop("attribution")
    assert {key: summary[key] for key in expected} == pytest.approx(expected)
    assert summary["attribution"] == {
        key: value if key == "first_right_ci" else pytest.approx(value) for key, value in attribution.items()
    }


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
    attribution = done.summary["attribution"]
    assert "First category named is right, of the caught" in done.page
    assert f"n={attribution['n']}<" in done.page
    assert attribution["first_right"] > 0.8  # the capture has a signal
    assert f"{done.summary['accuracy']:.3f}" in done.page
    unsafe = sum(values["n"] for values in done.summary["per_category"].values())
    caught = round(done.summary["tpr"] * unsafe)
    assert f"Unsafe videos that the vote rule caught, {caught} of {unsafe}" in done.page
    assert "detectors are missing" not in done.page


# ---- no unsafe picture is in the page


def embedded(page: str) -> set[bytes]:
    """The pixels of every image in the page, plotly's own code aside."""
    images = re.findall(r'<img[^>]* src="data:image/png;base64,([^"]+)" alt="step', page)
    return {Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB").tobytes() for image in images}


def sharp(capture: Path, *, unsafe: bool) -> set[bytes]:
    """The pixels of the decoded middle frame of every such test sample at every step."""
    reader = CaptureReader(capture)
    vae = load_vae(reader.info.origin)
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
    assert load_bundle(own_run / "bundle").info.rule == Vote(2, 0.6, threshold)


def test_the_bundle_gives_the_scores_that_were_measured(capture: Path, own_run: Path) -> None:
    done = do(capture, own_run)
    bundle = load_bundle(own_run / "bundle", done.evaluation.bundle)
    assert bundle.info.rule == Vote(2, 0.6, 0.5)
    assert bundle.info.measured["n_test"] == done.summary["n_test"]
    reader = CaptureReader(capture)
    table = done.scores.set_index(["sample_id", "step", "category"]).score
    for step in range(2):
        for row, sample in enumerate(reader.samples):
            if sample.split == "test":
                x0 = torch.from_numpy(reader.step(step)[row])[None]
                scores = bundle.detectors(step, x0).sigmoid()[0].tolist()
                assert scores == pytest.approx([table[sample.sample_id, step, n] for n in NAMES], abs=1e-4)


def test_a_hole_leaves_the_bundle_of_an_earlier_evaluation(capture: Path, own_run: Path) -> None:
    digest = do(capture, own_run).evaluation.bundle
    other = do(capture, own_run, eta=1).evaluation.bundle
    assert digest is not None
    assert other not in (None, digest)
    shutil.rmtree(own_run / "alpha" / "step_00")
    assert do(capture, own_run).evaluation.bundle is None
    assert load_bundle(own_run / "bundle").digest == other  # the last
    assert load_bundle(own_run / "bundles" / digest[:12], digest).info.rule.steps == 2


# ---- the calibrated rule beside the vote


def test_too_few_safe_val_prompts_leave_the_vote_alone_and_refuse_the_calibrated_rule(
    capture: Path, own_run: Path, done: Done
) -> None:
    few = r"alpha=0.05 with the marginal guarantee needs 19 safe calibration prompts, and there are 8"
    assert re.search(few, done.summary["not_calibrated"])
    assert (done.summary["decision"], list(done.summary["rules"])) == ("vote", ["vote"])
    with pytest.raises(LvdError, match=few):
        do(capture, own_run, decision="sequential")
    assert not (own_run / "bundle").exists()


def test_both_rules_are_measured_and_the_chosen_one_is_in_the_bundle(
    capture: Path, own_run: Path, done: Done
) -> None:
    chosen = do(capture, own_run, decision="sequential", alpha=0.25, policy={"beta": "flag"})
    summary = chosen.summary
    assert summary["rules"]["vote"] == done.summary["rules"]["vote"]  # whatever else is measured
    assert (summary["decision"], summary["alpha"], summary["prompts"]) == ("sequential", 0.25, 8)
    assert (summary["eta"], summary["lam"]) == (3, None)
    assert summary["accuracy"] == summary["rules"]["sequential"]["accuracy"]
    rule = load_bundle(own_run / "bundle", chosen.evaluation.bundle).info.rule
    assert isinstance(rule, Sequential)
    assert (rule.steps, rule.policy, rule.guarantee) == (3, ("block", "flag"), "marginal")
    table = chosen.scores.pivot_table(index=["split", "sample_id", "label"], columns=["step", "category"])
    for split in ("val", "test"):
        of_split = table.loc[split]
        scores = of_split.to_numpy().reshape(len(of_split), 3, 2)
        decisions = rule.decide(scores)
        safe = of_split.index.get_level_values("label") == ""
        if split == "val":  # rounded scores: the one that the boundary stands on may fall on either side
            assert decisions.blocked[safe].sum() <= 2
        else:
            assert decisions.unsafe[~safe].mean() == pytest.approx(summary["tpr"], abs=0.13)
    voted = do(capture, own_run)
    assert voted.summary["accuracy"] == done.summary["accuracy"]
    assert load_bundle(own_run / "bundle").info.rule == Vote(2, 0.6, 0.5)
    assert (
        load_bundle(own_run / "bundles" / str(chosen.evaluation.bundle)[:12]).info.rule.kind == "sequential"
    )


def test_samples_are_let_go_when_asked_for_and_the_cost_is_told(capture: Path, own_run: Path) -> None:
    chosen = do(capture, own_run, decision="sequential", alpha=0.25, miss=0.2)
    rule = load_bundle(own_run / "bundle", chosen.evaluation.bundle).info.rule
    assert isinstance(rule, Sequential)
    assert (rule.miss, chosen.summary["miss"]) == (0.2, 0.2)
    assert rule.release is not None
    assert chosen.summary["lost_by_release"] >= 0
    kept = do(capture, own_run, decision="sequential", alpha=0.25)
    assert (kept.summary["miss"], kept.summary["lost_by_release"]) == (None, None)
    assert chosen.summary["steps_checked_safe"] < kept.summary["steps_checked_safe"]
    assert chosen.summary["fpr"] <= kept.summary["fpr"]
    assert chosen.summary["rules"]["vote"] == kept.summary["rules"]["vote"]
    few = r"miss=0.01 with the marginal guarantee needs 99 unsafe calibration prompts"
    with pytest.raises(LvdError, match=few):
        do(capture, own_run, decision="sequential", alpha=0.25, miss=0.01)


def test_a_policy_of_a_category_that_is_not_there_is_refused(capture: Path, own_run: Path) -> None:
    with pytest.raises(LvdError, match=r"policy\.gamma: there is no such category; there are alpha, beta"):
        do(capture, own_run, decision="sequential", alpha=0.25, policy={"gamma": "flag"})


def test_a_hole_leaves_no_calibrated_rule(capture: Path, own_run: Path) -> None:
    shutil.rmtree(own_run / "alpha" / "step_00")
    holed = do(capture, own_run, alpha=0.25)
    assert holed.summary["not_calibrated"] == "detectors are missing, and a calibrated rule needs every one"


# ---- on another capture


def another_capture(directory: Path, samples: Sequence[Sample], **changes: object) -> Path:
    writer.begin(directory, capture_info(**changes), samples)
    journal.append(directory, [s.sample_id for s in samples], latents_of(list(samples)))
    writer.finish(directory)
    return directory


@pytest.fixture
def captures(capture: Path, tmp_path: Path) -> Path:
    """A folder with the capture that the run was trained on."""
    shutil.copytree(capture, tmp_path / "captures" / "tiny")
    return tmp_path / "captures"


def prompts_of(capture: Path, *splits: str) -> set[str]:
    return {fold(sample.prompt) for sample in CaptureReader(capture).samples if sample.split in splits}


def others(count: int, seed: int) -> list[Sample]:
    """Samples whose prompts are those of the tiny capture, in other letters, and new ones; other splits."""
    prompts = [f"Prompt  number {i}!" for i in range(count)]
    categories = [((NAMES[i % 4],) if i % 4 < 2 else ()) for i in range(count)]
    ids = [f"other {i}" for i in range(count)]
    splits = assign_splits(prompts, ids, categories, seed)
    return [Sample(f"o{i:03d}", ids[i], prompts[i], i, categories[i], splits[i]) for i in range(count)]


def test_what_was_trained_or_selected_on_is_left_out_of_another_captures_rates(
    captures: Path, own_run: Path
) -> None:
    tiny = captures / "tiny"
    other = another_capture(captures / "other", others(160, seed=1))
    done = do(other, own_run)
    seen = prompts_of(tiny, "train", "val")
    test = [s for s in CaptureReader(other).samples if s.split == "test"]
    left_out = [s.sample_id for s in test if fold(s.prompt) in seen]
    assert 0 < len(left_out) < len(test)
    assert (done.summary["n_left_out"], done.summary["n_test"]) == (len(left_out), len(test) - len(left_out))
    assert (done.summary["capture"], done.summary["trained_on"]) == ("other", "tiny")
    counted = set(done.scores[done.scores.split == "test"].sample_id)
    assert counted == {s.sample_id for s in test} - set(left_out)
    agrees(done.summary, done.scores)
    trained = {
        s.sample_id for s in CaptureReader(other).samples if fold(s.prompt) in prompts_of(tiny, "train")
    }
    assert not trained & set(done.scores.sample_id)
    sentence = f"{len(left_out)} test samples of other are left out"
    assert sentence in done.page
    card = (own_run / "bundle" / "README.md").read_text()
    assert "the capture `other`, whose prompts neither training nor selection has seen" in card
    assert f"({len(left_out)} others were left out" in card
    assert load_bundle(own_run / "bundle", done.evaluation.bundle).info.measured["n_left_out"] == len(
        left_out
    )


def test_on_its_own_capture_nothing_is_left_out_whatever_its_name(captures: Path, own_run: Path) -> None:
    own = do(captures / "tiny", own_run).summary
    renamed = Path(shutil.copytree(captures / "tiny", captures / "renamed"))
    shutil.rmtree(captures / "tiny")
    assert (own["n_left_out"], own["other_origin"]) == (0, [])
    again = do(renamed, own_run).summary
    assert again == {**own, "capture": "renamed", "bundle": again["bundle"]}  # its card names the capture


def test_what_an_earlier_version_did_not_write_of_an_origin_is_no_difference() -> None:
    info = capture_info()
    earlier = {
        k: v for k, v in origin_of(info).items() if k not in ("layout_given", "step_caches", "weights")
    }
    learned = TrainedOn("tiny", earlier, frozenset(), frozenset())
    assert learned.other_origin(info) == []
    assert learned.other_origin(capture_info(weights={"unet": "1" * 64})) == []  # not known of the run
    cached = {"unet": {"config": "FirstBlockCacheConfig", "threshold": 0.1}}
    assert learned.other_origin(capture_info(step_caches=cached)) == ["step_caches"]
    known = replace(learned, origin={**earlier, "weights": {"unet": "2" * 64}})
    assert known.other_origin(capture_info(weights={"unet": "1" * 64})) == ["weights"]


def test_another_origin_gives_rates_that_say_so_and_no_bundle(captures: Path, own_run: Path) -> None:
    before = do(captures / "tiny", own_run).evaluation.bundle
    other = another_capture(captures / "other", others(160, seed=1), guidance=3.0, call={"num_frames": 16})
    done = do(other, own_run)
    assert done.summary["other_origin"] == ["call", "guidance"]
    assert done.summary["n_left_out"] > 0
    assert done.evaluation.bundle is None
    assert "other was made otherwise than tiny" in done.page
    assert load_bundle(own_run / "bundle").digest == before
    assert len(list((own_run / "bundles").iterdir())) == 1


def test_a_capture_that_was_learned_whole_cannot_be_measured_on(captures: Path, own_run: Path) -> None:
    learned = [s for s in CaptureReader(captures / "tiny").samples if s.split != "test"]
    other = another_capture(captures / "other", [replace(s, split="test") for s in learned])
    with pytest.raises(LvdError, match=r"no test sample of .*other is left .* all their prompts, in tiny"):
        do(other, own_run)
    shaped = write_capture(captures / "shaped", 16, latent_shape=(4, 4, 8, 8), steps=STEPS)
    info = json.loads((shaped / "capture.json").read_text())
    (shaped / "capture.json").write_text(json.dumps({**info, "latent_shape": [4, 4, 8, 16]}))
    with pytest.raises(LvdError, match="latents of another shape"):
        do(shaped, own_run)
    assert not (own_run / "evaluation").exists()


def test_an_unlabelled_capture_is_not_taken_for_a_safe_one(captures: Path, own_run: Path) -> None:
    nobody_looked = [replace(sample, categories=UNLABELLED) for sample in others(160, seed=1)]
    other = another_capture(captures / "other", nobody_looked)
    with pytest.raises(LvdError, match=r"other has no labels: capture.py name=other labels=FILE.csv"):
        do(other, own_run)


def without_what_came_later(run: Path) -> None:
    """Results as an earlier version wrote them."""
    for path in run.rglob("result.json"):
        result = json.loads(path.read_text())
        del result["files"], result["data"]
        path.write_text(json.dumps(result))
    for path in run.glob("trained_on_*.json"):
        path.unlink()


def test_a_run_of_an_earlier_version_is_measured_as_before(captures: Path, own_run: Path, done: Done) -> None:
    without_what_came_later(own_run)
    again = do(captures / "tiny", own_run)
    rates = {"accuracy", "tpr", "fpr", "n_left_out"}
    assert {key: again.summary[key] for key in rates} == {key: done.summary[key] for key in rates}
    assert again.evaluation.bundle is not None
    other = another_capture(captures / "other", others(160, seed=1))
    assert do(other, own_run).summary["n_left_out"] > 0
    shutil.rmtree(captures / "tiny")
    with pytest.raises(LvdError, match=r"was trained on .*tiny, which is not there"):
        do(other, own_run)


def of_clips(capture: Path) -> None:
    info = json.loads((capture / "capture.json").read_text())
    (capture / "capture.json").write_text(json.dumps({**info, "x0_from": "noised clip"}))


def test_rates_of_clips_say_that_nothing_is_guarded_by_them(
    captures: Path, own_run: Path, command: Shell
) -> None:
    for path in own_run.glob("trained_on_*.json"):
        learned = json.loads(path.read_text())
        path.write_text(json.dumps({**learned, "origin": {**learned["origin"], "x0_from": "noised clip"}}))
    of_clips(captures / "tiny")
    ran = command("name=tiny", f"captures={captures}", "eta=2", "examples=0", "logger=none")
    assert ran.code == 0, ran.err
    why = "its rates are of real clips, so that it guards nothing before it is evaluated on generated videos"
    assert f"a guard refuses the bundle: {why}" in ran.out.splitlines()[-1]
    assert f"a guard refuses the bundle: {why}" in (own_run / "evaluation" / "report.html").read_text()
    assert f"**A guard refuses this bundle: {why}" in (own_run / "bundle" / "README.md").read_text()
    with pytest.raises(LvdError, match=why):
        Guard.from_pretrained(own_run / "bundle").session(samples=1)

    another_capture(captures / "made", others(160, seed=1))
    ran = command("name=tiny", f"captures={captures}", "capture=made", "eta=2", "examples=0", "logger=none")
    assert ran.code == 0, ran.err
    assert "bundle: runs/tiny/bundle" in ran.out
    assert "refuses" not in ran.out + (own_run / "evaluation" / "report.html").read_text()
    assert "refuses this bundle" not in (own_run / "bundle" / "README.md").read_text()


# ---- what is stale


def relabelled(capture: Path) -> None:
    """The same samples, one category dealt otherwise, by the command's own function."""
    rows = [f"{s.sample_id},{s.categories[0]}" for s in CaptureReader(capture).samples if s.categories]
    labels = capture.parent / "labels.csv"
    labels.write_text("\n".join(["sample_id,category", *rows[1:]]) + "\n")
    label(capture, labels, seed=0, unnamed="safe")


def test_after_a_relabelling_nothing_of_the_run_is_measured(captures: Path, own_run: Path) -> None:
    relabelled(captures / "tiny")
    with pytest.raises(
        LvdError, match=r"trunk was trained on other data or labels .* python train.py task=trunk name=tiny"
    ):
        do(captures / "tiny", own_run)
    other = another_capture(captures / "other", others(160, seed=1))
    with pytest.raises(LvdError, match=r"python train.py task=trunk name=tiny"):
        do(other, own_run)
    assert not (own_run / "evaluation").exists()


def test_heads_of_another_trunk_are_not_measured(capture: Path, own_run: Path) -> None:
    trunk = load_trunk(own_run / "trunk")
    with torch.no_grad():
        trunk.output.bias[0] += 1
    save_trunk(own_run / "trunk", trunk, NAMES)
    result = json.loads((own_run / "trunk" / "result.json").read_text())
    weights = own_run / "trunk" / "model.safetensors"
    files = {**result["files"], "model.safetensors": file_sha256(weights)}
    (own_run / "trunk" / "result.json").write_text(json.dumps({**result, "files": files}))
    with pytest.raises(
        LvdError, match=r"6 detectors of .* are stale, alpha/step_00 first.* -m category=alpha,"
    ):
        do(capture, own_run)
    assert not (own_run / "evaluation").exists()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_detector_is_named_and_not_exported(
    damage: str, file: str, capture: Path, own_run: Path
) -> None:
    path = own_run / "alpha" / "step_01" / "detector" / file
    data = path.read_bytes()
    flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    path.unlink() if damage == "removed" else path.write_bytes({"flipped": flipped}.get(damage, data[:-9]))
    done = do(capture, own_run)
    (problem,) = done.summary["detectors_missing"]
    assert problem.startswith(f"alpha step_01: {path} is ")
    assert problem.endswith("train it again with python train.py category=alpha step=1 name=tiny")
    assert done.evaluation.bundle is None
    assert not (own_run / "bundle").exists()


def test_a_damaged_trunk_is_named_before_anything_is_measured(capture: Path, own_run: Path) -> None:
    path = own_run / "trunk" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        LvdError, match=r"model.safetensors is damaged.* python train.py task=trunk name=tiny"
    ):
        do(capture, own_run)


def test_no_file_is_hashed_more_than_once(
    capture: Path, own_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    monkeypatch.setattr(lvd.sweep.state, "file_sha256", counted)
    trunks: list[Path] = []
    monkeypatch.setattr(lvd.detect.bank, "trunk_digest", lambda d: trunks.append(d) or trunk_digest(d))
    do(capture, own_run)
    assert len(trunks) == 1
    assert len(hashed) == len(set(hashed)) == 2 + 2 * (1 + len(NAMES) * STEPS)


def no_detector(run: Path) -> None:
    for name in NAMES:
        shutil.rmtree(run / name)


def no_trunk(run: Path) -> None:
    shutil.rmtree(run / "trunk")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_detector, "has no detectors"),
        (shutil.rmtree, "has no detectors"),
        (no_trunk, "has no trunk, which its detectors need: python train.py task=trunk name=tiny"),
    ],
)
def test_a_run_without_a_usable_detector_is_refused(
    damage: Callable[[Path], None], words: str, capture: Path, own_run: Path
) -> None:
    damage(own_run)
    with pytest.raises(LvdError, match=words):
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
    caught = summary["attribution"]["n"]
    assert f"of {caught} caught (" in next(line for line in ran.out.splitlines() if "named right" in line)
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


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "none"])
def test_the_command_logs_where_it_is_told_to(
    logger: str, command: Shell, own_run: Path, shown_capture: Path
) -> None:
    arguments = [f"captures={shown_capture.parent}", "eta=2", "lam=0.6", "examples=0", f"logger={logger}"]
    ran = command("name=tiny", *arguments)
    assert ran.code == 0, ran.err
    directory = own_run / "evaluation"
    assert {kind for kind in ("wandb", "csv", "tensorboard") if (directory / kind).exists()} == (
        {logger} - {"none"}
    )
    detectors = pd.read_csv(directory / "figures" / "detectors.csv")
    alpha = detectors[detectors["category"] == "alpha"]["auroc"].tolist()
    accuracy = json.loads((directory / "summary.json").read_text())["rules"]["vote"]["accuracy"]
    if logger == "csv":
        logged = pd.read_csv(directory / "csv" / "metrics.csv")
        assert logged["auroc/alpha"].dropna().tolist() == pytest.approx(alpha)
        assert logged["vote/accuracy"].dropna().tolist() == pytest.approx([accuracy])
    elif logger == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(directory / "tensorboard"))
        events.Reload()
        assert [event.value for event in events.Scalars("auroc/alpha")] == pytest.approx(alpha)
        assert [event.value for event in events.Scalars("vote/accuracy")] == pytest.approx([accuracy])


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
def test_a_mistake_gives_one_error_message(
    arguments: list[str], words: str, command: Shell, own_run: Path, shown_capture: Path
) -> None:
    shutil.copytree(shown_capture, command.directory / "captures" / "tiny")
    ran = command("name=tiny", "capture=tiny", "eta=2", "logger=none", *arguments)
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("error: ")
    assert words in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err
    assert not (own_run / "evaluation").exists()
