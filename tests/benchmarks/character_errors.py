"""The metric that the text recogniser is compressed under: `character_errors.py:error_rate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if TYPE_CHECKING:
    from collections.abc import Sequence


def error_rate(outputs: Sequence[dict[str, Any]], labels: Sequence[Any]) -> float:
    """Return edits over characters; lower is better."""
    from tests.benchmarks.lines import character_accuracy, decode
    from tests.benchmarks.recogniser import find_model, read_characters

    characters = read_characters(find_model())
    read = [decode(next(iter(output.values())), characters) for output in outputs]
    return 1 - character_accuracy([_text(label) for label in labels], read)


error_rate.higher_is_better = False  # type: ignore[attr-defined]


def _text(label: Any) -> str:
    return label if isinstance(label, str) else str(label[0])
