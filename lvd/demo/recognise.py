"""Does the demo generator draw what it is asked to? `python -m lvd.demo.recognise`.

A digit classifier that has only seen real handwriting first measures itself on glyphs it never saw,
then reads freshly generated videos. Exit status 1 when fewer than 90% of them show the prompted digit.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, affine_grid, grid_sample, normalize

from lvd.capture.decode import decode_frames
from lvd.decide.intervals import wilson
from lvd.demo.digits import COLOURS, DIGITS, FRAMES, MOTIONS, SIZE, Scene, load_glyphs, render
from lvd.demo.recipe import GENERATOR
from lvd.demo.sheet import lay_out
from lvd.errors import LvdError
from lvd.progress import progress
from lvd.sampling.tap import tap_x0

STEPS = 50
GUIDANCE = 5.0
BATCH = 16
PASS_SHARE = 0.90

SHEET_STEPS = (0, 5, 10, 20, 35, 49)

CROP = 20  # pixels around the ink's centroid: a digit with hardly a margin
FEATURE_SIZE = 10  # the crop, downsampled


def load_pipeline(generator: Path) -> Any:
    """The demo's `AnimateDiffPipeline`, on a GPU if there is one. Raises `LvdError` if it is not there."""
    if not (generator / "model_index.json").is_file():
        raise LvdError(f"no pipeline in {generator}: make one with `python -m lvd.demo.recipe`")
    diffusers.utils.logging.disable_progress_bar()
    pipelines: Any = DiffusionPipeline  # diffusers annotates little
    pipeline = pipelines.from_pretrained(generator, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def split_glyphs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real glyphs in two halves, stratified: train `[N, 8, 8]`, train labels `[N]`, test, test labels."""
    glyphs, labels = load_glyphs()
    train, test = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=seed)
    return glyphs[train], labels[train], glyphs[test], labels[test]


def render_glyphs(glyphs: Tensor, labels: Tensor, seed: int) -> Tensor:
    """One video of every glyph, in a random colour and motion: `[N, FRAMES, 3, SIZE, SIZE]` in [-1, 1]."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(int(label), rng) for label in labels]
    return torch.stack([render(scene, glyph, rng) for scene, glyph in zip(scenes, glyphs, strict=True)])


def random_scene(digit: int, rng: np.random.Generator) -> Scene:
    return Scene(digit, str(rng.choice(list(COLOURS))), str(rng.choice(MOTIONS)))


def features(videos: Tensor) -> np.ndarray:
    """What a digit looks like whatever its colour and place: `[N, T, FEATURE_SIZE ** 2]`, each of length 1.

    videos: `[N, T, 3, SIZE, SIZE]` in [-1, 1]. A frame without ink gives zeros.
    """
    ink_NHW = torch.relu(
        videos.float().flatten(0, 1).amax(dim=1) / 2 + 0.5 - 0.15
    )  # a dim background is none
    mass_N = ink_NHW.sum(dim=(1, 2)).clamp(min=1e-6)
    pixel = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1  # grid_sample's coordinates
    centre_x = (ink_NHW.sum(dim=1) * pixel).sum(dim=1) / mass_N
    centre_y = (ink_NHW.sum(dim=2) * pixel).sum(dim=1) / mass_N

    theta = torch.zeros(len(ink_NHW), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = CROP / SIZE
    theta[:, :, 2] = torch.stack([centre_x, centre_y], dim=1)
    grid = affine_grid(theta, [len(ink_NHW), 1, CROP, CROP], align_corners=False)
    crop = grid_sample(ink_NHW[:, None], grid, align_corners=False)
    pooled = normalize(adaptive_avg_pool2d(crop, FEATURE_SIZE).flatten(1), dim=1)
    found: np.ndarray = pooled.reshape(*videos.shape[:2], -1).numpy()
    return found


def fit_recogniser(videos: Tensor, labels: Tensor) -> SVC:
    """A classifier of single frames, trained on real digits: `[N, FRAMES, 3, SIZE, SIZE]`, labels `[N]`."""
    seen = features(videos[:, :: FRAMES // 2])  # centred, the frames of a video are nearly alike
    return SVC(C=10.0).fit(seen.reshape(-1, seen.shape[-1]), labels.repeat_interleave(seen.shape[1]).numpy())


def recognise(recogniser: SVC, videos: Tensor) -> np.ndarray:
    """The digit in each of `[N, T, 3, SIZE, SIZE]` videos in [-1, 1], class scores averaged: `[N]` int64."""
    seen = features(videos)
    scores = recogniser.decision_function(seen.reshape(-1, seen.shape[-1]))
    mean_scores = scores.reshape(*seen.shape[:2], -1).mean(axis=1)
    return np.asarray(recogniser.classes_[mean_scores.argmax(axis=1)], dtype=np.int64)


def measured_recogniser(seed: int) -> tuple[SVC, int, int]:
    """A recogniser from half of the real glyphs; how many of the other half it reads right, of how many."""
    train, train_labels, test, test_labels = split_glyphs(seed)
    recogniser = fit_recogniser(render_glyphs(train, train_labels, seed), train_labels)
    read = recognise(recogniser, render_glyphs(test, test_labels, seed + 1))
    return recogniser, int((read == test_labels.numpy()).sum()), len(read)


def balanced_scenes(count: int, seed: int) -> list[Scene]:
    """`count` scenes, the ten digits in turn, in random colours and motions."""
    rng = np.random.default_rng(seed)
    return [random_scene(digit, rng) for digit in islice(cycle(range(len(DIGITS))), count)]


def sample_videos(pipeline: Any, captions: Sequence[str], seed: int, steps: int = STEPS) -> Tensor:
    """Generate a video of each caption, the i-th from seed `seed + i`, whatever the batch it falls in.

    Returns `[N, FRAMES, 3, SIZE, SIZE]` float32 in [-1, 1].
    """
    videos = []
    with progress("sampling", len(captions), "videos") as advance:
        for start in range(0, len(captions), BATCH):
            batch = captions[start : start + BATCH]
            videos.append(_sample_batch(pipeline, batch, seed + start, steps))
            advance(len(batch))
    return torch.cat(videos)


def _sample_batch(pipeline: Any, captions: Sequence[str], seed: int, steps: int) -> Tensor:
    frames_BFHWC = pipeline(
        list(captions),
        num_frames=FRAMES,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator("cpu").manual_seed(seed + i) for i in range(len(captions))],
        output_type="np",
    ).frames
    return torch.from_numpy(frames_BFHWC).permute(0, 1, 4, 2, 3) * 2 - 1


def sheet_scenes() -> list[Scene]:
    """One scene of each digit, together in every colour and every motion."""
    colours, motions = cycle(COLOURS), cycle(MOTIONS)
    return [Scene(digit, next(colours), next(motions)) for digit in range(len(DIGITS))]


@torch.no_grad()
def decode(pipeline: Any, x0_BCFHW: Tensor) -> Tensor:
    """Frames `[B, F, 3, SIZE, SIZE]` in [-1, 1], on the CPU, of scaled latents `[B, C, F, H, W]`."""
    latents_BFCHW = x0_BCFHW.transpose(1, 2)
    frames = decode_frames(pipeline.vae, latents_BFCHW.flatten(0, 1)) * 2 - 1
    return frames.reshape(*latents_BFCHW.shape[:2], *frames.shape[1:])


def contact_sheet(
    pipeline: Any,
    captions: Sequence[str],
    seed: int,
    rows: Sequence[int] = SHEET_STEPS,
    steps: int = STEPS,
) -> Image.Image:
    """The x0 predicted at the steps in `rows`, decoded: the middle frame, a column for each caption."""
    middle_frames: dict[int, Tensor] = {}  # step -> [B, 3, SIZE, SIZE]

    def keep(step: int, _timestep: Tensor | float, x0_BCFHW: Tensor) -> None:
        if step in rows:
            middle = FRAMES // 2
            middle_frames[step] = decode(pipeline, x0_BCFHW[:, :, middle : middle + 1])[:, 0]

    with tap_x0(pipeline.scheduler, keep):
        _sample_batch(pipeline, captions, seed, steps)
    return lay_out(captions, {f"step {step}": middle_frames[step] for step in rows})


def share_line(correct: int, total: int) -> str:
    """`0.960 (192 of 200, 95% CI 0.923 to 0.980)`, Wilson's interval."""
    low, high = wilson(correct, total)
    return f"{correct / total:.3f} ({correct} of {total}, 95% CI {low:.3f} to {high:.3f})"


def digit_table(asked: np.ndarray, read: np.ndarray) -> str:
    """How often each digit was asked for and recognised, and what it was taken for otherwise."""
    lines = [f"{'digit':<6} {'videos':>6} {'recognised':>10}  taken for"]
    for digit in np.unique(asked):
        readings = Counter(read[asked == digit].tolist())
        correct = readings.pop(int(digit), 0)
        mistakes = ", ".join(f"{DIGITS[wrong]} x{count}" for wrong, count in readings.most_common())
        count = correct + readings.total()
        lines.append(f"{DIGITS[digit]:<6} {count:>6} {correct:>10}  {mistakes}".rstrip())
    return "\n".join(lines)


def run(videos: int, seed: int, sheet: Path | None, generator: Path) -> int:
    """Measure, generate, report; the exit status. Raises `LvdError` without a generator."""
    pipeline = load_pipeline(generator)
    recogniser, right, held_out = measured_recogniser(seed)
    print(f"recogniser on held-out real digits: {share_line(right, held_out)}", flush=True)

    if sheet:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(pipeline, [scene.caption for scene in sheet_scenes()], seed).save(sheet)
        print(f"contact sheet: {sheet}", flush=True)

    scenes = balanced_scenes(videos, seed)
    asked = np.array([scene.digit for scene in scenes])
    read = recognise(recogniser, sample_videos(pipeline, [scene.caption for scene in scenes], seed))
    correct = int((read == asked).sum())
    print(digit_table(asked, read))
    print(f"generated videos recognised as prompted: {share_line(correct, videos)}")
    return 0 if correct / videos >= PASS_SHARE else 1


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--videos", type=_positive, default=200, help="videos to generate (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--sheet", type=Path, help="also write a contact sheet of x0 by step to this PNG")
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    args = parser.parse_args()
    try:
        return run(args.videos, args.seed, args.sheet, args.generator)
    except LvdError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
