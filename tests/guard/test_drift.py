"""The drift monitor: against MAPIE's martingale, its false alarms by simulation, and what it notices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mapie.exchangeability_testing import OnlineMartingaleTest
from scipy.stats import binomtest, kstest

import lvd.decide.martingale
from conftest import bundle_info, untrained_run
from lvd.decide.calibrate import calibrate
from lvd.decide.martingale import DriftMonitor
from lvd.decide.sequential import Evidence, Sequential
from lvd.errors import LvdError
from lvd.guard import AuditLog
from lvd.guard.export import export_bundle
from support.commands import Ran, Shell


def p_values_of(reference: list[float], live: list[float], seed: int) -> list[float]:
    """By the definition, with the monitor's own draws for what is equal."""
    draws = np.random.default_rng(seed)
    seen, found = list(reference), []
    for value in live:
        seen.append(value)
        above, equal = sum(s > value for s in seen), sum(s == value for s in seen)
        found.append((above + draws.random() * equal) / len(seen))
    return found


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.5])
def test_the_capital_is_that_of_the_simple_jumper(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lvd.decide.martingale, "_RATES", (rate,))
    rng = np.random.default_rng(0)
    reference, live = rng.integers(0, 9, 30).tolist(), rng.integers(2, 12, 200).tolist()
    monitor = DriftMonitor(reference, seed=3, false_alarm=1e-12)  # it stops betting at the alarm
    oracle = OnlineMartingaleTest(task="regression", jump_size=rate, warn=False)
    for value, p_value in zip(live, p_values_of(reference, live, seed=3), strict=True):
        monitor.see(value)
        assert monitor.capital == pytest.approx(oracle.update_simple_jumper_martingale(p_value), rel=1e-9)


def alarms(runs: int, videos: int, shift: float = 0.0, reference: int = 60, from_video: int = 0) -> list[int]:
    """At which live video each run's alarm came; 0: none."""
    rng = np.random.default_rng(1)
    found = []
    for seed in range(runs):
        monitor = DriftMonitor(rng.normal(size=reference).tolist(), seed=seed)
        for number in range(videos):
            monitor.see(float(rng.normal() + shift * (number >= from_video)))
            if monitor.alarm_at is not None:
                break
        found.append(monitor.alarm_at or 0)
    return found


def test_false_alarms_are_as_rare_as_promised_however_long_it_watches() -> None:
    raised = sum(at > 0 for at in alarms(runs=400, videos=400))
    assert binomtest(raised, 400).proportion_ci(0.999, method="exact").low <= 0.01


def test_among_equal_statistics_the_ranks_stay_uniform() -> None:
    monitor = DriftMonitor([0.0] * 50)
    for _ in range(1000):
        monitor.see(0.0)
    assert monitor.alarm_at is None


@pytest.mark.parametrize(("shift", "within"), [(2.0, 60), (-2.0, 60), (1.0, 200)])
def test_a_change_is_noticed(shift: float, within: int) -> None:
    found = alarms(runs=30, videos=within, shift=shift)
    assert np.mean([at > 0 for at in found]) > 0.9


def test_a_change_after_a_long_quiet_time_is_noticed_too() -> None:
    found = alarms(runs=20, videos=700, shift=2.0, from_video=500, reference=200)
    assert np.mean([at > 500 for at in found]) > 0.8


# ---- the command

STEPS, BOUNDARY = 4, 3.0
Watch = Callable[[Path, Path], Ran]


@pytest.fixture
def bundle(tiny_pipeline: Any, tmp_path: Path) -> tuple[Path, str]:
    """Sums the log-odds of four steps; calibrated on margins around -4."""
    run = untrained_run(tmp_path / "run", lambda name, step: "head", steps=STEPS)
    evidence = Evidence(*np.ones((2, STEPS, 2)), np.zeros((STEPS, 2)))
    reference = tuple(sorted(np.random.default_rng(0).normal(-4, 1, 60).tolist()))
    rule = Sequential(evidence, (BOUNDARY, BOUNDARY), ("block", "block"), 0.05, "marginal", 60, reference)
    return tmp_path / "bundle", export_bundle(tmp_path / "bundle", run, bundle_info(tiny_pipeline, rule=rule))


def log_of(path: Path, digest: str, margins: np.ndarray, prompts: int = 10_000) -> Path:
    """As a guard records them: a safe sample has the scores of all steps, an unsafe one stops."""
    log, decisions = AuditLog(path), []
    for number, margin in enumerate(margins):
        odds = np.full((STEPS, 2), -7.0)
        odds[0] = margin + BOUNDARY
        decision = {
            "outcome": "unsafe" if margin > 0 else "safe",
            "scores": (1 / (1 + np.exp(-odds))).tolist(),
        }
        decisions.append((f"prompt {number % prompts}", decision))
    log.append(digest, decisions)
    return path


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Watch:
    shell = Shell("lvd.guard.drift", tmp_path, monkeypatch, capfd)
    return lambda log, bundle: shell(log, "--bundle", bundle)


def test_a_log_of_traffic_like_the_calibration_set_raises_no_alarm(
    bundle: tuple[Path, str], tmp_path: Path, watched: Watch
) -> None:
    margins = np.random.default_rng(1).normal(-4, 1, 200)
    log = log_of(tmp_path / "audit.jsonl", bundle[1], np.r_[margins, np.full(50, 2.0)])
    log_of(log, "e" * 64, np.full(100, -0.5))  # another bundle's decisions
    ran = watched(log, bundle[0])
    assert ran.code == 0, ran.err
    assert "250 decisions, 200 safe videos of as many prompts" in ran.out
    assert "no change seen" in ran.out


def test_a_prompt_that_is_sampled_again_and_again_is_no_drift(
    bundle: tuple[Path, str], tmp_path: Path, watched: Watch
) -> None:
    margins = np.random.default_rng(1).normal(-4, 1, 30)
    ran = watched(log_of(tmp_path / "audit.jsonl", bundle[1], np.tile(margins, 20), prompts=30), bundle[0])
    assert ran.code == 0, ran.out
    assert "600 decisions, 30 safe videos of as many prompts" in ran.out


def test_the_ranks_against_a_calibrated_rules_reference_are_uniform() -> None:
    """Live videos stay below the boundary, and so do those of the reference: none stands on it."""
    rng = np.random.default_rng(3)
    evidence = Evidence(*np.ones((2, 1, 1)), np.zeros((1, 1)))
    p_values = []
    for seed in range(1500):
        odds = rng.normal(size=(19, 1, 1))
        rule = calibrate(
            evidence,
            1 / (1 + np.exp(-odds)),
            range(19),
            ("a",),
            alpha=0.05,
            guarantee="marginal",
            policy={},
            shares={},
        )
        live = next(x for x in rng.normal(size=10_000) if x <= rule.boundary[0])
        monitor = DriftMonitor(rule.reference, seed=seed)
        p_values.append(monitor.p_value_of_next(live - rule.boundary[0]))
    assert kstest(p_values, "uniform").pvalue > 1e-3


def test_a_probability_of_no_kind_is_refused() -> None:
    for false_alarm in (0.0, 1.0, float("nan"), -1.0):
        with pytest.raises(LvdError, match=f"false_alarm={false_alarm} must be greater than 0"):
            DriftMonitor([], false_alarm=false_alarm)


def test_a_log_of_other_traffic_raises_one(bundle: tuple[Path, str], tmp_path: Path, watched: Watch) -> None:
    margins = np.random.default_rng(1).normal(-1.5, 0.5, 100)
    ran = watched(log_of(tmp_path / "audit.jsonl", bundle[1], margins), bundle[0])
    assert ran.code == 1
    assert "traffic no longer looks like what the bundle was calibrated for" in ran.out


def test_a_log_that_was_edited_is_an_error(bundle: tuple[Path, str], tmp_path: Path, watched: Watch) -> None:
    log = log_of(tmp_path / "audit.jsonl", bundle[1], np.full(10, -4.0))
    log.write_text(log.read_text().replace("safe", "SAFE", 1))
    ran = watched(log, bundle[0])
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {log} line 1: record 1 was edited")


def test_a_log_without_decisions_of_the_bundle_or_a_vote_is_an_error(
    bundle: tuple[Path, str], tiny_pipeline: Any, tmp_path: Path, watched: Watch
) -> None:
    log = log_of(tmp_path / "audit.jsonl", "e" * 64, np.full(10, -4.0))
    ran = watched(log, bundle[0])
    assert ran.code == 2
    assert f"has no decision of the bundle {bundle[1]}" in ran.err
    export_bundle(tmp_path / "votes" / "bundle", tmp_path / "run", bundle_info(tiny_pipeline))
    ran = watched(log, tmp_path / "votes" / "bundle")
    assert ran.code == 2
    assert "decides by vote, which guarantees nothing that could be lost" in ran.err
