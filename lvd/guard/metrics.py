"""Decisions counted for Prometheus, and nothing of a prompt: needs `lvd[metrics]`.

guard = Guard.from_pretrained("runs/mine/bundle", digest="...", metrics=Metrics())

All names begin with `lvd_guard_`; what they count stands with them below.
"""

from collections.abc import Sequence
from typing import get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from lvd.guard.decision import Decision, Fault, StepCount

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SCORES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """What a guard's decisions add up to. One may be shared by several guards, and by threads.

    registry: where the metrics are registered, which can be done once; Prometheus's own by default.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._decisions = Counter(
            "lvd_guard_decisions",
            "Samples by what was decided; category is the strongest of an unsafe one.",
            ["outcome", "category", "released"],
            registry=registry,
        )
        self._unchecked = Counter(
            "lvd_guard_unchecked", "Unchecked samples by what went wrong.", ["fault"], registry=registry
        )
        for fault in get_args(Fault):  # so that a first one is an increase
            self._unchecked.labels(fault)
        self._unrecorded = Counter(
            "lvd_guard_unrecorded", "Decisions that the audit log did not take.", registry=registry
        )
        self._made = Counter(
            "lvd_guard_steps_made", "Denoising steps made, times samples.", registry=registry
        )
        self._saved = Counter(
            "lvd_guard_steps_saved",
            "Denoising steps not made since all samples were blocked, times samples.",
            registry=registry,
        )
        self._seconds = Histogram(
            "lvd_guard_check_seconds",
            "Time of all checks of one sampling.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._scores = Histogram(
            "lvd_guard_score",
            "P(unsafe) at every checked step of every sample.",
            ["category"],
            buckets=_SCORES,
            registry=registry,
        )

    def count(self, decisions: Sequence[Decision], steps: StepCount, category_names: Sequence[str]) -> None:
        """Count the decisions of one sampling, whose scores are of these categories."""
        for decision in decisions:
            category = decision.categories[0] if decision.categories else ""
            released = "true" if decision.released else "false"
            self._decisions.labels(decision.outcome, category, released).inc()
            if decision.fault is not None:
                self._unchecked.labels(decision.fault).inc()
            for of_step in decision.scores:
                for name, score in zip(category_names, of_step, strict=True):
                    self._scores.labels(name).observe(score)
        self._made.inc(steps.made * len(decisions))
        self._saved.inc(steps.saved * len(decisions))
        self._seconds.observe(decisions[0].seconds)  # the same of all

    def count_unrecorded(self, decisions: int) -> None:
        self._unrecorded.inc(decisions)
