"""Does the generator of scenes draw what it is asked to? `python -m lvd.demo.measure` (extra `demo`).

The recogniser, which knows recorded clips and no caption, first judges fresh clips, then generated ones:
whether subject and place are the prompt's, and how much of the recorded clips' coherence they have. Exit
status 1 when fewer than 95% of the subjects are the prompt's.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lvd.capture.decode import decode_frames
from lvd.decide.intervals import wilson
from lvd.demo.draw import GENERATOR, STEPS, load_pipeline, sample_videos
from lvd.demo.recogniser import Recogniser, Verdict, judge, load_recogniser, to_float
from lvd.demo.scenes import FRAMES, SUBJECTS, Scene, random_scene, record_clips
from lvd.demo.sheet import lay_out
from lvd.errors import LvdError
from lvd.sampling.tap import tap_x0

PASS_SHARE = 0.95
SHEET_STEPS = (0, 5, 10, 15, 20, 30, 40)


def balanced_scenes(count: int, seed: int, *, hinted: bool) -> list[Scene]:
    """`count` scenes, the subjects in turn, in random places and motions."""
    rng = np.random.default_rng(seed)
    return [
        replace(random_scene(rng), subject=subject, hinted=hinted)
        for subject in islice(cycle(SUBJECTS), count)
    ]


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


def share_line(correct: int, total: int) -> str:
    """`0.960 (192 of 200, 95% interval 0.923 to 0.980)`, Wilson's."""
    low, high = wilson(correct, total)
    return f"{correct / total:.3f} ({correct} of {total}, 95% interval {low:.3f} to {high:.3f})"


def contact_sheet(
    pipeline: Any, captions: Sequence[str], recorded: Tensor, seed: int, steps: int
) -> Image.Image:
    """The middle frame of x0 at some steps, a column for each caption, above one of a recorded clip.

    recorded: `[N, 3, SIZE, SIZE]` in [-1, 1].
    """
    middle_frames: dict[str, list[Tensor]] = {}
    rows = {step for step in SHEET_STEPS if step < steps} | {steps - 1}

    def keep(step: int, _timestep: Tensor | float, x0_BCFHW: Tensor) -> None:
        if step in rows:
            frames = decode_frames(pipeline.vae, x0_BCFHW[:, :, FRAMES // 2]) * 2 - 1
            middle_frames.setdefault(f"step {step}", []).extend(frames)

    with tap_x0(pipeline.scheduler, keep):
        sample_videos(pipeline, captions, seed, steps)
    return lay_out(captions, {**middle_frames, "recorded": list(recorded)})


def write_clips(path: Path, captions: Sequence[str], rows: Mapping[str, Tensor]) -> None:
    """Clips `[N, FRAMES, 3, SIZE, SIZE]` a row, under their captions, as one moving picture."""
    frames = [
        lay_out(captions, {name: list(clips[:, i]) for name, clips in rows.items()}) for i in range(FRAMES)
    ]
    there_and_back = [*frames, *frames[-2:0:-1]]
    there_and_back[0].save(
        path, save_all=True, append_images=there_and_back[1:], duration=120, loop=0, quality=80, method=6
    )


def run(generator: Path, output: Path, videos: int, hinted: int, seed: int, steps: int) -> int:
    """Measure, report, and write `sheet.png` and `clips.webp` into `output`; the exit status."""
    output.mkdir(parents=True, exist_ok=True)
    recogniser = load_recogniser()
    pipeline = load_pipeline(generator)

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

    columns = min(len(SUBJECTS), videos)
    captions = [scene.caption for scene in scenes[:columns]]
    write_clips(
        output / "clips.webp", captions, {"generated": drawn[:columns], "recorded": recorded[:columns]}
    )
    contact_sheet(pipeline, captions, recorded[:columns, FRAMES // 2], seed, steps).save(output / "sheet.png")
    print(f"pictures: {output / 'sheet.png'}, {output / 'clips.webp'}")
    return 0 if right / videos >= PASS_SHARE else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    parser.add_argument("--output", type=Path, default=Path("runs/scenes"), help="for the pictures")
    parser.add_argument("--videos", type=int, default=300, help="prompts that name (default: %(default)s)")
    parser.add_argument(
        "--hinted", type=int, default=65, help="prompts that only hint (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="of denoising (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()
    try:
        return run(args.generator, args.output, args.videos, args.hinted, args.seed, args.steps)
    except LvdError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
