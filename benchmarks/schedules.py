"""One trunk, trained at 50 DDIM steps, on other schedules of its model, against a trunk trained on each.

    make demo
    python benchmarks/schedules.py --only all   # makes what is not there, one schedule after the other
    python benchmarks/schedules.py              # the table of all that are there

`--only euler25` makes one, and several may run at once, a process each. Of each schedule:

capture    the run's own samples, its prompts and seeds, sampled with the schedule, in the run's own splits: a
           test prompt is one everywhere. Labelled by the recogniser, by what these videos show.
trunk      trained on that capture by the recipe of train.py
scores     of its val and test videos

The table has four lines for each:

50 steps   the outputs of the run's trunk, asked at each step's noise level (lvd.detect.levels)
own        the outputs of the trunk that was trained on the schedule, which needs a labelled capture of it
difference the first less the second, on the same videos
guard      the run's bundle as `Guard(by_noise_level=True)` decides with it: its detectors and its rule,
           nothing of which is set on the schedule

and of each of these, of test videos whose prompts the run has not learned from:

10% ..     AUROC of the highest score of the step that ends this share of the schedule, unsafe against safe
caught     the share of unsafe videos that a rule stops. For both trunks it is the sequential rule of as many
           steps as the schedule has, with alpha=0.05, calibrated on the schedule's safe val videos. It knows
           no number of steps, as the vote does, whose 20 mean something else in each. The guard's is the
           bundle's.
steps      run until a caught unsafe video is stopped, the mean
blocked    the share of safe videos that it stops

Intervals are 95%, by prompts. `ddim50` is the control: what a second training on the run's own schedule
changes, with another seed. `--limit` takes fewer samples, of each split and category in turn. Settings of
train.py may follow, `trunk.batches=100`. On one core half an hour for each 50 steps of a schedule, and four
minutes for a trunk; with `--device cuda` a few minutes for all at once.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import command
import torch
from learning_curves import check_settings, labels_digest, quiet_lightning
from safetensors import safe_open
from safetensors.torch import save
from schedules_plan import SCHEDULES, Made, some_of
from schedules_table import Row, Scores, markdown, measured
from torch import Tensor

from lvd.capture.decode import load_vae
from lvd.capture.recorder import record
from lvd.capture.source import Recording, Source
from lvd.command import exit_status
from lvd.config import TrainConfig
from lvd.demo.draw import GENERATOR
from lvd.demo.label import look
from lvd.demo.recogniser import load_recogniser
from lvd.detect.ensemble import Ensemble, UnifiedDetector
from lvd.detect.files import load_trunk, trunk_digest
from lvd.detect.fit import Setup
from lvd.detect.levels import TrainedLevels, TrainedSteps
from lvd.detect.trunk_training import train_trunk
from lvd.errors import LvdError
from lvd.evaluation.measure import open_run
from lvd.files import json_sha256, write_atomically, write_json
from lvd.guard.bundle import Bundle, load_bundle
from lvd.latents.format import UNLABELLED, Sample, read_samples
from lvd.latents.reader import CaptureReader
from lvd.latents.writer import is_complete, relabel
from lvd.progress import progress
from lvd.typed import typed

SEED = 1  # of the trunks: another one than the run's, so that the control is a training of its own
_AT_ONCE = 128  # samples that are scored at once


@dataclass(frozen=True)
class Trained:
    """The run whose detectors are asked at other schedules."""

    run: Path
    bundle: Bundle
    levels: TrainedLevels

    @classmethod
    def of(cls, run: Path) -> "Trained":
        """Raises: LvdError: there is no bundle, or none that knows its noise levels or has a trunk."""
        bundle = load_bundle(run / "bundle")
        if bundle.detectors.trunk is None:
            raise LvdError(f"the bundle of {run} has no trunk")
        return cls(run, bundle, TrainedLevels.of(bundle.info.origin.noise_levels))

    def rows(self, capture: CaptureReader) -> dict[str, list[int]]:
        """The val and test rows of a capture whose prompts the run has not learned from."""
        return open_run(capture, self.run, "unified").rows


def captured(made: Made, samples: Sequence[Sample], device: str, batch_size: int) -> CaptureReader:
    """The capture of a schedule, labelled; what is there is not sampled again.

    Raises:
        LvdError: the directory has a capture of other samples.
    """
    given = [f"pipeline.path={GENERATOR}", f"pipeline.device={device}", *made.schedule.settings()]
    source = typed(command.composed("capture", ["pipeline=demo", *given]).pipeline, Source)
    record(source, samples, made.capture, Recording(batch_size=batch_size))
    if not any(sample.is_labelled for sample in read_samples(made.capture)):
        capture = CaptureReader(made.capture)
        vae, recogniser = load_vae(capture.info.origin).to(device), load_recogniser().to(device)
        verdicts = look(capture, vae, recogniser)
        shown = [verdict.categories if verdict.clear else UNLABELLED for verdict in verdicts]
        labelled = [replace(s, categories=it) for s, it in zip(capture.samples, shown, strict=True)]
        relabel(made.capture, labelled)
    return CaptureReader(made.capture)


def trained(made: Made, capture: CaptureReader, config: TrainConfig) -> None:
    """The trunk of a schedule; one that is there is not trained again.

    Raises:
        LvdError: what is there was trained on other data or by another recipe.
    """
    recipe = {name: asdict(getattr(config, name)) for name in ("encoder", "trunk")}
    data = {"capture": capture.latents_digest, "labels": labels_digest(capture.samples)}
    check_settings(made.directory, {**data, "seed": config.seed, "precision": config.precision, **recipe})
    if not (made.trunk / "config.json").is_file():  # written last
        train_trunk(capture, made.trunk, config.trunk, Setup(config.encoder, config, config.seed))


def scored(made: Made, capture: CaptureReader, of: Trained, device: str) -> None:
    """Score the val and test videos of a schedule, unless that is done."""
    if scores_of(made, capture, of) is not None:
        return
    rows, steps = of.rows(capture), range(capture.info.stored_steps)
    every = [*rows["val"], *rows["test"]]
    positions = of.levels.positions(noise_levels(capture))
    trunk = of.bundle.detectors.trunk
    assert trunk is not None
    guard = logits_of(of.bundle.detectors, capture, rows["test"], positions, device)
    decided, told_at = as_guarded(guard, noise_levels(capture), of.levels)
    found = {
        "trained": logits_of(UnifiedDetector(trunk), capture, every, positions, device).sigmoid(),
        "own": logits_of(UnifiedDetector(load_trunk(made.trunk)), capture, every, steps, device).sigmoid(),
        "guard": guard.sigmoid(),
        "decided": decided.sigmoid(),
        "told_at": told_at,
    }
    tensors = {name: scores.contiguous() for name, scores in found.items()}
    write_atomically(made.scores, save(tensors, {"of": scores_key(made, capture, of)}))


@torch.inference_mode()
def logits_of(
    detectors: Ensemble, capture: CaptureReader, rows: Sequence[int], positions: Sequence[float], device: str
) -> Tensor:
    """Logits `[len(rows), S, K]` at every step of a capture, which has these positions among the trained."""
    detectors = detectors.to(device).eval()
    of_steps = []
    with progress("scoring", len(positions), "steps") as advance:
        for step, position in enumerate(positions):
            latents = capture.step(step)
            parts = [rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE)]
            x0 = [torch.from_numpy(latents.read(part)).to(device) for part in parts]
            of_steps.append(torch.cat([detectors(position, part).cpu() for part in x0]))
            advance()
    return torch.stack(of_steps, dim=1)


def as_guarded(logits_NSK: Tensor, noise: Sequence[float], levels: TrainedLevels) -> tuple[Tensor, Tensor]:
    """What a guard that goes by noise levels makes of its checks' logits.

    Logits `[N, trained steps, K]`, and the sampler's step `[trained steps]` whose check tells of each.
    """
    steps = TrainedSteps(levels, len(noise))
    found, told_at = [], []
    for step, level in enumerate(noise):
        told = steps.advance(step, partial(float, level))
        if told:
            found += steps.between(logits_NSK[:, step], range(len(logits_NSK)), told)
            told_at += [step] * len(told)
    return torch.stack(found, dim=1), torch.tensor(told_at)


def noise_levels(capture: CaptureReader) -> tuple[float, ...]:
    levels = capture.info.origin.noise_levels
    assert levels is not None  # a capture that is made today has them
    return levels


def scores_of(made: Made, capture: CaptureReader, of: Trained) -> dict[str, Tensor] | None:
    """What `scored` wrote, of these very videos, labels and networks; None: it has not."""
    if not made.scores.is_file():
        return None
    with safe_open(made.scores, framework="pt") as file:
        if file.metadata() != {"of": scores_key(made, capture, of)}:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping


def scores_key(made: Made, capture: CaptureReader, of: Trained) -> str:
    networks = [of.bundle.digest, trunk_digest(made.trunk)]
    return json_sha256([capture.latents_digest, labels_digest(capture.samples), *networks])


def row_of(made: Made, of: Trained) -> Row | None:
    """The lines of a schedule; None: it is not made yet, or of another bundle or labels."""
    if not is_complete(made.capture):
        return None
    capture = CaptureReader(made.capture)
    found = scores_of(made, capture, of)
    if found is None:
        return None
    rows = of.rows(capture)
    return measured(made.schedule.name, capture, rows, Scores(**found), of.bundle.info.rule)


def run(args: argparse.Namespace) -> None:
    quiet_lightning()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise LvdError("--device cuda: there is no GPU here")
    plan = {name: Made(schedule, args.output / name) for name, schedule in SCHEDULES.items()}
    asked = [name for name in plan if name in args.only or "all" in args.only]
    of = Trained.of(args.run)
    samples = some_of(read_samples(args.capture), args.limit) if asked else []
    accelerator = "gpu" if args.device == "cuda" else "cpu"
    config = command.train_config([f"accelerator={accelerator}", f"seed={SEED}", *args.settings])
    rows: dict[str, Row] = {}
    failed = []
    for name in asked or plan:
        made = plan[name]
        try:
            if asked:
                print(f"{name}: {len(samples)} videos", flush=True)
                capture = captured(made, samples, args.device, args.batch_size)
                trained(made, capture, config)
                scored(made, capture, of, args.device)
            row = row_of(made, of)
        except LvdError as error:  # the others go on
            failed.append(f"{name}: {error}")
            continue
        if row is not None:
            rows[name] = row
    if not rows and not failed:
        raise LvdError(f"no schedule is in {args.output} yet: give --only all, or the name of one")
    if rows and args.json:
        write_json(args.json, {"run": str(args.run), "bundle": of.bundle.digest, "schedules": rows})
    if rows:
        print(markdown(rows.values()))
    if failed:
        raise LvdError("; ".join(failed))


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("settings", nargs="*", help="of train.py, in place of its defaults")
    parser.add_argument("--only", nargs="+", default=[], choices=("all", *SCHEDULES), help="make these")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="trained and exported")
    parser.add_argument("--capture", type=Path, default=Path("captures/demo"), help="which it learned from")
    parser.add_argument("--output", type=Path, default=Path("runs/schedules"))
    parser.add_argument("--limit", type=int, help="samples of the capture (default: all)")
    parser.add_argument("--batch-size", type=int, default=64, help="videos at once (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the table's numbers here")
    return exit_status(lambda: run(parser.parse_intermixed_args()))


if __name__ == "__main__":
    sys.exit(main())
