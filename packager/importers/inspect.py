"""Tells what a model is, before anything is built: signature, operators, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from packager.console import human_size, table
from packager.importers.load import import_model
from packager.target import all_targets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from packager.console import Reporter
    from packager.importers.request import ImportLimits
    from packager.model import Model, Provenance, Signature
    from packager.recipe import Recipe
    from packager.target import Engine, Target, TensorRT

PRECISIONS = ("fp32", "fp16", "int8", "int4")


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What one import found out about a model.

    Attributes:
        operators: How often each occurs, the most frequent first.
        parameters: Number of weights.
        size_bytes: Of the imported ONNX file.
        estimated_bytes: By `fp32`, `fp16`, `int8` and `int4`, estimated from the weights.
        domains: Operator domains in use.
        quantized: The model came in already quantized.
    """

    signature: Signature
    operators: dict[str, int]
    parameters: int
    size_bytes: int
    estimated_bytes: dict[str, int]
    opset: int
    ir_version: int
    domains: tuple[str, ...]
    quantized: bool
    provenance: Provenance

    @classmethod
    def of(cls, model: Model) -> Self:
        """Return what is known of an imported model."""
        facts = model.extra["graph"]
        return cls(
            signature=model.signature,
            operators=dict(sorted(facts["operators"].items(), key=lambda e: (-e[1], e[0]))),
            parameters=facts["parameters"],
            size_bytes=facts["size_bytes"],
            estimated_bytes={name: facts["estimated_bytes"][name] for name in PRECISIONS},
            opset=model.opset,
            ir_version=model.ir_version,
            domains=tuple(facts["domains"]),
            quantized=model.quantized,
            provenance=model.provenance,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the wire form for `--json`."""
        return {
            "source": self.provenance.source,
            "source_sha256": self.provenance.source_sha256,
            "kind": self.provenance.kind,
            "exporter": self.provenance.exporter,
            "signature": self.signature.to_json(),
            "operators": self.operators,
            "parameters": self.parameters,
            "size_bytes": self.size_bytes,
            "estimated_bytes": self.estimated_bytes,
            "opset": self.opset,
            "ir_version": self.ir_version,
            "domains": list(self.domains),
            "quantized": self.quantized,
            "notes": list(self.provenance.notes),
            "targets": {target.name: self.refusal(target) for target in all_targets()},
        }

    def refusal(self, target: Target) -> str | None:
        """Return why a target's engine would not take the model as it is, None where it would.

        A target with TensorRT reads no more than both of its engines do: while TensorRT's is
        missing, ONNX Runtime answers from the same file.
        """
        readers: list[tuple[str, Engine | TensorRT]] = [("its engine", target.engine)]
        if target.tensorrt is not None:
            readers.append((f"its TensorRT {target.tensorrt.version}", target.tensorrt))
        for reader, limits in readers:
            if self.opset > limits.max_opset:
                return f"opset {self.opset}, {reader} reads up to {limits.max_opset}"
            if self.ir_version > limits.max_ir_version:
                return f"IR version {self.ir_version}, {reader} reads up to {limits.max_ir_version}"
        memories = [("memory", target.memory_mib)]
        if target.tensorrt is not None and target.tensorrt.memory == "own":
            memories.append(("GPU memory", target.tensorrt.gpu_memory_mib))
        for kind, memory_mib in memories:
            if 2 * self.size_bytes > memory_mib << 20:
                return f"{human_size(self.size_bytes)} of model, {memory_mib} MiB of {kind}"
        return None

    def to_text(self) -> Iterator[str]:
        """Yield the lines that a person reads."""
        exporter = self.provenance.exporter
        how = "" if exporter == "none" else f", exported by {exporter}"
        yield f"{self.provenance.source}: {self.provenance.kind}{how}"
        for spec in self.signature.inputs:
            yield f"  input   {spec}"
        for spec in self.signature.outputs:
            yield f"  output  {spec}"
        yield f"{self.parameters} parameters, opset {self.opset}, IR version {self.ir_version}"
        if self.quantized:
            yield "already quantized"
        for note in self.provenance.notes:
            yield f"note: {note}"
        yield ""
        sizes = [(name, human_size(size)) for name, size in self.estimated_bytes.items()]
        yield from table([("precision", "estimated size"), *sizes])
        yield ""
        counts = [(name, str(count)) for name, count in self.operators.items()]
        yield from table([("operator", "count"), *counts])
        yield ""
        verdicts = [(t.name, self.refusal(t) or "takes it") for t in all_targets()]
        yield from table([("target", "verdict"), *verdicts])


def inspect_model(
    recipe: Recipe, *, workdir: Path, reporter: Reporter, limits: ImportLimits | None = None
) -> Inspection:
    """Import the recipe's model into `workdir` and return what was found.

    An ONNX file needs no torch.

    Raises:
        EdgepackError: whatever `import_model` raises.
    """
    return Inspection.of(import_model(recipe, workdir=workdir, reporter=reporter, limits=limits))
