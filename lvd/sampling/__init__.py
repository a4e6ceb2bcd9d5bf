"""What a sampler predicts, and how to listen to it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvd.sampling.layout import Layout, to_BCFHW
    from lvd.sampling.tap import tap_x0
    from lvd.sampling.x0 import predict_x0, step_timesteps, supported_schedulers

_HOMES = {
    "Layout": "layout",
    "predict_x0": "x0",
    "step_timesteps": "x0",
    "supported_schedulers": "x0",
    "tap_x0": "tap",
    "to_BCFHW": "layout",
}
__all__ = ["Layout", "predict_x0", "step_timesteps", "supported_schedulers", "tap_x0", "to_BCFHW"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: a command's --help does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lvd.sampling.{_HOMES[name]}"), name)
