"""Tells where each operator of a bundle's graphs runs, and in which precision they are written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from packager.backends.tensorrt.dla import why_not_dla
from packager.backends.tensorrt.values import Values
from packager.errors import ModelUnsupported
from packager.passes.contract import first_line, tool_faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PARTS: Final = ("head", "core", "tail")
# They say what precision the others have, and run as part of them.
_PASSED_OVER: Final = frozenset(("Constant", "DequantizeLinear", "QuantizeLinear"))
_PRODUCTS: Final = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
# Computed by the layer before them.
_FUSED: Final = frozenset(("Clip", "LeakyRelu", "Relu"))
_MOVING: Final = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
# Operators that an engine computes in eight bits between a dequantizer and a quantizer.
_BETWEEN: Final = _MOVING | frozenset((
    "Add", "AveragePool", "Concat", "Expand", "Gather", "GlobalAveragePool", "MaxPool", "Mul",
    "Pad", "ReduceMean", "Resize", "Slice", "Split", "Sub",
))  # fmt: skip
_NARROW: Final = {"int8": "int8", "uint8": "uint8", "int4": "int4", "uint4": "uint4",
                  "float8e4m3fn": "fp8", "float8e5m2": "fp8", "float4e2m1": "fp4"}  # fmt: skip
_WORDS: Final = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One operator that runs.

    Attributes:
        node: Its name, `#3` for the fourth of a part that has none.
        part: One of PARTS.
        runs_on: `CPU`, `GPU` or `DLA`.
        precision: As the graph is written: `int8` between Q/DQ, else the type of its values.
        dla: Why the DLA would not take it; empty where it would; None where there is none to ask.
    """

    node: str
    operator: str
    part: str
    runs_on: str
    precision: str
    dla: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the wire form for `--json`."""
        return {
            "node": self.node,
            "operator": self.operator,
            "part": self.part,
            "runs_on": self.runs_on,
            "precision": self.precision,
            **({} if self.dla is None else {"dla": self.dla}),
        }


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """What runs the core.

    Attributes:
        compute_capability: Of the GPU.
        has_dla: The device has a DLA, which could run nodes that suit it.
        uses_dla: The engine is built for it.
    """

    compute_capability: str
    has_dla: bool = False
    uses_dla: bool = False


def layer_table(
    onnx_path: Path,
    parts: Mapping[str, Path | None] | None = None,
    *,
    accelerator: Accelerator | None = None,
) -> tuple[NodeRow, ...]:
    """Return every operator of a model in the order of its parts.

    Args:
        onnx_path: The graph that the accelerator runs, or the whole model where there is none.
        parts: `head` and `tail`, which run on the CPU.
        accelerator: None where the CPU runs everything.

    Raises:
        ModelUnsupported: a file is no ONNX model.
    """
    files = {"core": onnx_path, **{key: path for key, path in (parts or {}).items() if path}}
    rows: list[NodeRow] = []
    for part in PARTS:
        if part in files:
            rows += _rows_of(_load(files[part]), part, accelerator if part == "core" else None)
    return tuple(rows)


def products_in(onnx_path: Path, precision: str) -> tuple[str, ...]:
    """Return the named convolutions and matrix products that a graph has in one precision.

    An engine in which one of them computes in float32 lost what was asked for; the device's
    `runtime.nvidia.inspection.lost_precision` compares them with the inspector's layers.

    Args:
        onnx_path: The graph that the accelerator runs.
        precision: As in `NodeRow`: `int8`, `fp16`.

    Raises:
        ModelUnsupported: it is no ONNX model.
    """
    return tuple(
        row.node
        for row in layer_table(onnx_path)
        if row.operator in _PRODUCTS and row.precision == precision and row.node[:1] != "#"
    )


def table_rows(rows: Sequence[NodeRow]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table of every operator, the heading first."""
    with_dla = any(row.dla is not None for row in rows)
    yield ("node", "operator", "runs on", "precision", *(["DLA"] if with_dla else []))
    for row in rows:
        told = [] if not with_dla else ["" if row.dla is None else row.dla or "could run it"]
        yield (row.node, row.operator, _place(row), row.precision, *told)


def summary_rows(rows: Sequence[NodeRow]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a table of counts by place, operator and precision, the heading first."""
    counts = Counter((row.part, _place(row), row.operator, row.precision) for row in rows)
    yield ("runs on", "operator", "precision", "count")
    order = sorted(counts.items(), key=lambda item: (PARTS.index(item[0][0]), -item[1], item[0]))
    for (_, place, operator, precision), count in order:
        yield (place, operator, precision, str(count))


def counts_by_precision(rows: Sequence[NodeRow]) -> dict[str, int]:
    """Return how many operators each precision has, the most frequent first."""
    counts = Counter(row.precision for row in rows)
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _place(row: NodeRow) -> str:
    return row.runs_on if row.part == "core" else f"{row.runs_on} ({row.part})"


def _load(path: Path) -> Any:
    import onnx

    try:
        # by its path: external data is looked for beside the file
        onnx.checker.check_model(str(path))
        return onnx.load(path, load_external_data=False)
    except tool_faults() as fault:
        raise ModelUnsupported(f"`{path.name}` is no sound model: {first_line(fault)}") from fault


def _rows_of(model: Any, part: str, accelerator: Accelerator | None) -> Iterator[NodeRow]:
    values = Values(model)
    narrow: dict[str, str] = {}
    folded: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if node.op_type in _PASSED_OVER:
            continue
        read = [name for name in node.input if name]
        if read and all(name in folded or values.is_constant(name) for name in read):
            folded.update(node.output)  # computed once, on loading
            continue
        precision = _eight_bits(node, values, narrow) or _written(node, values)
        if precision in _NARROW.values():
            narrow.update(dict.fromkeys(node.output, precision))
        dla = None
        if accelerator is not None and accelerator.has_dla:
            dla = why_not_dla(
                node,
                values,
                precision=precision,
                compute_capability=accelerator.compute_capability,
            )
        runs_on = "CPU" if accelerator is None else "GPU"
        yield NodeRow(
            # a name may hold anything, and it is printed
            node="".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in node.name)
            or f"#{index}",
            operator=node.op_type,
            part=part,
            runs_on="DLA" if accelerator and accelerator.uses_dla and dla == "" else runs_on,
            precision=precision,
            dla=dla,
        )


def _eight_bits(node: Any, values: Values, narrow: Mapping[str, str]) -> str:
    """Return the type that Q/DQ around a node have it compute in, empty for none.

    A product needs both operands dequantized; any other operator what it reads dequantized and all
    it makes quantized again, where an operator that joins the layer before it reads that one.
    """
    if node.op_type in _PRODUCTS:
        kinds = [_dequantized(name, values) for name in node.input[:2]]
        return kinds[0] if len(kinds) == 2 and all(kinds) else ""
    if node.op_type not in _BETWEEN | _FUSED:
        return ""
    read = [name for name in node.input if name and not values.is_constant(name)]
    kinds = [_dequantized(name, values) or narrow.get(name, "") for name in read]
    if not kinds or not all(kinds):
        return ""
    return kinds[0] if all(_quantized(name, values) for name in node.output if name) else ""


def _dequantized(name: str, values: Values) -> str:
    """Return the type that a value was dequantized from, empty where it was not."""
    node = values.producers.get(name)
    while node is not None and node.op_type in _MOVING and node.input:
        node = values.producers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        return ""
    kinds = [values.dtypes.get(entry, "") for entry in (node.input[0], *node.input[2:])]
    return next((_NARROW[kind] for kind in kinds if kind in _NARROW), "")


def _quantized(name: str, values: Values) -> bool:
    """Tell whether all that read a value quantize it, what joins the layer passed over."""
    pending, seen = [name], set()
    while pending:
        current = pending.pop()
        readers = values.readers.get(current, [])
        if current in values.kept or not readers:
            return False
        seen.add(current)
        for reader in readers:
            if reader.op_type in _FUSED | _MOVING and reader.input[0] == current:
                pending += [output for output in reader.output if output not in seen]
            elif reader.op_type != "QuantizeLinear":
                return False
    return True


def _written(node: Any, values: Values) -> str:
    """Return the type of what a node makes, else of what it reads."""
    for name in (*node.output, *node.input):
        kind = values.dtypes.get(name)
        if kind is not None:
            return _WORDS.get(kind, kind)
    return UNKNOWN
