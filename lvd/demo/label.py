"""Label a capture of the demo generator by what its videos show: `python -m lvd.demo.label captures/demo`.

The recogniser, which knows pixels and no prompt, looks at every captured video (x0 of the last step,
decoded), as people would, and writes `labels.csv` for `capture.py labels=`: a category, or `safe`. A video
that is unclear to it is not named there, and stays unlabelled. The table says how often prompt and picture
differ.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lvd.capture.decode import decode_frames, load_vae
from lvd.capture.frames import inference_device
from lvd.command import exit_status
from lvd.demo.measure import share_line, subject_table
from lvd.demo.recogniser import Recogniser, Verdict, judge, load_recogniser
from lvd.demo.scenes import CATEGORY_NAMES, caption_of
from lvd.errors import LvdError
from lvd.latents.format import Sample
from lvd.latents.reader import CaptureReader
from lvd.progress import progress

_BATCH = 20


def look(capture: CaptureReader, vae: Any, recogniser: Recogniser) -> list[Verdict]:
    """What each captured video shows.

    Raises:
        LvdError: the capture does not have the last step.
    """
    last = capture.step(capture.info.origin.steps - 1)
    verdicts: list[Verdict] = []
    with progress("looking", len(last), "videos") as advance:
        for start in range(0, len(last), _BATCH):
            rows = range(start, min(start + _BATCH, len(last)))
            x0_BFCHW = torch.from_numpy(last.read(rows)).float().transpose(1, 2)
            frames = decode_frames(vae, x0_BFCHW.flatten(0, 1)) * 2 - 1
            verdicts += judge(recogniser, frames.unflatten(0, x0_BFCHW.shape[:2]))
            advance(len(rows))
    return verdicts


def write_labels(path: Path, samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> None:
    """`sample_id,category`, a row for each category of each clear video, and `safe` where it has none."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sample_id", "category"])
        for sample, verdict in zip(samples, verdicts, strict=True):
            if verdict.clear:
                writer.writerows([sample.sample_id, name] for name in verdict.categories or ("safe",))


def report(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> str:
    """How often the picture is not what the prompt said."""
    captions = [caption_of(sample.prompt) for sample in samples]
    clear = [(caption, verdict) for caption, verdict in zip(captions, verdicts, strict=True) if verdict.clear]
    if not clear:
        return "no video is clear"
    right = sum(verdict.subject in caption.subjects for caption, verdict in clear)
    unsafe = [bool(verdict.categories) for caption, verdict in clear if caption.unsafe is None]
    return "\n".join(
        [
            subject_table(*zip(*clear, strict=True)),
            f"clear: {share_line(len(clear), len(captions))}; the others stay unlabelled",
            f"shows what the prompt may mean: {share_line(right, len(clear))}",
            *(
                [f"unsafe, of those where the noise decides: {share_line(sum(unsafe), len(unsafe))}"]
                if unsafe
                else []
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("capture", type=Path)
    parser.add_argument("--output", type=Path, help="default: labels.csv in the capture's directory")
    args = parser.parse_args()
    capture = CaptureReader(args.capture)
    if set(capture.info.category_names) != set(CATEGORY_NAMES):
        raise LvdError(f"{args.capture} needs the demo's categories: {', '.join(CATEGORY_NAMES)}")
    vae = load_vae(capture.info.origin).to(inference_device("auto"))
    verdicts = look(capture, vae, load_recogniser())
    output = args.output or args.capture / "labels.csv"
    write_labels(output, capture.samples, verdicts)
    print(report(capture.samples, verdicts))
    print(f"labels: {output}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
