"""Has live traffic left the calibration set? A conformal test martingale over the safe videos' statistics.

The boundary's guarantee holds while a live safe video is exchangeable with the calibration videos. Then the
rank of each one's statistic among all before it is uniform and independent, and no bet on the ranks grows:
the probability that the capital of a bet that starts with 1 ever reaches 100 is at most 1% (Ville, 1939).
The bet is the Simple Jumper of Vovk et al. (2021), averaged over its rates of change.

Seen are the videos that were not stopped. Given the boundary, their statistics and the calibration videos'
below it are draws from one distribution, whatever share of the traffic is unsafe and was stopped.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

import numpy as np

from lvd.errors import LvdError

_RATES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_SLOPES = np.array([-1.0, 0.0, 1.0])


class DriftMonitor:
    """One pass over live statistics.

    reference: the calibration videos' statistics below the boundary, one a prompt.
    false_alarm: the probability of ever raising an alarm while nothing has changed.
    seed: of the draws that order equal statistics.
    """

    def __init__(self, reference: Sequence[float], *, false_alarm: float = 0.01, seed: int = 0) -> None:
        if not 0 < false_alarm < 1:
            raise LvdError(f"false_alarm={false_alarm} must be greater than 0 and less than 1")
        self._seen = sorted(reference)
        self._bar = 1 / false_alarm
        self._rng = np.random.default_rng(seed)
        self._capital_RE = np.full((len(_RATES), len(_SLOPES)), 1 / (len(_RATES) * len(_SLOPES)))
        self.count = 0
        self.capital = 1.0
        self.alarm_at: int | None = None  # how many videos had been seen, from 1

    def see(self, statistic: float) -> None:
        """Take in the next video that was not stopped. After an alarm nothing more is bet."""
        self.count += 1
        if self.alarm_at is not None:
            return
        bet_E = 1 + _SLOPES * (self.p_value_of_next(statistic) - 0.5)
        rates_R1 = np.array(_RATES)[:, None]
        of_rate_R1 = self._capital_RE.sum(axis=1, keepdims=True)
        self._capital_RE = ((1 - rates_R1) * self._capital_RE + rates_R1 / len(_SLOPES) * of_rate_R1) * bet_E
        self.capital = float(self._capital_RE.sum())
        if self.capital >= self._bar:
            self.alarm_at = self.count

    def p_value_of_next(self, statistic: float) -> float:
        """The p-value of the next statistic, which counts as seen from then on.

        The share of statistics seen so far, this one among them, that lie above; equal ones in part.
        """
        insort(self._seen, statistic)
        below = bisect_left(self._seen, statistic)
        upto = bisect_right(self._seen, statistic)
        above, equal = len(self._seen) - upto, upto - below
        return float((above + self._rng.random() * equal) / len(self._seen))
