"""Evidence, cumulated over the steps, against a calibrated boundary: stop a sample as soon as it crosses.

The vote counts a flag of the first step, which is almost noise, like one of the twentieth, and throws the
scores away. A score's log-odds are the log-likelihood ratio of its step (where detectors learn from as many
unsafe samples as safe ones), and independent steps would add up as in Wald's sequential test (1945). Steps of
one sample are alike, though, and what an early step takes a sample for may not be what becomes of it: so the
sum fades, each step counting `FADING` times as much at the next, and the sum that it takes to stop a sample
falls, from the first step to the last, to `FALLING` of what it was. A sample is stopped when the evidence of
a category exceeds its boundary, at whatever step.

Where the boundary lies is the business of `lvd.decide.conformal`; its guarantee rests on nothing here.

Shapes: N samples, S steps, K categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from lvd.decide.recipe import GUARANTEES, POLICIES
from lvd.decide.rules import Bools, Decisions, Floats, Ints, log_odds
from lvd.errors import LvdError

_EXCEPTIONS = {"flag": "released and marked for review", "allow": "not looked at"}

_FAR = 1e9  # beyond any margin
_LARGEST = 7.0  # of a score's log-odds (P = 0.999): no single step settles a sample
FADING = 0.8  # both chosen on val samples of the demo's generator: docs/rules.md
FALLING = 0.5


@dataclass(frozen=True)
class Evidence:
    """What the scores of a sample's steps so far say for each category, in the form that bundles hold.

    cumulated_t = cumulated_{t-1} + weight_t * log_odds(score_t)
    evidence_t = scale_t * cumulated_t + offset_t
    """

    weight_SK: Floats
    scale_SK: Floats
    offset_SK: Floats

    @property
    def steps(self) -> int:
        return len(self.weight_SK)

    def begin(self) -> Floats:
        """The cumulated values `[K]` before the first step."""
        return np.zeros(self.weight_SK.shape[1])

    def advance(self, cumulated: Floats, step: int, scores: Floats) -> tuple[Floats, Floats]:
        """The cumulated values and the evidence `[..., K]` after a step with these scores `[..., K]`."""
        weighed = self.weight_SK[step] * np.clip(log_odds(scores), -_LARGEST, _LARGEST)
        cumulated = cumulated + weighed
        return cumulated, self.scale_SK[step] * cumulated + self.offset_SK[step]

    def of(self, scores_NSK: Floats) -> Floats:
        """Evidence `[N, S, K]` float64 after each step there is, of those that count.

        NaN from the first missing score of a category on.
        """
        cumulated, evidence = self.begin(), []
        for step in range(min(self.steps, scores_NSK.shape[1])):
            cumulated, of_step = self.advance(cumulated, step, scores_NSK[:, step])
            evidence.append(of_step)
        return np.stack(evidence, axis=1)


def fading_evidence(
    steps: int, categories: int, fading: float = FADING, falling: float = FALLING
) -> Evidence:
    """The same for each category; t = 0 .. steps - 1:

    sum_t = fading * sum_{t-1} + log_odds(score_t)
    evidence_t = sum_t / (1 - (1 - falling) * t / (steps - 1))
    """
    faded = fading ** np.arange(steps)
    scale = faded / np.linspace(1, falling, steps)
    weight_SK, scale_SK = (np.repeat(of_step[:, None], categories, axis=1) for of_step in (1 / faded, scale))
    return Evidence(weight_SK, scale_SK, np.zeros_like(scale_SK))


@dataclass(frozen=True)
class Sequential:
    """Evidence, a boundary for each category, and what the boundaries guarantee.

    `alpha`, `guarantee` and `prompts` (how many safe ones calibrated it) are `lvd.decide.conformal`'s.
    `reference` are the margins of the calibration videos that were not stopped, one a prompt, for
    `lvd.guard.drift`.

    `release`, if there is one: a sample is safe from here on, and not checked any further, as soon as every
    category's margin is below it, unless one has crossed. With the probability `miss` at most an unsafe
    sample like those of `unsafe_prompts` prompts is let go so. It can only make blocks rarer: `alpha` holds.
    """

    kind: ClassVar[str] = "sequential"
    evidence: Evidence
    boundary: tuple[float, ...]  # of each category
    policy: tuple[str, ...]  # of each category
    alpha: float
    guarantee: str
    prompts: int
    reference: tuple[float, ...] = ()
    release: float | None = None
    miss: float | None = None
    unsafe_prompts: int = 0

    @property
    def steps(self) -> int:
        return self.evidence.steps

    def tracker(self) -> "SequentialTracker":
        return SequentialTracker(self)

    def margins(self, scores_NSK: Floats) -> Floats:
        """How far each category's evidence lies above its boundary, `[N, S, K]`.

        -inf where the category is allowed, and after the step at which a sample is let go.
        """
        margins: Floats = self.evidence.of(scores_NSK) - np.array(self.boundary)
        margins[:, :, [policy == "allow" for policy in self.policy]] = -np.inf
        let_go, step = self._let_go(margins)
        after = np.arange(margins.shape[1]) > step[:, None]
        margins[let_go[:, None] & after] = -np.inf
        return margins

    def _let_go(self, margins_NSK: Floats) -> tuple[Bools, Ints]:
        """Which samples are let go before their last step, and at which, `[N]`."""
        if self.release is None:
            return np.zeros(len(margins_NSK), dtype=bool), np.zeros(len(margins_NSK), dtype=np.int64)
        low: Bools = np.asarray(margins_NSK.max(axis=2) < self.release)
        low &= np.maximum.accumulate(margins_NSK.max(axis=2), axis=1) <= 0
        return np.asarray(low.any(axis=1)), low.argmax(axis=1)

    def lowest(self, scores_NSK: Floats) -> Floats:
        """The lowest that the largest margin was before any category crossed, `[N]`; inf: one did at once."""
        margins_NS = replace(self, release=None).margins(scores_NSK).max(axis=2)
        before = np.maximum.accumulate(margins_NS, axis=1) <= 0
        return np.asarray(np.where(before | np.isnan(margins_NS), margins_NS, np.inf).min(axis=1))

    def decide(self, scores_NSK: Floats) -> Decisions:
        """Stopped where a category to block crosses; marked where one to flag does and none to block.

        Unchecked where nothing crosses and a score is missing.

        Raises:
            LvdError: there are fewer steps than the rule looks at.
        """
        if scores_NSK.shape[1] < self.steps:
            raise LvdError(f"the rule looks at {self.steps} steps, and there are {scores_NSK.shape[1]}")
        margins = self.margins(scores_NSK)
        blocking = np.array([policy == "block" for policy in self.policy])
        crossed_NS: Bools = np.asarray((margins[:, :, blocking] > 0).any(axis=2))
        blocked: Bools = np.asarray(crossed_NS.any(axis=1))
        marked: Bools = np.asarray((margins[:, :, ~blocking] > 0).any(axis=(1, 2)))
        known: Bools = np.asarray(~np.isnan(margins).any(axis=(1, 2)))
        let_go, release_step = self._let_go(margins)
        end = np.where(let_go, release_step, self.steps - 1)
        return Decisions(
            unsafe=blocked | (marked & known),
            safe=~blocked & ~marked & known,
            step=np.where(blocked, crossed_NS.argmax(axis=1), end).astype(np.int64),
            blocked=blocked,
        )

    def ranks(self, scores_NSK: Floats) -> tuple[Floats, Floats]:
        margins = self.margins(scores_NSK)
        missing = np.isnan(margins)
        bounds = (np.where(missing, unknown, margins).max(axis=(1, 2)) for unknown in (-_FAR, _FAR))
        least, most = bounds
        return least, most

    def attribute(self, scores_SK: Floats) -> tuple[int, ...]:
        margins = self.margins(scores_SK[None])[0]
        return self.crossed(np.where(np.isnan(margins), -np.inf, margins).max(axis=0))

    def crossed(self, highest_K: Floats) -> tuple[int, ...]:
        """The categories whose highest margin is above 0: those to block first, each kind by its margin."""
        order = np.lexsort((-highest_K, np.array(self.policy) != "block"))
        return tuple(int(column) for column in order if highest_K[column] > 0)

    def in_words(self) -> str:
        return (
            "Each category's log-odds are cumulated over the steps, recent ones counting most; a sample "
            "is unsafe as soon as the evidence of a category exceeds its boundary."
            + self._release_in_words()
            + "".join(
                f" Of the {len(self.policy)} categories, {self.policy.count(kind)} are only {what}."
                for kind, what in _EXCEPTIONS.items()
                if kind in self.policy
            )
        )

    def _release_in_words(self) -> str:
        if self.release is None:
            return ""
        return (
            f" It is safe, and not checked any further, as soon as all are more than {-self.release:.1f} "
            f"below; an unsafe sample is let go so with probability at most {self.miss:g}, as long as it is "
            f"exchangeable with those of the {self.unsafe_prompts} unsafe prompts of val (marginal)."
        )

    def guarantee_in_words(self) -> str:
        whose = f"the {self.prompts} safe prompts that calibrated it"
        if self.guarantee == "marginal":
            return (
                f"A safe video is blocked with probability at most {self.alpha:g}, as long as it is "
                f"exchangeable with those of {whose}: of the same kinds of prompts, from the same generator. "
                "The probability is over the draw of those prompts, too (marginal)."
            )
        return (
            f"With 95% confidence over the draw of {whose}, at most a share {self.alpha:g} of safe prompts "
            "like them, on the same generator, has a video that is blocked, of as many videos a prompt as in "
            "the calibration."
        )

    def as_json(self) -> dict[str, Any]:
        evidence = {name: array.tolist() for name, array in vars(self.evidence).items()}
        return {"kind": self.kind, **vars(self), "evidence": evidence}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], categories: int) -> "Sequential":
        """Raises:
        KeyError, TypeError, ValueError: it is not what `as_json` writes for so many categories.
        """
        weighed = raw["evidence"]
        arrays = [np.array(weighed[name], dtype=float) for name in ("weight_SK", "scale_SK", "offset_SK")]
        evidence = Evidence(*arrays)
        rule = cls(
            evidence=evidence,
            boundary=tuple(map(float, raw["boundary"])),
            policy=tuple(raw["policy"]),
            alpha=float(raw["alpha"]),
            guarantee=str(raw["guarantee"]),
            prompts=int(raw["prompts"]),
            reference=tuple(map(float, raw["reference"])),
            # Bundles of earlier versions let nothing go.
            release=None if raw.get("release") is None else float(raw["release"]),
            miss=None if raw.get("miss") is None else float(raw["miss"]),
            unsafe_prompts=int(raw.get("unsafe_prompts", 0)),
        )
        shapes = {array.shape for array in arrays}
        numbers = [*rule.boundary, *(array.sum() for array in arrays)]
        if (
            shapes != {(evidence.steps, categories)}
            or not len(rule.boundary) == len(rule.policy) == categories
            or not set(rule.policy) <= set(POLICIES)
            or set(rule.policy) == {"allow"}
            or not 0 < rule.alpha < 1
            or rule.guarantee not in GUARANTEES
            or not np.isfinite(rule.reference).all()
            or (rule.release is None) != (rule.miss is None)
            or not (rule.release is None or -np.inf < rule.release <= 0)
            or not (rule.miss is None or 0 < rule.miss < 1)
            or not np.isfinite(numbers).all()
            or evidence.steps == 0
        ):
            raise ValueError("not a sequential rule")
        return rule


class SequentialTracker:
    """One sample's evidence so far."""

    def __init__(self, rule: Sequential) -> None:
        self.outcome: Literal["unsafe", "safe"] | None = None
        self.why = ""
        self.blocks = True
        self.margin = -np.inf  # the largest so far, of any category that is not allowed
        self._rule = rule
        self._boundary = np.array(rule.boundary)
        self._allowed: Bools = np.array([policy == "allow" for policy in rule.policy])
        self._blocking: Bools = np.array([policy == "block" for policy in rule.policy])
        self._cumulated = rule.evidence.begin()
        self._highest = np.full(len(rule.boundary), -np.inf)  # margin of each category so far
        self._step = 0

    def see(self, scores: Sequence[float]) -> None:
        rule = self._rule
        self._cumulated, evidence = rule.evidence.advance(self._cumulated, self._step, np.array(scores))
        margins = np.where(self._allowed, -np.inf, evidence - self._boundary)
        self._highest = np.maximum(self._highest, margins)
        self.margin = float(self._highest.max())
        blocking = self._highest[self._blocking]
        is_last = self._step == rule.steps - 1
        self._step += 1
        if (blocking > 0).any():
            self.outcome = "unsafe"
            self.why = f"evidence {blocking.max():.1f} above the boundary (alpha={rule.alpha})"
        elif is_last and self.margin > 0:
            self.outcome, self.blocks = "unsafe", False
            self.why = f"evidence {self.margin:.1f} above the boundary, of a category that is only flagged"
        elif is_last:
            self.outcome = "safe"
            self.why = f"evidence stayed {-self.margin:.1f} below the boundary in all {rule.steps} steps"
            self._tell_allowed()
        elif rule.release is not None and self.margin <= 0 and margins.max() < rule.release:
            self.outcome = "safe"
            self.why = (
                f"evidence {-margins.max():.1f} below the boundary after {self._step} steps: "
                f"an unsafe sample is let go so with probability at most {rule.miss}"
            )
            self._tell_allowed()

    def _tell_allowed(self) -> None:
        if self._allowed.any():
            self.why += f"; {self._allowed.sum()} categories are allowed, and were not looked at"

    def categories(self) -> tuple[int, ...]:
        """Those that crossed."""
        return self._rule.crossed(self._highest)
