"""The whole chain at 4 and 8 steps: capture, grid, decisions and guard on the demo's generator, as Markdown.

    python benchmarks/few_steps.py [LCM=4 Euler=8] [--videos 548] [--directory DIR]

The commands of `make demo`, one after the other, for each sampler and number of steps, with a trunk that is
trained on a quarter of the batches, since there are fewer steps. The rates are of test videos, with 95%
intervals by prompts; the guard then samples fresh seeds of test prompts, one prompt a call.
About ten minutes of one core for each. What was made before is taken from DIR.
"""

import argparse
import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra

from lvd.command import exit_status
from lvd.decide.written import interval_text, rate_text
from lvd.demo.draw import GENERATOR

ROOT = Path(__file__).parents[1]
SCHEDULERS = {"LCM": "LCMScheduler", "Euler": "EulerDiscreteScheduler"}
TRUNK_BATCHES = 100  # an epoch; there are fewer steps to learn
GUARDED = 24  # fresh videos, half of them of unsafe prompts


def run(command: str, *arguments: str) -> None:
    """`python COMMAND ARGUMENTS`, in this process, which has its imports already.

    Raises:
        SystemExit: it failed; what it printed comes before.
    """
    print(f"python {'' if command.endswith('.py') else '-m '}{command} {' '.join(arguments)}", flush=True)
    said = io.StringIO()
    before, sys.argv = sys.argv, [command, *arguments]
    try:
        with contextlib.redirect_stdout(said):
            if command.endswith(".py"):
                runpy.run_path(str(ROOT / command), run_name="__main__")
            else:
                runpy.run_module(command, run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            print(said.getvalue())
            raise
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()


def chain(sampler: str, steps: int, videos: int) -> str:
    """One sampler from the capture to the guard, in the working directory; a row."""
    name = f"{sampler.lower()}_{steps}"
    capture, run_dir = Path("captures") / name, Path("runs") / name
    run(
        "capture.py",
        *("pipeline=demo", f"pipeline.path={GENERATOR}"),
        *(f"pipeline.scheduler={SCHEDULERS[sampler]}", f"pipeline.steps={steps}"),
        "~pipeline.call.eta",  # DDIM's noise: no argument of these
        *(f"prompts={ROOT / 'lvd/demo/prompts.csv'}", f"limit={videos}", "batch_size=13", f"name={name}"),
    )
    run("lvd.demo.label", str(capture))
    run("capture.py", f"name={name}", f"labels={capture / 'labels.csv'}")
    training = (f"name={name}", "logger=none", f"trunk.batches={TRUNK_BATCHES}")
    run("train.py", "task=trunk", *training)
    run("train.py", "-m", "category=0..4", f"step=0..{steps - 1}", *training)
    run(
        "evaluate.py",
        *(f"name={name}", f"eta={steps}", "lam=0.6", "decision=sequential", "alpha=0.05", "logger=none"),
    )
    output = run_dir / "guarded"
    places = ("--bundle", str(run_dir / "bundle"), "--capture", str(capture), "--output", str(output))
    run("lvd.demo.guarded", *places, "--videos", str(GUARDED))
    summary = json.loads((run_dir / "evaluation" / "summary.json").read_text())
    guarded = json.loads((output / "guarded.json").read_text())
    return row(f"{sampler}, {steps}", videos, summary, guarded)


def row(name: str, videos: int, summary: dict[str, Any], guarded: dict[str, Any]) -> str:
    unlabelled = sum(summary["n_unlabelled"].values())
    rates = []
    for rule in ("vote", "sequential"):
        of_rule = summary["rules"][rule]
        rates += [
            f"{rate_text(of_rule[key])} ({interval_text(of_rule[f'{key}_ci'])})" for key in ("tpr", "fpr")
        ]
    released = f"{guarded['released_identical']} of {guarded['released']}"
    cells = (
        name,
        f"{videos - unlabelled} of {videos}",
        f"{summary['n_unsafe']} + {summary['n_safe']}",
        *rates,
        f"{guarded['caught']} of {guarded['unsafe']}",
        f"{guarded['blocked']} of {guarded['safe']}",
        released,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samplers", nargs="*", default=["LCM=4", "LCM=8", "Euler=4", "Euler=8"])
    parser.add_argument("--videos", type=int, default=548, help="of each (%(default)s)")
    parser.add_argument("--directory", type=Path, help="keeps captures and runs; default: nothing is kept")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if args.directory is None:
            args.directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        args.directory.mkdir(parents=True, exist_ok=True)
        os.chdir(args.directory)
        rows = []
        for sampler, _, steps in (each.partition("=") for each in args.samplers):
            rows.append(chain(sampler, int(steps), args.videos))
            print(rows[-1], flush=True)
    print(
        "| sampler, steps | clear | test: unsafe + safe | vote: caught | blocked | sequential: caught "
        "| blocked | guard: caught | blocked | released, bit for bit |"
    )
    print(f"|---|{'---:|' * 9}")
    print("\n".join(rows))


if __name__ == "__main__":
    sys.exit(exit_status(main))
