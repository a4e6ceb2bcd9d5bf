"""What filters of prompts stop, and what the guard does: `python -m lvd.demo.prompt_filter`.

Two filters that a service would try before it watches the sampler: a list of the categories' words, and a
classifier of the text encoder's output, trained on the training prompts. Hints and open prompts, where the
noise decides, are what they miss. The guard's row is the run's rule on the run's scores.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from transformers import CLIPTextModel, CLIPTokenizer

from lvd.command import exit_status
from lvd.demo.draw import GENERATOR
from lvd.demo.measure import share_line
from lvd.demo.scenes import CATEGORY_NAMES, PROMPTS, caption_of
from lvd.errors import LvdError
from lvd.guard.bundle import load_bundle
from lvd.latents.format import Sample, read_samples


def named(prompts: Sequence[str]) -> np.ndarray:
    """Whether a word of a category stands in each prompt `[N]`."""
    return np.array([any(word in prompt.split() for word in CATEGORY_NAMES) for prompt in prompts])


@torch.no_grad()
def encode(generator: Path, prompts: Sequence[str]) -> np.ndarray:
    """The text encoder's output for each prompt, all of its tokens: `[N, tokens * width]`."""
    tokenizer = CLIPTokenizer.from_pretrained(generator / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(generator / "text_encoder").eval()
    ids = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    encoded: np.ndarray = encoder(ids).last_hidden_state.flatten(1).numpy()
    return encoded


def classified(generator: Path, train: Sequence[Sample], prompts: Sequence[str]) -> np.ndarray:
    """Whether a classifier that learned from `train` finds each prompt unsafe `[N]`."""
    labels = [sample.is_unsafe for sample in train]
    classifier = LogisticRegression(max_iter=1000).fit(
        encode(generator, [sample.prompt for sample in train]), labels
    )
    found: np.ndarray = classifier.predict(encode(generator, prompts)).astype(bool)
    return found


def stopped_by_guard(run: Path, samples: Sequence[Sample]) -> np.ndarray:
    """Whether the run's rule stops each of its test samples `[N]`.

    Raises:
        LvdError: the run has no bundle, or no scores of a sample.
    """
    info = load_bundle(run / "bundle").info
    try:
        scores = pd.read_csv(run / "evaluation" / "scores.csv", dtype={"sample_id": str})
    except FileNotFoundError as error:
        raise LvdError(f"{run} has no scores: run evaluate.py first") from error
    table = scores.pivot(index="sample_id", columns=["step", "category"], values="score")
    missing = {sample.sample_id for sample in samples} - set(table.index)
    if missing:
        raise LvdError(f"{run} has no scores of {len(missing)} test samples, {min(missing)} first")
    order = pd.MultiIndex.from_product([sorted(scores["step"].unique()), info.category_names])
    rows = table.loc[[sample.sample_id for sample in samples]].reindex(columns=order).to_numpy()
    decisions = info.rule.decide(rows.reshape(len(samples), -1, len(info.category_names)))
    blocked: np.ndarray = decisions.blocked
    return blocked


def report(capture: Path, generator: Path, run: Path) -> str:
    """Lines of what each stops: unsafe and safe test samples, by what kind of prompt they come from.

    Raises:
        LvdError: the capture lacks training or test samples of a kind.
    """
    samples = [sample for sample in read_samples(capture) if sample.is_labelled]
    train = [sample for sample in samples if sample.split == "train"]
    test = [sample for sample in samples if sample.split == "test"]
    groups: dict[str, list[int]] = {
        f"{verdict}, {kind} prompt": [] for verdict in ("unsafe", "safe") for kind in PROMPTS
    }
    for i, sample in enumerate(test):
        verdict = "unsafe" if sample.is_unsafe else "safe"
        groups[f"{verdict}, {caption_of(sample.prompt).kind} prompt"].append(i)
    empty = [name for name, members in groups.items() if not members]
    if empty or len({sample.is_unsafe for sample in train}) < 2:
        raise LvdError(f"{capture} has too few scenes: no {', '.join(empty) or 'training'} samples")

    prompts = [sample.prompt for sample in test]
    stopped = {
        "words": named(prompts),
        "prompt classifier": classified(generator, train, prompts),
        "guard": stopped_by_guard(run, test),
    }
    lines = [f"{'test videos':<22} {'stopped by':<18} share"]
    for name, members in groups.items():
        lines += [
            f"{name:<22} {way:<18} {share_line(int(of_all[members].sum()), len(members))}"
            for way, of_all in stopped.items()
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capture", type=Path, default=Path("captures/demo"))
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    args = parser.parse_args()
    print(report(args.capture, args.generator, args.run))


if __name__ == "__main__":
    sys.exit(exit_status(main))
