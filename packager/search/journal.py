"""Keeps the verdicts of a search on disk, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final

from packager.artifact import Candidate, Latency, LayerChoice, Parity, Score
from packager.manifest import canonical_json, sha256_file, sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    from packager.search.forms import Form

_FILE: Final = "journal.jsonl"


class Journal:
    """One line per verdict, each whole or not there.

    Args:
        folder: Where the search keeps its files; one folder per model, target and settings.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._folder = folder
        self._known: dict[str, dict[str, Any]] = {}
        if self._path.is_file():
            for line in self._path.read_bytes().splitlines():
                self._read(line)

    def find(self, form: Form) -> Candidate | None:
        """Return the verdict on a form, if its file still is what was judged."""
        entry = self._known.get(_key(form))
        if entry is None:
            return None
        candidate = candidate_from(entry["candidate"], self._folder)
        if candidate.path is not None and (
            not candidate.path.is_file() or sha256_file(candidate.path) != entry["sha256"]
        ):
            return None
        return candidate

    def keep(self, form: Form, candidate: Candidate) -> None:
        """Add a verdict."""
        entry: dict[str, Any] = {
            "form": _key(form),
            "candidate": candidate_wire(candidate),
            "sha256": sha256_file(candidate.path) if candidate.path is not None else "",
        }
        text = json.dumps(entry)
        line = json.dumps({"line": text, "check": sha256_of(text.encode())})
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        self._known[str(entry["form"])] = entry

    def _read(self, line: bytes) -> None:
        # The last line of an interrupted search may be cut.
        try:
            outer = json.loads(line)
            if sha256_of(outer["line"].encode()) == outer["check"]:
                entry = json.loads(outer["line"])
                self._known[entry["form"]] = entry
        except (ValueError, KeyError, TypeError):
            return


def candidate_wire(candidate: Candidate) -> dict[str, Any]:
    """Return a candidate as JSON has it, its file by name."""
    wire = dataclasses.asdict(candidate)
    wire["path"] = candidate.path.name if candidate.path is not None else None
    return wire


def candidate_from(wire: dict[str, Any], folder: Path) -> Candidate:
    """Return what `candidate_wire` was given; its file lies in `folder`."""
    values = dict(wire)
    values["path"] = folder / values["path"] if values["path"] else None
    kinds = {"parity": Parity, "latency": Latency, "score": Score, "confirmed": Score}
    for key, cls in kinds.items():
        values[key] = cls(**values[key]) if values[key] else None
    values["layers"] = tuple(LayerChoice(**layer) for layer in values["layers"])
    return Candidate(**values)


def _key(form: Form) -> str:
    wire = {
        "name": form.name, "shape": form.shape, "source": form.source,
        "passes": [repr(step) for step in form.passes], "float_layers": list(form.float_layers),
    }  # fmt: skip
    return sha256_of(canonical_json(wire))
