"""The drift monitor: against MAPIE's martingale, its false alarms by simulation, and what it notices."""

import numpy as np
import pytest
from mapie.exchangeability_testing import OnlineMartingaleTest
from scipy.stats import binomtest

import lvd.decide.drift
from lvd.decide.drift import DriftMonitor


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
    monkeypatch.setattr(lvd.decide.drift, "_RATES", (rate,))
    rng = np.random.default_rng(0)
    reference, live = rng.integers(0, 9, 30).tolist(), rng.integers(2, 12, 200).tolist()
    monitor = DriftMonitor(reference, seed=3)
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
