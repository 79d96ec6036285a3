"""Prints: data to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Reporter(Protocol):
    """What long work tells about itself. The pipeline and below speak to this, never print."""

    def stage(self, text: str) -> None:
        """Begin a stage, as `export with torch.export`."""

    def note(self, text: str) -> None:
        """Tell a finding the user should read."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Tell how far the current stage is."""


class Silent:
    """A reporter that says nothing."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def progress(self, done: int, total: int, text: str) -> None:
        """Say nothing."""


class Console:
    """Standard output and error of one command.

    Args:
        as_json: `data()` prints JSON, and tables are left out.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._color = self._live and "NO_COLOR" not in os.environ
        self._drawn = False
        self._began = time.monotonic()
        self._last_draw = 0.0

    def data(self, value: Any, text: Iterable[str]) -> None:
        """Print the command's result: `value` as JSON where asked for, else the lines of text."""
        self._clear()
        if self._as_json:
            print(json.dumps(value, indent=2, ensure_ascii=False), file=sys.stdout)
        else:
            for line in text:
                print(line, file=sys.stdout)
        sys.stdout.flush()

    def stage(self, text: str) -> None:
        """Begin a stage."""
        self._began = time.monotonic()
        self._say(f"{self._paint('→', '36')} {text}")

    def note(self, text: str) -> None:
        """Tell a finding."""
        self._say(f"  {text}")

    def progress(self, done: int, total: int, text: str) -> None:
        """Draw a progress bar with an estimate of what is left; silent without a terminal."""
        now = time.monotonic()
        if not self._live or (now - self._last_draw < 0.1 and done < total):
            return
        self._last_draw = now
        share = done / total if total else 1.0
        left_s = (now - self._began) * (1 - share) / share if share > 0 else 0.0
        bar = ("█" * round(20 * share)).ljust(20, "░")
        sys.stderr.write(f"\r\x1b[2K  {bar} {done}/{total} {text}, {left_s:.0f} s left")
        sys.stderr.flush()
        self._drawn = True

    def error(self, message: str, *, accepted: str | None, hint: str | None) -> None:
        """Print an error in the house form."""
        self._clear()
        print(f"{self._paint('error', '31')}: {message}", file=sys.stderr)
        if accepted:
            print(f"\naccepted: {accepted}", file=sys.stderr)
        if hint:
            print(f"\n{self._paint('hint', '33')}: {hint}", file=sys.stderr)

    def _say(self, line: str) -> None:
        self._clear()
        if not self._quiet:
            print(line, file=sys.stderr)

    def _clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[2K")
            self._drawn = False

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._color else text


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of aligned columns; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def human_size(size_bytes: int) -> str:
    """Return a size in decimal units, as `18.7 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} B"
