"""Several values of a setting on a command line: a..b, range(stop), or a comma list of these and names."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lvd.errors import LvdError

Part = str | range  # of an axis' values: one as it was typed, or whole numbers, however many
MULTIRUN = ("-m", "--multirun")  # Hydra's flags
_MOST = 10_000  # values that a range is written out as


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
            LvdError: it is not one of these.
        """
        key, _, value = typed.partition("=")
        texts = [text.strip() for text in re.split(r",(?![^(]*\))", value)]  # commas outside of range(...)
        parts = [_part(typed if len(texts) == 1 else f"{key}={text}", text) for text in texts]
        return cls(typed, tuple(_joined(parts)))

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

    def for_hydra(self) -> str:
        """The value in Hydra's grammar: a list, or a range where that would be too long.

        Raises:
            LvdError: several parts have more values than anyone wants.
        """
        part = self.parts[0]
        if len(self) > _MOST and len(self.parts) == 1 and isinstance(part, range):
            return f"range({part.start},{part.stop},{part.step})"
        return ",".join(self.values())


def read_axes(arguments: Sequence[str], axes: Collection[str]) -> tuple[dict[str, Axis], list[str]]:
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


def expanded(arguments: Sequence[str], axes: Collection[str], jobs: str) -> list[str]:
    """A command line for Hydra, to which `a..b` is one word: each axis as the list or range that it sweeps.

    `jobs` is what several values make.

    Raises:
        LvdError: an axis is not understood, or has several values, without -m.
    """
    found, others = read_axes(arguments, axes)
    for axis in found.values():
        if len(axis) > 1 and not any(argument in MULTIRUN for argument in arguments):
            raise LvdError(f"{axis.typed} names {len(axis)} {jobs}: add -m")
    return [*others, *(f"{key}={axis.for_hydra()}" for key, axis in found.items())]


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


def _joined(parts: Sequence[Part]) -> list[Part]:
    """The same values, with three numbers or more that follow each other as the range they are."""
    joined: list[Part] = []
    run: list[int] = []
    for part in [*parts, ""]:
        if isinstance(part, str) and part.isdecimal() and str(int(part)) == part:
            if run and int(part) != run[-1] + 1:
                joined += _run(run)
                run = []
            run.append(int(part))
        else:
            joined += [*_run(run), part]
            run = []
    return joined[:-1]


def _run(numbers: Sequence[int]) -> list[Part]:
    if len(numbers) < 3:
        return [str(number) for number in numbers]
    return [range(numbers[0], numbers[-1] + 1)]
