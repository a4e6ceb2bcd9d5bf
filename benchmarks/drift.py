"""How soon the drift monitor notices: `python benchmarks/drift.py`.

Safe videos' statistics are normal; from the first live one on they are shifted by so many standard
deviations. Printed for each size of the calibration set: the share of runs with an alarm within 1,000 safe
videos, and the median video at which it came, of those.
"""

import sys
from statistics import median

import numpy as np

from lvd.command import exit_status
from lvd.decide.martingale import DriftMonitor

RUNS, VIDEOS = 100, 1000
SIZES, SHIFTS = (60, 200, 1000), (0.0, 0.25, 0.5, 1.0, 2.0)


def alarm(rng: np.random.Generator, size: int, shift: float, seed: int) -> int | None:
    monitor = DriftMonitor(rng.normal(size=size).tolist(), seed=seed)
    for value in rng.normal(shift, size=VIDEOS).tolist():
        monitor.see(value)
        if monitor.alarm_at is not None:
            break
    return monitor.alarm_at


def main() -> None:
    print("calibration prompts   " + "".join(f"{f'shift {shift:g}':>16}" for shift in SHIFTS))
    for size in SIZES:
        rng, cells = np.random.default_rng(size), []
        for shift in SHIFTS:
            found = [alarm(rng, size, shift, seed) for seed in range(RUNS)]
            alarms = [at for at in found if at is not None]
            cells.append(f"{len(alarms) / RUNS:.0%}, at {median(alarms):.0f}" if alarms else "never")
        print(f"{size:<22}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(main))
