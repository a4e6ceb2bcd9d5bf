"""Does a generator of scenes draw what it is asked to? `python -m lvd.demo.scenes_measure FOLDER`.

`FOLDER` is what `lvd.demo.scenes_recipe` made. The recogniser, which knows recorded clips and no caption,
first judges fresh clips, then generated ones: whether subject and place are the prompt's, and how much of
the recorded clips' coherence they have. With `--prompts`, it also writes prompts for capture.py with their
seeds and the categories of what was drawn, not of what was asked for; unclear videos are left out.
Exit status 1 when fewer than 95% of the subjects are the prompt's.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lvd.demo.recognise import load_pipeline, share_line
from lvd.demo.recogniser import Recogniser, Verdict, judge, load_recogniser, to_float
from lvd.demo.scenes import FRAMES, SUBJECTS, Scene, random_scene, record_clips
from lvd.demo.sheet import lay_out
from lvd.errors import LvdError
from lvd.progress import progress

STEPS = 50
GUIDANCE = 1.0  # none: one pass of the network a step
BATCH = 13
PASS_SHARE = 0.95


def balanced_scenes(count: int, seed: int, *, hinted: bool) -> list[Scene]:
    """`count` scenes, the subjects in turn, in random places and motions."""
    rng = np.random.default_rng(seed)
    return [
        replace(random_scene(rng), subject=subject, hinted=hinted)
        for subject in islice(cycle(SUBJECTS), count)
    ]


def sample_videos(pipeline: Any, captions: Sequence[str], seed: int, steps: int = STEPS) -> Tensor:
    """A video of each caption, the i-th from seed `seed + i`: `[N, FRAMES, 3, SIZE, SIZE]` in [-1, 1]."""
    videos = []
    with progress("sampling", len(captions), "videos") as advance:
        for start in range(0, len(captions), BATCH):
            batch = list(captions[start : start + BATCH])
            frames_BFHWC = pipeline(
                batch,
                num_frames=FRAMES,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                generator=[torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(batch))],
                output_type="np",
            ).frames
            videos.append(torch.from_numpy(frames_BFHWC).permute(0, 1, 4, 2, 3) * 2 - 1)
            advance(len(batch))
    return torch.cat(videos)


@torch.no_grad()
def coherence(recogniser: Recogniser, videos: Tensor) -> Tensor:
    """How alike neighbouring frames of each video look to the recogniser: mean cosine of features, `[N]`."""
    seen = recogniser.features(videos.flatten(0, 1))[2].flatten(1).unflatten(0, videos.shape[:2])
    return F.cosine_similarity(seen[:, 1:], seen[:, :-1], dim=2).mean(dim=1)


def subject_table(scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> str:
    """How often each subject was asked for and recognised, and what it was taken for otherwise."""
    lines = [f"{'subject':<12} {'videos':>6} {'recognised':>10}  taken for"]
    for name in SUBJECTS:
        seen = Counter(v.subject for s, v in zip(scenes, verdicts, strict=True) if s.subject == name)
        count, right = seen.total(), seen.pop(name, 0)
        mistakes = ", ".join(f"{wrong} x{times}" for wrong, times in seen.most_common())
        lines.append(f"{name:<12} {count:>6} {right:>10}  {mistakes}".rstrip())
    return "\n".join(lines)


def agreement(scenes: Sequence[Scene], verdicts: Sequence[Verdict]) -> int:
    """How many verdicts name the subject of the prompt."""
    return sum(scene.subject == verdict.subject for scene, verdict in zip(scenes, verdicts, strict=True))


def write_labelled_prompts(
    path: Path, scenes: Sequence[Scene], verdicts: Sequence[Verdict], seed: int
) -> tuple[int, int]:
    """Write `prompt, seed, categories` of the clear videos, the i-th made from seed `seed + i`.

    Returns how many were left out, and how many of the others differ from their prompt in their categories.
    """
    clear = [
        (scene, verdict, seed + i)
        for i, (scene, verdict) in enumerate(zip(scenes, verdicts, strict=True))
        if verdict.clear
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["prompt", "seed", "categories"])
        writer.writerows([scene.caption, its, "|".join(seen.categories)] for scene, seen, its in clear)
    differ = sum(scene.categories != verdict.categories for scene, verdict, _ in clear)
    return len(scenes) - len(clear), differ


def run(folder: Path, videos: int, hinted: int, seed: int, steps: int, prompts: Path | None) -> int:
    """Measure, report, and write `FOLDER/sheet.png` and clips; the exit status."""
    recogniser = load_recogniser(folder / "recogniser.safetensors")
    pipeline = load_pipeline(folder / "generator")

    scenes = balanced_scenes(videos, seed, hinted=False)
    clips, _ = record_clips(scenes, seed)
    recorded = to_float(clips)
    right = agreement(scenes, judge(recogniser, recorded))
    print(f"recorded clips recognised: {share_line(right, videos)}", flush=True)

    drawn = sample_videos(pipeline, [scene.caption for scene in scenes], seed, steps)
    verdicts = judge(recogniser, drawn)
    right = agreement(scenes, verdicts)
    print(subject_table(scenes, verdicts))
    print(f"subject as prompted: {share_line(right, videos)}")
    places = sum(scene.place == verdict.place for scene, verdict in zip(scenes, verdicts, strict=True))
    print(f"place as prompted: {share_line(places, videos)}")
    print(f"clear verdicts: {share_line(sum(verdict.clear for verdict in verdicts), videos)}")
    for name, of in (("recorded", recorded), ("generated", drawn)):
        alike = coherence(recogniser, of).mean().item()
        steady = np.mean([verdict.steady for verdict in judge(recogniser, of)])
        print(
            f"{name}: neighbouring frames' cosine {alike:.3f}, frames that agree with their clip {steady:.3f}"
        )
    if hinted:
        hints = balanced_scenes(hinted, seed + videos, hinted=True)
        shown = judge(recogniser, sample_videos(pipeline, [s.caption for s in hints], seed + videos, steps))
        print(f"subject as hinted at: {share_line(agreement(hints, shown), hinted)}")
        scenes, verdicts = scenes + hints, verdicts + shown
    if prompts:
        unclear, differ = write_labelled_prompts(prompts, scenes, verdicts, seed)
        print(f"{prompts}: {unclear} unclear videos left out; categories not the prompt's: {differ}")

    columns = range(min(len(SUBJECTS), videos))
    rows = {f"frame {i}": [drawn[column, i] for column in columns] for i in range(0, FRAMES, 2)}
    rows["recorded"] = [recorded[column, FRAMES // 2] for column in columns]
    lay_out([scenes[column].caption for column in columns], rows).save(folder / "sheet.png")
    print(f"contact sheet: {folder / 'sheet.png'}")
    return 0 if right / videos >= PASS_SHARE else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=300, help="prompts that name (default: %(default)s)")
    parser.add_argument(
        "--hinted", type=int, default=65, help="prompts that only hint (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of denoising (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--prompts", type=Path, help="write the labelled prompts to this CSV file")
    args = parser.parse_args()
    try:
        return run(args.folder, args.videos, args.hinted, args.seed, args.steps, args.prompts)
    except LvdError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
