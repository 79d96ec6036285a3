"""Measures how large and how small the float tensors of a graph get, and what 16 bits leave."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from packager.checks.latency import open_session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from packager.passes.contract import PassContext
    from packager.passes.half_graph import HalfType

# Enough to see ranges: the safety factor of those who ask covers what other samples would add.
_MOST_SAMPLES: Final = 16
# Tensors fetched in one run, so that not all activations are held at once.
_TENSORS_AT_ONCE: Final = 64


@dataclass(kw_only=True)
class Magnitude:
    """What one float32 tensor held, over everything that was run.

    Attributes:
        largest: Largest finite absolute value.
        smallest: Smallest absolute value other than 0; infinite where there is none.
        integers: All values are whole numbers.
        shape: Of the last one seen.
        squares, errors: Sums of the squares of the values, and of what rounding changes in them.
    """

    largest: float = 0.0
    smallest: float = math.inf
    integers: bool = True
    shape: tuple[int, ...] = ()
    squares: float = 0.0
    errors: float = 0.0

    @property
    def error(self) -> float:
        """Return the rounding error's share of the tensor's norm."""
        return math.sqrt(self.errors / self.squares) if self.squares > 0 else 0.0

    def see(self, values: NDArray[Any], half: HalfType) -> None:
        """Take in float32 values; infinities and NaN are no numbers and do not count."""
        import numpy as np

        self.shape = values.shape
        finite = values[np.isfinite(values)].astype(np.float32, copy=False)
        if not finite.size:
            return
        size = np.abs(finite)
        self.largest = max(self.largest, float(size.max()))
        some = size[size > 0]
        if some.size:
            self.smallest = min(self.smallest, float(some.min()))
        self.integers = self.integers and bool((finite == np.rint(finite)).all())
        inside = finite[size <= half.largest].astype(np.float64)
        lost = inside - half.round(inside).astype(np.float64)
        self.squares += float(inside @ inside)
        self.errors += float(lost @ lost)


@dataclass(kw_only=True)
class Measured:
    """What a graph's tensors held.

    Attributes:
        dtypes: numpy's name of every top-level tensor's type.
        magnitudes: Of the float32 tensors that nodes make and inputs bring.
        runs: How many inputs it was run on.
    """

    dtypes: dict[str, str] = field(default_factory=dict)
    magnitudes: dict[str, Magnitude] = field(default_factory=dict)
    runs: int = 0


def measure(model: Any, context: PassContext, half: HalfType) -> Measured:
    """Run a float32 graph on the probes and some samples, and look at every tensor.

    Raises:
        Exception: one of `passes.contract.tool_faults()`, where it does not run.
    """
    import onnx

    found = Measured()
    for tensor in model.graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        found.dtypes[tensor.name] = dtype.name
    names = list(dict.fromkeys(n for node in model.graph.node for n in node.output if n))
    told = {output.name for output in model.graph.output}
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    tapped.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in told)
    path = context.workdir / "magnitudes.onnx"
    try:
        onnx.save(tapped, path)
        session = open_session(path, 1)
    finally:
        path.unlink(missing_ok=True)
    for feeds in _feeds(context):
        found.runs += 1
        for name, value in feeds.items():
            _see(found, name, value, half)
        for begin in range(0, len(names), _TENSORS_AT_ONCE):
            part = names[begin : begin + _TENSORS_AT_ONCE]
            for name, value in zip(part, session.run(part, feeds), strict=True):
                _see(found, name, value, half)
    return found


def _see(found: Measured, name: str, value: Any, half: HalfType) -> None:
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return  # a sequence, or an optional without a value
    found.dtypes[name] = dtype.name
    if dtype.name == "float32":
        found.magnitudes.setdefault(name, Magnitude()).see(value, half)


def _feeds(context: PassContext) -> Iterator[dict[str, NDArray[Any]]]:
    for probe in context.probes:
        yield dict(probe)
    samples = context.samples
    if samples is not None:
        for index in range(min(len(samples), _MOST_SAMPLES)):
            yield dict(samples[index])
