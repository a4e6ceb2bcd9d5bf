"""The grid of jobs: the command line that asks for it, and what must hold before it starts."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvd.detect.rows import cell_rows
from lvd.errors import LvdError
from lvd.latents.format import read_info, read_samples, step_name

AXES = ("category", "step")


@dataclass(frozen=True)
class Cell:
    """One job of the grid, by the category's name."""

    category: str
    step: int

    @property
    def path(self) -> Path:
        """Its output directory below the run's."""
        return Path(self.category) / step_name(self.step)


def expand_axes(arguments: Sequence[str], axes: Collection[str] = AXES) -> list[str]:
    """Rewrite the arguments `axis=...` into plain comma lists, which Hydra sweeps.

    Knows `a..b` (both ends included), `range(stop)`, `range(start,stop[,step])`, numbers, names, and
    comma lists of these.

    Raises:
        LvdError: a value is none of these.
    """
    expanded = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in axes:
            argument = f"{key}={','.join(_expand(key, value))}"
        expanded.append(argument)
    return expanded


def axis_values(arguments: Sequence[str], key: str) -> list[str]:
    """The values that expanded arguments give an axis, the last one counting; none: []."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{key}=")]
    return given[-1].split(",") if given else []


def resolve_cells(
    capture: Path, categories: Sequence[str], steps: Sequence[str]
) -> tuple[list[Cell], list[str]]:
    """The cells that are asked for, in order, and every problem with them.

    Problems are unknown categories and steps, and categories without positives in train or val.

    Raises:
        LvdError: the capture cannot be trained on at all.
    """
    info = read_info(capture)
    if not (capture / "manifest.json").is_file():
        raise LvdError(f"capture {capture} is not complete: run capture.py again to go on with it")
    if not info.labelled:
        raise LvdError(f"capture {capture} has no labels: capture.py name={capture.name} labels=FILE.csv")
    samples = read_samples(capture)

    problems = []
    names = []
    for category in categories:
        try:
            name = info.category_names[info.category_index(category)]
            for split in ("train", "val"):
                cell_rows(samples, name, split, "all", seed=0)
        except LvdError as error:
            problems.append(str(error))
        else:
            names.append(name)
    for step in steps:
        if not step.isdecimal() or int(step) >= info.stored_steps:
            problems.append(f"the capture has no step {step}: it has {info.steps_text()}")
    known = [int(step) for step in dict.fromkeys(steps) if step.isdecimal() and int(step) < info.stored_steps]
    return [Cell(name, step) for name in dict.fromkeys(names) for step in known], problems


def _expand(key: str, value: str) -> list[str]:
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", value)]  # commas outside of range(...)
    if not all(parts):
        raise LvdError(f"{key}={value} is not understood: write 0..4, 'range(50)', 0,3,7 or names")
    return [element for part in parts for element in _elements(key, part)]


def _elements(key: str, text: str) -> list[str]:
    try:
        if match := re.fullmatch(r"range\((.*)\)", text):
            values = range(*(int(part) for part in match[1].split(",")))
        elif match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
            values = range(int(match[1]), int(match[2]) + 1)
        elif re.fullmatch(r"\w+", text):
            return [text]
        else:
            raise ValueError
    except (TypeError, ValueError):
        raise LvdError(f"{key}={text} is not understood: write 0..4, 'range(50)', 0,3,7 or names") from None
    if not values:
        raise LvdError(f"{key}={text} is an empty range")
    return [str(value) for value in values]
