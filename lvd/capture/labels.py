"""Labels: which samples are unsafe, and in what way, as people found who watched the videos."""

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lvd.capture import label_studio
from lvd.capture.agreement import Judgement, alpha_by_category, consensus
from lvd.capture.table import ENDINGS, Row, Table, ending, read_table
from lvd.errors import LvdError
from lvd.files import write_atomically
from lvd.latents.format import (
    SAFE,
    UNLABELLED,
    CaptureInfo,
    Categories,
    Sample,
    label_text,
    read_info,
    read_samples,
)
from lvd.latents.splits import assign_splits
from lvd.latents.writer import relabel

Unnamed = Literal["unlabelled", "safe", "keep"]

UVD_COLUMNS = ("1", "2", "3", "4", "5")  # the paper's label file: a column of video indices a category
_TIDY_COLUMNS = ("sample_id", "category")
_ANNOTATOR = "annotator"
_DISAGREEMENTS = "disagreements.csv"


@dataclass(frozen=True)
class Disagreement:
    """A sample that its annotators judged differently, and what was made of it."""

    sample_id: str
    judgements: dict[str, tuple[str, ...]]  # by annotator
    label: Categories


@dataclass(frozen=True)
class Labelling:
    """What a label file said of a capture."""

    samples: int
    unnamed: int  # samples that the file does not name
    unnamed_are: Unnamed
    by_index: bool  # the file has the paper's columns
    says_safe: bool  # a row of the file does
    forgotten: int  # unnamed samples that had a label, and are unlabelled now
    undecided: int  # samples whose annotators do not agree, and that are unlabelled for it
    alpha: dict[str, float | None]  # Krippendorff's, of each category and of safe; one annotator: {}
    disagreements: list[Disagreement]
    listed: Path  # the file that has all disagreements, where there are any


def label(
    capture: Path,
    labels: Path,
    seed: int,
    unnamed: Unnamed | None = None,
    agreement: float | None = None,
) -> Labelling:
    """Set the labels of an existing capture; those that it had are replaced.

    `labels` is tidy: `sample_id, category` and, where there are several people, `annotator`. A row gives a
    category, or says `safe` or `unlabelled`; an empty category says nothing. Several annotators of a sample
    make a label by `consensus`, with `agreement`. A folder stands for all such files in it, each of the
    annotator that it is named after where it has no column for that; a .json file is what Label Studio
    exports. Or `labels` has the paper's columns `1`..`5`, each the 0-based rows of a category's samples.
    `unnamed` is what becomes of samples that are not named: they are unlabelled, safe, or keep the label
    they have; None: safe by the paper's columns, else unlabelled.

    Splits are balanced over the categories that are given first; from then on they stay as they are.

    Raises:
        LvdError: names the file, the row and what is wrong with it; the capture is unchanged.
    """
    info = read_info(capture)
    before = read_samples(capture)
    table = _read(labels)
    by_index = set(table.columns) == set(UVD_COLUMNS)
    if by_index:
        judgements = _of_indices(table, labels, capture, info, before)
    elif set(table.columns) >= set(_TIDY_COLUMNS):
        judgements = _of_rows(table, info.category_names, before)
    else:
        raise LvdError(f"{labels} needs the columns sample_id, category or {', '.join(UVD_COLUMNS)}")

    unnamed_are: Unnamed = unnamed or ("safe" if by_index else "unlabelled")
    names = info.category_names
    decided = {sample_id: consensus(by.values(), names, agreement) for sample_id, by in judgements.items()}
    samples = [
        replace(s, categories=decided.get(s.sample_id, _unnamed_label(s, unnamed_are))) for s in before
    ]
    if not any(sample.is_unsafe for sample in before):  # nothing can have been learned from it
        samples = with_splits(samples, seed)
    relabel(capture, samples)

    disagreements = [
        Disagreement(sample_id, {who: _ordered(one, names) for who, one in by.items()}, decided[sample_id])
        for sample_id, by in judgements.items()
        if len(set(by.values())) > 1
    ]
    _write_disagreements(capture / _DISAGREEMENTS, disagreements)
    left = [sample for sample in before if sample.sample_id not in judgements]
    return Labelling(
        samples=len(samples),
        unnamed=len(left),
        unnamed_are=unnamed_are,
        by_index=by_index,
        says_safe=any(not one for by in judgements.values() for one in by.values()),
        forgotten=sum(s.is_labelled for s in left) if unnamed_are == UNLABELLED.value else 0,
        undecided=sum(bool(by) and decided[sample_id] is UNLABELLED for sample_id, by in judgements.items()),
        alpha=alpha_by_category(judgements, names),
        disagreements=disagreements,
        listed=capture / _DISAGREEMENTS,
    )


def read_disagreements(capture: Path) -> dict[str, dict[str, Judgement]]:
    """What each annotator said of the samples that the present labels' annotators judged differently.

    Raises:
        LvdError: the file does not go with the capture.
    """
    path = capture / _DISAGREEMENTS
    if not path.is_file():
        return {}
    table = read_table(path, {*_TIDY_COLUMNS, _ANNOTATOR})
    return _of_rows(table, read_info(capture).category_names, read_samples(capture))


def _read(labels: Path) -> Table:
    """A label file, or all those of a folder as one."""
    if labels.suffix.lower() == ".json":
        return label_studio.read_export(labels)
    if not labels.is_dir():
        return read_table(labels, {*_TIDY_COLUMNS, _ANNOTATOR, *UVD_COLUMNS})
    rows: list[Row] = []
    for path in sorted(labels.iterdir()):
        if path.name.startswith(".") or ending(path) not in ENDINGS:
            continue
        table = _read(path)
        if not set(table.columns) >= set(_TIDY_COLUMNS):
            raise LvdError(f"{path} needs the columns sample_id, category")
        rows += [Row(row.where, {_ANNOTATOR: path.stem, **row.values}) for row in table.rows]
    if not rows:
        raise LvdError(f"folder {labels} holds no label files: {', '.join(ENDINGS)}")
    return Table([*_TIDY_COLUMNS, _ANNOTATOR], rows)


def _unnamed_label(sample: Sample, unnamed_are: Unnamed) -> Categories:
    if unnamed_are == "keep":
        return sample.categories
    return () if unnamed_are == "safe" else UNLABELLED


def _of_rows(
    table: Table, names: Sequence[str], samples: Sequence[Sample]
) -> dict[str, dict[str, Judgement]]:
    """What each annotator says of each sample that a tidy file names; `unlabelled` names it alone.

    Raises:
        LvdError: there is no such sample or category, or one annotator calls a sample safe and unsafe.
    """
    known = {sample.sample_id for sample in samples}
    found: dict[str, dict[str, Judgement]] = {}
    for row in table.rows:
        sample_id, annotator = row.values["sample_id"], row.values.get(_ANNOTATOR, "").strip()
        if sample_id not in known:
            raise LvdError(
                f"{row.where}: the capture has no sample {sample_id!r}{_respelt(sample_id, known)}"
            )
        text = row.values["category"].strip()
        if not text:
            continue
        by = found.setdefault(sample_id, {})
        said = parse_label(text, names, row.where)
        if said is UNLABELLED:
            continue
        earlier = by.get(annotator, frozenset(said))
        if bool(earlier) != bool(said):
            who = f"annotator {annotator!r}" if annotator else "one annotator"
            raise LvdError(
                f"{row.where}: sample {sample_id} is {text}, and in a row before "
                f"{label_text(_ordered(earlier, names))}, by {who}: a sample is safe or has categories"
            )
        by[annotator] = earlier | frozenset(said)
    return found


def _of_indices(
    table: Table, path: Path, capture: Path, info: CaptureInfo, samples: Sequence[Sample]
) -> dict[str, dict[str, Judgement]]:
    """What the paper's label file says of the samples that are in its columns."""
    if info.imported:
        raise LvdError(
            f"capture {capture} was imported with such labels, and its rows are not the videos' indices: "
            f"give {path} the columns sample_id, category"
        )
    listed = categories_by_index(table.rows, path, len(samples), info.category_names)
    return {samples[index].sample_id: {"": frozenset(given)} for index, given in listed.items()}


def _write_disagreements(path: Path, disagreements: Sequence[Disagreement]) -> None:
    """As a label file has them, with each sample's label in a further column; there are none: no file."""
    if not disagreements:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_TIDY_COLUMNS, _ANNOTATOR, "label"])
    for one in disagreements:
        for annotator, categories in one.judgements.items():
            for category in categories or (SAFE,):
                writer.writerow([one.sample_id, category, annotator, label_text(one.label)])
    write_atomically(path, text.getvalue().encode())


def _respelt(sample_id: str, known: Iterable[str]) -> str:
    """A hint for an id that a spreadsheet took for a number: 0020 became 20 or 20.0."""
    number = sample_id.strip().removesuffix(".0")
    if not number.isdecimal():
        return ""
    same = [other for other in known if other.isdecimal() and other.lstrip("0") == number.lstrip("0")]
    if not same:
        return ""
    return f", but {same[0]!r}: did a spreadsheet drop leading zeros? give its column the format of text"


def categories_by_index(
    rows: Sequence[Row], path: Path, videos: int, names: Sequence[str]
) -> dict[int, tuple[str, ...]]:
    """The categories of each video that is in a column of the paper's label file, by its 0-based index."""
    if len(names) != len(UVD_COLUMNS):
        raise LvdError(f"{path} labels five categories, the capture has {len(names)}")
    found: dict[int, set[str]] = {}
    for row in rows:
        for column, name in zip(UVD_COLUMNS, names, strict=True):
            index = row.values[column].strip().removesuffix(".0")  # ragged columns become floats
            if not index:
                continue
            if not index.isdecimal() or len(index) > 18 or int(index) >= videos:
                raise LvdError(f"{row.where}: {index!r} is not one of the rows 0..{videos - 1}")
            found.setdefault(int(index), set()).add(name)
    return {index: _ordered(given, names) for index, given in sorted(found.items())}


def parse_label(text: str, names: Sequence[str], where: str) -> Categories:
    """Read a label: categories joined by |, in the order of `names`; `safe` or nothing; or `unlabelled`.

    Raises:
        LvdError: a category is not one of `names`, or the label says two things; `where` says in which row.
    """
    named = {part.strip() for part in text.split("|")} - {""}
    if text.strip() and not named:
        raise LvdError(f"{where}: {text!r} names no category")
    for whole in (SAFE, UNLABELLED.value):
        if whole in named and len(named) > 1:
            others = ", ".join(sorted(named - {whole}))
            raise LvdError(f"{where}: {whole} stands alone, not with {others}")
    if named == {UNLABELLED.value}:
        return UNLABELLED
    for category in sorted(named - {SAFE, *names}):
        raise LvdError(
            f"{where}: unknown category {category!r}, use {', '.join((*names, SAFE))} or unlabelled"
        )
    return _ordered(named, names)


def with_splits(
    samples: Sequence[Sample], seed: int, held_out: Collection[int] | None = None
) -> list[Sample]:
    """The samples with their splits; `held_out` are rows, as `assign_splits` has them.

    Real clips beside generated videos are all of the train split: what is calibrated and measured is of the
    generator.
    """
    videos = [row for row, sample in enumerate(samples) if sample.video]
    clips = videos if len(videos) < len(samples) else []
    splits = assign_splits(
        [sample.prompt or sample.prompt_id for sample in samples],  # those without a prompt are not alike
        [sample.prompt_id for sample in samples],
        [sample.categories for sample in samples],
        seed,
        held_out,
        clips,
    )
    return [replace(sample, split=split) for sample, split in zip(samples, splits, strict=True)]


def _ordered(categories: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    members = set(categories)
    return tuple(name for name in names if name in members)
