"""Finds the ranges of activations: one run over the samples, ranges by four methods."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, Final

from packager.passes.graph import digest_of
from packager.passes.layer_inputs import tapped_values, tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from packager.passes.contract import PassContext

    Range = tuple[float, float]

METHODS: Final = ("minmax", "entropy", "percentile", "mse")
# Extremes are taken from every value; histograms from so many values of each tensor and sample.
_MOST_COUNTED: Final = 32_768
_MOST_BINS: Final = 8192
# What one run of the model may hold for us, and a tensor whose size nobody tells.
_BATCH_BYTES: Final = 384 << 20
_UNKNOWN_BYTES: Final = 16 << 20
_STEPS: Final = 255
# The share of values inside a percentile's range.
_INSIDE: Final = 0.99999
# As published for TensorRT: 2048 bins of the magnitude, 128 levels.
_ENTROPY_BINS: Final = 2048
_ENTROPY_LEVELS: Final = 128
_ENTROPY_STRIDE: Final = 16
_CANDIDATES: Final = 128
_LEAST_SHARE: Final = 0.05
_ROUNDS: Final = 4


class Histogram:
    """The values of one tensor over the samples: exact extremes, and counts per bin.

    Bin i holds the values in [i · width, (i + 1) · width). The width is a power of two and doubles
    where values need more bins than there may be: pairs of bins merge exactly, so that the counts
    do not depend on how the histogram grew.

    Attributes:
        low: Smallest finite value; above `high` where none was seen.
        high: Largest finite value.
        dtype: Of the tensor.
    """

    def __init__(self, dtype: str) -> None:
        import numpy as np

        self.dtype = dtype
        self.low, self.high = math.inf, -math.inf
        self.exponent, self.first = 0, 0
        self.counts: NDArray[Any] = np.zeros(0, np.int64)

    def add(self, value: NDArray[Any]) -> None:
        """Count the finite values of an array."""
        import numpy as np

        flat = value.reshape(-1)
        if flat.size and not (math.isfinite(flat.min()) and math.isfinite(flat.max())):
            flat = flat[np.isfinite(flat)]
        if not flat.size:
            return
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        # An odd stride does not stay in one column of an image.
        stride = -(-flat.size // _MOST_COUNTED) | 1
        self._count(flat[::stride].astype(np.float64))

    def centres(self) -> NDArray[Any]:
        """Return the middle of each bin, none of them outside low..high."""
        import numpy as np

        middles = np.ldexp(np.arange(len(self.counts)) + self.first + 0.5, self.exponent)
        clipped: NDArray[Any] = np.clip(middles, self.low, self.high)
        return clipped

    def _count(self, values: NDArray[Any]) -> None:
        import numpy as np

        low, high = float(values.min()), float(values.max())
        if not len(self.counts):
            # The first values fill half of the bins, so that few histograms grow.
            reach = max(high - low, max(abs(low), abs(high)) / _MOST_BINS) or 1.0
            self.exponent = math.frexp(reach * 2 / _MOST_BINS)[1]
            self.first = math.floor(math.ldexp(low, -self.exponent))
        while True:
            least = min(self.first, math.floor(math.ldexp(low, -self.exponent)))
            most = math.floor(math.ldexp(high, -self.exponent))
            most = max(self.first + len(self.counts) - 1, most)
            if most - least < _MOST_BINS:
                break
            self._merge()
        after = most + 1 - self.first - len(self.counts)
        self.counts = np.pad(self.counts, (self.first - least, after))
        self.first = least
        bins = np.floor(np.ldexp(values, -self.exponent)).astype(np.int64)
        self.counts += np.bincount(bins - least, minlength=len(self.counts))

    def _merge(self) -> None:
        import numpy as np

        counts = np.pad(self.counts, (self.first % 2, 0))
        counts = np.pad(counts, (0, len(counts) % 2))
        self.counts = counts.reshape(-1, 2).sum(axis=1)
        self.first >>= 1
        self.exponent += 1


def find_histograms(
    model: Any, op_types: Sequence[str], context: PassContext
) -> dict[str, Histogram]:
    """Return the histogram of every float tensor that the operators take or give.

    They are found once per model and data, and kept in the working folder.

    Args:
        model: `onnx.ModelProto`.
        op_types: Operators of the outermost graph.
        context: For the samples and the folder.

    Raises:
        RuntimeError: from ONNX Runtime, where the model does not run on a sample.
    """
    samples = context.samples
    if samples is None:
        raise ValueError("there is no calibration data")
    text = f"{digest_of(model)} {sorted(op_types)} {samples.digest} {len(samples)}"
    path = context.workdir / f"ranges-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
    if path.is_file():
        return dict(_read(path))
    found: dict[str, Histogram] = {}
    batches = list(_batches(model, _activations(model, op_types), samples[0]))
    done, total = 0, len(batches) * len(samples)
    for names in batches:
        for values in tapped_values(model, names, context):
            context.reporter.progress(done, total, "calibrate")
            done += 1
            for name in names:
                kind = str(values[name].dtype)
                if kind in ("float16", "float32"):
                    found.setdefault(name, Histogram(kind)).add(values[name])
    _write(path, found)
    return found


def choose_range(histogram: Histogram, method: str, *, symmetric: bool = False) -> Range:
    """Return the range of a tensor; zero always lies within, so that padding stays exact.

    Args:
        histogram: Of its values.
        method: `minmax` takes every value in, `percentile` all but one in 100,000; `mse` takes the
            least squared error of eight bits (values left out counted with their distance);
            `entropy` the least divergence of the quantized distribution (Migacz 2017, "8-bit
            inference with TensorRT").
        symmetric: The range is centred on zero.

    Raises:
        ValueError: the method is unknown.
    """
    if histogram.low > histogram.high:
        return (0.0, 0.0)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "percentile":
        low, high = _percentile_range(histogram, low, high)
    elif method == "mse":
        low, high = _least_squares_range(histogram, low, high, symmetric=symmetric)
    elif method == "entropy":
        most = _entropy_threshold(histogram)
        low, high = max(low, -most), min(high, most)
    elif method != "minmax":
        raise ValueError(f"there is no calibration method `{method}`")
    if symmetric:
        high = max(high, -low)
        low = -high
    return (low, high)


def narrowed_by_clamps(model: Any, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return the ranges; a tensor that only Relu and Clip read has theirs.

    What they cut off needs no steps. Quantizing EfficientNet-Lite0's convolutions alone came out
    with a cosine of .88 where the range was that of the values in front of the Clip.
    """
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    told = {value.name for value in model.graph.output}
    narrowed = dict(ranges)
    for node in reversed(model.graph.node):
        for name in node.output:
            using = readers.get(name, [])
            clamps = [n for n in using if n.op_type in ("Relu", "Clip") and n.input[0] == name]
            if name in told or not using or len(clamps) < len(using) or name not in narrowed:
                continue
            after = [narrowed[n.output[0]] for n in clamps if n.output[0] in narrowed]
            if len(after) == len(clamps):
                narrowed[name] = (min(low for low, _ in after), max(high for _, high in after))
    return narrowed


def _percentile_range(histogram: Histogram, low: float, high: float) -> Range:
    import numpy as np

    centres, below = histogram.centres(), np.cumsum(histogram.counts)
    left_out = (1 - _INSIDE) / 2 * below[-1]
    first = centres[np.searchsorted(below, left_out, side="right")]
    last = centres[np.searchsorted(below, below[-1] - left_out, side="left")]
    return max(low, min(float(first), 0.0)), min(high, max(float(last), 0.0))


def _least_squares_range(
    histogram: Histogram, low: float, high: float, *, symmetric: bool
) -> Range:
    """Return the range of least squared error; each bound in turn over shares of its extreme.

    Inside the range the error of a step is taken as uniform, but for values that are zero.
    """
    import numpy as np

    centres, counts = histogram.centres(), histogram.counts.astype(np.float64)
    spread = float(counts[np.abs(centres) > math.ldexp(1.0, histogram.exponent)].sum()) / 12
    sums = [
        np.concatenate(([0.0], np.cumsum(counts * centres**power))) for power in range(3)
    ]  # fmt: skip

    def error(bottom: NDArray[Any], top: NDArray[Any]) -> NDArray[Any]:
        under = np.searchsorted(centres, bottom, side="left")
        over = np.searchsorted(centres, top, side="right")
        zeroth, first, second = sums
        cut = second[under] - 2 * bottom * first[under] + bottom**2 * zeroth[under]
        cut += second[-1] - second[over] - 2 * top * (first[-1] - first[over])
        cut += top**2 * (zeroth[-1] - zeroth[over])
        squared: NDArray[Any] = cut + spread * ((top - bottom) / _STEPS) ** 2
        return squared

    shares = np.linspace(1.0, _LEAST_SHARE, _CANDIDATES)
    if symmetric:
        most = max(high, -low)
        best = float(most * shares[np.argmin(error(-most * shares, most * shares))])
        return -best, best
    bottom, top = low, high
    for _ in range(_ROUNDS):
        before = (bottom, top)
        top = float(high * shares[np.argmin(error(np.full_like(shares, bottom), high * shares))])
        bottom = float(low * shares[np.argmin(error(low * shares, np.full_like(shares, top)))])
        if (bottom, top) == before:
            break
    return bottom, top


def _entropy_threshold(histogram: Histogram) -> float:
    """Return the magnitude whose range, cut there, diverges least from the values'."""
    import numpy as np

    most = max(abs(histogram.low), abs(histogram.high))
    if most == 0:
        return 0.0
    places = np.minimum(np.abs(histogram.centres()) / most * _ENTROPY_BINS, _ENTROPY_BINS - 1)
    counts = np.bincount(places.astype(np.int64), histogram.counts, _ENTROPY_BINS)
    # The zeros of a Relu are exact at any step; they would drown the rest.
    counts[0] = counts[1]
    if not counts.any():
        return most
    best, threshold = math.inf, most
    for kept in range(_ENTROPY_LEVELS, _ENTROPY_BINS + 1, _ENTROPY_STRIDE):
        inside = counts[:kept]
        wanted = inside.copy()
        wanted[-1] += counts[kept:].sum()
        level = np.arange(kept) * _ENTROPY_LEVELS // kept
        filled = inside > 0
        sums = np.bincount(level, inside, _ENTROPY_LEVELS)
        used = np.bincount(level, filled, _ENTROPY_LEVELS)
        spread = np.where(filled, (sums / np.maximum(used, 1))[level], 0.0)
        divergence = _divergence(wanted, spread)
        if divergence < best:
            best, threshold = divergence, most * kept / _ENTROPY_BINS
    return threshold


def _divergence(wanted: NDArray[Any], have: NDArray[Any]) -> float:
    """Return Kullback-Leibler's divergence of counts; where only one is empty it is smoothed."""
    import numpy as np

    if not have.any() or not wanted.any():
        return math.inf
    first, second = wanted / wanted.sum(), have / have.sum()
    second = np.maximum(second, 1e-9)
    filled = first > 0
    return float((first[filled] * np.log(first[filled] / second[filled])).sum())


def _activations(model: Any, op_types: Sequence[str]) -> list[str]:
    """Return what the operators take and give, in order, constants left out."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    names = [
        name
        for node in model.graph.node
        if node.op_type in op_types and node.domain in ("", "ai.onnx")
        for name in (*node.input, *node.output)
        if name and name not in constants
    ]
    return list(dict.fromkeys(names))


def _batches(model: Any, names: Sequence[str], sample: Any) -> Iterator[list[str]]:
    sizes = tensor_bytes(model, sample)
    batch: list[str] = []
    held = 0
    for name in names:
        size = sizes.get(name, _UNKNOWN_BYTES)
        if batch and held + size > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(name)
        held += size
    if batch:
        yield batch


def _write(path: Any, histograms: Mapping[str, Histogram]) -> None:
    import numpy as np

    entries = [
        [name, h.dtype, h.low, h.high, h.first, h.exponent, len(h.counts)]
        for name, h in histograms.items()
    ]
    counts = np.concatenate([np.zeros(0, np.int64), *(h.counts for h in histograms.values())])
    # An interrupted write must not be read later.
    part = path.with_suffix(".part.npz")
    np.savez(part, entries=np.array(json.dumps(entries)), counts=counts)
    part.replace(path)


def _read(path: Any) -> Iterator[tuple[str, Histogram]]:
    import numpy as np

    with np.load(path) as packed:
        entries, counts = json.loads(str(packed["entries"])), packed["counts"]
    at = 0
    for name, dtype, low, high, first, exponent, size in entries:
        found = Histogram(dtype)
        found.low, found.high, found.first, found.exponent = low, high, first, exponent
        found.counts = counts[at : at + size]
        at += size
        yield name, found
