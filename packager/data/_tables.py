"""Reads samples from a table: `.csv`, `.parquet`, or lines of text; one row is one sample."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, Final

from packager.data._arrays import TEXT_KEY, fit_sample
from packager.data._columns import label_word, plan_columns, row_arrays
from packager.data._files import MOST_SAMPLES, ROWS_BYTES, check_file
from packager.data._spool import Spool
from packager.errors import BackendMissing, InputOutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.data._columns import ColumnPlan
    from packager.data._gather import Gathering
    from packager.data._samples import Samples
    from packager.model import Signature
    from packager.recipe import Recipe

    # What a line is called in messages, and its cells by column.
    Row = tuple[str, Mapping[str, Any]]

TABLE_SUFFIXES: Final = (".csv", ".parquet", ".txt")
_BATCH_ROWS: Final = 256
# In characters: a file without line ends must not fill the memory.
_LONGEST_LINE: Final = 16 << 20


def load_table(path: Path, gathering: Gathering) -> Samples:
    """Read every row of a table; memory holds one at a time, the samples lie on disk.

    Raises:
        InputOutputError: the file is missing or cannot be read.
        UsageError: it is no such table, a column is missing, or a cell cannot be; names the line.
        BackendMissing: a Parquet file, and the package that reads it is not installed.
    """
    signature, recipe = gathering.signature, gathering.recipe
    plan = _plan(path, signature, recipe)
    spool = Spool()
    count = 0
    for line, cells in _rows(path, plan.columns()):
        where = f"`{path}`, {line}"
        changes: list[str] = []
        arrays = row_arrays(cells, plan, signature, where)
        sample = fit_sample(arrays, signature, recipe, where, changes)
        label = label_word(cells, plan, where) if gathering.labelled else _any_label(cells, plan)
        gathering.add(sample, spool.add(sample), name=line, label=label, changes=changes)
        count += 1
    kind = path.suffix.lower()[1:]
    noun = "line" if kind == "txt" else "row"
    origin = f"{count} {noun}{'' if count == 1 else 's'} of a `.{kind}` file"
    return gathering.finish(kind=kind, origin=origin, noun=f"{noun}s")


def table_arrays(path: Path, signature: Signature, recipe: Recipe) -> dict[str, NDArray[Any]]:
    """Return all rows of a table as the arrays of one request.

    Raises:
        InputOutputError, UsageError, BackendMissing: as `load_table`.
    """
    import numpy as np

    plan = _plan(path, signature, recipe)
    parts = [
        row_arrays(cells, plan, signature, f"`{path}`, {line}")
        for line, cells in _rows(path, plan.columns())
    ]
    if not parts:
        raise UsageError(f"`{path}` holds no rows")
    return {name: np.concatenate([part[name] for part in parts]) for name in plan.inputs}


def _plan(path: Path, signature: Signature, recipe: Recipe) -> ColumnPlan:
    check_file(path, most=ROWS_BYTES)
    kind = path.suffix.lower()
    if kind == ".txt":
        header: Sequence[str] = (TEXT_KEY,)
    elif kind == ".csv":
        header = _csv_header(path)
    else:
        with _parquet(path) as file:
            header = _parquet_names(path, file)
    return plan_columns(header, signature, recipe, f"`{path}`")


def _rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    kind = path.suffix.lower()
    if kind == ".txt":
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                yield f"line {number}", {TEXT_KEY: line.rstrip("\r\n")}
    elif kind == ".csv":
        yield from _csv_rows(path, columns)
    else:
        yield from _parquet_rows(path, columns)


def _any_label(cells: Mapping[str, Any], plan: ColumnPlan) -> Any:
    """Return a label where nobody needs one: an empty cell is none."""
    try:
        return label_word(cells, plan, "")
    except UsageError:
        return None


def _csv_header(path: Path) -> list[str]:
    for _, row in _csv_lines(path):
        header = [name.strip() for name in row]
        other = next((mark for mark in (";", "\t") if mark in header[0]), None)
        if len(header) == 1 and other is not None:
            raise UsageError(
                f"`{path}` has one column `{header[0][:40]}`",
                accepted="cells parted by commas",
                hint="write the table with commas instead of "
                + ("semicolons" if other == ";" else "tabs"),
            )
        return header
    raise UsageError(f"`{path}` is empty", accepted="a line of column names, then the rows")


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    lines = _csv_lines(path)
    header = [name.strip() for name in next(lines)[1]]
    places = [(column, header.index(column)) for column in columns]
    for number, row in lines:
        if len(row) != len(header):
            raise UsageError(
                f"`{path}`, line {number}: {len(row)} cells, and the header has {len(header)}"
            )
        yield f"line {number}", {column: row[place] for column, place in places}


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_lines(path), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as fault:
        raise UsageError(f"`{path}`, line {reader.line_num}: {fault}") from fault


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            while line := stream.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE:
                    raise UsageError(f"`{path}` has a line of {_LONGEST_LINE} characters or more")
                yield line
    except UnicodeDecodeError as fault:
        raise UsageError(
            f"`{path}`, line {_bad_line(path)}: not UTF-8", accepted="text in UTF-8"
        ) from fault
    except OSError as fault:
        raise InputOutputError(f"`{path}` cannot be read: {fault.strerror}") from fault


def _bad_line(path: Path) -> int:
    # The decoder reads ahead, so its position says little.
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as fault:
        raise BackendMissing(
            f"reading `{path.name}` needs pyarrow, which is not installed",
            hint="pip install 'edgepack[parquet]', or write the table as `.csv`",
        ) from fault
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as fault:
        raise UsageError(f"`{path}` is not a readable Parquet file: {fault}") from fault
    if file.metadata.num_rows > MOST_SAMPLES:
        rows = file.metadata.num_rows
        file.close()
        raise UsageError(f"`{path}` has {rows} rows", accepted=f"up to {MOST_SAMPLES}")
    return file


def _parquet_names(path: Path, file: Any) -> list[str]:
    try:
        names: list[str] = file.schema_arrow.names
    except UnicodeDecodeError as fault:
        raise UsageError(f"`{path}` is not a readable Parquet file: {fault}") from fault
    return names


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow

    number = 0
    with _parquet(path) as file:
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns), use_threads=False):
                for cells in batch.to_pylist():
                    yield f"row {number}", cells
                    number += 1
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as fault:
            raise UsageError(f"`{path}`, row {number}: {fault}") from fault
