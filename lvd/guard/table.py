"""How guards fail: `python -m lvd.guard.table` prints a table of this one and others, as Markdown.

    python -m lvd.guard.table [--sources]

A cell that is measured is measured again by a test (`tests/guard/test_table.py`), which fails where the guard
does anything else than its cell says. A cell that is read names the file that it was read in. There is no
other kind.
"""

import argparse
import sys
from dataclasses import dataclass
from typing import Literal

from lvd.command import exit_status

Answer = Literal["refused", "withheld", "raises", "out, said", "out", "blocked", "black", "waits", "-"]
ANSWERS: dict[Answer, str] = {
    "refused": "an error before anything is sampled",
    "withheld": "nothing comes out, and the answer says that it was not checked, and why",
    "raises": "an exception reaches the caller, who has to know what it means; nothing comes out",
    "out, said": "it comes out, and what comes with it says that it was not checked",
    "out": "it comes out as if it had been checked and found safe",
    "blocked": "None comes out in its place, and a decision",
    "black": "a black picture comes out in its place, and a flag",
    "waits": "there is no limit: the answer comes when it comes",
    "-": "there is no such part",
}
MEASURED = "measured"


@dataclass(frozen=True)
class Cell:
    """What a guard does about one fault."""

    answer: Answer
    source: str  # MEASURED, or the file and line that it was read in
    what: str = ""  # in words, where the answer alone says too little


@dataclass(frozen=True)
class Other:
    """A guard of somebody else, as it comes."""

    name: str
    version: str  # that all its cells are of
    looks_at: str
    cells: dict[str, Cell]  # by fault


FAULTS = {
    "missing": "the detector is not there",
    "changed": "a byte of its weights was changed on the disk",
    "none": "the detector returns None",
    "nan": "its scores are NaN",
    "raises": "it raises",
    "late": "it takes too long",
    "latent": "the sampler makes NaN",
    "cache": "a step cache is on, and was not when the detectors were made",
    "output": 'the call asks for output_type="latent"',
    "callback": "the call brings a callback, which gets the latents of each step",
    "embeds": "the call brings embeddings in place of the prompt",
    "log": "the log of decisions cannot be written",
    "unsafe": "(no fault) one of two is unsafe",
}

OURS: dict[str, Answer] = {
    "missing": "refused",
    "changed": "refused",
    "none": "withheld",
    "nan": "withheld",
    "raises": "withheld",
    "late": "withheld",
    "latent": "withheld",
    "cache": "refused",
    "output": "blocked",
    "callback": "refused",
    "embeds": "refused",
    "log": "raises",
    "unsafe": "blocked",
}
OURS_IN_WORDS = {
    "late": "with limit_seconds, once the check returns; one that hangs is not interrupted",
    "output": "an unsafe one is blocked as in any other output_type",
    "log": "it says which log, and nothing comes out",
    "unsafe": "the other comes out bit for bit as without the guard",
}

_PIPELINE = "diffusers/pipelines/stable_diffusion/pipeline_stable_diffusion.py"
_CHECKER = "diffusers/pipelines/stable_diffusion/safety_checker.py"
_COSMOS = "cosmos_guardrail/cosmos_guardrail.py"
_COSMOS_PIPELINE = "diffusers/pipelines/cosmos/pipeline_cosmos_text2world.py"
_AFTERWARDS = "it looks at finished pictures, whatever made them"
_BEFORE_AND_AFTER = "it looks at prompts and finished frames, whatever made them"

OTHERS = (
    Other(
        "diffusers' safety checker",
        "StableDiffusionPipeline with StableDiffusionSafetyChecker, diffusers 0.42.1",
        "the finished picture",
        {
            "missing": Cell("out, said", MEASURED, "a warning, then nsfw_content_detected=None"),
            "changed": Cell("out", MEASURED, "the weights are loaded as they are"),
            "none": Cell("raises", MEASURED),
            "nan": Cell("out", MEASURED, "a comparison with NaN is false: nsfw_content_detected=False"),
            "raises": Cell("raises", MEASURED),
            "late": Cell("waits", f"{_PIPELINE}:583"),
            "latent": Cell("out", MEASURED, "nsfw_content_detected=False"),
            "cache": Cell("-", f"{_PIPELINE}:1088", _AFTERWARDS),
            "output": Cell("out, said", MEASURED, "not checked: nsfw_content_detected=None"),
            "callback": Cell("out", MEASURED, "latents reach the callback before the check"),
            "embeds": Cell("-", f"{_PIPELINE}:1088", _AFTERWARDS),
            "log": Cell("-", _CHECKER),
            "unsafe": Cell("black", MEASURED, "the other comes out as without the checker"),
        },
    ),
    Other(
        "NudeNet",
        "nudenet 3.4.2 with its own 320n.onnx, onnxruntime 1.32.0",
        "one picture, when it is asked; what its list of findings means is the caller's affair",
        {
            "missing": Cell("raises", MEASURED, "when the detector is made"),
            "changed": Cell("out", MEASURED, "the weights are loaded as they are"),
            "none": Cell("raises", MEASURED),
            "nan": Cell("out", MEASURED, "an empty list, as for a picture without findings"),
            "raises": Cell("raises", MEASURED),
            "late": Cell("waits", "nudenet/nudenet.py:170"),
            "latent": Cell("out", MEASURED, "a picture of NaN: an empty list"),
            **{
                fault: Cell("-", "nudenet/nudenet.py", "it makes no pictures and calls no pipeline")
                for fault in ("cache", "output", "callback", "embeds", "log", "unsafe")
            },
        },
    ),
    Other(
        "cosmos_guardrail",
        "CosmosTextToWorldPipeline, diffusers 0.42.1, with cosmos_guardrail 0.3.2",
        "the prompt; of the finished video the faces, which it blurs. Its classifier of videos is in the "
        'source, but left out of the list ("too many false positives", cosmos_guardrail.py:708)',
        {
            "missing": Cell("raises", f"{_COSMOS_PIPELINE}:492", "refuses to run with safety_checker=None"),
            "changed": Cell("out", f"{_COSMOS}:203", "the prompt's model is loaded as it is"),
            "none": Cell(
                "out", f"{_COSMOS}:220, 229", "an answer without a verdict raises within, and counts as safe"
            ),
            "nan": Cell("-", f"{_COSMOS}:708", "no scores: a text model writes, and the classifier is off"),
            "raises": Cell("out", f"{_COSMOS}:231", "an exception of the prompt's model counts as safe"),
            "late": Cell("waits", f"{_COSMOS}:213"),
            "latent": Cell("out", f"{_COSMOS_PIPELINE}:657, {_COSMOS}:91", "an empty list of models: safe"),
            "cache": Cell("-", f"{_COSMOS_PIPELINE}:511, 654", _BEFORE_AND_AFTER),
            "output": Cell("out", f"{_COSMOS_PIPELINE}:636", "the video is not looked at"),
            "callback": Cell("out", f"{_COSMOS_PIPELINE}:621", "latents reach the callback before the check"),
            "embeds": Cell("out", f"{_COSMOS_PIPELINE}:513", "the prompt's check is left out"),
            "log": Cell("-", _COSMOS),
            "unsafe": Cell("raises", f"{_COSMOS_PIPELINE}:517", "by its prompt; neither comes out"),
        },
    ),
)


def table() -> str:
    """A row a fault, a column a guard."""
    lines = [
        f"| | lvd | {' | '.join(other.name for other in OTHERS)} |",
        f"|---|{'---|' * (1 + len(OTHERS))}",
    ]
    for fault, words in FAULTS.items():
        answers = [OURS[fault], *(_marked(other.cells[fault]) for other in OTHERS)]
        lines.append(f"| {words} | {' | '.join(answers)} |")
    return "\n".join(lines)


def sources() -> str:
    """What the answers mean, what each guard looks at, and for each cell how it is known."""
    lines = [f"- **{answer}**: {words}" for answer, words in ANSWERS.items()]
    lines += ["", "Answers with a star, and all -, were read in the source; the others were measured.", ""]
    lines += ["lvd (a guard in mode block, without fail_open), all measured:"]
    lines += [f"- {FAULTS[fault]}: {words}" for fault, words in OURS_IN_WORDS.items()]
    for other in OTHERS:
        lines += ["", f"{other.name} ({other.version}) looks at {other.looks_at}:"]
        for fault, words in FAULTS.items():
            cell = other.cells[fault]
            what = cell.what or ANSWERS[cell.answer]
            lines.append(f"- {words}: {what} ({cell.source})")
    return "\n".join(lines)


def _marked(cell: Cell) -> str:
    return cell.answer if cell.source == MEASURED else f"{cell.answer} *".replace("- *", "-")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lvd.guard.table", description="How guards fail, as a table in Markdown."
    )
    parser.add_argument("--sources", action="store_true", help="also how each cell is known")
    arguments = parser.parse_args()
    print(table())
    if arguments.sources:
        print(f"\n{sources()}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
