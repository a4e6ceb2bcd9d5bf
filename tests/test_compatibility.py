"""Captures, runs, bundles and audit logs of earlier versions are read: tests/frozen/README.md."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import StubPipeline
from lvd.guard.audit import verify
from lvd.guard.bundle import load_bundle
from lvd.guard.guard import Guard
from lvd.latents.reader import CaptureReader
from support.commands import Shell

FROZEN = Path(__file__).parent / "frozen"
VERSIONS = ("version_1", "version_2")
EXPECTED = {version: json.loads((FROZEN / version / "expected.json").read_text()) for version in VERSIONS}
BUNDLES = [(version, bundle) for version in VERSIONS for bundle in EXPECTED[version]["bundles"]]
SETTINGS = ["capture=frozen", "accelerator=cpu", "logger=none", "encoder.width=16", "encoder.layers=1"]
SETTINGS += ["encoder.heads=2", "encoder.patch=2", "encoder.tubelet=2", "trunk.batches=20"]
SETTINGS += ["trunk.fit.epochs=2", "detector.head.epochs=3"]
NETWORKS = ["detector.init=scratch", "detector.tuning=full", "detector.network.epochs=2"]


class Stub(StubPipeline):
    """The pipeline that the frozen captures are of."""

    shape = (2, 2, 4, 4)


@pytest.fixture
def command_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str, str], Shell]]:
    """A command in a copy of a version's files."""

    def make(script: str, version: str) -> Shell:
        directory = tmp_path / version
        if not directory.exists():
            shutil.copytree(FROZEN / version, directory, symlinks=True)
        return Shell(script, directory, monkeypatch, capfd)

    return make


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("result.json")}


def scores_in(path: Path) -> tuple[list[tuple[str, ...]], list[float]]:
    """The rows of a scores.csv, and their scores; NaN where there is none."""
    with path.open(newline="") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    return [tuple(row[:-1]) for row in rows], [float(row[-1] or "nan") for row in rows]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_capture_has_its_samples_and_x0(version: str) -> None:
    reader, expected = CaptureReader(FROZEN / version / "captures" / "frozen"), EXPECTED[version]
    assert [
        [s.sample_id, s.prompt_id, s.prompt, s.seed, list(s.categories), s.split] for s in reader.samples
    ] == expected["samples"]
    assert all(sample.is_labelled for sample in reader.samples)
    for step, digest in enumerate(expected["x0_sha256"]):
        x0 = reader.step(step).read(range(len(reader.samples)))
        assert hashlib.sha256(x0.tobytes()).hexdigest() == digest
    x0 = [reader.step(step).read([0])[0].ravel().tolist() for step in range(3)]
    assert x0 == expected["x0_first_row"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_byte_of_a_capture_is_verified(version: str, command_in: Callable[[str, str], Shell]) -> None:
    ran = command_in("capture.py", version)("name=frozen", "verify=true")
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_is_done_and_not_trained_again(version: str, command_in: Callable[[str, str], Shell]) -> None:
    train = command_in("train.py", version)
    before = content(train.directory / "runs")
    for arguments in (
        ["task=trunk", "name=heads"],
        ["-m", "category=0..1", "step=0..2", "name=heads"],
        ["-m", "category=0..1", "step=0", "name=networks", *NETWORKS],
    ):
        ran = train(*arguments, *SETTINGS)
        assert ran.code == 0, ran.err
    assert content(train.directory / "runs") == before


@pytest.mark.parametrize(("version", "bundle"), BUNDLES)
def test_an_evaluation_finds_the_same_scores_and_rates(
    version: str, bundle: str, command_in: Callable[[str, str], Shell]
) -> None:
    run = Path(bundle).parts[1]
    evaluate, expected = command_in("evaluate.py", version), EXPECTED[version]["bundles"][bundle]["summary"]
    ran = evaluate(f"name={run}", "capture=frozen", "logger=none", *expected["arguments"])
    assert ran.code == 0, ran.err
    evaluation = evaluate.directory / "runs" / run / "evaluation"
    rows, scores = scores_in(evaluation / "scores.csv")
    frozen_rows, frozen_scores = scores_in(FROZEN / version / "runs" / run / "evaluation" / "scores.csv")
    assert rows == frozen_rows
    assert scores == pytest.approx(frozen_scores, abs=1e-4, nan_ok=True)
    summary: dict[str, Any] = json.loads((evaluation / "summary.json").read_text())
    assert summary["n_test"] == expected["n_test"]
    if summary["decision"] == "vote":  # how the sequential rule is calibrated may change between versions
        for name in ("accuracy", "tpr", "fpr", "threshold"):
            assert summary[name] == pytest.approx(expected[name]), name


@pytest.mark.parametrize(("version", "bundle"), BUNDLES)
def test_a_bundle_has_its_digest_scores_and_decisions(version: str, bundle: str) -> None:
    expected = EXPECTED[version]["bundles"][bundle]
    loaded = load_bundle(FROZEN / version / bundle, expected["digest"])
    reader = CaptureReader(FROZEN / version / "captures" / "frozen")
    rows = [row for row, sample in enumerate(reader.samples) if sample.sample_id in expected["samples"]]
    x0 = [torch.from_numpy(reader.step(step).read(rows)).float() for step in range(3)]
    scores = torch.stack(
        [loaded.detectors(step, x0[step]).sigmoid() for step in range(loaded.info.rule.steps)], dim=1
    )
    torch.testing.assert_close(scores, torch.tensor(expected["scores"]), atol=1e-4, rtol=0)

    session = Guard(loaded).session(samples=len(rows), steps=3)
    for step in range(3):
        session.check(step, x0[step])
        if session.stopped:
            break
    decisions = [[d.outcome, d.step, list(d.categories)] for d in session.close()]
    assert decisions == expected.get("session", decisions)  # version 1 knew no sessions

    called = Guard(loaded)(Stub(), prompt=["a", "b", "c", "d"], guidance_scale=5.0).decisions
    assert [[d.outcome, d.step, list(d.categories)] for d in called] == expected["call"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pointer_leads_to_the_bundle_of_the_last_evaluation(version: str) -> None:
    *_, (last, expected) = (
        (path, values) for path, values in EXPECTED[version]["bundles"].items() if "/heads/" in path
    )
    pointer = FROZEN / version / "runs" / "heads" / "bundle"
    assert pointer.resolve() == (FROZEN / version / last).resolve()
    assert load_bundle(pointer).digest == expected["digest"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_chain_of_an_audit_log_is_whole(version: str) -> None:
    records, _ = verify(FROZEN / version / "audit.jsonl")
    assert records == 4 * len(EXPECTED[version]["bundles"])
