"""Lists what to try until a model first runs: sizes of open axes, then the usual wrong ranks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from packager.importers.axes import BATCH, InputPlan, Symbol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_FREE_SIZES: Final = (16, 8, 32, 64, 4, 128, 2, 1, 224, 256, 512, 48, 320, 640)
_MIXED_SIZES: Final = (1, 16, 64, 224, 512)
_MAX_MIXED: Final = 3


def base_candidates(symbols: Mapping[str, Symbol]) -> list[dict[str, int]]:
    """Return sizes of every symbol to start from: equal ones first, then mixed ones."""
    known = {name: s.range.opt for name, s in symbols.items() if s.range is not None}
    free = [name for name, s in symbols.items() if s.range is None]
    starts = [known]
    if BATCH in known and not symbols[BATCH].explicit:
        starts.append({**known, BATCH: 2})
    if not free:
        return starts
    tried = [dict.fromkeys(free, size) for size in _FREE_SIZES]
    if 1 < len(free) <= _MAX_MIXED:
        mixed = itertools.product(_MIXED_SIZES, repeat=len(free))
        tried.extend(dict(zip(free, sizes, strict=True)) for sizes in mixed)
    return [{**start, **sizes} for sizes in tried for start in starts]


def rank_variants(
    inputs: tuple[InputPlan, ...],
) -> list[tuple[str, tuple[InputPlan, ...]]]:
    """Return the declared ranks, then the usual lies about them, each with words for the user."""
    changes: tuple[tuple[str, Callable[[tuple[int | str, ...]], tuple[int | str, ...]]], ...] = (
        ("", lambda axes: axes),
        ("one dimension more at the end", lambda axes: (*axes, 1)),
        ("two dimensions more at the end", lambda axes: (*axes, 1, 1)),
        ("one dimension more in front", lambda axes: (1, *axes)),
        ("one dimension less in front", lambda axes: axes[1:]),
    )
    variants = []
    for words, change in changes:
        changed = tuple(
            entry if entry.fixed else replace(entry, axes=change(entry.axes)) for entry in inputs
        )
        note = f"the file declares the wrong rank: the inputs have {words}" if words else ""
        if not words or changed != inputs:
            variants.append((note, changed))
    return variants
