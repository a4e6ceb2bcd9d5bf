"""The grid of jobs, and which of its cells a command line names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvd.axes import Part
from lvd.detect.rows import cell_rows
from lvd.errors import LvdError
from lvd.files import step_name
from lvd.latents.format import CaptureInfo, read_info, read_samples

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


def all_cells(info: CaptureInfo) -> list[Cell]:
    """All that a run on this capture can have."""
    return [Cell(name, step) for name in info.category_names for step in range(info.stored_steps)]


def resolve_cells(
    capture: Path, categories: Sequence[Part], steps: Sequence[Part]
) -> tuple[list[Cell], list[str]]:
    """The cells that are asked for, in order, and every problem with them.

    Problems are unknown categories and steps, a sentence for all of each, and categories without positives in
    train or val. No range is written out beyond what the capture has.

    Raises:
        LvdError: the capture cannot be trained on at all.
    """
    info = read_info(capture)
    if not (capture / "manifest.json").is_file():
        raise LvdError(f"capture {capture} is not complete: run capture.py again to go on with it")
    samples = read_samples(capture)
    if not any(sample.is_labelled for sample in samples):
        raise LvdError(f"capture {capture} has no labels: capture.py name={capture.name} labels=FILE.csv")

    problems = []
    indices, unknown = _known(categories, len(info.category_names), info.category_names)
    if unknown:
        which = "category" if len(unknown) == 1 and ".." not in unknown[0] else "categories"
        listed = ", ".join(repr(text) for text in unknown)
        problems.append(f"unknown {which} {listed}: the capture has {info.categories_text()}")
    names = []
    for index in indices:
        try:
            for split in ("train", "val"):
                cell_rows(samples, info.category_names[index], split, "all", seed=0)
        except LvdError as error:
            problems.append(str(error))
        else:
            names.append(info.category_names[index])
    known, unknown = _known(steps, info.stored_steps)
    if unknown:
        which = "step" if len(unknown) == 1 and ".." not in unknown[0] else "steps"
        problems.append(f"the capture has no {which} {', '.join(unknown)}: it has {info.steps_text()}")
    return [Cell(name, step) for name in names for step in known], problems


def _known(parts: Iterable[Part], count: int, names: Sequence[str] = ()) -> tuple[list[int], list[str]]:
    """The indices from 0 to `count` - 1 that parts name, in order and each once, and the other parts.

    `names` are those of the indices, where they have any.
    """
    known: list[int] = []
    unknown: list[str] = []
    for part in parts:
        if isinstance(part, range):
            inside = [index for index in range(count) if index in part]
            known += inside if part.step > 0 else inside[::-1]
            unknown += _outside(part, count)
        elif part in names:
            known.append(names.index(part))
        elif part.isdecimal() and int(part) < count:
            known.append(int(part))
        else:
            unknown.append(part)
    return list(dict.fromkeys(known)), list(dict.fromkeys(unknown))


def _outside(numbers: range, count: int) -> list[str]:
    """What a range has below 0 and from `count` on, in words."""
    rising = numbers if numbers.step > 0 else numbers[::-1]
    below = range(rising.start, min(0, rising.stop), rising.step)
    above = range(rising.start, rising.stop, rising.step)[len(range(rising.start, count, rising.step)) :]
    return [
        f"{part[0]}..{part[-1]}" if len(part) > 1 else str(part[0]) for part in (below, above) if len(part)
    ]
