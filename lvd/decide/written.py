"""How measured numbers are written for a reader; – where there is nothing to measure."""


def rate_text(value: float | None) -> str:
    """A rate or an area: `0.978`."""
    return "–" if value is None else f"{value:.3f}"


def interval_text(interval: tuple[float, float] | None) -> str:
    """`0.936 to 0.992`; empty where there is none."""
    return "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def mean_text(value: float | None) -> str:
    """A mean of steps or of milliseconds: `12.0`."""
    return "–" if value is None else f"{value:.1f}"
