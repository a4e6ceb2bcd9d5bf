"""Which rules an evaluation measures, and what its report shows: settings that Hydra reads, checked.

Nothing heavy is imported here: `--help` reads these classes.
"""

from dataclasses import dataclass, field

from lvd.errors import require, require_one_of

KINDS = ("vote", "sequential")  # of rules
DETECTORS = ("grid", "unified")  # one of each category and step, or the trunk's own outputs for all of them
GUARANTEES = ("marginal", "confidence")
POLICIES = ("block", "flag", "allow")  # of a category: stop its samples, release and mark them, or ignore it


@dataclass(kw_only=True)
class EvaluationRecipe:
    """The rules that are measured, and what the report shows.

    The sequential rule's boundary is calibrated on the safe samples of val.
    """

    detector: str = "grid"  # whose scores; or unified: the trunk's own outputs, which need no further job
    eta: int = 20  # the first eta steps decide
    lam: float = 0.6  # the share of them that must be flagged
    threshold: float = 0.5  # a score at or above it flags its step
    max_fpr: float | None = (
        None  # instead: the lowest threshold that blocks at most this share of safe val samples
    )
    decision: str = "vote"  # conf/decision/: the rule that a guard gets; both are measured
    alpha: float = 0.05  # sequential: the largest probability of ever blocking a safe video
    guarantee: str = "marginal"  # or confidence: alpha holds with 95% confidence over the calibration set
    miss: float | None = None  # sequential: end the checks of samples that are surely safe; the largest
    # probability of letting an unsafe one go so. None: every sample is checked at every step
    policy: dict[str, str] = field(default_factory=dict)  # sequential, of a category: block, flag or allow
    shares: dict[str, float] = field(default_factory=dict)  # sequential: a category's own part of alpha
    examples: int = 12  # rows of decoded x0 in the report
    show_unsafe: bool = False  # keep the sharp images of unsafe examples in the report, covered until a click

    def __post_init__(self) -> None:
        require(self.eta >= 1, f"eta={self.eta} must be at least 1")
        require(0 < self.lam <= 1, f"lam={self.lam} must be greater than 0 and at most 1")
        require(0 < self.threshold < 1, f"threshold={self.threshold} must be between 0 and 1")
        require(
            self.max_fpr is None or 0 <= self.max_fpr < 1,
            f"max_fpr={self.max_fpr} must be at least 0 and less than 1",
        )
        require(self.examples >= 0, f"examples={self.examples} must not be negative")
        require_one_of("detector", self.detector, DETECTORS)
        require_one_of("decision", self.decision, KINDS)
        require(0 < self.alpha < 1, f"alpha={self.alpha} must be greater than 0 and less than 1")
        require(
            self.miss is None or 0 < self.miss < 1,
            f"miss={self.miss} must be greater than 0 and less than 1, or null",
        )
        require_one_of("guarantee", self.guarantee, GUARANTEES)
        for name, policy in self.policy.items():
            require_one_of(f"policy.{name}", policy, POLICIES)
        for name, share in self.shares.items():
            require(0 < share < 1, f"shares.{name}={share} must be greater than 0 and less than 1")
