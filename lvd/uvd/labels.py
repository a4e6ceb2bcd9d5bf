"""The paper's label file: which of its videos are unsafe, and in what way."""

from collections.abc import Sequence
from pathlib import Path

from lvd.capture.labels import UVD_COLUMNS, categories_by_index
from lvd.capture.table import read_table
from lvd.errors import LvdError


def read_uvd_labels(path: Path, videos: int, category_names: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """The categories of each video that the paper's label file lists, by its 0-based index.

    Its columns `1`..`5` are ragged lists of the videos of one category each, in the order of
    `category_names`.

    Raises:
        LvdError: names the file, the row and what is wrong with it.
    """
    table = read_table(path, UVD_COLUMNS)
    if set(table.columns) != set(UVD_COLUMNS):
        raise LvdError(
            f"{path} needs the columns {', '.join(UVD_COLUMNS)}: it has {', '.join(table.columns)}"
        )
    return categories_by_index(table.rows, path, videos, category_names)
