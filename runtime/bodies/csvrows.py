"""Turns the rows of a table into a model's inputs, as the build host reads the same file."""

from __future__ import annotations

import csv
import math
import re
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple, Union

from ..dtypes import INTEGERS, closest, integer_range
from ..errors import BadRequest
from ..signature import Signature, TensorSpec, describe_dims
from ..tensor import Tensor
from .texts import most_rows, read_text

Body = Union[bytes, bytearray]

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUTH = {"0": 0, "1": 1, "false": 0, "true": 1, "False": 0, "True": 1}
_MOST_COLUMNS = 1 << 16
_SHOWN_COLUMNS = 12
_COMPARED_COLUMNS = 1000
_SHOWN_CHARACTERS = 40
# A number of more digits would take long to read, and no element holds it.
_MOST_DIGITS = 400


class TableDecoder:
    """Decodes tables: a line of column names, then one row of the request per line.

    Args:
        signature: The model's.
        columns: The manifest's: by input the `names` of its columns. An input without is the column
            of its name, or `NAME.0`, `NAME.1` …
    """

    def __init__(self, signature: Signature, columns: Mapping[str, Any]) -> None:
        self._signature = signature
        self._columns = columns
        self._most = most_rows(signature)

    def decode(self, body: Body) -> Dict[str, Tensor]:
        """Return the inputs that the rows are.

        Raises:
            BadRequest: a column is missing, a cell cannot be, or there are too many rows; says
                which line.
        """
        rows = _rows(read_text(body))
        number, header = next(rows, (1, [""]))
        if len(header) > _MOST_COLUMNS:
            raise BadRequest("the table has %d columns" % len(header), hint="send fewer")
        header = [name.strip() for name in header]
        if header == [""]:
            raise BadRequest(
                "the table is empty", hint="send a line of column names, then the rows"
            )
        places: Dict[str, List[int]] = {}
        for place, name in enumerate(header):
            places.setdefault(name, []).append(place)
        plan, sizes = {}, {}
        for spec in self._signature.inputs.values():
            names = self._names(spec, places)
            sizes[spec.name] = _row_sizes(spec, len(names))
            plan[spec.name] = [_place(name, places) for name in names]
        values: Dict[str, List[Any]] = {name: [] for name in plan}
        count = 0
        for number, cells in rows:
            if len(cells) != len(header):
                raise BadRequest(
                    "line %d has %d cells, and the header has %d"
                    % (number, len(cells), len(header))
                )
            count += 1
            if count > self._most:
                raise BadRequest(
                    "the table has more rows than the %d that the model takes" % self._most
                )
            for name, taken in plan.items():
                dtype = self._signature.inputs[name].dtype
                values[name] += [_value(cells[at], dtype, header[at], number) for at in taken]
        if not count:
            raise BadRequest("the table has no rows", hint="send rows below the column names")
        return {
            name: Tensor.from_flat(
                values[name],
                (count, *sizes[name]),
                self._signature.inputs[name].dtype,
                where=name,
            )
            for name in plan
        }

    def _names(self, spec: TensorSpec, header: Mapping[str, Any]) -> Sequence[str]:
        declared = self._columns.get(spec.name)
        if declared is not None:
            return list(declared["names"])
        if spec.name in header:
            return [spec.name]
        found: List[str] = []
        while "%s.%d" % (spec.name, len(found)) in header:
            found.append("%s.%d" % (spec.name, len(found)))
        if not found:
            raise BadRequest(
                "the table has no column for the input `%s`" % spec.name,
                hint="name it `%s`, or `%s.0`, `%s.1` …; the table has %s"
                % (spec.name, spec.name, spec.name, _shown(list(header))),
            )
        return found


def _rows(text: str) -> Iterator[Tuple[int, List[str]]]:
    reader = csv.reader(_lines(text), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as fault:
        raise BadRequest("line %d: %s" % (reader.line_num, fault)) from None


def _lines(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        end = text.find("\n", at) + 1 or len(text)
        yield text[at:end]
        at = end


def _place(name: str, places: Mapping[str, List[int]]) -> int:
    found = places.get(name, ())
    if len(found) == 1:
        return found[0]
    if found:
        raise BadRequest("the table has several columns `%s`" % _short(name))
    header = list(places)
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise BadRequest(
            "the table has one column `%s`" % _short(header[0]), hint="part the cells by commas"
        )
    near = closest(name, header[:_COMPARED_COLUMNS])
    raise BadRequest(
        "the table has no column `%s`" % name,
        hint="did you mean `%s`?" % _short(near) if near else "it has " + _shown(header),
    )


def _value(cell: str, dtype: str, column: str, line: int) -> Any:
    word = cell.strip()
    if not word:
        raise BadRequest("line %d: `%s` is empty" % (line, _short(column)))
    if dtype == "string":
        return cell
    if dtype == "bool" or (word in _TRUTH and word.isalpha()):
        if word not in _TRUTH:
            raise BadRequest(
                "line %d: `%s` is no truth value" % (line, _short(column)),
                hint="0, 1, false or true",
            )
        return bool(_TRUTH[word]) if dtype == "bool" else _TRUTH[word]
    if len(word) > _MOST_DIGITS or not _NUMBER.fullmatch(word):
        raise BadRequest("line %d: `%s` is no number (%s)" % (line, _short(column), dtype))
    whole = word.lstrip("+-").isdigit()
    number: Union[int, float] = int(word) if whole else float(word)
    if dtype in INTEGERS:
        allowed = integer_range(dtype)
        if (
            (not whole and not math.isfinite(number))
            or number != int(number)
            or (int(number) not in allowed)
        ):
            raise BadRequest(
                "line %d: `%s` is no integer from %d to %d"
                % (line, _short(column), allowed.start, allowed.stop - 1)
            )
        return int(number)
    try:
        return float(number)
    except OverflowError:
        return math.inf  # refused with the name of the input


def _row_sizes(spec: TensorSpec, cells: int) -> List[int]:
    """Return the sizes of a row of so many cells: a free axis takes what is there.

    Raises:
        BadRequest: the input takes another number of them.
    """
    sizes = [dim if isinstance(dim, int) else None for dim in spec.dims[1:]]
    known = math.prod(size for size in sizes if size is not None)
    free = sizes.count(None)
    if not spec.dims or free > 1 or not known or cells % known or (not free and cells != known):
        raise BadRequest(
            "the input `%s` gets %d cells of each row where it takes %s"
            % (spec.name, cells, describe_dims(spec.dims))
        )
    return [cells // known if size is None else size for size in sizes]


def _shown(header: Sequence[str]) -> str:
    names = ", ".join("`%s`" % _short(name) for name in header[:_SHOWN_COLUMNS])
    rest = len(header) - _SHOWN_COLUMNS
    return names + (" and %d more" % rest if rest > 0 else "")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
