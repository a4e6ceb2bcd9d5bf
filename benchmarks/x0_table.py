"""How well x0 is known: every supported sampler with a network that points at a known x0, as Markdown.

A row is a sampler with a prediction type, over all the options the tests run it with; its figures are the
largest error of x0 over those, ten steps and all elements, relative to the largest element of x0. In float64
that is the formula's error. In float16 the network's answer is rounded to float16, and its rounding comes
through as much as the parameterisation lets it: the bound is what that alone may cost. Less than a minute.
"""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lvd.command import exit_status
from support.samplers import CASES, X0, Case, answer, sample_perfectly


def errors(case: Case, dtype: torch.dtype) -> Iterator[tuple[float, float]]:
    """The error of x0 at each step, and what the rounding of the network's answer may cost."""
    scheduler = case.make()
    largest = float(X0.abs().max())
    for predicted in sample_perfectly(case, dtype):

        def ask(x0: Tensor, call: int = predicted.call, x_t: Tensor = predicted.x_t) -> Tensor:
            return answer(case, scheduler, call, x_t, x0)

        gain = 1 / float((ask(X0 + 1) - ask(X0)).abs().max())
        rounding = torch.finfo(dtype).eps / 2 * float(predicted.output.abs().max())
        yield float((predicted.x0 - X0).abs().max()) / largest, gain * rounding / largest


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    rows: dict[tuple[str, str], list[Case]] = {}
    for case in CASES:
        rows.setdefault((case.scheduler, case.prediction), []).append(case)

    print("| scheduler | prediction | options | float64 | float16 | bound in float16 |")
    print("|---|---|---:|---:|---:|---:|")
    for (scheduler, prediction), cases in sorted(rows.items()):
        exact = max(error for case in cases for error, _ in errors(case, torch.float64))
        half, bound = zip(*(pair for case in cases for pair in errors(case, torch.float16)), strict=True)
        figures = f"{exact:.0e} | {max(half):.1e} | {max(bound):.1e}"
        print(f"| {scheduler} | {prediction} | {len(cases)} | {figures} |", flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(main))
