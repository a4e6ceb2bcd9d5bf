"""Progress with time left: a live bar in a terminal, a quiet line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 15.0  # between two lines when the output is not a terminal


class Advance(Protocol):
    """Report that `count` more units are done; `note` says something about the last of them."""

    def __call__(self, count: int = 1, note: str = "") -> None: ...


@contextmanager
def progress(what: str, total: int, unit: str, console: Console | None = None) -> Iterator[Advance]:
    """Show how far `total` units of work are, until the block ends."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn(f"{what}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total, note="")

            def advance_bar(count: int = 1, note: str = "") -> None:
                bar.update(task, advance=count, note=note)

            yield advance_bar
        return

    started = last = time.monotonic()
    done = 0

    def advance_quietly(count: int = 1, note: str = "") -> None:
        nonlocal last, done
        done += count
        now = time.monotonic()
        if now - last < QUIET_SECONDS and done < total:
            return
        last = now
        left = (now - started) / done * (total - done) if done else 0.0
        tail = f", {note}" if note else ""
        print(f"{what}: {done}/{total} {unit}, {_duration(left)} left{tail}", file=console.file, flush=True)

    yield advance_quietly


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
