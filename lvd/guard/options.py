"""How a guard is set."""

from dataclasses import dataclass

from lvd.errors import LvdError
from lvd.guard.decision import Mode


@dataclass(frozen=True)
class GuardOptions:
    """The options of a `Guard`, which says what they mean.

    Raises:
        LvdError: one is out of range.
    """

    mode: Mode = "block"
    fail_open: bool = False
    allow_mismatch: bool = False
    by_noise_level: bool = False
    limit_seconds: float | None = None
    wait_seconds: float = 0.0
    compact: bool = False
    lag: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("block", "observe"):
            raise LvdError(f"mode={self.mode!r} must be block or observe")
        if self.limit_seconds is not None and not self.limit_seconds > 0:
            raise LvdError(f"limit_seconds={self.limit_seconds} must be greater than 0")
        if not self.wait_seconds >= 0:
            raise LvdError(f"wait_seconds={self.wait_seconds} must be 0 or more")
        if self.lag not in (0, 1):
            raise LvdError(f"lag={self.lag!r} must be 0 or 1")
        if self.lag and self.limit_seconds is not None:
            raise LvdError("limit_seconds does not go with lag=1: a check that nobody waits for has no time")
