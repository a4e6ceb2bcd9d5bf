"""Make a capture, runs and bundles with the code of an older commit, as README.md says."""

import hashlib
import json
import os
import runpy
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import torch
from hydra.core.global_hydra import GlobalHydra

from conftest import StubPipeline
from lvd.guard.audit import AuditLog
from lvd.guard.bundle import load_bundle
from lvd.guard.guard import Guard
from lvd.latents import journal, writer
from lvd.latents.format import FORMAT_VERSION, CaptureInfo, Sample
from lvd.latents.reader import CaptureReader
from lvd.latents.splits import assign_splits
from lvd.sampling.fingerprint import fingerprint, plain_config

ROOT = Path.cwd()
NAMES, STEPS, SHAPE = ("alpha", "beta"), 3, (2, 2, 4, 4)
WORDS = ["red", "blue", "green", "white", "black", "brown", "pink", "grey", "silver", "golden"]
WORDS += ["purple", "orange", "yellow", "violet", "amber", "teal", "wooden", "stone", "glass", "paper"]
WORDS += ["iron", "copper", "marble", "velvet", "silent", "noisy", "sunny", "rainy", "frozen", "dusty"]
SETTINGS = ["capture=frozen", "accelerator=cpu", "logger=none", "encoder.width=16", "encoder.layers=1"]
SETTINGS += ["encoder.heads=2", "encoder.patch=2", "encoder.tubelet=2", "trunk.batches=20"]
SETTINGS += ["trunk.fit.epochs=2", "detector.head.epochs=3"]
NETWORKS = ["detector.init=scratch", "detector.tuning=full", "detector.network.epochs=2"]


class Stub(StubPipeline):
    shape = SHAPE


def samples_of(count: int) -> list[Sample]:
    """Safe, alpha, beta, both in turn."""
    prompts = [f"a {WORDS[i % 30]} {WORDS[(7 * i + i // 30 + 3) % 30]} thing, no. {i}" for i in range(count)]
    kinds = [(), ("alpha",), (), ("beta",), (), ("alpha", "beta")]
    categories = [kinds[i % 6] for i in range(count)]
    splits = assign_splits(prompts, prompts, categories, seed=0)
    return [
        Sample(f"s{i:02d}", f"p{i:02d}", prompts[i], 100 + i, categories[i], splits[i]) for i in range(count)
    ]


def latents_of(samples: list[Sample]) -> torch.Tensor:
    """x0 `[N, STEPS, *SHAPE]` float16: noise, and the channel of a category raised."""
    x0 = torch.randn(len(samples), STEPS, *SHAPE, generator=torch.Generator().manual_seed(0))
    for row, sample in enumerate(samples):
        for name in sample.categories:
            x0[row, :, NAMES.index(name)] += 1.0
    return x0.half()


def info() -> CaptureInfo:
    pipe = Stub()
    values = {
        "format_version": FORMAT_VERSION,
        "pipeline": "nowhere/stub",
        "revision": None,
        "pipeline_class": type(pipe).__name__,
        "call": {},
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": plain_config(pipe.scheduler.config),
        "fingerprint": fingerprint(pipe),
        "layout": "BCFHW",
        "steps": STEPS,
        "guidance": 5.0,
        "latent_shape": SHAPE,
        "dtype": "float16",
        "category_names": NAMES,
        "versions": {},
        "labelled": True,
    }
    return CaptureInfo(**{k: v for k, v in values.items() if k in {f.name for f in fields(CaptureInfo)}})


def command(script: str, *arguments: str) -> None:
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{script} failed") from end
    finally:
        GlobalHydra.instance().clear()


def decisions_of(bundle: Path) -> dict[str, object]:
    """What the bundle's guard decides: on the capture's x0 of the test split, and on a call of the stub."""
    loaded = load_bundle(bundle)
    capture = CaptureReader(Path("captures/frozen"))
    rows = [row for row, sample in enumerate(capture.samples) if sample.split == "test"]
    scores = torch.stack(
        [
            loaded.detectors(step, torch.from_numpy(capture.step(step).read(rows)).float()).sigmoid()
            for step in range(loaded.info.rule.steps if hasattr(loaded.info, "rule") else loaded.info.eta)
        ],
        dim=1,
    )
    guard = Guard(loaded, audit=AuditLog("audit.jsonl"))
    called = guard(Stub(), prompt=["a", "b", "c", "d"], guidance_scale=5.0).decisions
    result = {
        "digest": loaded.digest,
        "samples": [capture.samples[row].sample_id for row in rows],
        "scores": scores.tolist(),
        "call": [[d.outcome, d.step, list(d.categories)] for d in called],
    }
    if hasattr(Guard, "session"):
        session = Guard(loaded).session(samples=len(rows), steps=STEPS)
        for step in range(STEPS):
            session.check(step, torch.from_numpy(capture.step(step).read(rows)).float())
            if session.stopped:
                break
        result["session"] = [[d.outcome, d.step, list(d.categories)] for d in session.close()]
    return result


def evaluate(name: str, *arguments: str) -> tuple[Path, dict[str, object]]:
    """The bundle of an evaluation, where it lies, and what it measured."""
    command("evaluate.py", f"name={name}", "capture=frozen", *arguments)
    run = Path("runs") / name
    summary = json.loads((run / "evaluation/summary.json").read_text())
    kept = {key: summary[key] for key in ("n_test", "accuracy", "tpr", "fpr", "threshold")}
    return (run / "bundle").resolve().relative_to(Path.cwd()), {"arguments": arguments, **kept}


def main() -> None:
    destination = Path(sys.argv[1]).resolve()
    destination.mkdir(parents=True)
    os.chdir(destination)
    os.environ.update(WANDB_MODE="offline", COLUMNS="200")
    torch.set_num_threads(1)
    samples = samples_of(60)
    x0 = latents_of(samples)
    capture = Path("captures/frozen")
    writer.begin(capture, info(), samples)
    journal.append(capture, [s.sample_id for s in samples], x0)
    writer.finish(capture)
    command("train.py", "task=trunk", "name=heads", *SETTINGS)
    command("train.py", "-m", "category=0..1", "step=0..2", "name=heads", *SETTINGS)
    bundles = [evaluate("heads", "eta=2", "lam=0.5")]
    if (ROOT / "conf" / "decision").is_dir():
        bundles.append(evaluate("heads", "eta=2", "lam=0.5", "decision=sequential", "alpha=0.2"))
    command("train.py", "-m", "category=0..1", "step=0", "name=networks", *SETTINGS, *NETWORKS)
    bundles.append(evaluate("networks", "eta=1", "lam=1.0"))
    expected = {
        "samples": [
            [s.sample_id, s.prompt_id, s.prompt, s.seed, list(s.categories), s.split] for s in samples
        ],
        "x0_sha256": [hashlib.sha256(x0[:, step].numpy().tobytes()).hexdigest() for step in range(STEPS)],
        "x0_first_row": x0[0].flatten(1).tolist(),
        "bundles": {str(bundle): {**decisions_of(bundle), "summary": summary} for bundle, summary in bundles},
    }
    for pattern in (
        "evaluation/report.html",
        "evaluation/figures",
        "index.html",
        "multirun.yaml",
        "**/.hydra",
        "**/job.log",
        "**/wandb",
        "**/.lock",
        "**/*.lock",
    ):
        for path in [*Path("runs").glob("*/" + pattern), *capture.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")


main()
