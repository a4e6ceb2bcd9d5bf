"""Detectors that learned from real clips, from generated videos, and from both, on the same generated ones.

    make demo
    python benchmarks/real_clips.py

Needs the capture of `make demo`, and ViZDoom (extra `demo`). Clips of the demo's scenes are recorded in the
game, labelled by what they show, and captured with `source=clips`. Their captions are mixed as the demo's
prompts are, and none of them is a prompt of the demo's val or test split. Three runs with the same settings,
a trunk and its detectors each, are trained:

demo    on the generated videos of the demo's train split
clips   on clips alone: train and val are clips
both    on the train clips and the train videos together; val is the demo's

All are measured on the demo's test split by `evaluate.py compare=`, whose rules are calibrated on the demo's
val split, as ever: the vote's are fixed, the sequential rule needs safe videos alone. What is done is not
done again: the same command goes on where it was interrupted.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import command
import numpy as np
import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from lvd.capture.preview import write_video
from lvd.command import exit_status
from lvd.decide.intervals import auroc_interval, prompt_numbers
from lvd.decide.metrics import auroc
from lvd.decide.written import RATES, STEPS_UNTIL_CAUGHT_SHORT, mean_text, with_interval
from lvd.demo.recogniser import VISIBLE
from lvd.demo.recorder import record_clips
from lvd.demo.scenes import PROMPTS, SUBJECTS, Scene, all_captions
from lvd.errors import LvdError
from lvd.files import atomic_file
from lvd.latents import journal, writer
from lvd.latents.format import UNLABELLED, Sample, read_info, read_samples
from lvd.latents.reader import CaptureReader
from lvd.latents.splits import prompt_groups
from lvd.sweep.trained_on import TrainedOn

DEMO, CLIPS, BOTH = "demo", "clips", "both"
STEPS = (0, 2, 4, 6, 9, 14, 19, 29, 49)  # of the table
SEED = 0
FRAMES_A_SECOND = 12
_AT_ONCE = 64  # samples that are copied at once


def record_labelled_clips(folder: Path, held_out: set[str]) -> Path:
    """Record the clips and write clips.csv, which names them, once; captions in `held_out` are left out."""
    table = folder / "clips.csv"
    if table.is_file():
        return table
    rng = np.random.default_rng(SEED)
    chosen = []
    for wording, captions in groupby(all_captions(), lambda caption: caption.wording):
        free = [caption for caption in captions if caption.text not in held_out]
        count = min(len(free), PROMPTS[free[0].kind][0])
        print(f"{wording}: {count} clips", flush=True)
        chosen += [free[place] for place in sorted(rng.choice(len(free), count, replace=False))]
    scenes = [Scene(str(rng.choice(c.subjects)), c.place, c.motion) for c in chosen]
    clips, shares = record_clips(scenes, SEED)
    rows = []
    for number, (caption, scene) in enumerate(zip(chosen, scenes, strict=True)):
        name = f"clip_{number:04d}"
        write_video(folder / f"{name}.mp4", clips[number] / 255, FRAMES_A_SECOND)
        subject = SUBJECTS[scene.subject]
        shown = not subject.sprite or float((shares[number] > VISIBLE).mean()) > 0.5
        label = "unlabelled" if not shown else subject.name if subject.unsafe else ""
        rows.append([name, f"{name}.mp4", caption.text, label])
    with atomic_file(table) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [["sample_id", "video", "prompt", "categories"], *rows]
        )
    return table


def combine(generated: Path, clips: Path, directory: Path) -> None:
    """A capture of the generated videos, and beside them, in its train split, the train clips.

    Clips that were val or test among themselves are in it without a label, so that nothing is learned from
    them either.

    Raises:
        LvdError: their x0 was not made in the same way.
    """
    if writer.is_complete(directory):
        return
    if differ := TrainedOn.of(clips).other_origin(read_info(generated)):
        raise LvdError(f"{clips} and {generated} differ in {', '.join(differ)}: begin {clips} again")
    readers = [CaptureReader(generated), CaptureReader(clips)]
    info = replace(readers[0].info, clips=readers[1].info.clips)
    writer.begin(directory, info, [*readers[0].samples, *map(_beside_videos, readers[1].samples)])
    done = journal.journalled(directory)
    for reader in readers:
        for start in range(0, len(reader.samples), _AT_ONCE):
            rows = range(start, min(start + _AT_ONCE, len(reader.samples)))
            ids = [reader.samples[row].sample_id for row in rows]
            if ids[0] not in done:
                x0 = [torch.from_numpy(reader.step(step).read(rows)) for step in range(info.stored_steps)]
                journal.append(directory, ids, torch.stack(x0, dim=1))
    writer.finish(directory)


def _beside_videos(clip: Sample) -> Sample:
    return replace(clip, split="train", categories=clip.categories if clip.split == "train" else UNLABELLED)


def auroc_by_step(capture: Path, run: Path) -> dict[int, tuple[float, tuple[float, float]]]:
    """Of the highest score of a step, unsafe against safe test samples."""
    samples = {sample.sample_id: sample for sample in read_samples(capture)}
    scores = pd.read_csv(run / "evaluation" / "scores.csv", dtype={"sample_id": str}, keep_default_na=False)
    highest = scores[scores["split"] == "test"].pivot_table("score", "sample_id", "step", aggfunc="max")
    test = [samples[sample_id] for sample_id in highest.index]
    unsafe = np.array([sample.is_unsafe for sample in test])
    prompts = prompt_numbers(prompt_groups([s.prompt for s in test], [s.prompt_id for s in test]))
    return {
        step: (auroc(unsafe, column), auroc_interval(unsafe, column, prompts))
        for step, column in ((step, highest[step].to_numpy()) for step in STEPS)
    }


def trained_on(capture: Path) -> str:
    train = [sample for sample in read_samples(capture) if sample.split == "train"]
    return f"{sum(s.is_unsafe for s in train)} unsafe, {sum(s.is_safe for s in train)} safe"


def results(captures: Path, runs: Path) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"on the test split of {captures / DEMO}, 95% intervals")
    table.add_column("")
    for name in (DEMO, CLIPS, BOTH):
        table.add_column(name)
    names = (DEMO, CLIPS, BOTH)
    table.add_row("train samples", *(trained_on(captures / name) for name in names))
    summaries = [json.loads((runs / name / "evaluation" / "summary.json").read_bytes()) for name in names]
    for rule in ("vote", "sequential"):
        of_rule = [summary["rules"][rule] for summary in summaries]
        for rate, words in RATES.items():
            table.add_row(f"{words}, {rule}", *(_cell(found[rate], found[f"{rate}_ci"]) for found in of_rule))
        table.add_row(f"AUROC, {rule}", *(_cell(found["auroc"], found["auroc_ci"]) for found in of_rule))
        means = (mean_text(found["steps_mean_unsafe"]) for found in of_rule)
        table.add_row(f"{STEPS_UNTIL_CAUGHT_SHORT}, {rule}", *means, end_section=True)
    areas = [auroc_by_step(captures / DEMO, runs / name) for name in names]
    for step in STEPS:
        table.add_row(f"AUROC of step {step}", *(_cell(*found[step]) for found in areas))
    return table


def _cell(value: float | None, interval: Sequence[float] | None) -> str:
    return "  ".join(with_interval(value, None if interval is None else (interval[0], interval[1])))


def run_command(*arguments: str) -> None:
    print("python " + " ".join(arguments), flush=True)
    if subprocess.run([sys.executable, *arguments], check=False).returncode:
        raise LvdError(f"{arguments[0]} failed: put right what it says, and give the same command again")


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--captures", type=Path, default=Path("captures"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--jobs", type=int, default=-1, help="detectors trained at once; -1: one a core")
    arguments = parser.parse_args()
    captures, runs = arguments.captures, arguments.runs
    places = [f"captures={captures}", f"runs={runs}"]
    generated = CaptureReader(captures / DEMO)
    held_out = {sample.prompt for sample in generated.samples if sample.split != "train"}
    recorded = record_labelled_clips(captures / "recorded", held_out)
    capture = ["source=clips", "pipeline=demo", f"prompts={recorded}", f"name={CLIPS}", "batch_size=16"]
    run_command("capture.py", *capture, f"captures={captures}")
    combine(captures / DEMO, captures / CLIPS, captures / BOTH)
    for name in (DEMO, CLIPS, BOTH):
        train = ["train.py", "experiment=demo", f"name={name}", *places]
        run_command(*train, "task=trunk")
        run_command(*train, "-m", "category=0..4", "step=0..49", f"hydra.launcher.n_jobs={arguments.jobs}")
    rules = ["eta=20", "lam=0.6", "decision=sequential", "alpha=0.05"]
    run_command("evaluate.py", f"compare=[{DEMO},{CLIPS},{BOTH}]", f"capture={DEMO}", *rules, *places)
    Console(width=150).print(results(captures, runs))


if __name__ == "__main__":
    sys.exit(exit_status(main))
