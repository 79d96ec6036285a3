"""Finds the labels of files: `labels.csv`, `labels.npy`, a text beside each, or its sub-folder."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any, Final

from packager.data._files import read_text
from packager.data._npz import read_array
from packager.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from packager.data._labels import Classes

LABELS_CSV: Final = "labels.csv"
LABELS_NPY: Final = "labels.npy"
_FILE: Final = "file"
_CORNERS: Final = ("x1", "y1", "x2", "y2")


def folder_labels(
    folder: Path, files: Sequence[Path], column: str, classes: Classes
) -> list[Any] | None:
    """Return one label per file, or None where nothing tells.

    The first of these that is there: `labels.csv`, `labels.npy`, `NAME.txt` beside every file, and
    sub-folders that are class numbers or names.

    Args:
        folder: The source.
        files: Of the samples, in order.
        column: The label's column.
        classes: The model's, for names of sub-folders.

    Raises:
        UsageError: labels that are none, or that do not match the files.
    """
    table, array = folder / LABELS_CSV, folder / LABELS_NPY
    if table.is_file() and array.is_file():
        raise UsageError(f"`{folder}` holds `{LABELS_CSV}` and `{LABELS_NPY}`", accepted="one")
    if table.is_file():
        return _from_table(table, folder, files, column, classes)
    if array.is_file():
        labels = read_array(array)
        if labels.ndim == 0 or len(labels) != len(files):
            raise UsageError(
                f"`{array}` has the shape {list(labels.shape)} for {len(files)} samples",
                accepted="one label per sample, in the order of their names",
            )
        return [labels[index : index + 1] for index in range(len(files))]
    beside = [path.with_suffix(".txt") for path in files]
    there = [path.is_file() for path in beside]
    if all(there):
        return [[read_text(path).strip()] for path in beside]
    return _from_folders(folder, files, classes)


def _from_folders(folder: Path, files: Sequence[Path], classes: Classes) -> list[Any] | None:
    tops = [path.relative_to(folder).parts[0] for path in files if path.parent != folder]
    if len(tops) < len(files):
        return None
    if all(top.isascii() and top.isdigit() for top in tops):
        return [[top] for top in tops]
    if classes.file is None:
        return None
    unknown = next((top for top in tops if classes.number(top) is None), None)
    if unknown is not None:
        raise UsageError(
            f"the sub-folder `{unknown}` of `{folder}` names no class",
            accepted=f"class numbers, or lines of `{classes.file}`",
            hint=f"or write a `{LABELS_CSV}` with the columns `file` and `label`",
        )
    return [[top] for top in tops]


def _from_table(
    table: Path, folder: Path, files: Sequence[Path], column: str, classes: Classes
) -> list[Any]:
    names = [path.relative_to(folder).as_posix() for path in files]
    header, rows = _read(table)
    label = next((name for name in (column, "label") if name in header), None)
    if _FILE not in header or label is None:
        raise UsageError(
            f"`{table}` has the columns " + ", ".join(f"`{name}`" for name in header),
            accepted=f"`{_FILE}` and `{column}`, and for boxes "
            + ", ".join(f"`{corner}`" for corner in _CORNERS),
        )
    boxed = set(_CORNERS) <= set(header)
    found: dict[str, Any] = {}
    for line, row in rows:
        cells = dict(zip(header, row, strict=True))
        name = cells[_FILE].strip().removeprefix("./")
        if name not in found and name not in names:
            raise UsageError(
                f"`{table}`, line {line}: there is no sample `{name}`",
                accepted="paths of photos, sounds or arrays, relative to the source",
            )
        if boxed:
            boxes = found.setdefault(name, {"boxes": [], "classes": []})
            _add_box(boxes, cells, label, f"`{table}`, line {line}", classes)
            continue
        if name in found:
            raise UsageError(f"`{table}`, line {line}: `{name}` has a label already")
        # A text may be empty; a class number may not, and reads as a word that is none.
        found[name] = [cells[label]]
    return [found.get(name) for name in names]


def _add_box(
    boxes: dict[str, list[Any]], cells: dict[str, str], label: str, where: str, classes: Classes
) -> None:
    corners = [cells[corner].strip() for corner in _CORNERS]
    word = cells[label].strip()
    if not word and not any(corners):
        return  # a photo without any object
    try:
        boxes["boxes"].append([float(corner) for corner in corners])
    except ValueError as fault:
        raise UsageError(
            f"{where}: `{','.join(corners)}` is no box", accepted="x1, y1, x2, y2 in pixels"
        ) from fault
    number = int(word) if word.isascii() and word.isdigit() else classes.number(word)
    if number is None:
        raise UsageError(f"{where}: `{word}` is no class", accepted="a class's number or its name")
    boxes["classes"].append(number)


def _read(table: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    reader = csv.reader(io.StringIO(read_text(table), newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UsageError(
                        f"`{table}`, line {reader.line_num}: {len(row)} cells, "
                        f"and the header has {len(header)}"
                    )
                yield reader.line_num, row
        except csv.Error as fault:
            raise UsageError(f"`{table}`, line {reader.line_num}: {fault}") from fault

    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as fault:
        raise UsageError(f"`{table}`, line {reader.line_num}: {fault}") from fault
    return header, rows()
