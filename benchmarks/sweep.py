"""What the sweep costs around the training itself. Needs `make demo`, and a machine with nothing else to do.

Heads and networks are trained through the real command line, with Hydra, Lightning, wandb (offline) and
result.json, a thread each. The bare training is the same on the same batches in a plain torch loop.

overhead   what a head's job costs above its bare training: sweeps of two lengths, their difference by job
long       a sweep of jobs that train 2 seconds or more, as a multiple of their bare training
joblib     how much faster 40 networks are with joblib on two cores than one after the other: minutes
memory     the resident memory of a sweep's process over 250 jobs
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from lvd.command import exit_status
from lvd.detect.bank import step_features
from lvd.detect.data import channel_statistics
from lvd.detect.files import trunk_digest
from lvd.detect.network import Detector, EncoderConfig, HeadDetector, NetworkDetector, choose_patch
from lvd.detect.rows import cell_rows
from lvd.errors import LvdError
from lvd.latents.reader import CaptureReader

CAPTURE, TRUNK = Path("captures/demo"), Path("runs/demo/trunk")
CATEGORIES = 5
EPOCHS = 10  # of a head, as in conf/train.yaml
LONG_EPOCHS, LONG_BATCH = 20, 16  # of a network, as in conf/train.yaml


def start_sweep(runs: Path, categories: int, steps: int, *overrides: str) -> "subprocess.Popen[bytes]":
    """train.py -m on the first categories and steps, every job of it to do."""
    command = [sys.executable, "train.py", "-m", f"category=0..{categories - 1}", f"step=0..{steps - 1}"]
    command += ["name=bench", "capture=demo", f"runs={runs}", "force=true", "threads=1", "accelerator=cpu"]
    return subprocess.Popen(
        [*command, *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
    )


def sweep_seconds(runs: Path, categories: int, steps: int, *overrides: str) -> float:
    started = time.perf_counter()
    if start_sweep(runs, categories, steps, *overrides).wait() != 0:
        raise LvdError("the sweep failed: run its command by hand")
    return time.perf_counter() - started


def bare_seconds(
    detector: Detector,
    read: Callable[[list[int]], torch.Tensor],
    task: tuple[list[int], list[int]],
    epochs: int,
    batch: int,
) -> float:
    """A plain loop with AdamW: no validation, no augmentation, no logging, no files."""
    started = time.perf_counter()
    rows, labels = task
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    label = torch.tensor(labels).float()
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows)).split(batch):
            logits = detector(read([rows[i] for i in chosen.tolist()]))
            loss = F.binary_cross_entropy_with_logits(logits, label[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - started


def overhead(capture: CaptureReader, runs: Path) -> None:
    bare = []
    digest = trunk_digest(TRUNK)
    assert digest is not None
    features = step_features(capture, TRUNK, digest, 0)
    for category in capture.info.category_names:
        task = cell_rows(capture.samples, category, "train", "balanced", 0)
        head = HeadDetector(features.shape[1])
        bare.append(bare_seconds(head, features.__getitem__, task, EPOCHS, 4096))
    short, long = (sweep_seconds(runs, CATEGORIES, steps) for steps in (2, 10))
    a_job, mean = (long - short) / (CATEGORIES * 8), sum(bare) / len(bare)
    print(f"a head's job: {a_job:.2f} s; its bare training: {mean:.2f} s")
    print(f"a job costs above its bare training: {a_job - mean:.2f} s (at most 0.6 is wanted)")


def long(capture: CaptureReader, runs: Path) -> None:
    latents = capture.step(0)
    shape = capture.info.origin.latent_shape
    bare = 0.0
    for category in capture.info.category_names:
        task = cell_rows(capture.samples, category, "train", "balanced", 0)
        network = NetworkDetector(EncoderConfig(shape, 96, 4, 4, choose_patch(shape, 2), 2))
        mean, std = channel_statistics(latents, task[0])
        network.mean.copy_(mean)
        network.std.copy_(std)
        bare += bare_seconds(
            network, lambda rows: torch.from_numpy(latents.read(rows)), task, LONG_EPOCHS, LONG_BATCH
        )
    took = sweep_seconds(runs, CATEGORIES, 1, "detector.init=scratch")
    print(
        f"{CATEGORIES} networks: bare training {bare / CATEGORIES:.1f} s each, the sweep {took:.1f} s in all"
    )
    print(f"the sweep takes {took / bare:.2f} of the bare training (at most 1.5 is wanted)")


def joblib(_capture: CaptureReader, runs: Path) -> None:
    steps = 8
    basic = sweep_seconds(runs, CATEGORIES, steps, "detector.init=scratch")
    both = sweep_seconds(
        runs, CATEGORIES, steps, "detector.init=scratch", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"
    )
    print(f"{CATEGORIES * steps} networks: basic {basic:.1f} s, joblib on two cores {both:.1f} s")
    print(f"joblib is {basic / both:.2f} times as fast (at least 1.7 is wanted)")


def memory(capture: CaptureReader, runs: Path) -> None:
    sweep = start_sweep(runs, CATEGORIES, capture.info.origin.steps)
    seen: dict[int, float] = {}  # jobs that are done -> MB
    while sweep.poll() is None:
        done = len(list((runs / "bench").glob("*/step_*/result.json")))
        pages = int(Path(f"/proc/{sweep.pid}/statm").read_text().split()[1])
        if pages:  # else it has just ended
            seen[done] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        time.sleep(0.2)
    marks = [max(jobs for jobs in seen if jobs <= mark) for mark in (50, 150, max(seen))]
    told = ", ".join(f"after {jobs} jobs {seen[jobs]:.0f} MB" for jobs in marks)
    print(f"the sweep's process: {told}")
    print(f"it grew by {seen[marks[-1]] - seen[marks[0]]:.0f} MB over the last {marks[-1] - marks[0]} jobs")


PARTS = {"overhead": overhead, "long": long, "joblib": joblib, "memory": memory}


def main() -> None:
    if not (TRUNK / "config.json").is_file():
        raise LvdError("there is no demo run: make demo first")
    torch.set_num_threads(1)
    capture = CaptureReader(CAPTURE)
    for part in sys.argv[1:] or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(TRUNK, Path(folder) / "bench" / "trunk")
            sweep_seconds(Path(folder), 1, 1)  # warm the disk cache
            shutil.rmtree(Path(folder) / "bench" / capture.info.category_names[0])
            PARTS[part](capture, Path(folder))


if __name__ == "__main__":
    sys.exit(exit_status(main))
