"""Decides whether a loaded engine may answer: by the golden samples, and by its time."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from ..errors import DeviceError
from ..golden import read_sample, self_test
from ..signature import Signature
from ..tensor import Tensor
from .switching import describe

WARM_UP_CALLS = 3
PAIRS = 31
TIMING_S = 10.0
# No processor's level is called so: the samples are compared as on a processor of another kind.
_ELSEWHERE = "gpu"


class Verdict(NamedTuple):
    """What the check of an engine showed.

    Attributes:
        failure: Why it is not used, None where it is.
        final: Whether another try would show the same: it did answer, but wrongly or slowly.
        min_cosine: The lowest of all outputs with the recorded ones; None where it did not answer.
        engine_ms: Median time of a call; None where it was not timed.
        fallback_ms: Likewise, of the fallback.
    """

    failure: Optional[str]
    final: bool = True
    min_cosine: Optional[float] = None
    engine_ms: Optional[float] = None
    fallback_ms: Optional[float] = None


def accept(
    release: Any,
    engine: Any,
    fallback: Any,
    *,
    timed: bool = True,
    stopped: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> Verdict:
    """Return whether an engine answers as recorded, and no slower than the fallback.

    Against the artifact's recorded outputs the direction is compared, as on any processor but the
    build host's; against the original model's, the manifest's budget holds.

    Args:
        release: Has `.folder` and `.manifest`.
        engine: What may come to serve.
        fallback: What serves until then.
        timed: Whether to compare the times as well.
        stopped: Whether nobody wants to know any more.
        clock: In seconds.
    """
    if not release.manifest.get("golden", {}).get("samples"):
        return Verdict("the bundle carries no golden sample to check an engine with")
    try:
        outcome = self_test(release, engine, _ELSEWHERE)
    except DeviceError as fault:
        return Verdict("it fails on a golden sample: %s" % describe(fault), final=False)
    cosines = [output.artifact.cosine for sample in outcome.samples for output in sample.outputs]
    lowest = min(cosines, default=1.0)
    if not outcome.passed:
        failure = "it answers otherwise than recorded: %s" % outcome.failures[0]
        return Verdict(failure, min_cosine=lowest)
    if not timed or stopped():
        return Verdict(None, min_cosine=lowest)
    signature = Signature(release.manifest["model"]["signature"])
    feeds = read_sample(release.folder, 0, "inputs", list(signature.inputs))
    try:
        ours, theirs = alternate(engine, fallback, feeds, stopped=stopped, clock=clock)
    except DeviceError as fault:
        failure = "it fails when it is called again and again: %s" % describe(fault)
        return Verdict(failure, final=False, min_cosine=lowest)
    slower = None
    if ours > theirs:
        slower = "it takes %.3g ms for a call, and %s takes %.3g ms" % (
            ours,
            fallback.name,
            theirs,
        )
    return Verdict(slower, True, lowest, round(ours, 4), round(theirs, 4))


def fallback_fault(release: Any, fallback: Any) -> Optional[str]:
    """Return in what the fallback's answers here differ from the recorded ones, None in nothing."""
    if not release.manifest.get("golden", {}).get("samples"):
        return None
    try:
        outcome = self_test(release, fallback)
    except DeviceError as fault:
        return describe(fault)
    return None if outcome.passed else outcome.failures[0]


def alternate(
    engine: Any,
    fallback: Any,
    feeds: Dict[str, Tensor],
    *,
    stopped: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> List[float]:
    """Return the median times of both in ms, from calls that take turns.

    Turns meet the same load and the same clock rates, so that what else runs counts for both.
    """
    times_ms: List[List[float]] = [[], []]
    for _ in range(WARM_UP_CALLS):
        engine.run(feeds)
        fallback.run(feeds)
    end = clock() + TIMING_S
    while len(times_ms[1]) < PAIRS:
        for at, each in enumerate((engine, fallback)):
            began = clock()
            each.run(feeds)
            times_ms[at].append((clock() - began) * 1e3)
        if clock() >= end or stopped():
            break
    return [sorted(each)[len(each) // 2] for each in times_ms]
