"""A model: an ONNX graph on disk plus its signature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

DTYPES: Final = (
    "float32", "float64", "float16", "bfloat16",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "bool", "string",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Dim:
    """One axis of a tensor.

    A static axis has `size`. A dynamic one has none: `name` ties it to the other axes of the same
    name (None: it depends on the data), and `min` to `max` is what requests may ask for (`max`
    None: unbounded), `opt` what the engine is tuned for.
    """

    size: int | None = None
    name: str | None = None
    min: int = 1
    max: int | None = None
    opt: int | None = None

    def to_json(self) -> int | dict[str, Any]:
        """Return the wire form: an integer, or an object with name, min, max and opt."""
        if self.size is not None:
            return self.size
        return {"name": self.name, "min": self.min, "max": self.max, "opt": self.opt}

    @classmethod
    def from_json(cls, wire: int | Mapping[str, Any]) -> Self:
        """Read the wire form."""
        if isinstance(wire, int):
            return cls(size=wire)
        return cls(name=wire["name"], min=wire["min"], max=wire["max"], opt=wire["opt"])

    def __str__(self) -> str:
        if self.size is not None:
            return str(self.size)
        top = "" if self.max is None else self.max
        return f"{self.name or '?'}={self.min}..{top}"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A named input or output: dtype (one of DTYPES) and one Dim per axis."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the wire form."""
        return {"name": self.name, "dtype": self.dtype, "shape": [d.to_json() for d in self.shape]}

    @classmethod
    def from_json(cls, wire: Mapping[str, Any]) -> Self:
        """Read the wire form."""
        shape = tuple(Dim.from_json(d) for d in wire["shape"])
        return cls(name=wire["name"], dtype=wire["dtype"], shape=shape)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The inputs and outputs of a model, in the graph's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the wire form."""
        return {
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
        }

    @classmethod
    def from_json(cls, wire: Mapping[str, Any]) -> Self:
        """Read the wire form."""
        return cls(
            inputs=tuple(TensorSpec.from_json(t) for t in wire["inputs"]),
            outputs=tuple(TensorSpec.from_json(t) for t in wire["outputs"]),
        )

    def dims(self) -> dict[str, Dim]:
        """Return the named dynamic dimensions of the inputs, in order of appearance."""
        found: dict[str, Dim] = {}
        for spec in self.inputs:
            for dim in spec.shape:
                if dim.size is None and dim.name is not None:
                    found.setdefault(dim.name, dim)
        return found


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a model came from and how it became ONNX.

    Attributes:
        kind: `torch`, `exported-program` or `onnx`.
        source: What the user named, without any folder (bundles must not depend on folders).
        source_sha256: Digest of the source: the file's, or for a module its weights' and code's.
        exporter: The rung taken: `torch.export`, `torch.export-strict`, `torchscript` or `none`.
        rungs: Every rung tried as (name, outcome), the last one taken.
        notes: What was changed or found on the way, for the plan and the record.
    """

    kind: str
    source: str
    source_sha256: str
    exporter: str = "none"
    rungs: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Model:
    """An ONNX file with its true signature: self-contained up to 2 GB.

    Attributes:
        path: The ONNX file; past 2 GB its large tensors lie in `data_file(path)`.
        signature: Found by running, not by trusting the graph's declarations.
        opset: Version of the default operator domain.
        ir_version: IR version of the file.
        quantized: The file came in already quantized.
    """

    path: Path
    name: str
    signature: Signature
    opset: int
    ir_version: int
    provenance: Provenance
    quantized: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def large(self) -> bool:
        """Tell whether it is too large for one file."""
        return data_file(self.path).is_file()

    @property
    def files(self) -> tuple[Path, ...]:
        """Return every file that it consists of, the graph's first."""
        return (self.path, data_file(self.path)) if self.large else (self.path,)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all its files."""
        return sum(file.stat().st_size for file in self.files)


def numpy_dtype(dtype: str) -> Any:
    """Return numpy's dtype of one of DTYPES, bfloat16 by ml_dtypes; not for strings."""
    import numpy as np

    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


def as_saved(array: NDArray[Any]) -> NDArray[Any]:
    """Return what numpy read from a file as what was saved there.

    Its files have no name for bfloat16: it comes back as two bytes of nothing in particular.
    """
    return array.view(numpy_dtype("bfloat16")) if array.dtype.str[1:] == "V2" else array


def data_file(path: Path) -> Path:
    """Return where a model that is too large for one file keeps its large tensors."""
    return path.with_name(f"{path.name}.data")
