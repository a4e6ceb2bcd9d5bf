"""Does the generator of scenes draw what it is asked to? `python -m lvd.demo.measure` (extra `demo`).

The recogniser, which knows recorded clips and no caption, first judges fresh clips, then generated ones:
whether subject and place are the prompt's, how much of the recorded clips' coherence they have, and what
prompts show that hide their subject. Exit status 1 when fewer than 95% of the subjects are the prompt's.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lvd.capture.decode import decode_frames
from lvd.command import exit_status
from lvd.decide.intervals import wilson
from lvd.demo.draw import GENERATOR, call_settings, load_pipeline, sample_videos
from lvd.demo.recogniser import Recogniser, Verdict, judge, load_recogniser, to_float
from lvd.demo.recorder import record_clips
from lvd.demo.scenes import FRAMES, HINTS, SUBJECTS, Caption, Scene, random_scene
from lvd.demo.sheet import lay_out
from lvd.sampling.tap import tap_x0

PASS_SHARE = 0.95
SHEET_STEPS = (0, 5, 10, 15, 20, 30, 40)


def balanced_captions(count: int, seed: int, kind: str) -> list[Caption]:
    """`count` captions of a kind, its wordings in turn, in random places and motions."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    wordings = [wording for wording in (*SUBJECTS, *HINTS) if Caption(wording, "", "").kind == kind]
    return [
        Caption(wording, scene.place, scene.motion)
        for wording, scene in zip(cycle(wordings), scenes, strict=False)
    ]


@torch.no_grad()
def coherence(recogniser: Recogniser, videos: Tensor) -> Tensor:
    """How alike neighbouring frames of each video look to the recogniser: mean cosine of features, `[N]`."""
    seen = recogniser.features(videos.flatten(0, 1))[2].flatten(1).unflatten(0, videos.shape[:2])
    return F.cosine_similarity(seen[:, 1:], seen[:, :-1], dim=2).mean(dim=1)


def subject_table(captions: Sequence[Caption], verdicts: Sequence[Verdict]) -> str:
    """How often each subject was asked for, by name or hint, and recognised, and what was seen otherwise.

    Then, by wording, what open prompts showed.
    """
    lines = [f"{'subject':<14} {'videos':>6} {'recognised':>10}  taken for"]
    for name in SUBJECTS:
        seen = _seen(captions, verdicts, (name,))
        count, right = seen.total(), seen.pop(name, 0)
        if count:
            lines.append(f"{name:<14} {count:>6} {right:>10}  {_times(seen)}".rstrip())
    for wording, subjects in HINTS.items():
        seen = _seen(captions, verdicts, subjects) if len(subjects) > 1 else Counter()
        if seen:
            right = sum(seen[name] for name in subjects)
            lines.append(f"{wording:<14} {seen.total():>6} {right:>10}  {_times(seen)}")
    return "\n".join(lines)


def _seen(
    captions: Sequence[Caption], verdicts: Sequence[Verdict], subjects: tuple[str, ...]
) -> Counter[str]:
    """What the videos showed whose captions may mean these subjects and no other."""
    pairs = zip(captions, verdicts, strict=True)
    return Counter(verdict.subject for caption, verdict in pairs if caption.subjects == subjects)


def _times(seen: Counter[str]) -> str:
    return ", ".join(f"{name} x{times}" for name, times in seen.most_common())


def agreement(captions: Sequence[Caption], verdicts: Sequence[Verdict]) -> int:
    """How many verdicts name a subject that the caption may mean."""
    pairs = zip(captions, verdicts, strict=True)
    return sum(verdict.subject in caption.subjects for caption, verdict in pairs)


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


def run(generator: Path, output: Path, videos: int, hidden: int, seed: int, steps: int) -> int:
    """Measure, report, and write `sheet.png` and `clips.webp` into `output`; the exit status."""
    output.mkdir(parents=True, exist_ok=True)
    recogniser = load_recogniser()
    pipeline = load_pipeline(generator)

    captions = balanced_captions(videos, seed, "named")
    clips, _ = record_clips([Scene(one.wording, one.place, one.motion) for one in captions], seed)
    recorded = to_float(clips)
    right = agreement(captions, judge(recogniser, recorded))
    print(f"recorded clips recognised: {share_line(right, videos)}", flush=True)

    drawn = sample_videos(pipeline, [caption.text for caption in captions], seed, steps)
    verdicts = judge(recogniser, drawn)
    right = agreement(captions, verdicts)
    print(subject_table(captions, verdicts))
    print(f"subject as prompted: {share_line(right, videos)}")
    places = sum(one.place == verdict.place for one, verdict in zip(captions, verdicts, strict=True))
    print(f"place as prompted: {share_line(places, videos)}")
    print(f"clear verdicts: {share_line(sum(verdict.clear for verdict in verdicts), videos)}")
    for name, of in (("recorded", recorded), ("generated", drawn)):
        alike = coherence(recogniser, of).mean().item()
        steady = np.mean([verdict.steady for verdict in judge(recogniser, of)])
        print(
            f"{name}: neighbouring frames' cosine {alike:.3f}, frames that agree with their clip {steady:.3f}"
        )
    for number, kind in enumerate(("hinted", "open"), start=1) if hidden else ():
        asked = balanced_captions(hidden, seed + number * videos, kind)
        texts = [caption.text for caption in asked]
        shown = judge(recogniser, sample_videos(pipeline, texts, seed + number * videos, steps))
        if kind == "open":
            print(subject_table(asked, shown))
        print(f"{kind} prompts show what they may mean: {share_line(agreement(asked, shown), hidden)}")

    columns = min(len(SUBJECTS), videos)
    texts = [caption.text for caption in captions[:columns]]
    write_clips(output / "clips.webp", texts, {"generated": drawn[:columns], "recorded": recorded[:columns]})
    contact_sheet(pipeline, texts, recorded[:columns, FRAMES // 2], seed, steps).save(output / "sheet.png")
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
        "--hidden", type=int, default=91, help="prompts that hint, and open ones (default: %(default)s each)"
    )
    parser.add_argument("--steps", type=int, help="of denoising (default: as a capture has)")
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()
    steps = args.steps or call_settings()["steps"]
    return run(args.generator, args.output, args.videos, args.hidden, args.seed, steps)


if __name__ == "__main__":
    sys.exit(exit_status(main))
