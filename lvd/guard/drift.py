"""Is live traffic still like the calibration set? Audit log in, alarm out.

    python -m lvd.guard.drift audit.jsonl --bundle runs/mine/bundle [--false-alarm 0.01]

The bundle's guarantee holds while a live safe video is exchangeable with the calibration videos. Every video
that the log calls safe was watched until that was decided; how far its evidence stayed below the boundary
goes into a conformal test martingale (`lvd.decide.martingale`), of each prompt's first such video alone, as
in the calibration: videos of one prompt are alike. Exit status 1 is an alarm, 2 an error.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from lvd.command import exit_status
from lvd.decide.martingale import DriftMonitor
from lvd.decide.sequential import Sequential
from lvd.errors import LvdError
from lvd.guard.audit import records
from lvd.guard.bundle import load_bundle


@dataclass(frozen=True)
class Drift:
    """What a log shows of one bundle's traffic."""

    decisions: int  # of this bundle
    watched: int  # of which were safe, and the first of their prompt
    capital: float
    alarm_at: int | None  # which of the watched, from 1


def watch(log: Path, bundle: str | Path, false_alarm: float) -> Drift:
    """Follow the log from its first record.

    Raises:
        LvdError: the log was tampered with, the bundle cannot be read, its rule is not calibrated, or the log
            has no decision of it.
    """
    loaded = load_bundle(bundle)
    rule = loaded.info.rule
    if not isinstance(rule, Sequential):
        raise LvdError(f"{bundle} decides by {rule.kind}, which guarantees nothing that could be lost")
    monitor, decisions = DriftMonitor(rule.reference, false_alarm=false_alarm), 0
    prompts = set()
    for record in records(log):
        if record["bundle"] != loaded.digest:
            continue
        decisions += 1
        if record["outcome"] == "safe" and record["prompt_sha256"] not in prompts:
            prompts.add(record["prompt_sha256"])
            tracker = rule.tracker()
            for scores in record["scores"]:
                tracker.see(scores)
            monitor.see(tracker.margin)
    if not decisions:
        raise LvdError(f"{log} has no decision of the bundle {loaded.digest}")
    return Drift(decisions, monitor.count, monitor.capital, monitor.alarm_at)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lvd.guard.drift", description="Watch an audit log.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--bundle", required=True, help="its directory, or its name on the Hub")
    parser.add_argument(
        "--false-alarm", type=float, default=0.01, help="probability of ever raising one (%(default)s)"
    )
    arguments = parser.parse_args()
    found = watch(arguments.file, arguments.bundle, arguments.false_alarm)
    print(f"{found.decisions} decisions, {found.watched} safe videos of as many prompts")
    if found.alarm_at is None:
        print(f"no change seen: capital {found.capital:.3g}, alarm at {1 / arguments.false_alarm:.3g}")
        return
    print(
        f"alarm: by safe video {found.alarm_at}, traffic no longer looks like what the bundle was calibrated "
        "for, and its guarantee may not hold: capture and label new videos, and evaluate again"
    )
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(exit_status(main, mistake=2))
