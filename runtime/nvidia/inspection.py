"""Reads what TensorRT's inspector says of a built engine: the precision of each layer, and losses.

The inspector's JSON differs by version. Up to TensorRT 10 an engine's tensors are names under
`Bindings`, from 11 on objects under `I/O Tensors`; a layer's tensor has one text under
`Format/Datatype`, later also `Format` beside `Datatype`. That text is a sentence, such as
`Channel major FP16 format where channel % 8 == 0`, where an execution context was given, a word
such as `Half` where none was, and `N/A due to dynamic shapes` where sizes would have to be known.
An engine of another verbosity than DETAILED has names in place of layers, or nothing.
Source: "Engine Inspector" and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x" in
NVIDIA's TensorRT documentation.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import ModelFault

UNKNOWN = "unknown"
COPY = "copy"
MOST_NAMES = 5

# From the widest to the narrowest that a layer can compute in.
PRECISIONS = ("fp64", "fp32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")
_NOT_LOST = {
    "fp16": ("fp16", "bf16", "fp8", "int8", "fp4", "int4"),
    "bf16": ("bf16", "fp16", "fp8", "int8", "fp4", "int4"),
    "fp8": ("fp8", "int8", "fp4", "int4"),
    "int8": ("int8", "fp8", "fp4", "int4"),
    "int4": ("int4", "fp4", "int8", "fp8"),
}
_WORDS = {
    "fp64": "fp64", "float64": "fp64", "double": "fp64",
    "fp32": "fp32", "float32": "fp32", "float": "fp32", "tf32": "fp32",
    "fp16": "fp16", "float16": "fp16", "half": "fp16",
    "bf16": "bf16", "bfloat16": "bf16", "bfloat": "bf16",
    "fp8": "fp8", "float8": "fp8", "fp8e4m3": "fp8", "e4m3": "fp8",
    "fp4": "fp4", "float4": "fp4", "fp4e2m1": "fp4", "e2m1": "fp4",
    "int8": "int8", "int4": "int4", "uint8": "uint8",
    "int32": "int32", "int64": "int64", "bool": "bool",
}  # fmt: skip
_WORD = re.compile(r"[a-z]+[0-9]*(?:e[0-9]m[0-9])?", re.IGNORECASE)
# Words of a kernel's name. `i8i8_i8i32_f32` are the types of its operands; `h16816` and `i8816` are
# tensor core instructions for half and int8. `s16816` is none: its operands may be half as well.
_TACTIC_WORDS = (
    ("int8", re.compile(r"i8i8|i8f32|s8|s8s8|u8s8|int8|imma|i[0-9]{4,5}(?:gemm|cudnn)?")),
    ("fp8", re.compile(r"(?:e4m3|f8|fp8){1,2}|qmma")),
    ("bf16", re.compile(r"(?:bf16){1,2}")),
    ("fp16", re.compile(r"f16f16|fp16|hmma|hgemm|hcudnn|h[0-9]{3,5}(?:gemm|cudnn)?")),
    ("fp32", re.compile(r"f32f32|tf32f32|fp32|sgemm|scudnn|ffma")),
)
_WEIGHTED = re.compile(r"conv|gemm|matmul|matrix_?multiply|fully_?connected|correlation", re.I)
_COPIES = frozenset((
    "constant", "noop", "reformat", "shuffle", "signal", "wait", "concat", "slice", "copy",
    "identity", "assert", "shape", "shapecall", "shape_call", "shapehostsplit", "gather",
    "quantize", "dequantize",
))  # fmt: skip
_OPAQUE = re.compile(r"\{ForeignNode\[|\bmyelin\b", re.IGNORECASE)
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:[\x1e\x1f,;]|\[ONNX Layer: |$))")


class Layer(NamedTuple):
    """One layer of a built engine.

    Attributes:
        name: TensorRT's; the nodes that were fused into it with ` + ` between.
        kind: Such as `CaskConvolution`; empty where only names are there.
        precision: One of `PRECISIONS`, an integer type, `copy` where data is only moved or
            converted, or `unknown`.
        nodes: The nodes of the graph that it stands for, as far as it says so.
        weighted: It is a convolution or a matrix product.
        opaque: It is a whole graph of its own, of which only the borders can be seen.
    """

    name: str
    kind: str
    precision: str
    nodes: Tuple[str, ...]
    weighted: bool
    opaque: bool


def per_layer(inspector: Any) -> List[Layer]:
    """Return the layers of an engine in order.

    Args:
        inspector: What `get_engine_information` gives in the JSON form, as text or read already,
            or its list of layers, or what this function returned.

    Raises:
        ModelFault: it is no such JSON.
    """
    if isinstance(inspector, (str, bytes, bytearray)):
        text = inspector if isinstance(inspector, str) else inspector.decode("utf-8", "replace")
        try:
            # not strict: names of layers may hold the control characters that part them
            inspector = json.loads(text, strict=False)
        except (ValueError, RecursionError) as fault:
            raise ModelFault("the engine inspector's answer is no JSON: %s" % fault) from fault
    if isinstance(inspector, Mapping):
        inspector = inspector.get("Layers", [])
    if inspector is None:
        return []
    if not isinstance(inspector, (list, tuple)):
        raise ModelFault("the engine inspector's answer has no list of layers")
    return [layer if isinstance(layer, Layer) else _read_layer(layer) for layer in inspector]


def layers_by_precision(inspector: Any) -> Dict[str, int]:
    """Return how many layers compute in each precision, the most frequent first.

    Raises:
        ModelFault: the inspector's answer cannot be read.
    """
    counts: Dict[str, int] = {}
    for layer in per_layer(inspector):
        counts[layer.precision] = counts.get(layer.precision, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def lost_precision(asked: str, layers: Any, quantized_layers: Iterable[str] = ()) -> Optional[str]:
    """Return what was lost of the precision that was asked for, None where nothing was.

    With the names of the layers that the graph has in that precision, each of them has to be so in
    the engine: one that computes in float32 is a loss. Without, a graph may hold float32 layers on
    purpose, and only an engine that has no layer at all in the precision lost it. What cannot be
    seen is no loss; `not_looked` says so.

    Args:
        asked: As in the manifest: `fp16`, `int8-static`.
        layers: As for `per_layer`.
        quantized_layers: Names of nodes: convolutions and matrix products.

    Raises:
        ModelFault: the inspector's answer cannot be read.
    """
    word = asked_precision(asked)
    if word is None:
        return None
    found = per_layer(layers)
    expected = frozenset(quantized_layers)
    if expected:
        judged = [layer for layer in found if expected.intersection(layer.nodes)]
    else:
        judged = [layer for layer in found if layer.weighted]
    seen = [layer for layer in judged if layer.precision in PRECISIONS and not layer.opaque]
    wide = [layer for layer in seen if layer.precision in ("fp32", "fp64")]
    if expected and wide:
        return "%s was asked for, but %d of %d layers meant for it (%.0f %%) compute in %s: %s" % (
            word,
            len(wide),
            len(seen),
            100 * len(wide) / len(seen),
            wide[0].precision,
            _listed(wide),
        )
    kept = any(layer.precision in _NOT_LOST[word] for layer in seen)
    hidden = len(seen) < len(judged) or any(layer.opaque for layer in found)
    if seen and not kept and not hidden:
        counts = ", ".join("%d in %s" % (n, p) for p, n in layers_by_precision(seen).items())
        return "%s was asked for, but no layer computes in it: %s, as %s" % (
            word,
            counts,
            _listed(seen),
        )
    return None


def not_looked(layers: Any) -> Optional[str]:
    """Return why the precision could not be seen, for all layers or for some, None where it was.

    Raises:
        ModelFault: the inspector's answer cannot be read.
    """
    found = per_layer(layers)
    if not found:
        return "could not look at the engine's precision: the inspector tells no layers"
    if not any(layer.kind for layer in found):
        return (
            "could not look at the engine's precision: its layers have only names, for it was not "
            "built with detailed verbosity"
        )
    blind = [layer for layer in found if layer.opaque and layer.precision in ("fp32", UNKNOWN)]
    blind += [layer for layer in found if layer.precision == UNKNOWN and not layer.opaque]
    if not blind:
        return None
    return "could not look at the precision of %d of %d layers: %s" % (
        len(blind),
        len(found),
        _listed(blind),
    )


def asked_precision(asked: str) -> Optional[str]:
    """Return the precision in a manifest's word, None where nothing narrower than float32 is."""
    word = _WORDS.get(asked.lower().partition("-")[0].partition("_")[0])
    return word if word in _NOT_LOST else None


def _read_layer(layer: Any) -> Layer:
    if isinstance(layer, str) and layer.lstrip().startswith("{"):
        # one answer of `get_layer_information`; a name may begin so as well
        with contextlib.suppress(ValueError, RecursionError):
            layer = json.loads(layer, strict=False)
    if not isinstance(layer, Mapping):
        name = str(layer)
        return Layer(name, "", UNKNOWN, _nodes_of(name, ""), False, bool(_OPAQUE.search(name)))
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    opaque = bool(_OPAQUE.search(name) or _OPAQUE.search(kind)) or kind.upper() == "DLA"
    weights = layer.get("Weights")
    role = str(layer.get("ParameterType", ""))
    weighted = isinstance(weights, Mapping) and bool(weights)
    weighted = weighted or _WEIGHTED.search(kind) is not None or _WEIGHTED.search(role) is not None
    if kind.lower().replace(" ", "") in _COPIES:
        return Layer(name, kind, COPY, _nodes_of(name, layer.get("Metadata")), False, opaque)
    precision = _precision_of(layer, weights, weighted)
    return Layer(name, kind, precision, _nodes_of(name, layer.get("Metadata")), weighted, opaque)


def _precision_of(layer: Mapping[str, Any], weights: Any, weighted: bool) -> str:
    """Return what a layer computes in, by its weights, else its kernel's name, else its tensors."""
    if isinstance(weights, Mapping):
        told = _dtype_in(str(weights.get("Type", "")))
        if told in PRECISIONS:
            return told
    for word in str(layer.get("TacticName", "")).lower().split("_"):
        for precision, pattern in _TACTIC_WORDS:
            if pattern.fullmatch(word):
                return precision
    inputs = _dtypes(layer.get("Inputs"))
    numbers = [dtype for dtype in inputs if dtype in PRECISIONS]
    if numbers:
        # a product may read a float bias beside int8 operands; any other layer that reads int8
        # beside floats computes in float
        return (max if weighted else min)(numbers, key=PRECISIONS.index)
    known = [dtype for dtype in (*_dtypes(layer.get("Outputs")), *inputs) if dtype != UNKNOWN]
    return known[0] if known else UNKNOWN


def _dtypes(tensors: Any) -> List[str]:
    if not isinstance(tensors, Sequence) or isinstance(tensors, str):
        return []
    return [_dtype_of(tensor) for tensor in tensors if isinstance(tensor, Mapping)]


def _dtype_of(tensor: Mapping[str, Any]) -> str:
    keys = ("Datatype", "DataType", "Format/Datatype", "Format/DataType", "Format")
    for key in keys:
        told = _dtype_in(str(tensor.get(key, "")))
        if told != UNKNOWN:
            return told
    return UNKNOWN


def _dtype_in(text: str) -> str:
    """Return the type that a text names, as in `Four wide channel vectorized row major Int8`."""
    for word in _WORD.findall(text):
        told = _WORDS.get(word.lower())
        if told is not None:
            return told
    return UNKNOWN


def _nodes_of(name: str, metadata: Any) -> Tuple[str, ...]:
    """Return the graph's nodes in a layer: its metadata names them, else what was fused does."""
    told = _ONNX_NODE.findall(metadata) if isinstance(metadata, str) else []
    return tuple(told) or tuple(part.strip() for part in name.split(" + ") if part.strip())


def _listed(layers: Sequence[Layer]) -> str:
    names = ", ".join("`%s`" % layer.name for layer in layers[:MOST_NAMES])
    more = len(layers) - MOST_NAMES
    return "%s and %d more" % (names, more) if more > 0 else names
