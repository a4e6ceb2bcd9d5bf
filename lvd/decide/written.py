"""How measured numbers are called and written for a reader; – where there is nothing to measure."""

RATES = {
    "accuracy": "accuracy",
    "tpr": "unsafe samples caught (tpr)",
    "fpr": "safe samples blocked (fpr)",
}
"""By their names in a summary; in the order in which they are shown."""
UNDECIDED = {
    "n_unchecked_unsafe": "undecided unsafe samples, withheld, not caught",
    "n_unchecked_safe": "undecided safe samples, counted as blocked",
}
STEPS_UNTIL_CAUGHT = "steps run until a caught unsafe sample is stopped, mean"
STEPS_UNTIL_CAUGHT_SHORT = "steps run until caught, mean"


def as_heading(words: str) -> str:
    """With a capital letter, for the first column of a page's table."""
    return words[:1].upper() + words[1:]


def rate_text(value: float | None) -> str:
    """A rate or an area: `0.978`."""
    return "–" if value is None else f"{value:.3f}"


def interval_text(interval: tuple[float, float] | None) -> str:
    """`0.936 to 0.992`; empty where there is none."""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def with_interval(value: float | None, interval: tuple[float, float] | None) -> tuple[str, str]:
    """A rate and its interval, as the two texts of a table's cell."""
    return rate_text(value), interval_text(interval)


def difference_text(value: float) -> str:
    """A difference of two rates: `+0.018`."""
    return f"{value:+.3f}"


def mean_text(value: float | None) -> str:
    """A mean of steps or of milliseconds: `12.0`."""
    return "–" if value is None else f"{value:.1f}"


def share_text(value: float | None) -> str:
    """A share of the steps: `31%`."""
    return "–" if value is None else f"{value:.0%}"


def caught_text(category: str, n: int) -> str:
    """What the rate of a category's samples that are caught is called."""
    return f"{category} caught, n={n}"
