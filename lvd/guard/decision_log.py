"""Decisions for the logs of a service: a record of the standard `logging` for each, and nothing of a prompt.

The logger `lvd.guard.decision_log` tells, at level INFO, of every decision once it stands. The attribute
`decision` of a record has its fields, all of JSON's types. What is free text (why, mismatches) is in the
audit log alone, since it may repeat what a caller gave.
"""

import datetime
import json
import logging
from collections.abc import Sequence

from lvd.guard.decision import Decision

_log = logging.getLogger(__name__)


def log_decisions(bundle: str, decisions: Sequence[Decision]) -> None:
    """A record for each decision by the bundle of this digest."""
    for decision in decisions:
        fields = {
            "bundle": bundle,
            "outcome": decision.outcome,
            "step": decision.step,
            "categories": list(decision.categories),
            "fault": decision.fault,
            "mode": decision.mode,
            "released": decision.released,
            "mismatches": len(decision.mismatches),
            "seconds": decision.seconds,
        }
        done = "released" if decision.released else "withheld"
        _log.info("%s, %s", decision.outcome, done, extra={"decision": fields})


class JsonFormatter(logging.Formatter):
    """A line of JSON for a record of any logger; a decision's fields stand under `decision`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if hasattr(record, "decision"):
            line["decision"] = record.decision
        return json.dumps(line)
