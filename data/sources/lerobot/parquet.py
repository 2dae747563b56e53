"""Parquet files as columns of Python values: the only module that reads with pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, cast

import pyarrow as pa  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet as pq  # pyright: ignore[reportMissingTypeStubs]

from data.errors import InputError, first_line
from data.sources.parts.array_checks import check_file

Columns = dict[str, list[Any]]
_parquet: Any = pq  # without types
_ArrowException: type[Exception] = cast(Any, pa).ArrowException
Filter = tuple[str, str, int]


def read_table(path: Path, columns: Sequence[str] | None, filters: list[Filter] | None = None) -> Columns:
    """Read columns (None: all) of the rows that match the filters; row groups without a match are skipped.

    Raises:
        InputError: Missing or damaged file, not Parquet, or a column is missing.
    """
    check_file(path, "a Parquet table")
    try:
        # pyarrow's own error for a missing column names neither the column nor those that there are.
        names: list[str] = _parquet.read_schema(path).names
        _check_columns(path, names, [*(columns or ()), *(name for name, _, _ in filters or ())])
        # partitioning=None: folder names such as `a=b` are no columns.
        table: Any = _parquet.read_table(
            path, columns=None if columns is None else list(columns), filters=filters, partitioning=None
        )
        return {name: cast("list[Any]", table[name].to_pylist()) for name in table.column_names}
    except (_ArrowException, OSError, UnicodeDecodeError) as error:
        cause = first_line(error)
        raise InputError(
            f"{path}: not a readable Parquet table ({cause}); copy the data set again"
        ) from error


def column(table: Columns, name: str, path: PurePath) -> list[Any]:
    """One column without nulls.

    Raises:
        InputError: It is missing, or a value is null.
    """
    values = table.get(name)
    if values is None:
        raise InputError(f"{path}: no column {name}; export the data set again")
    if any(value is None for value in values):
        raise InputError(f"{path}: column {name} has an empty value; export the data set again")
    return values


def _check_columns(path: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a table without a column that is wanted (InputError)."""
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(
            f"{path}: no column {missing[0]}, it has {', '.join(names)}; its info.json does not "
            "fit it, export the data set again"
        )
