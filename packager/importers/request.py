"""What the parent asks of the import child, and what comes back, as JSON files in the workdir."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from packager.model import Model, Provenance, Signature
from packager.recipe import DimRange

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

REQUEST_FILE = "request.json"
MODEL_FILE = "model.onnx"
RESULT_FILE = "model.json"
ERROR_FILE = "error.json"
SCRATCH_FOLDER = "scratch"


@dataclass(frozen=True, kw_only=True)
class ImportLimits:
    """What one import may use.

    Attributes:
        probe_s: Wall-clock limit of one run of the model on a probe input.
        onnx_wall_s: Wall-clock limit of the whole import of an ONNX file.
        torch_wall_s: The same where torch exports.
        memory_mib: Address space of an ONNX import, on top of `memory_factor` × the file.
        memory_factor: Copies of the model that may live at once.
    """

    probe_s: float = 60.0
    onnx_wall_s: float = 900.0
    torch_wall_s: float = 3600.0
    memory_mib: int = 4096
    memory_factor: int = 6


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """One import.

    Attributes:
        kind: `torch`, `exported-program` or `onnx`.
        path: The file; empty for a factory in an importable module.
        module: The importable module; empty for a file.
        factory: Name of the factory function; empty for files that are models.
        source: What the user named, without any folder.
        folder: The folder the user works in, where `package.module` is looked up.
    """

    kind: str
    source: str
    path: str = ""
    module: str = ""
    factory: str = ""
    folder: str = ""
    shapes: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    limits: ImportLimits = field(default_factory=ImportLimits)

    def write(self, path: Path) -> None:
        """Write the request as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        wire = json.loads(path.read_text(encoding="utf-8"))
        wire["shapes"] = {name: tuple(axes) for name, axes in wire["shapes"].items()}
        wire["dims"] = {name: DimRange(**entry) for name, entry in wire["dims"].items()}
        wire["limits"] = ImportLimits(**wire["limits"])
        return cls(**wire)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What the child found out about the `model.onnx` that it wrote."""

    signature: Signature
    opset: int
    ir_version: int
    provenance: Provenance
    quantized: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the result as JSON with sorted keys, so that equal imports give equal bytes."""
        wire = {
            "signature": self.signature.to_json(),
            "opset": self.opset,
            "ir_version": self.ir_version,
            "provenance": asdict(self.provenance),
            "quantized": self.quantized,
            "extra": dict(self.extra),
        }
        path.write_text(json.dumps(wire, indent=1, sort_keys=True), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote."""
        wire = json.loads(path.read_text(encoding="utf-8"))
        origin = wire.pop("provenance")
        origin["rungs"] = tuple((name, outcome) for name, outcome in origin["rungs"])
        origin["notes"] = tuple(origin["notes"])
        wire["signature"] = Signature.from_json(wire["signature"])
        return cls(provenance=Provenance(**origin), **wire)

    def as_model(self, path: Path, *, name: str) -> Model:
        """Return the model at `path` with what was found."""
        return Model(
            path=path,
            name=name,
            signature=self.signature,
            opset=self.opset,
            ir_version=self.ir_version,
            provenance=self.provenance,
            quantized=self.quantized,
            extra=self.extra,
        )
