"""The runtime: decide while a video is still being denoised, and hand out nothing that was not checked."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvd.guard.audit import AuditLog
    from lvd.guard.guard import Guard, GuardResult
    from lvd.guard.watch import Decision

__all__ = ["AuditLog", "Decision", "Guard", "GuardResult"]


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: to verify a log, nobody waits for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module("lvd.guard.audit" if name == "AuditLog" else "lvd.guard.guard")
    return getattr(module, name)
