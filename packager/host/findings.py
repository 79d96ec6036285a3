"""What examining a host gives: one thing that was looked at, its state and what mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: `ok`, `optional` (something works less well without it) or `missing`.
        fix: A command or a step that mends it; None where nothing is to be mended.
    """

    status: str
    what: str
    found: str
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the finding for `--json`."""
        return asdict(self)
