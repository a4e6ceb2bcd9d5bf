"""Progress with time left: a live bar in a terminal, a quiet line now and then elsewhere."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

QUIET_SECONDS = 15.0  # between two lines when the output is not a terminal


class Advance(Protocol):
    """Report that `count` more units are done; `notes` say how it goes, in a terminal a line each."""

    def __call__(self, count: int = 1, /, *notes: str) -> None: ...


@contextmanager
def progress(what: str, total: int, unit: str, console: Console | None = None) -> Iterator[Advance]:
    """Show how far `total` units of work are, until the block ends."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        with _NotedProgress(what, unit, console) as bar:
            task = bar.add_task(what, total=total)

            def advance_bar(count: int = 1, /, *notes: str) -> None:
                bar.notes = notes
                bar.update(task, advance=count)

            yield advance_bar
        return

    started = last = time.monotonic()
    done = 0

    def advance_quietly(count: int = 1, /, *notes: str) -> None:
        nonlocal last, done
        done += count
        now = time.monotonic()
        if now - last < QUIET_SECONDS and done < total:
            return
        last = now
        left = [f"{_duration((now - started) / done * (total - done))} left"] if done else []
        line = "; ".join([", ".join([f"{done}/{total} {unit}", *left]), *notes])
        print(f"{what}: {line}", file=console.file, flush=True)

    yield advance_quietly


class _NotedProgress(Progress):
    """A bar with notes below it."""

    def __init__(self, what: str, unit: str, console: Console) -> None:
        self.notes: tuple[str, ...] = ()
        super().__init__(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            console=console,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (Text(f"  {note}", overflow="ellipsis", no_wrap=True) for note in self.notes)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
