"""Divides samples into halves, and finds those that two sets share."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packager.data._samples import Samples


def split_halves(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Return (choose, confirm): two halves that share no sample, whatever order they came in.

    Each class goes half and half where the labels are classes. Copies of one sample stay together,
    so that nothing is confirmed on what it was chosen on. What is all one sample goes to both, as
    there is nothing to hold out.

    Args:
        samples: Their digests and the seed decide.
        seed: Another one gives other halves.
    """
    groups: dict[str, list[int]] = {}
    for index, content in enumerate(samples.contents):
        groups.setdefault(content, []).append(index)
    if len(groups) < 2:
        return samples, samples

    def place(content: str) -> tuple[Any, ...]:
        stratum = _stratum(samples.labels[groups[content][0]]) if samples.labels else ()
        return (stratum, hashlib.sha256(f"{seed}:{content}".encode()).digest())

    halves: tuple[list[int], list[int]] = ([], [])
    stratum, held = None, [0, 0]
    for content in sorted(groups, key=place):
        if stratum != place(content)[0]:
            stratum, held = place(content)[0], [0, 0]
        # To the half that has fewer of this class, else to the smaller one.
        side = min((0, 1), key=lambda half: (held[half], len(halves[half]), half))
        halves[side].extend(groups[content])
        held[side] += len(groups[content])
    return samples.take(sorted(halves[0])), samples.take(sorted(halves[1]))


def shared_samples(first: Samples, second: Samples) -> int:
    """Return how many samples of the second set are also in the first, by their contents."""
    known = set(first.contents)
    return sum(content in known for content in second.contents)


def overlap_note(calibration: Samples, evaluation: Samples) -> str | None:
    """Say how many samples are both calibrated and evaluated on; None for none."""
    count = shared_samples(calibration, evaluation)
    if not count:
        return None
    return (
        f"{count} of {len(evaluation)} samples of the evaluation data are in the calibration data "
        "too: the metric looks better on them than on new ones"
    )


def _stratum(label: Any) -> tuple[int, ...]:
    import numpy as np

    classes = isinstance(label, np.ndarray) and label.dtype.kind in "iu" and len(label)
    return (int(label[0]),) if classes and (label == label[0]).all() else ()
