"""What a search found: the candidates, and everything the record tells about them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from packager.search.journal import candidate_from, candidate_wire

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from packager.artifact import Candidate


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a search.

    Attributes:
        candidates: Every candidate with its verdict; exactly one is `chosen`.
        lock: What makes the chosen one again without timing.
        record: What was measured, as JSON has it; see `docs/architecture.md`.
    """

    candidates: tuple[Candidate, ...]
    lock: Mapping[str, Any]
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> Candidate:
        """Return the chosen candidate."""
        return next(c for c in self.candidates if c.verdict == "chosen")

    def to_wire(self) -> dict[str, Any]:
        """Return what `from_wire` reads: only the chosen file is named, relative to its folder."""
        candidates = [
            c if c.verdict == "chosen" else dataclasses.replace(c, path=None)
            for c in self.candidates
        ]
        return {
            "candidates": [candidate_wire(c) for c in candidates],
            "lock": dict(self.lock),
            "record": dict(self.record),
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any], folder: Path) -> Outcome:
        """Read an outcome whose files lie in `folder`."""
        return cls(
            candidates=tuple(candidate_from(entry, folder) for entry in wire["candidates"]),
            lock=wire["lock"],
            record=wire["record"],
        )

    def to_record(self) -> dict[str, Any]:
        """Return the record's table, candidates included and without paths."""
        entries = [dataclasses.asdict(candidate) for candidate in self.candidates]
        for entry in entries:
            entry.pop("path")
        front = [c.name for c in self.candidates if c.on_front]
        return {**self.record, "candidates": entries, "front": front}
