"""Many guarded calls one after the other: what a check adds to a step, and whether memory grows.

    python benchmarks/guard_calls.py runs/demo/bundle [--calls 500]

The bundle is one of the demo's generator; one prompt a call, with fresh seeds, and every fifth call is made
without the guard, too. Between two steps of the network lie the scheduler and, in a guarded call, the check:
what a check takes is that time less the median of the unguarded calls. Steps are counted but for the last of
each call, in CPU time of the one thread, so that what else the machine does counts little. Five minutes of
one core at 4 steps a call, an hour at 50.
"""

import argparse
import csv
import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from lvd.command import exit_status
from lvd.demo.draw import GENERATOR, load_pipeline
from lvd.guard import Guard
from lvd.sampling.call import call_arguments

PROMPTS = Path(__file__).parents[1] / "lvd" / "demo" / "prompts.csv"
PAGE = os.sysconf("SC_PAGE_SIZE")


class Clock:
    """When the pipeline's network begins and ends, in one call."""

    def __init__(self, network: Any) -> None:
        self.begun: list[float] = []
        self.ended: list[float] = []
        network.register_forward_pre_hook(lambda *_: self.begun.append(time.thread_time()))
        network.register_forward_hook(lambda *_: self.ended.append(time.thread_time()))

    def read(self) -> tuple[list[float], list[float]]:
        """Seconds of each step, and of what lies between its network and the next; then begins anew."""
        begun, ended = np.array(self.begun), np.array(self.ended)
        self.begun.clear()
        self.ended.clear()
        return (begun[1:] - begun[:-1]).tolist(), (begun[1:] - ended[:-1]).tolist()


def memory() -> tuple[float, int]:
    """MiB of this process in memory, and how many tensors are alive."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20
    return resident, sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def milliseconds(seconds: Any) -> str:
    return " / ".join(f"{1000 * np.quantile(seconds, share):.1f}" for share in (0.5, 0.99))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--calls", type=int, default=500, help="with the guard (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    guard = Guard.from_pretrained(arguments.bundle)
    origin = guard.bundle.info.origin
    pipe = load_pipeline(GENERATOR)
    pipe.scheduler = getattr(diffusers, origin.scheduler).from_config(origin.scheduler_config)
    clock = Clock(pipe.unet)
    with PROMPTS.open() as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)]
    plain = call_arguments(pipe, origin.steps, origin.guidance, origin.call, 1)
    steps: list[float] = []
    between: dict[str, list[float]] = {"guarded": [], "unguarded": []}
    outcomes: dict[str, int] = {}
    marks = []
    for call in range(arguments.calls):
        prompt = [prompts[call % len(prompts)]]
        options = {"generator": torch.Generator().manual_seed(2_000_000 + call), "output_type": "np"}
        result = guard(pipe, prompt=prompt, **options)
        outcome = result.decisions[0].outcome
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        between["guarded"] += clock.read()[1]
        if call % 5 == 0:
            pipe(prompt=prompt, **plain, **options)
            whole, rest = clock.read()
            steps += whole
            between["unguarded"] += rest
        if (call + 1) % max(arguments.calls // 5, 1) == 0:
            marks.append(f"{call + 1}: {memory()[0]:.0f} MiB, {memory()[1]} tensors")
    usual = float(np.median(between["unguarded"]))
    added = np.array(between["guarded"]) - usual
    own = np.array(steps) - np.median(steps)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    share = np.median(added) / np.median(steps)
    print(f"{arguments.calls} guarded calls: {counted}")
    print(f"a step without the guard, median / p99: {milliseconds(steps)} ms")
    print(f"above its own median, p99: {1000 * np.quantile(own, 0.99):.1f} ms")
    print(f"a check adds, median / p99: {milliseconds(added)} ms, {share:.1%} of a step in the median")
    print("in memory after " + "; ".join(marks))


if __name__ == "__main__":
    sys.exit(exit_status(main))
