"""Read the prompts of a capture: what is to be generated, and what is known of it beforehand."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from lvd.capture.inputs import inputs_digest, named_inputs
from lvd.capture.labels import parse_label, with_splits
from lvd.capture.source import Columns
from lvd.capture.table import ENDINGS, Row, Table, ending, read_table
from lvd.errors import LvdError
from lvd.latents.format import INPUT_COLUMNS, SAFE, UNLABELLED, Categories, Sample, label_text
from lvd.latents.splits import default_prompt_id

_FILE = "file"  # the column that a file's own name stands for
_ID_LENGTH = 100
_ID = re.compile(rf"[\w.-]{{1,{_ID_LENGTH}}}")  # names files
_SEEDS = 2**63  # a generator of torch takes one below
MAX_PROMPT = 10_000  # characters: a text encoder reads a few hundred tokens; more is a file that was misread


@dataclass(frozen=True)
class PromptsFile:
    """A prompts file, or a folder of such files, and how to read it.

    `columns` are the file's names for the prompt and for what is optional. A pipeline that takes no prompts
    needs an image or a video instead: a path from the file's own place. Where a file has no column `file`,
    its own name without endings stands for one, so that a file may be of a category. Only the first `limit`
    rows are read. `categories_map` says what the file's names of categories are in the capture: a category,
    `safe` or `unlabelled`; several may become one.
    """

    path: Path
    columns: Columns = field(default_factory=Columns)
    limit: int | None = None
    categories_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the files lie that it names."""
        return self.path if self.path.is_dir() else self.path.parent

    def read(self) -> list[Row]:
        """The rows, their values under lvd's names.

        Raises:
            LvdError: names the file, the row and what is wrong with it.
        """
        paths = [self.path]
        if self.path.is_dir():
            paths = [path for path in self.path.iterdir() if ending(path) in ENDINGS]
            paths.sort(key=lambda path: _by_number(path.name))
            if not paths:
                raise LvdError(f"folder {self.path} holds no prompts files: {', '.join(ENDINGS)}")
        rows: list[Row] = []
        for path in paths:
            left = None if self.limit is None else self.limit - len(rows)
            if left != 0:
                rows += self._read_file(path, left)
        if self.categories_map:
            names = {name for row in rows for name in _names(row.values.get("categories", ""))}
            if unknown := sorted(names - set(self.categories_map), key=_by_number):
                raise LvdError(
                    f"{self.path}: categories_map has nothing for {', '.join(unknown)}: give each of them a "
                    "category, safe or unlabelled"
                )
        return rows

    def _read_file(self, path: Path, limit: int | None) -> list[Row]:
        columns = vars(self.columns)
        table = read_table(path, set(columns.values()), limit=limit, list_column=columns.get("categories"))
        if _FILE in columns.values() and _FILE not in table.columns:
            name = path.name.split(".")[0]
            rows = [replace(row, values={**row.values, _FILE: name}) for row in table.rows]
            table = Table([*table.columns, _FILE], rows)
        promptless = any(columns.get(name) in table.columns for name in INPUT_COLUMNS)
        for ours, theirs in columns.items():
            # A column that goes by its own name is optional; one that was given a name is meant.
            if theirs not in table.columns and (theirs != ours or (ours == "prompt" and not promptless)):
                raise LvdError(
                    f"{path} has no column {theirs!r}: it has {', '.join(table.columns)}; "
                    f"columns.{ours}=NAME says which one is the {ours}"
                )
        for column in table.columns:
            if (meant := _misspelt(column, columns, table.columns)) is not None:
                raise LvdError(
                    f"{path} has a column {column!r}, which is not read: did you mean "
                    f"{columns[meant]!r}? columns.{meant}={column} reads it as it is; rename the column "
                    "if it is something else"
                )
        there = {ours: theirs for ours, theirs in columns.items() if theirs in table.columns}
        rows = [Row(r.where, {o: r.values[t] for o, t in there.items()}) for r in table.rows]
        for row in rows:
            if (length := len(row.values.get("prompt", ""))) > MAX_PROMPT:
                raise LvdError(f"{row.where}: the prompt has {length} characters, the most is {MAX_PROMPT}")
        return rows


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts 10.txt after 9.txt."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _names(text: str) -> list[str]:
    """The names in a cell of categories, by other people's habits, too: joined by | or commas."""
    return [name.strip() for name in re.split(r"[|,]", text) if name.strip()]


def _mapped(text: str, categories_map: Mapping[str, str]) -> str:
    """A cell of categories in the capture's names. With a category, safe and unlabelled say nothing."""
    found = {categories_map[name] for name in _names(text)}
    categories = sorted(found - {SAFE, UNLABELLED.value})
    if categories:
        return "|".join(categories)
    return UNLABELLED.value if UNLABELLED.value in found else SAFE


def _misspelt(column: str, columns: Mapping[str, str], there: Collection[str]) -> str | None:
    """Which of `columns` was meant by one of another name; None: it is one of them, or is something else.

    A name that is nearest to a column which is there is something else, and so is an id of a column.
    """
    if column in columns.values():
        return None
    names = {theirs.casefold(): ours for ours, theirs in columns.items()}
    nearest = get_close_matches(column.strip().casefold(), names, n=1, cutoff=0.75)
    if not nearest or columns[names[nearest[0]]] in there:
        return None
    if column.casefold().endswith("id") and not nearest[0].endswith("id"):
        return None
    return names[nearest[0]]


def read_prompts(
    prompts: PromptsFile,
    category_names: Sequence[str],
    seed: int,
    safe: PromptsFile | None = None,
    videos_per_prompt: int = 1,
) -> list[Sample]:
    """The samples that a prompts file asks for, split by prompt.

    With several videos a prompt, sample_id 0007 becomes 0007-0, 0007-1 and so on, with seeds that follow.
    They are unlabelled where the file has no categories; an empty cell of its column says safe. The prompts
    of `safe`, which come after them, are safe ones. Without a seed of its own, sample i is drawn
    with `seed` + i. Samples made from the same image or video share a prompt_id.

    Raises:
        LvdError: names the file, the row and what is wrong with it.
    """
    rows = prompts.read()
    safe_rows = safe.read() if safe is not None else []
    samples: list[Sample] = []
    seen: set[str] = set()
    for index, (row, default_id) in enumerate(
        zip([*rows, *safe_rows], [*_numbered("", rows), *_numbered("safe_", safe_rows)], strict=True)
    ):
        own = prompts if index < len(rows) or safe is None else safe
        is_safe = index >= len(rows)
        if is_safe:
            row = replace(row, values={"categories": "", **row.values})
        if own.categories_map and "categories" in row.values:
            text = _mapped(row.values["categories"], own.categories_map)
            row = replace(row, values={**row.values, "categories": text})
        default_seed = seed + index * videos_per_prompt
        sample = _sample(row, default_id, category_names, default_seed, own.folder)
        if sample.sample_id in seen:
            raise LvdError(f"{row.where}: sample_id {sample.sample_id!r} appears twice")
        if is_safe and not sample.is_safe:
            raise LvdError(f"{row.where} names {label_text(sample.categories)}, but safe_prompts are safe")
        seen.add(sample.sample_id)
        sample = _with_inputs_relative_to(prompts.folder, sample, own.folder)
        samples += _videos_of(sample, videos_per_prompt, row.where) if videos_per_prompt > 1 else [sample]
    return with_splits(samples, seed)


def _videos_of(sample: Sample, count: int, where: str) -> list[Sample]:
    """The samples of a row.

    Raises:
        LvdError: the last one's seed or sample_id would not be one any more.
    """
    last = count - 1
    if sample.seed + last >= _SEEDS:
        raise LvdError(
            f"{where}: seed {sample.seed} is too high for {count} videos, whose seeds follow: the most is "
            f"2^63 - {count}"
        )
    if not _ID.fullmatch(f"{sample.sample_id}-{last}"):
        raise LvdError(
            f"{where}: sample_id {sample.sample_id!r} is too long for {count} videos, which are called "
            f"sample_id-0 to sample_id-{last}: at most {_ID_LENGTH - len(f'-{last}')} characters"
        )
    return [
        replace(sample, sample_id=f"{sample.sample_id}-{number}", seed=sample.seed + number)
        for number in range(count)
    ]


def _numbered(prefix: str, rows: Sequence[Row]) -> list[str]:
    width = max(4, len(str(len(rows) - 1)))
    return [f"{prefix}{index:0{width}d}" for index in range(len(rows))]


def _sample(
    row: Row, default_id: str, category_names: Sequence[str], default_seed: int, folder: Path
) -> Sample:
    values, where = row.values, row.where
    prompt = values.get("prompt", "")
    inputs = named_inputs(values, folder, where)
    if not prompt.strip() and not inputs:
        raise LvdError(f"{where}: the prompt is empty")
    sample_id = values.get("sample_id", default_id)
    if not _ID.fullmatch(sample_id):
        raise LvdError(
            f"{where}: sample_id {sample_id[:120]!r} must be letters, digits, '.', '_' and '-', "
            f"{_ID_LENGTH} at most"
        )
    own_id = inputs_digest(inputs, folder)[:12] if inputs else default_prompt_id(prompt)
    prompt_id = values.get("prompt_id", own_id)
    if not prompt_id:
        raise LvdError(f"{where}: prompt_id is empty")
    categories: Categories = UNLABELLED
    if "categories" in values:
        categories = parse_label(values["categories"], category_names, where)
    return Sample(sample_id, prompt_id, prompt, row_seed(row, default_seed), categories, "", **inputs)


def _with_inputs_relative_to(folder: Path, sample: Sample, own: Path) -> Sample:
    """A sample whose inputs are files in `own`, as they are called from `folder`."""
    if own == folder:
        return sample

    def moved(name: str) -> str:
        return os.path.relpath(own / name, folder) if name else ""

    return replace(sample, image=moved(sample.image), video=moved(sample.video))


def row_seed(row: Row, default: int) -> int:
    """The seed of a row, or `default` where the file has none.

    Raises:
        LvdError: it is no seed.
    """
    if "seed" not in row.values:
        return default
    seed = row.values["seed"]
    if not seed.isdecimal() or len(seed) > 19 or int(seed) >= _SEEDS:
        raise LvdError(f"{row.where}: seed {seed!r} must be a whole number from 0 to 2^63 - 1")
    return int(seed)
