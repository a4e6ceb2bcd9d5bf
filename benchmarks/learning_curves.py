"""How many labelled videos detectors need: `python benchmarks/learning_curves.py captures/study`.

Of the train split so many videos of every category are drawn, each of another prompt as long as there are
prompts, and safe ones in the proportion of the split. With those, detectors are trained by the project's own
recipe and scored on the whole test split, which is the same throughout:

unified      the outputs of a trunk
heads        a logistic head for each category and step on the same trunk
fine-tuned   a network for each category and step that starts from the same trunk
scratch      the same from random weights; these two at three steps, since they take longest

`--kinds` chooses among them.

Each line is a mean over draws (`--draws`), which also differ in everything that training draws at random. Its
95% interval has two parts, added as independent errors: the draws (Student's t) and the prompts of the test
split (the bootstrap of lvd.decide.intervals). Of one draw alone, the first part is unknown and left out.

accuracy   of the vote with eta=20 and lam=0.6
AUROC      of the highest score of a step, unsafe against safe videos
within     the same, of the pairs of an unsafe and a safe video that have one prompt: what x0 tells beyond
           the prompt

`--on val` measures a change of the recipe without the test split: half of the val prompts stand in for it.
Settings of train.py may follow, `trunk.batches=800 accelerator=gpu`; `--against` prints the differences to
another output, of the same kinds or of `--against-kind`. With the trunk's outputs alone (`--kinds unified`)
and without accuracy (`--undecided`), all time is the trunk's.
`--runs runs/study` adds what the outputs of that run's trunk reach; it may have learned from another capture.
All lines are then of the test samples whose prompts no such run has learned from.

Every draw's scores are written down; run again, it goes on from there. The table comes last, and table.csv,
table.json and figure.svg beside the scores. On one core about 4 minutes for a trunk, more for its heads, and
1 to 8 for 15 networks.
"""

import argparse
import logging
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import command
import torch
from learning_draws import Part, drawn, on_val
from learning_figure import figure
from learning_table import (
    SHOWN,
    VOTE,
    Key,
    Scores,
    differences,
    estimates,
    panels,
    print_tables,
    test_samples,
    write_numbers,
)
from safetensors.torch import load_file, save

from lvd.capture.frames import inference_device
from lvd.command import exit_status
from lvd.config import TrainConfig
from lvd.detect.bank import score_step, step_features
from lvd.detect.detector_training import train_detector
from lvd.detect.files import load_trunk, trunk_digest
from lvd.detect.fit import Setup
from lvd.detect.rows import labelled_rows
from lvd.detect.trunk_training import train_trunk
from lvd.errors import LvdError
from lvd.evaluation.measure import open_run
from lvd.files import json_sha256, read_json, write_atomically, write_json
from lvd.latents.format import Sample
from lvd.latents.reader import CaptureReader
from lvd.sweep.grid import Cell
from lvd.sweep.job import cell_seed

KINDS = ("unified", "heads", "fine-tuned", "scratch")
NETWORKS = {  # whose detectors are networks, and how train.py is told so
    "fine-tuned": {"init": "trunk", "tuning": "full", "cache": True},
    "scratch": {"init": "scratch", "cache": True},
}
NETWORK_STEPS = (4, 9, 19)  # that they are trained at


@dataclass(frozen=True)
class Draw:
    """So many videos a category (None: all there are), drawn by a seed, to train one kind of detectors."""

    kind: str
    videos: int | None
    seed: int

    @property
    def size(self) -> str:
        return "all" if self.videos is None else str(self.videos)

    def scores(self, output: Path) -> Path:
        return output / f"{self.kind}_{self.size}_{self.seed}.safetensors"

    def trunk(self, output: Path) -> Path:
        """Where the trunk of the same videos is kept, which three kinds share."""
        return output / f"trunk_{self.size}_{self.seed}"


def planned(kinds: Sequence[str], sizes: Sequence[str], draws: int) -> list[Draw]:
    """Draw after draw, so that an interrupted plan has some of every size and kind."""
    videos = [None if size == "all" else int(size) for size in sizes]
    return [Draw(kind, of, seed) for seed, of, kind in product(range(draws), videos, kinds)]


def train_and_score(
    capture: CaptureReader, draw: Draw, steps: Sequence[int], output: Path, config: TrainConfig
) -> Scores:
    """Train a draw's detectors at some steps, and score the test samples with them.

    The trunk is kept in `output`, and one that is there is not trained again.
    """
    device = inference_device(config.accelerator)
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory)
        if draw.kind != "scratch":
            kept = draw.trunk(output)
            if not (kept / "config.json").is_file():  # written last
                train_trunk(capture, kept, config.trunk, Setup(config.encoder, config, draw.seed))
            shutil.copytree(kept, run / "trunk")
        if draw.kind == "unified":
            return by_trunk(test_part(capture), run, steps, device)
        recipe = replace(config.detector, **NETWORKS.get(draw.kind, {"init": "trunk", "tuning": "head"}))
        for step, name in product(steps, capture.info.category_names):
            cell = Cell(name, step)
            setup = Setup(config.encoder, config, cell_seed(draw.seed, cell))
            train_detector(capture, run, run / cell.path, name, step, recipe, setup)
        rows, digest = labelled_rows(capture.samples, "test"), trunk_digest(run / "trunk")
        return {step: score_step(capture, run, digest, step, rows, {}, device)[0] for step in steps}


def test_part(capture: CaptureReader) -> Part:
    """The labelled test samples alone: no features are computed of others."""
    return Part(capture, {row: capture.samples[row] for row in labelled_rows(capture.samples, "test")})


def by_trunk(capture: CaptureReader, run: Path, steps: Sequence[int], device: torch.device) -> Scores:
    """Of the test samples, by the outputs of a run's trunk."""
    rows = labelled_rows(capture.samples, "test")
    digest = trunk_digest(run / "trunk")
    assert digest is not None
    output = load_trunk(run / "trunk").output.requires_grad_(False)
    features = {step: step_features(capture, run / "trunk", digest, step, device)[rows] for step in steps}
    return {step: output(of_step).sigmoid() for step, of_step in features.items()}


def of_run(capture: CaptureReader, run: Path, steps: Sequence[int], device: torch.device) -> Scores:
    """The same of a run that was trained before; nothing is written there."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / run.name
        shutil.copytree(run / "trunk", copy / "trunk", ignore=shutil.ignore_patterns("features", "wandb"))
        return by_trunk(capture, copy, steps, device)


def table_steps(capture: CaptureReader, kind: str, *, decide: bool) -> list[int]:
    """The steps of the table; `decide`: and all that the vote looks at. Networks have only some."""
    stored = range(capture.info.stored_steps)
    if kind in NETWORKS:
        return [step for step in NETWORK_STEPS if step in stored]
    return [step for step in stored if step in SHOWN or (decide and step < VOTE.steps)]


def unseen_by(capture: CaptureReader, runs: Sequence[Path]) -> list[int]:
    """Which of the test samples, by number, no run has learned from; no runs: all."""
    rows = labelled_rows(capture.samples, "test")
    left = set(rows).intersection(*(open_run(capture, run, "unified").rows["test"] for run in runs))
    return [number for number, row in enumerate(rows) if row in left]


def only(scores: Scores, numbers: Sequence[int]) -> Scores:
    return {step: of_step[list(numbers)] for step, of_step in scores.items()}


def train_plan(
    capture: CaptureReader, plan: Sequence[Draw], output: Path, config: TrainConfig, *, decide: bool
) -> None:
    """Train and score what is missing of the plan; `decide` as in `table_steps`."""
    drawings = dict.fromkeys((draw.videos, draw.seed) for draw in plan)  # the same for all kinds
    samples = {key: drawn(capture, *key) for key in drawings}  # what cannot be is told first
    for number, draw in enumerate(plan):
        if draw.scores(output).is_file():
            continue
        told = f"{draw.kind}, {draw.size} videos a category, draw {draw.seed}"
        print(f"{number + 1} of {len(plan)}: {told}", flush=True)
        steps = table_steps(capture, draw.kind, decide=decide)
        part = Part(capture, samples[draw.videos, draw.seed])
        scores = train_and_score(part, draw, steps, output, config)
        tensors = {str(step): of_step.contiguous() for step, of_step in scores.items()}
        write_atomically(draw.scores(output), save(tensors))


def measured(plan: Sequence[Draw], output: Path) -> dict[Key, dict[int, Scores]]:
    """The scores that are there of each kind and size, by draw."""
    found: dict[Key, dict[int, Scores]] = defaultdict(dict)
    for draw in plan:
        if (path := draw.scores(output)).is_file():
            scores = {int(step): of_step for step, of_step in load_file(path).items()}
            found[draw.kind, draw.size][draw.seed] = dict(sorted(scores.items()))
    return dict(found)


def check_settings(output: Path, settings: dict[str, object]) -> None:
    """Scores of other settings must not be taken for these.

    Raises:
        LvdError: what is in the output was made of another capture, other labels or another recipe.
    """
    path = output / "settings.json"
    if path.is_file() and read_json(path, "") != settings:
        raise LvdError(f"{path} has other settings than these: give another --output")
    write_json(path, settings)


def labels_digest(samples: Sequence[Sample]) -> str:
    return json_sha256([[s.sample_id, s.split, str(s.categories)] for s in samples])


def quiet_lightning() -> None:
    """It tells of every trainer that is made."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main() -> None:
    args = arguments()
    quiet_lightning()
    torch.set_num_threads(1)
    capture = CaptureReader(args.capture)
    if args.on == "val":
        capture = on_val(capture)
    config = command.train_config(args.settings)
    args.output.mkdir(parents=True, exist_ok=True)
    recipe = {name: asdict(getattr(config, name)) for name in ("encoder", "trunk", "detector")}
    check_settings(
        args.output,
        {
            "capture": capture.latents_digest,
            "labels": labels_digest(capture.samples),
            "precision": config.precision,
            **recipe,
        },
    )

    plan = planned(args.kinds, args.videos, args.draws)
    train_plan(capture, plan, args.output, config, decide=not args.undecided)

    unseen = unseen_by(capture, args.runs)
    test, scores = test_samples(capture, unseen), measured(plan, args.output)
    scores = {key: {seed: only(of, unseen) for seed, of in found.items()} for key, found in scores.items()}
    keys = [key for key in product(args.kinds, args.videos) if key in scores]
    rows = {key: (len(scores[key]), estimates(list(scores[key].values()), test)) for key in keys}
    for run in args.runs:
        part = Part(capture, dict(zip(test.rows, test.samples, strict=True)))
        steps = table_steps(capture, "unified", decide=not args.undecided)
        found = of_run(part, run, steps, inference_device(config.accelerator))
        rows[f"unified, run {run.name}", "all"] = 1, estimates([found], test)
    train = [s for s in capture.samples if s.split == "train" and s.is_labelled]
    of_category = {name: sum(s.has(name) for s in train) for name in capture.info.category_names}
    about = {
        "test_samples": len(test.samples),
        "test_unsafe": int(test.label.sum()),
        "test_prompts": len(set(test.prompts.tolist())),
        "all_videos": of_category,
    }
    write_numbers(args.output, rows, about)
    all_videos = sum(of_category.values()) / len(of_category)
    (args.output / "figure.svg").write_text(figure(panels(rows, all_videos), "labelled videos a category"))

    for name, value in about.items():
        print(f"{name}: {value}")
    print_tables(rows)
    if args.against is not None:
        kinds = args.kinds if args.against_kind is None else [args.against_kind]
        theirs = planned(kinds, args.videos, args.draws)
        print(f"\nless {args.against_kind or 'those'} of {args.against}, of the same draws:")
        print_tables(differences(scores, measured(theirs, args.against), test, args.against_kind))


def arguments() -> argparse.Namespace:
    parser = command.parser(__doc__)
    parser.add_argument("capture", type=Path)
    parser.add_argument("settings", nargs="*", help="of train.py, in place of its defaults")
    parser.add_argument("--output", type=Path, default=Path("runs/learning_curves"))
    parser.add_argument("--videos", nargs="+", default=["5", "10", "20", "40", "80", "all"])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument(
        "--undecided", action="store_true", help="only the table's steps, no accuracy: faster"
    )
    parser.add_argument("--on", choices=("test", "val"), default="test")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="trained runs, a line for each")
    parser.add_argument("--against", type=Path, help="another output, of another recipe; or this one")
    parser.add_argument("--against-kind", choices=KINDS, help="of that output, in place of the same kind")
    args = parser.parse_intermixed_args()
    if args.against_kind is not None and args.against is None:
        raise LvdError("--against-kind says what of --against, which is not given")
    if args.runs and (args.on == "val" or args.against is not None):
        raise LvdError("--runs goes with --on test and without --against")
    return args


if __name__ == "__main__":
    sys.exit(exit_status(main))
