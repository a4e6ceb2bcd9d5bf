"""Labels: which samples are unsafe, and in what way, as people found who watched the videos."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lvd.capture.table import Row, read_table
from lvd.errors import LvdError
from lvd.latents.format import CaptureInfo, Sample, read_info, read_samples
from lvd.latents.splits import assign_splits
from lvd.latents.writer import relabel

_UVD_COLUMNS = ("1", "2", "3", "4", "5")  # the paper's label file: a column of video indices a category
_TIDY_COLUMNS = ("sample_id", "category")


def label(capture: Path, labels: Path, seed: int) -> CaptureInfo:
    """Set the categories of an existing capture; a sample that `labels` does not name is safe.

    `labels` is tidy (`sample_id, category`, a row each; an empty category changes nothing) or has the
    paper's columns `1`..`5`, each the 0-based rows of a category's samples. A capture's first labels
    also balance its splits; from then on the splits stay as they are.

    Raises:
        LvdError: names the file, the row and what is wrong with it; the capture is unchanged.
    """
    info = read_info(capture)
    samples = read_samples(capture)
    table = read_table(labels, {*_TIDY_COLUMNS, *_UVD_COLUMNS})
    if set(table.columns) >= set(_TIDY_COLUMNS):
        pairs = [(row.where, row.values["sample_id"], row.values["category"]) for row in table.rows]
    elif set(table.columns) == set(_UVD_COLUMNS):
        if info.imported:
            raise LvdError(
                f"capture {capture} was imported with such labels, and its rows are not the videos' indices: "
                f"give {labels} the columns sample_id, category"
            )
        pairs = [
            (where, samples[index].sample_id, category)
            for where, index, category in _uvd_labels(table.rows, labels, len(samples), info.category_names)
        ]
    else:
        raise LvdError(f"{labels} needs the columns sample_id, category or {', '.join(_UVD_COLUMNS)}")

    found: dict[str, list[str]] = {sample.sample_id: [] for sample in samples}
    for where, sample_id, category in pairs:
        if sample_id not in found:
            raise LvdError(f"{where}: the capture has no sample {sample_id!r}{_respelt(sample_id, found)}")
        found[sample_id] += known_categories([category], info.category_names, where)
    samples = [replace(s, categories=_ordered(found[s.sample_id], info.category_names)) for s in samples]
    samples = samples if info.labelled else with_splits(samples, seed)
    info = replace(info, labelled=True)
    relabel(capture, info, samples)
    return info


def _respelt(sample_id: str, known: Iterable[str]) -> str:
    """A hint for an id that a spreadsheet took for a number: 0020 became 20 or 20.0."""
    number = sample_id.strip().removesuffix(".0")
    if not number.isdecimal():
        return ""
    same = [other for other in known if other.isdecimal() and other.lstrip("0") == number.lstrip("0")]
    if not same:
        return ""
    return f", but {same[0]!r}: did a spreadsheet drop leading zeros? give its column the format of text"


def read_uvd_labels(path: Path, videos: int, category_names: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """The categories of each video that the paper's label file lists, by its 0-based index.

    Its columns `1`..`5` are ragged lists of the videos of one category each, in the order of
    `category_names`.

    Raises:
        LvdError: names the file, the row and what is wrong with it.
    """
    table = read_table(path, _UVD_COLUMNS)
    if set(table.columns) != set(_UVD_COLUMNS):
        raise LvdError(
            f"{path} needs the columns {', '.join(_UVD_COLUMNS)}: it has {', '.join(table.columns)}"
        )
    found: dict[int, list[str]] = {}
    for _, index, category in _uvd_labels(table.rows, path, videos, category_names):
        found.setdefault(index, []).append(category)
    return {index: _ordered(categories, category_names) for index, categories in sorted(found.items())}


def known_categories(categories: Sequence[str], names: Sequence[str], where: str) -> tuple[str, ...]:
    """Categories in the order of `names`, without repetitions and empty ones.

    Raises:
        LvdError: one is none of `names`; `where` says in which row.
    """
    named = {category.strip() for category in categories} - {""}
    for category in sorted(named - set(names)):
        raise LvdError(f"{where}: unknown category {category!r}, use {', '.join(names)}")
    return _ordered(named, names)


def with_splits(samples: Sequence[Sample], seed: int) -> list[Sample]:
    splits = assign_splits(
        [sample.prompt or sample.prompt_id for sample in samples],  # those without a prompt are not alike
        [sample.prompt_id for sample in samples],
        [sample.categories for sample in samples],
        seed,
    )
    return [replace(sample, split=split) for sample, split in zip(samples, splits, strict=True)]


def _ordered(categories: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    members = set(categories)
    return tuple(name for name in names if name in members)


def _uvd_labels(
    rows: Sequence[Row], path: Path, videos: int, names: Sequence[str]
) -> list[tuple[str, int, str]]:
    """Where each label stands, the 0-based index of its video, and its category."""
    if len(names) != len(_UVD_COLUMNS):
        raise LvdError(f"{path} labels five categories, the capture has {len(names)}")
    found = []
    for row in rows:
        for column, name in zip(_UVD_COLUMNS, names, strict=True):
            index = row.values[column].strip().removesuffix(".0")  # ragged columns become floats
            if not index:
                continue
            if not index.isdecimal() or len(index) > 18 or int(index) >= videos:
                raise LvdError(f"{row.where}: {index!r} is not one of the rows 0..{videos - 1}")
            found.append((row.where, int(index), name))
    return found
