"""What one job of the sweep costs above its bare training, in seconds. Needs `make demo`.

Heads are trained through the real command line, with Hydra, Lightning, wandb (offline) and result.json, in
sweeps of two lengths: what the longer takes more is the cost of its further jobs. The bare training is the
same head on the same batches in a plain torch loop.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from lvd.detect.bank import step_features
from lvd.detect.network import HeadDetector
from lvd.detect.rows import cell_rows
from lvd.errors import LvdError
from lvd.latents.reader import CaptureReader

CAPTURE, TRUNK = Path("captures/demo"), Path("runs/demo/trunk")
EPOCHS, CATEGORIES, SHORT, LONG = 40, 5, 2, 10  # steps of the two sweeps


def sweep_seconds(runs: Path, steps: int) -> float:
    command = [sys.executable, "train.py", "-m", f"category=0..{CATEGORIES - 1}", f"step=0..{steps - 1}"]
    command += ["name=bench", "capture=demo", f"runs={runs}", "force=true", f"detector.head.epochs={EPOCHS}"]
    started = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
    )
    return time.perf_counter() - started


def bare_seconds(features: torch.Tensor, rows: list[int], labels: list[int]) -> float:
    """One head, full batches, AdamW, as many epochs; no validation, no logging, no files."""
    started = time.perf_counter()
    head = HeadDetector(features.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=1.0)
    inputs, label = features[rows], torch.tensor(labels).float()
    for _ in range(EPOCHS):
        order = torch.randperm(len(rows))
        loss = F.binary_cross_entropy_with_logits(head(inputs[order]), label[order])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


def main() -> None:
    if not (TRUNK / "config.json").is_file():
        raise LvdError("there is no demo run: make demo first")
    torch.set_num_threads(1)
    capture = CaptureReader(CAPTURE)
    bare = []
    for category in capture.info.category_names:
        rows, labels = cell_rows(capture.samples, category, "train", "balanced", 0)
        bare.append(bare_seconds(step_features(capture, TRUNK, 0), rows, labels))

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(TRUNK, Path(folder) / "bench" / "trunk")
        sweep_seconds(Path(folder), 1)  # warm the disk cache
        short, long = (sweep_seconds(Path(folder), steps) for steps in (SHORT, LONG))
    a_job = (long - short) / (CATEGORIES * (LONG - SHORT))
    mean_bare = sum(bare) / len(bare)
    print(f"a job of the sweep: {a_job:.2f} s; its bare training: {mean_bare:.2f} s")
    print(f"a job costs above its bare training: {a_job - mean_bare:.2f} s (at most 0.6 is wanted)")


if __name__ == "__main__":
    main()
