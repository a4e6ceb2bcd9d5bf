"""Which pipelines work: each built tiny from its real classes, captured, then guarded, as Markdown.

A row is a pipeline with random weights. Captured: two samples were captured, x0 of every step is the one that
the scheduler's inputs give, and the last x0 is the latent that the pipeline ended on. Guarded: one of the two
samples was blocked, and the other came out bit for bit as without the guard. About two minutes.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import diffusers
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lvd.command import exit_status
from lvd.sampling.pipelines import REFUSED
from support.pipeline_runs import (
    blocked_one_and_left_the_other,
    capture,
    ends_on_its_last_x0,
    guard,
    is_what_it_heard,
)
from support.pipelines import TINY, Tiny


def row(tiny: Tiny, directory: Path) -> str:
    captured = capture(tiny, directory)
    info = captured.info
    good = is_what_it_heard(captured) and ends_on_its_last_x0(captured)
    guarded = blocked_one_and_left_the_other(guard(captured))
    cells = (
        tiny.name,
        tiny.inputs or "-",
        info.origin.scheduler.removesuffix("Scheduler"),
        str(list(info.origin.latent_shape)),
        info.origin.layout,
        "yes" if good else "WRONG",
        "yes" if guarded else "WRONG",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    print("| pipeline | input | scheduler | latent [C, F, H, W] | as it is stepped | captured | guarded |")
    print("|---|---|---|---|---|---|---|")
    for tiny in TINY:
        with tempfile.TemporaryDirectory() as directory:
            print(row(tiny, Path(directory)), flush=True)
    print("\n| refused | because |\n|---|---|")
    for name, reason in REFUSED.items():
        print(f"| {name} | {reason} |")


if __name__ == "__main__":
    sys.exit(exit_status(main))
