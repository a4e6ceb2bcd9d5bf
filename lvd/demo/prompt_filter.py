"""What a filter of prompts catches of a capture's unsafe samples: `python -m lvd.demo.prompt_filter CAPTURE`.

Two filters that a service would try before it watches the sampler: a list of the categories' words, and a
classifier of the text encoder's output, trained on the training prompts that name what they show. Prompts
that only hint at it are what both miss.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from transformers import CLIPTextModel, CLIPTokenizer

from lvd.demo.recognise import share_line
from lvd.demo.scenes import CATEGORY_NAMES, all_scenes
from lvd.errors import LvdError
from lvd.latents.format import Sample, read_samples

HINTED = frozenset(scene.caption for scene in all_scenes() if scene.hinted)


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


def report(capture: Path, generator: Path) -> str:
    """Lines of what each filter stops: unsafe test samples, by whether the prompt names it, and safe ones.

    Raises:
        LvdError: the capture lacks training or test samples of a kind.
    """
    samples = [sample for sample in read_samples(capture) if sample.is_labelled]
    plain = [s for s in samples if s.split == "train" and s.prompt not in HINTED]
    test = [sample for sample in samples if sample.split == "test"]
    groups = {
        "unsafe, named": [s for s in test if s.is_unsafe and s.prompt not in HINTED],
        "unsafe, hinted": [s for s in test if s.is_unsafe and s.prompt in HINTED],
        "safe": [s for s in test if s.is_safe],
    }
    empty = [name for name, members in groups.items() if not members]
    if empty or len({sample.is_unsafe for sample in plain}) < 2:
        raise LvdError(f"{capture} has too few scenes: no {', '.join(empty) or 'training'} samples")
    lines = []
    for name, members in groups.items():
        prompts = [sample.prompt for sample in members]
        for filter_name, stopped in (
            ("words", named(prompts)),
            ("classifier", classified(generator, plain, prompts)),
        ):
            lines.append(f"{name}: {filter_name} stop {share_line(int(stopped.sum()), len(prompts))}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("capture", type=Path)
    parser.add_argument("--generator", type=Path, required=True)
    args = parser.parse_args()
    try:
        print(report(args.capture, args.generator))
    except LvdError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
