"""The table of `learning_curves.py`: what is measured of each kind of detectors and number of videos."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from learning_figure import Line, Panel
from learning_numbers import Estimate, accuracy, auroc, auroc_within

from lvd.decide.rules import Vote
from lvd.detect.bank import Scored
from lvd.detect.rows import labelled_rows
from lvd.files import write_json
from lvd.latents.reader import CaptureReader

VOTE = Vote(20, 0.6, 0.5)
SHOWN = (0, 4, 9, 14, 19, 29, 49)  # steps of the table
Scores = dict[int, torch.Tensor]  # step -> [N, K] of the test samples
Key = tuple[str, str]  # a kind of detectors, and how many videos a category
Row = dict[str, Estimate]  # column -> what was measured
Table = Mapping[Key, tuple[int, Row]]  # with the number of draws


def test_samples(capture: CaptureReader, numbers: Sequence[int]) -> Scored:
    """These of the test samples, without scores: their labels and prompts."""
    test = labelled_rows(capture.samples, "test")
    rows = [test[number] for number in numbers]
    samples = [capture.samples[row] for row in rows]
    categories = np.array([[s.has(name) for name in capture.info.category_names] for s in samples])
    return Scored(samples, rows, categories, np.empty((len(rows), 0, categories.shape[1])))


def estimates(of_draws: Sequence[Scores], test: Scored) -> Row:
    """Every column of one line of the table."""
    found: Row = {}
    label_N, prompts_N = test.label, test.prompts
    steps = list(of_draws[0])
    if set(range(VOTE.steps)) <= set(steps):
        first = [torch.stack([draw[step] for step in range(VOTE.steps)], dim=1).numpy() for draw in of_draws]
        found["accuracy"] = accuracy(VOTE, np.stack(first), label_N, prompts_N)
    for step in steps:
        highest_RN = np.stack([draw[step].amax(dim=1).numpy() for draw in of_draws])
        found[f"AUROC {step}"] = auroc(highest_RN, label_N, prompts_N)
        if (within := auroc_within(highest_RN, label_N, prompts_N)) is not None:
            found[f"within {step}"] = within
    return found


def markdown(rows: Table, columns: Sequence[str]) -> str:
    """A table with a line for each kind and size; a dash where it was not measured."""
    lines = [["detectors", "videos", "draws", *columns], ["---", "---:", "---:", *["---"] * len(columns)]]
    for (kind, size), (count, row) in rows.items():
        cells = [row[column].text() if column in row else "-" for column in columns]
        if any(column in row for column in columns):
            lines.append([kind, size, str(count), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_numbers(output: Path, rows: Table, about: dict[str, object]) -> None:
    """table.json and table.csv: every column of every line."""
    lines = []
    for (kind, size), (count, row) in rows.items():
        for column, it in row.items():
            low, high = it.interval
            key = {"detectors": kind, "videos": size, "draws": count, "measure": column}
            values = [round(float(value), 5) for value in it.values_R]
            lines.append({**key, "mean": it.mean, "low": low, "high": high, "values": values})
    write_json(output / "table.json", {**about, "rows": lines})
    with (output / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**line, "values": " ".join(map(str, line["values"]))} for line in lines)


def panels(rows: Table, all_videos: float) -> list[Panel]:
    """Accuracy, and AUROC at four steps, against videos a category; `all` stands at their mean number."""
    shown = {"accuracy": "accuracy of the vote"}
    shown |= {f"AUROC {step}": f"AUROC, step {step}" for step in (0, 4, 9, 19)}
    made = []
    for column, title in shown.items():
        lines = []
        for kind in dict.fromkeys(kind for kind, _ in rows):
            points = [
                (all_videos if size == "all" else float(size), row[column].mean, *row[column].interval)
                for (of, size), (_, row) in rows.items()
                if of == kind and column in row
            ]
            if points:
                lines.append(Line(kind, sorted(points)))
        made.append(Panel(title, lines))
    return made


def differences(
    own: Mapping[Key, dict[int, Scores]],
    other: Mapping[Key, dict[int, Scores]],
    test: Scored,
    other_kind: str | None = None,
) -> dict[Key, tuple[int, Row]]:
    """Each line less one of another output, of the draws that both have: of its kind, or of `other_kind`."""
    rows = {}
    for (kind, size), draws in own.items():
        of_other = other.get((other_kind or kind, size), {})
        if shared := sorted(draws.keys() & of_other.keys()):
            mine, theirs = (estimates([of[seed] for seed in shared], test) for of in (draws, of_other))
            common = {column: mine[column].minus(theirs[column]) for column in mine if column in theirs}
            rows[kind, size] = len(shared), common
    return rows


def print_tables(rows: Table) -> None:
    for columns in (["accuracy", *(f"AUROC {step}" for step in SHOWN)], [f"within {step}" for step in SHOWN]):
        print(f"\n{markdown(rows, columns)}")
