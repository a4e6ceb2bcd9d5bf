"""The runtime: decide while a video is still being denoised, and hand out nothing that was not checked."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvd.guard.audit import AuditLog
    from lvd.guard.decision import Decision, Verdict
    from lvd.guard.guard import Guard
    from lvd.guard.metrics import Metrics
    from lvd.guard.pipeline import GuardResult
    from lvd.guard.session import Session

_HOMES = {
    "AuditLog": "audit",
    "Decision": "decision",
    "Guard": "guard",
    "GuardResult": "pipeline",
    "Metrics": "metrics",
    "Session": "session",
    "Verdict": "decision",
}
__all__ = ["AuditLog", "Decision", "Guard", "GuardResult", "Metrics", "Session", "Verdict"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: to verify a log, nobody waits for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lvd.guard.{_HOMES[name]}"), name)
