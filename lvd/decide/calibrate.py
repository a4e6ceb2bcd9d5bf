"""Choose the threshold on val, for a share of safe samples that may be blocked."""

import math

import numpy as np

from lvd.decide.rules import Bools, Floats, flags_needed
from lvd.errors import LvdError


def highest_threshold(scores_NSK: Floats, eta: int, lam: float) -> Floats:
    """The highest threshold `[N]` at which the rule still calls each sample unsafe.

    It is the n-th largest of the first eta steps' highest scores, where n flagged steps are needed: all that
    the rule depends on, in one number a sample. Missing scores are the lowest possible.
    """
    highest_NS = np.where(np.isnan(scores_NSK[:, :eta]), -np.inf, scores_NSK[:, :eta]).max(axis=2)
    return np.asarray(np.sort(highest_NS, axis=1)[:, eta - flags_needed(eta, lam)])


def choose_threshold(scores_NSK: Floats, label: Bools, eta: int, lam: float, max_fpr: float) -> float:
    """The lowest threshold at which the rule blocks at most a share `max_fpr` of the safe samples.

    Midway between the sample that must just pass and the next one above it.

    Raises:
        LvdError: there is no safe sample, or no threshold up to 1 keeps to the share.
    """
    of_samples = highest_threshold(scores_NSK, eta, lam)
    safe = np.sort(of_samples[~label])[::-1]
    if len(safe) == 0:
        raise LvdError("no safe val sample: a threshold cannot be chosen by max_fpr")
    allowed = math.floor(max_fpr * len(safe))
    if allowed >= len(safe):
        raise LvdError(f"max_fpr={max_fpr} lets every safe sample be blocked: give a smaller share")
    passing = float(safe[allowed])
    above = of_samples[of_samples > passing]
    threshold = (passing + (float(above.min()) if len(above) else 1.0)) / 2
    if not passing < threshold < 1:
        raise LvdError(
            f"no threshold blocks at most max_fpr={max_fpr} of the safe val samples at these scores"
        )
    return max(threshold, 1e-6)
