"""Words of the recipe and the command line: ranges, shapes, names, budgets, sources of data."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final

from packager.errors import UsageError
from packager.recipe._nouns import DataSource, DimRange, Drop

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,3}")
_DIM = re.compile(r"(?P<min>[0-9]+)(\.\.(?P<max>[0-9]+))?(,opt=(?P<opt>[0-9]+))?")
_DROP = re.compile(r"(?P<relative>rel:)?(?P<number>[0-9]+(\.[0-9]+)?|\.[0-9]+)(?P<percent>%)?")
_DURATION = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>s|m|h|d)")
_UNIT_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RANDOM_SAMPLES: Final = 32


def parse_dim(text: str, *, name: str) -> DimRange:
    """Read `1..32,opt=8`, `1..32` or `8`.

    Raises:
        UsageError: another form, or a range that is empty or does not hold `opt`.
    """
    match = _DIM.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UsageError(
            f"`{text}` is no range for dimension `{name}`", accepted="`1..32,opt=8` or `1..32`"
        )
    low = int(match["min"])
    high = int(match["max"]) if match["max"] else low
    opt = int(match["opt"]) if match["opt"] else low
    if not 1 <= low <= opt <= high:
        raise UsageError(
            f"`{text}` is an empty range for dimension `{name}`, or `opt` lies outside",
            accepted="1 ≤ min ≤ opt ≤ max",
        )
    return DimRange(min=low, max=high, opt=opt)


def parse_shape(text: str, *, name: str) -> tuple[int | str, ...]:
    """Read `batch,3,224,224`; an empty text is a scalar.

    Raises:
        UsageError: an axis that is neither a positive number nor a name.
    """
    axes: list[int | str] = []
    for word in filter(None, (w.strip() for w in text.split(","))):
        if word.isdigit() and int(word) > 0:
            axes.append(int(word))
        elif re.fullmatch(r"[A-Za-z_]\w*", word):
            axes.append(word)
        else:
            raise UsageError(
                f"`{word}` in the shape of `{name}` is neither a size nor a name",
                accepted="`batch,3,224,224`",
            )
    return tuple(axes)


def check_name(name: str) -> str:
    """Return a bundle name that is safe as a file name.

    Raises:
        UsageError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot name a bundle",
            accepted="up to 63 lower-case letters, digits, `.`, `_`, `-`; a letter or digit first",
        )
    return name


def check_version(version: str) -> str:
    """Return a version of up to four dotted integers.

    Raises:
        UsageError: it is something else.
    """
    if not _VERSION.fullmatch(version):
        raise UsageError(f"`{version}` is no version", accepted="dotted integers, as `1.4.0`")
    return version


def default_sequence(version: str) -> int:
    """Return the integer whose order is the order of versions: 1.4.0 → 1004000."""
    parts = [int(part) for part in version.split(".")]
    parts += [0] * (3 - len(parts))
    return parts[0] * 1_000_000 + min(parts[1], 999) * 1_000 + min(parts[2], 999)


def parse_drop(text: str) -> Drop:
    """Read `0.5%` or `0.005` (in the metric's unit), or `rel:1%` (of the original's value).

    Raises:
        UsageError: another form.
    """
    match = _DROP.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UsageError(
            f"`{text}` is no budget",
            accepted="`0.5%` or `0.005` in the metric's unit, `rel:1%` relative; never below zero",
        )
    value = float(match["number"]) / (100.0 if match["percent"] else 1.0)
    return Drop(value=value, relative=match["relative"] is not None)


def parse_duration(text: str) -> float:
    """Read `90s`, `10m`, `1.5h` or `7d` into seconds.

    Raises:
        UsageError: another form, or no time at all.
    """
    match = _DURATION.fullmatch(text.replace(" ", ""))
    seconds = float(match["number"]) * _UNIT_S[match["unit"]] if match else 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"`{text}` is no time", accepted="`90s`, `10m`, `1.5h` or `7d`")
    return seconds


def parse_source(word: str, folder: Path | None = None) -> DataSource:
    """Read a source of data: a path, `FILE.py:GENERATOR`, `random` or `random:N`.

    Args:
        word: As the user typed it.
        folder: What a relative path is relative to; None for the current folder.

    Raises:
        UsageError: a number of random samples that is none.
    """
    base = folder if folder is not None else Path()
    kind, colon, rest = word.partition(":")
    if kind == "random":
        count = int(rest) if rest.isdigit() else 0 if colon else _RANDOM_SAMPLES
        if count < 1:
            raise UsageError(f"`{word}` is no number of samples", accepted="`random:32`")
        return DataSource(word=word, random=count)
    path, colon, function = word.rpartition(":")
    if colon and path.endswith(".py"):
        return DataSource(word=word, path=base / path, function=function)
    return DataSource(word=word, path=base / word)


def model_word(word: str, folder: Path) -> str:
    """Return `file.py:factory` and the like with the file made relative to the recipe's folder."""
    path, colon, factory = word.partition(":")
    if path.endswith((".py", ".onnx", ".pt2")):
        return f"{folder / path}{colon}{factory}"
    return word
