"""Watch the guard at work: `python -m lvd.demo.guarded`.

Prompts that the detectors never saw (the capture's test split) are sampled with the capture's scheduler and
new seeds, one by one, with the guard and without it. What the unguarded video shows, the recogniser says:
videos that are unclear to it count neither as safe nor as unsafe. A line for each says what was decided,
when, and what it saved. The end says how often the guard was right, and whether the videos that it let
through are bit for bit the unguarded ones.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from lvd.command import exit_status
from lvd.decide.intervals import prompt_numbers, rate_interval, share_in_words
from lvd.demo.draw import GENERATOR, load_pipeline
from lvd.demo.recogniser import Recogniser, Verdict, judge, load_recogniser
from lvd.demo.sheet import blurred, lay_out, stack
from lvd.errors import LvdError
from lvd.files import write_json
from lvd.guard import AuditLog, Decision, Guard
from lvd.latents.format import Sample, read_samples
from lvd.sampling.call import call_arguments

SHEET_VIDEOS, SHEET_COLUMNS = 24, 12


@dataclass(frozen=True)
class Shown:
    """One prompt, sampled twice from the same seed."""

    prompt: str
    verdict: Verdict  # on the unguarded video
    decision: Decision
    guarded_seconds: float
    unguarded_seconds: float
    identical: bool | None  # the released video and the unguarded one; None: nothing was released
    guarded_frame: Tensor | None  # the middle frame [3, H, W] in [-1, 1]
    unguarded_frame: Tensor

    @property
    def unsafe(self) -> bool:
        return self.verdict.clear and bool(self.verdict.categories)

    @property
    def safe(self) -> bool:
        return self.verdict.clear and not self.verdict.categories

    @property
    def right(self) -> bool:
        return not self.verdict.clear or self.decision.outcome == ("unsafe" if self.unsafe else "safe")

    def line(self) -> str:
        shows = self.verdict.subject if self.verdict.clear else "unclear"
        saved = self.unguarded_seconds - self.guarded_seconds
        return (
            f"{shows:<11} {self.decision.outcome:<9} {self.decision.step!s:>4} {saved:>7.2f}  "
            f"{'' if self.right else 'WRONG: '}{self.prompt}"
        )


HEADING = f"{'shows':<11} {'decision':<9} {'step':>4} {'s saved':>7}  prompt"


def fresh_prompts(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Test samples, unsafe and safe in turn.

    Raises:
        LvdError: there are fewer than `count`.
    """
    test = [sample for sample in samples if sample.split == "test"]
    unsafe = [sample for sample in test if sample.is_unsafe]
    safe = [sample for sample in test if sample.is_safe]
    if count > 2 * min(len(unsafe), len(safe)):
        raise LvdError(
            f"--videos {count}: the capture has {len(unsafe)} unsafe and {len(safe)} safe test prompts"
        )
    return list(chain.from_iterable(zip(unsafe, safe, strict=False)))[:count]


def show(
    guard: Guard, pipe: Any, recogniser: Recogniser, sample: Sample, seed: int, *, guard_first: bool
) -> Shown:
    """Sample one prompt with and without the guard, in either order."""
    origin = guard.bundle.info.origin
    timed: dict[str, tuple[float, Any]] = {}
    for way in ("guarded", "unguarded") if guard_first else ("unguarded", "guarded"):
        generator = torch.Generator("cpu").manual_seed(seed)
        started = time.perf_counter()
        if way == "guarded":
            out = guard(pipe, prompt=[sample.prompt], generator=generator, output_type="np")
        else:
            out = pipe(
                prompt=[sample.prompt],
                generator=generator,
                output_type="np",
                **call_arguments(pipe, origin.steps, origin.guidance, origin.call, 1),
            ).frames[0]
        timed[way] = time.perf_counter() - started, out
    guarded_seconds, result = timed["guarded"]
    unguarded_seconds, unguarded = timed["unguarded"]
    video = result.videos[0]
    frames_FCHW = torch.from_numpy(unguarded).permute(0, 3, 1, 2) * 2 - 1
    return Shown(
        prompt=sample.prompt,
        verdict=judge(recogniser, frames_FCHW[None])[0],
        decision=result.decisions[0],
        guarded_seconds=guarded_seconds,
        unguarded_seconds=unguarded_seconds,
        identical=None if video is None else np.array_equal(video, unguarded),
        guarded_frame=None if video is None else _middle_frame(video),
        unguarded_frame=_middle_frame(unguarded),
    )


def summary(shown: Sequence[Shown]) -> dict[str, Any]:
    """Rates with their 95 % intervals, the deciding step, and the wall time saved, over what was shown."""
    unsafe = [one for one in shown if one.unsafe]
    safe = [one for one in shown if one.safe]
    caught = [one for one in unsafe if one.decision.outcome == "unsafe"]
    blocked = [one for one in safe if not one.decision.released]
    released = [one for one in shown if one.identical is not None]
    spent = sum(one.guarded_seconds for one in shown)
    without = sum(one.unguarded_seconds for one in shown)
    return {
        "n": len(shown),
        "unclear": sum(not one.verdict.clear for one in shown),
        "unsafe": len(unsafe),
        "caught": len(caught),
        **_counted("caught", unsafe, [one.decision.outcome == "unsafe" for one in unsafe]),
        "safe": len(safe),
        "blocked": len(blocked),
        **_counted("blocked", safe, [not one.decision.released for one in safe]),
        "unchecked": sum(one.decision.outcome == "unchecked" for one in shown),
        "median_step_unsafe": median(one.decision.step or 0 for one in caught) if caught else None,
        "guarded_seconds": spent,
        "unguarded_seconds": without,
        "wall_time_saved": 1 - spent / without,
        "wall_time_saved_unsafe": 1 - _ratio(unsafe) if unsafe else None,
        "released": len(released),
        "released_identical": sum(one.identical is True for one in released),
    }


def _counted(name: str, shown: Sequence[Shown], hits: Sequence[bool]) -> dict[str, Any]:
    """A share's interval, and how to say it."""
    prompts = prompt_numbers([one.prompt for one in shown])
    interval = rate_interval(np.array(hits), prompts) if hits else None
    words = share_in_words(sum(hits), len(hits), len(np.unique(prompts)), interval)
    return {f"{name}_ci": interval, f"{name}_in_words": words}


def _ratio(shown: Sequence[Shown]) -> float:
    return sum(one.guarded_seconds for one in shown) / sum(one.unguarded_seconds for one in shown)


def print_summary(measured: dict[str, Any]) -> None:
    step = measured["median_step_unsafe"]
    at = "" if step is None else f"; median step {step:g}"
    print(f"unsafe videos stopped: {measured['caught_in_words']}{at}")
    print(f"safe videos blocked: {measured['blocked_in_words']}")
    if measured["unclear"]:
        print(f"unclear what they show, not counted: {measured['unclear']}")
    print(f"released: {measured['released']}, bit-identical to unguarded: {measured['released_identical']}")
    on_unsafe = measured["wall_time_saved_unsafe"]
    print(
        f"wall time {measured['guarded_seconds']:.1f} s guarded, {measured['unguarded_seconds']:.1f} s not: "
        f"{measured['wall_time_saved']:.0%} saved"
        + ("" if on_unsafe is None else f", {on_unsafe:.0%} on unsafe ones")
    )


def _middle_frame(video_FHWC: np.ndarray) -> Tensor:
    return torch.from_numpy(video_FHWC[len(video_FHWC) // 2]).permute(2, 0, 1) * 2 - 1


def _cell(shown: Shown, show_unsafe: bool) -> Tensor | str:
    if shown.guarded_frame is not None:
        return preview(shown.guarded_frame, shown, show_unsafe)
    return f"{shown.decision.outcome}\nstep {shown.decision.step}"


def preview(frame: Tensor, shown: Shown, show_unsafe: bool) -> Tensor:
    """Blurred where the recogniser or the guard finds it unsafe, or either is in doubt."""
    harmless = shown.safe and shown.decision.outcome == "safe"
    return frame if show_unsafe or harmless else blurred(frame)


def run(
    bundle: Path,
    digest: str | None,
    capture: Path,
    generator: Path,
    output: Path,
    videos: int,
    seed: int,
    show_unsafe: bool,
) -> None:
    """Show, print, and write the audit log, the contact sheet and guarded.json into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    log = output / "audit.jsonl"
    log.unlink(missing_ok=True)
    guard = Guard.from_pretrained(bundle, digest=digest, audit=AuditLog(log))
    samples = fresh_prompts(read_samples(capture), videos)
    origin = guard.bundle.info.origin
    pipe, recogniser = load_pipeline(generator), load_recogniser()
    pipe.scheduler = getattr(diffusers, origin.scheduler).from_config(origin.scheduler_config)
    print(HEADING, flush=True)
    shown = []
    for number, sample in enumerate(samples):
        guard_first = number % 4 < 2  # neither way is favoured, in either class
        shown.append(show(guard, pipe, recogniser, sample, seed + number, guard_first=guard_first))
        print(shown[-1].line(), flush=True)
    measured = summary(shown)
    print_summary(measured)
    records = [
        {
            **{"prompt": one.prompt, "shows": one.verdict.subject, "clear": one.verdict.clear},
            **asdict(one.decision),
            "identical": one.identical,
        }
        for one in shown
    ]
    write_json(output / "guarded.json", {**measured, "records": records})
    sheet = stack(
        [
            lay_out(
                [one.prompt for one in columns],
                {
                    "no guard": [preview(one.unguarded_frame, one, show_unsafe) for one in columns],
                    "guard": [_cell(one, show_unsafe) for one in columns],
                },
            )
            for start in range(0, min(len(shown), SHEET_VIDEOS), SHEET_COLUMNS)
            for columns in [shown[start : min(start + SHEET_COLUMNS, SHEET_VIDEOS)]]
        ]
    )
    sheet.save(output / "contact_sheet.png")
    print(f"contact sheet: {output / 'contact_sheet.png'}; audit log: {log}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--digest", help="refuse a bundle with another digest")
    parser.add_argument("--capture", type=Path, default=Path("captures/demo"))
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    parser.add_argument("--output", type=Path, default=Path("runs/demo/guarded"))
    parser.add_argument("--videos", type=int, default=112, help="prompts, half of them unsafe (%(default)s)")
    parser.add_argument("--seed", type=int, default=1_000_000)
    parser.add_argument("--show-unsafe", action="store_true", help="do not blur unsafe frames in the picture")
    args = parser.parse_args()
    if args.videos < 2:
        raise LvdError(f"--videos {args.videos}: give at least 2")
    run(
        args.bundle,
        args.digest,
        args.capture,
        args.generator,
        args.output,
        args.videos,
        args.seed,
        args.show_unsafe,
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))
