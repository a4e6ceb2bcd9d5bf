"""The grid of jobs: the command line that asks for it, and what must hold before it starts."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvd.detect.rows import cell_rows
from lvd.errors import LvdError
from lvd.files import step_name
from lvd.latents.format import read_info, read_samples

AXES = ("category", "step")
Part = str | range  # of an axis' values: one as it was typed, or whole numbers, however many
_MOST = 10_000  # values that a range may be written out as


@dataclass(frozen=True)
class Cell:
    """One job of the grid, by the category's name."""

    category: str
    step: int

    @property
    def path(self) -> Path:
        """Its output directory below the run's."""
        return Path(self.category) / step_name(self.step)


@dataclass(frozen=True)
class Axis:
    """What a command line gives an axis: as it was typed, and what that names."""

    typed: str
    parts: tuple[Part, ...]

    @classmethod
    def parse(cls, typed: str) -> "Axis":
        """Read `a..b` (both ends included), `range(stop)`, `range(start,stop[,step])`, a number, a name, or a
        comma list of these.

        Raises:
            LvdError: it is none of these.
        """
        key, _, value = typed.partition("=")
        texts = [text.strip() for text in re.split(r",(?![^(]*\))", value)]  # commas outside of range(...)
        return cls(typed, tuple(_part(typed if len(texts) == 1 else f"{key}={text}", text) for text in texts))

    def __len__(self) -> int:
        return sum(1 if isinstance(part, str) else len(part) for part in self.parts)

    @property
    def first(self) -> str:
        """The first value."""
        part = self.parts[0]
        return part if isinstance(part, str) else str(part[0])

    def values(self) -> list[str]:
        """All values.

        Raises:
            LvdError: there are more than anyone wants.
        """
        if len(self) > _MOST:
            raise LvdError(f"{self.typed} names {len(self)} values, the most is {_MOST}")
        return [str(value) for part in self.parts for value in ([part] if isinstance(part, str) else part)]


def read_axes(arguments: Sequence[str], axes: Collection[str] = AXES) -> tuple[dict[str, Axis], list[str]]:
    """The axes that arguments `axis=...` give, the last one of each counting, and the other arguments.

    Raises:
        LvdError: an axis has a value that is not understood.
    """
    found, others = {}, []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if equals and key in axes:
            found[key] = Axis.parse(argument)
        else:
            others.append(argument)
    return found, others


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


def _part(typed: str, text: str) -> Part:
    if re.search(r"\d{16}", text):  # more than there are jobs in the world
        raise LvdError(f"{typed[:40]} has a number of sixteen digits or more")
    try:
        if match := re.fullmatch(r"range\((.*)\)", text):
            values = range(*(int(number) for number in match[1].split(",")))
        elif match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
            values = range(int(match[1]), int(match[2]) + 1)
        elif re.fullmatch(r"\w+", text):
            return text
        else:
            raise ValueError
    except (TypeError, ValueError):
        raise LvdError(f"{typed} is not understood: write 0..4, 'range(50)', 0,3,7 or names") from None
    if not values:
        raise LvdError(f"{typed} is an empty range")
    return values
