"""Reads a record leniently: what is missing or of another kind is not known, never a failure."""

from __future__ import annotations

import json
import math
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.errors import InputOutputError, IntegrityError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MOST_BYTES: Final = 64 << 20
_MOST_CHARACTERS: Final = 240
_MOST_ENTRIES: Final = 20_000
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MOST_MARKS: Final = 4


@dataclass(frozen=True)
class Part:
    """One object of the record."""

    wire: Mapping[str, Any]

    def __bool__(self) -> bool:
        return bool(self.wire)

    def part(self, key: str) -> Part:
        """Return the object at `key`; an empty one where there is none."""
        return _part(self.wire.get(key))

    def parts(self, key: str) -> list[Part]:
        """Return the objects in the list at `key`."""
        return [_part(entry) for entry in _entries(self.wire.get(key)) if isinstance(entry, dict)]

    def text(self, key: str, *, most: int = _MOST_CHARACTERS) -> str:
        """Return the text at `key`, made harmless by `clean`; empty where there is none."""
        value = self.wire.get(key)
        return clean(value, most=most) if isinstance(value, str) else ""

    def texts(self, key: str) -> list[str]:
        """Return the texts in the list at `key`."""
        return [clean(value) for value in _entries(self.wire.get(key)) if isinstance(value, str)]

    def number(self, key: str) -> float | None:
        """Return the finite number at `key`."""
        return as_number(self.wire.get(key))

    def numbers(self, key: str) -> list[float]:
        """Return the finite numbers in the list at `key`."""
        found = map(as_number, _entries(self.wire.get(key)))
        return [number for number in found if number is not None]

    def flag(self, key: str) -> bool:
        """Return whether `key` is true."""
        return self.wire.get(key) is True

    def pairs(self) -> list[tuple[str, str]]:
        """Return every entry as two texts; what is no text as JSON."""
        return [(clean(key), as_text(value)) for key, value in list(self.wire.items())[:200]]


def clean(text: str, *, most: int = _MOST_CHARACTERS) -> str:
    r"""Return a text that shows what it is: no control, no writing direction, of bounded length.

    Invisible characters are spelled out as `\u202e`; of many marks over one letter four are kept;
    a long text loses its middle. HTML is not touched: the template escapes it.
    """
    if len(text) > most:
        half = most // 2
        text = f"{text[:half]} … {text[-half:]}"
    shown: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks > _MOST_MARKS:
            continue
        if character in "\n\t":
            shown.append(" ")
        elif category in _INVISIBLE:
            shown.append(f"\\u{ord(character):04x}")
        else:
            shown.append(character)
    return "".join(shown)


def as_number(value: Any) -> float | None:
    """Return a finite number as float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_text(value: Any) -> str:
    """Return any value of a record as a short, harmless text."""
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def read_record(path: Path) -> Part:
    """Read `NAME.record.json`.

    Raises:
        InputOutputError: it does not exist or cannot be read.
        UsageError: it is no record.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except FileNotFoundError as fault:
        raise InputOutputError(
            f"`{path}` does not exist",
            accepted="the record that `edgepack build` writes beside a bundle",
            hint="name it with `--record FILE`, or build the bundle again",
        ) from fault
    except OSError as fault:
        raise InputOutputError(f"`{path}` cannot be read: {fault.strerror}") from fault
    if len(content) > _MOST_BYTES:
        raise UsageError(f"`{path}` is larger than a record may be", accepted="up to 64 MiB")
    try:
        wire = json.loads(content)
    except (ValueError, RecursionError) as fault:
        raise UsageError(f"`{path}` is no record: it is not JSON") from fault
    if not isinstance(wire, dict) or not isinstance(wire.get("bundle"), dict):
        raise UsageError(f"`{path}` is no record: it tells of no bundle")
    return Part(wire)


def check_same_bundle(record: Part, digest: str, *, path: Path) -> None:
    """Refuse the record of another bundle.

    Raises:
        IntegrityError: the record names another digest.
    """
    named = record.part("bundle").text("digest")
    if named != digest:
        raise IntegrityError(
            f"`{path}` is the record of another bundle: {named[:12] or 'none'}, not {digest[:12]}",
            hint="name the record of this bundle with `--record FILE`",
        )


def _part(value: Any) -> Part:
    return Part(value if isinstance(value, dict) else {})


def _entries(value: Any) -> list[Any]:
    return value[:_MOST_ENTRIES] if isinstance(value, list) else []
