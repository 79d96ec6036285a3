"""The golden samples: proof that this device computes what the build host computed.

Files are `golden/NNN.inputs.npz`, `NNN.artifact.npz` and `NNN.original.npz`. Arrays are called
`i0`, `i1`, … and `o0`, `o1`, … by their position in the signature, because a model's own names
may be any text and a zip file's may not.
"""

from __future__ import annotations

import math
import os
from operator import mul
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from .cpu import cpu_level as detect_cpu_level
from .dtypes import FLOATS
from .errors import IntegrityFault
from .npz import read_npz
from .signature import Signature
from .tensor import Tensor

_EXACT_PRECISIONS = frozenset(("fp32", "float32", "fp64", "float64"))


class Difference(NamedTuple):
    """How far one tensor is from another.

    Attributes:
        max_abs: The largest absolute difference; infinite where type, shape, a string or the
            place of a NaN differs.
        cosine: Of the angle between both as vectors; 1.0 for two zero vectors.
        exact: Every element is equal; a NaN equals a NaN.
        within: Every element is inside `atol + rtol * |expected|`.
    """

    max_abs: float
    cosine: float
    exact: bool
    within: bool


class OutputResult(NamedTuple):
    """One output of one sample: against the artifact's recorded output, and the original's."""

    name: str
    artifact: Difference
    original: Difference
    failure: Optional[str]


class SampleResult(NamedTuple):
    """One golden sample."""

    number: int
    outputs: Tuple[OutputResult, ...]


class SelfTest(NamedTuple):
    """What the golden samples showed.

    Attributes:
        cpu: This processor's level.
        expected_cpu: The level of the processor that recorded the samples.
        samples: In order.
    """

    cpu: str
    expected_cpu: str
    samples: Tuple[SampleResult, ...]

    @property
    def failures(self) -> List[str]:
        """One sentence for every output that is not what it should be."""
        return [
            "golden sample %d, output `%s`: %s" % (sample.number, output.name, output.failure)
            for sample in self.samples
            for output in sample.outputs
            if output.failure is not None
        ]

    @property
    def passed(self) -> bool:
        """Whether every output of every sample is as recorded."""
        return not self.failures


def self_test(
    release: Any,
    engine: Any,
    cpu_level: Optional[str] = None,
    told: Callable[[int, int], None] = lambda _done, _total: None,
) -> SelfTest:
    """Run every golden sample and compare.

    On a processor of the recorded level the artifact's outputs have to come out within a tight
    tolerance, on another one only in nearly the same direction: other kernels add up in another
    order. Against the original model the direction is compared everywhere.

    Args:
        release: Has `.folder` and `.manifest`.
        engine: Has `.run`.
        cpu_level: This processor's level, None to find out.
        told: Is given how many samples are done, and of how many, before each.

    Raises:
        IntegrityFault: a golden sample lacks an array.
        ModelFault: the model fails on a golden sample.
    """
    golden = release.manifest["golden"]
    signature = Signature(release.manifest["model"]["signature"])
    level = cpu_level or detect_cpu_level()
    check = _Check(golden, level, str(release.manifest["engine"].get("precision", "")))
    samples = []
    for index in range(golden["samples"]):
        told(index, golden["samples"])
        feeds = read_sample(release.folder, index, "inputs", list(signature.inputs))
        artifact = read_sample(release.folder, index, "artifact", list(signature.outputs))
        original = read_sample(release.folder, index, "original", list(signature.outputs))
        got = engine.run(feeds, list(signature.outputs))
        results = [check.output(name, artifact[name], original[name], got[name]) for name in got]
        samples.append(SampleResult(index, tuple(results)))
    return SelfTest(level, str(golden.get("cpu", "")), tuple(samples))


def read_sample(folder: str, index: int, part: str, names: Sequence[str]) -> Dict[str, Tensor]:
    """Return one file of a golden sample by the model's own names.

    Args:
        folder: The release's.
        index: From 0.
        part: `inputs`, `artifact` or `original`.
        names: Of the inputs or outputs, in the signature's order.

    Raises:
        IntegrityFault: the file lacks an array.
    """
    file = "golden/%03d.%s.npz" % (index, part)
    arrays = read_npz(os.path.join(folder, file))
    letter = "i" if part == "inputs" else "o"
    try:
        return {name: arrays["%s%d" % (letter, at)] for at, name in enumerate(names)}
    except KeyError as error:
        raise IntegrityFault("`%s` lacks array `%s`" % (file, error.args[0])) from None


def compare(expected: Tensor, got: Tensor, *, atol: float = 0.0, rtol: float = 0.0) -> Difference:
    """Return how far `got` is from `expected`."""
    if expected.dtype != got.dtype or tuple(expected.shape) != tuple(got.shape):
        return Difference(math.inf, 0.0, False, False)
    if expected == got:
        return Difference(0.0, 1.0, True, True)
    if expected.dtype == "string":
        return Difference(math.inf, 0.0, False, False)
    left, right = _without_equal_non_finite(expected.to_flat(), got.to_flat())
    if not all(map(math.isfinite, left)) or not all(map(math.isfinite, right)):
        return Difference(math.inf, 0.0, False, False)
    gaps = [abs(a - b) for a, b in zip(left, right)]  # noqa: B905 - not in CPython 3.8
    largest = float(max(gaps, default=0))
    within = largest <= atol or all(
        gap <= atol + rtol * abs(a)
        for gap, a in zip(gaps, left)  # noqa: B905
    )
    # 0.0 and -0.0, and a NaN's many forms, differ as bytes and are equal as numbers
    return Difference(largest, _cosine(left, right), largest == 0, within)


class _Check:
    """The manifest's tolerances, chosen for this processor."""

    def __init__(self, golden: Mapping[str, Any], level: str, precision: str) -> None:
        self._same_cpu = level == golden.get("cpu")
        tight = golden.get("same_cpu", {})
        self._atol = float(tight.get("atol", 0.0))
        self._rtol = float(tight.get("rtol", 0.0))
        self._other_min = float(golden.get("other_cpu", {}).get("min_cosine", 0.999))
        self._original_min = float(golden.get("original", {}).get("min_cosine", 0.99))
        self._quantized = precision not in _EXACT_PRECISIONS
        self._decided = frozenset(golden.get("decided", ()))

    def output(self, name: str, artifact: Tensor, original: Tensor, got: Tensor) -> OutputResult:
        """Compare one output with both records."""
        near = compare(artifact, got, atol=self._atol, rtol=self._rtol)
        far = compare(original, got)
        failure: Optional[str]
        if name in self._decided:
            failure = self._decision(near, artifact, got)
        else:
            failure = self._against_artifact(near, got) or self._against_original(far, got)
        return OutputResult(name, near, far, failure)

    def _decision(self, difference: Difference, artifact: Tensor, got: Tensor) -> Optional[str]:
        """Compare what turns on a last digit: which boxes are left, which class is the best.

        It comes out alike where the kernels are the same; elsewhere only its form is known.
        """
        if artifact.dtype != got.dtype or len(artifact.shape) != len(got.shape):
            return "is not the recorded %s of %d dimensions" % (artifact.dtype, len(artifact.shape))
        if not self._same_cpu or difference.within:
            return None
        return "differs from the recorded %s" % got.dtype

    def _against_artifact(self, difference: Difference, got: Tensor) -> Optional[str]:
        if got.dtype not in FLOATS:
            return None if difference.exact else "differs from the recorded %s" % got.dtype
        if self._same_cpu:
            if difference.within:
                return None
            return "differs by %.3g where %.3g + %.3g × the value is allowed" % (
                difference.max_abs,
                self._atol,
                self._rtol,
            )
        if difference.within or difference.cosine >= self._other_min:
            return None
        return "has a cosine of %.6f with the recorded output where %.6f is needed" % (
            difference.cosine,
            self._other_min,
        )

    def _against_original(self, difference: Difference, got: Tensor) -> Optional[str]:
        if got.dtype not in FLOATS:
            # one class index more or less is what a quantized model's accuracy budget is for
            if difference.exact or self._quantized:
                return None
            return "differs from the original model's %s" % got.dtype
        if difference.cosine >= self._original_min:
            return None
        return "has a cosine of %.6f with the original model where %.6f is needed" % (
            difference.cosine,
            self._original_min,
        )


def _without_equal_non_finite(
    left: List[float], right: List[float]
) -> Tuple[List[float], List[float]]:
    """Drop the places where both are the same infinity or both NaN: they agree."""
    if all(map(math.isfinite, left)):
        return left, right
    kept = [
        (a, b)
        for a, b in zip(left, right)  # noqa: B905
        if math.isfinite(a) or not (a == b or (math.isnan(a) and math.isnan(b)))
    ]
    return [a for a, _ in kept], [b for _, b in kept]


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the cosine of the angle; both are scaled first, so that no square overflows."""
    top_left = max(map(abs, left), default=0)
    top_right = max(map(abs, right), default=0)
    if not top_left or not top_right:
        return 1.0 if top_left == top_right else 0.0
    a = [value / top_left for value in left]
    b = [value / top_right for value in right]
    product = math.fsum(map(mul, a, b))
    length = math.sqrt(math.fsum(map(mul, a, a)) * math.fsum(map(mul, b, b)))
    return max(-1.0, min(1.0, product / length))
