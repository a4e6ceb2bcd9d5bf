"""Read a table of texts: one a line (.txt), CSV, JSONL or parquet.

Every value becomes text, so that what is said of a prompts file or of labels holds for each format alike.
"""

import codecs
import csv
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lvd.errors import LvdError

_RawRow = tuple[int, dict[str, Any]]  # the row's number in the file, from 1, and its values


@dataclass(frozen=True)
class Row:
    """One row; `where` is what a message calls it: its file and its number there, from 1."""

    where: str
    values: dict[str, str]


@dataclass(frozen=True)
class Table:
    """Rows of a file. `columns` are all that the file has, also those that were not asked for."""

    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class _Format:
    name: str
    unit: str
    read: Callable[[Path, Collection[str]], Iterator[_RawRow]]


def read_table(
    path: Path, wanted: Collection[str], *, limit: int | None = None, list_column: str | None = None
) -> Table:
    """The first `limit` rows of a file, with those columns of `wanted` that it has.

    The ending of `path` says how it is read: .txt (one column, `prompt`), .csv, .jsonl or .parquet. Text is
    UTF-8, or UTF-16 with a byte-order mark. What is missing (null, a short row of a CSV) is the empty text,
    whole numbers become their digits, and a list in `list_column` is joined by `|`.

    Raises:
        LvdError: names the file, the row and what is wrong with it.
    """
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise LvdError(f"{path} must end in {', '.join(_FORMATS)}: the ending says how it is read")
    if not path.is_file():
        raise LvdError(f"no such file: {path}")
    columns: list[str] = []
    rows: list[Row] = []
    try:
        for number, raw in islice(form.read(path, wanted), limit):
            where = f"{path} {form.unit} {number}"
            if not rows:
                columns = list(raw)
            for name in wanted:
                if (name in raw) != (name in columns):  # JSONL alone: a column left out is not an empty one
                    raise LvdError(f"{where} and the lines before differ in having {name!r}: give it in all")
            rows.append(
                Row(where, {n: _text(raw[n], n == list_column, where, n) for n in wanted if n in raw})
            )
    except (ValueError, OSError, csv.Error, RecursionError) as error:
        raise LvdError(f"{path} is not readable as {form.name}: {' '.join(str(error).split())}") from None
    if not rows:
        raise LvdError(f"{path} holds no rows")
    return Table(columns, rows)


def _text(value: Any, may_be_list: bool, where: str, column: str) -> str:
    if may_be_list and isinstance(value, list):
        return "|".join(_text(item, False, where, column) for item in value)
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():  # a column of whole numbers with gaps, by pandas
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise LvdError(f"{where}: {column} is {json.dumps(value, default=str)[:40]}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LvdError(f"{where}: {column} holds half of a character, a lone surrogate") from None
    return value


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _read_txt(path: Path, _wanted: Collection[str]) -> Iterator[_RawRow]:
    with path.open(encoding=_encoding(path)) as file:
        for number, line in enumerate(file, 1):
            yield number, {"prompt": line.strip()}


def _read_csv(path: Path, _wanted: Collection[str]) -> Iterator[_RawRow]:
    with path.open(newline="", encoding=_encoding(path)) as file:
        for number, row in enumerate(csv.DictReader(file, restval="", strict=True), 1):
            if None in row:
                raise LvdError(
                    f"{path} row {number} has more fields than the header: quote fields with commas"
                )
            yield number, row


def _read_jsonl(path: Path, _wanted: Collection[str]) -> Iterator[_RawRow]:
    with path.open(newline="\n", encoding=_encoding(path)) as file:  # texts may hold any other line's end
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise LvdError(f"{path} line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise LvdError(f"{path} line {number} is not a JSON object: give one a line")
            yield number, row


def _read_parquet(path: Path, wanted: Collection[str]) -> Iterator[_RawRow]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            batches = file.iter_batches(batch_size=1024, columns=[n for n in names if n in wanted])
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield number, {**dict.fromkeys(names), **row}
    except ArrowException as error:
        raise ValueError(error) from None


_FORMATS = {
    ".txt": _Format("text in UTF-8", "line", _read_txt),
    ".csv": _Format("CSV in UTF-8", "row", _read_csv),
    ".jsonl": _Format("JSONL in UTF-8", "line", _read_jsonl),
    ".parquet": _Format("parquet", "row", _read_parquet),
}
