"""Read a table of texts: one a line (.txt), CSV, JSONL, JSON or parquet; as text also packed (.gz).

Every value becomes text, so that what is said of a prompts file or of labels holds for each format alike.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from lvd.errors import LvdError
from lvd.latents.format import csv_rows

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

    The ending of `path` says how it is read: .txt (one column, `prompt`), .csv, .jsonl, .json (a list of
    objects) or .parquet; all but the last may be packed, and end in .gz then. Text is UTF-8, or UTF-16 with
    a byte-order mark. A null is the empty text, and whole numbers become their digits. In `list_column`, a
    list is joined by `|`, and so are the names of an object's true values. Blank lines are passed over in
    .csv and .jsonl, and at the end of a .txt; anywhere else in a .txt they are refused, since a line stands
    for one video.

    Raises:
        LvdError: names the file, the row and what is wrong with it.
    """
    form = _FORMATS.get(ending(path))
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
    except (ValueError, OSError, EOFError, zlib.error, csv.Error, RecursionError) as error:
        raise LvdError(f"{path} is not readable as {form.name}: {' '.join(str(error).split())}") from None
    if not rows:
        raise LvdError(f"{path} holds no rows")
    return Table(columns, rows)


def _text(value: Any, may_be_list: bool, where: str, column: str) -> str:
    if may_be_list and isinstance(value, list):
        return "|".join(_text(item, False, where, column) for item in value)
    if (
        may_be_list
        and isinstance(value, dict)
        and all(item in (True, False, None) for item in value.values())
    ):
        return "|".join(name for name, given in value.items() if given)
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


def ending(path: Path) -> str:
    """What says how a file is read: its last ending, before .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@contextmanager
def _open(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        utf_16 = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        yield io.TextIOWrapper(file, encoding="utf-16" if utf_16 else "utf-8-sig", newline=newline)


def _read_txt(path: Path, _wanted: Collection[str]) -> Iterator[_RawRow]:
    blank = 0
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            prompt = line.strip()
            if not prompt:
                blank = blank or number
                continue
            if blank:
                raise LvdError(f"{path} line {blank}: the prompt is empty, and others follow it")
            yield number, {"prompt": prompt}


def _read_csv(path: Path, _wanted: Collection[str]) -> Iterator[_RawRow]:
    with _open(path, newline="") as file:
        rows = csv_rows(file)
        _, header = next(rows, (0, []))
        _once(header, f"{path} names the column")
        for number, (_, row) in enumerate(rows, 1):
            if len(row) != len(header):
                raise LvdError(
                    f"{path} row {number} has {len(row)} fields, the header {len(header)}: quote fields with "
                    "commas in them, and leave no field out"
                )
            yield number, dict(zip(header, row, strict=True))


def _read_jsonl(path: Path, _wanted: Collection[str]) -> Iterator[_RawRow]:
    with _open(path, newline="\n") as file:  # texts may hold any other line's end
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path} line {number} has"
            try:
                row = json.loads(line, object_pairs_hook=partial(_object, where))
            except ValueError as error:
                raise LvdError(f"{path} line {number} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise LvdError(f"{path} line {number} is not a JSON object: give one a line")
            yield number, row


def _read_json(path: Path, _wanted: Collection[str]) -> Iterator[_RawRow]:
    with _open(path) as file:
        objects = json.load(file, object_pairs_hook=partial(_object, f"{path} has"))
    if not isinstance(objects, list):
        raise LvdError(f"{path} is not a list of JSON objects")
    for number, row in enumerate(objects, 1):
        if not isinstance(row, dict):
            raise LvdError(f"{path} object {number} is not a JSON object")
        yield number, row


def _object(where: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    _once([name for name, _ in pairs], where)
    return dict(pairs)


def _once(names: Sequence[str], where: str) -> None:
    """Refuse a name that appears twice, where only one of its values would be read; a nameless one is not."""
    for name in sorted(set(names) - {""}):
        if names.count(name) > 1:
            raise LvdError(f"{where} {name!r} {names.count(name)} times: remove or rename all but one")


def _read_parquet(path: Path, wanted: Collection[str]) -> Iterator[_RawRow]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            _once(names, f"{path} names the column")
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
    ".json": _Format("JSON in UTF-8", "object", _read_json),
}
ENDINGS = tuple(_FORMATS)
