"""Writes tensors as JSON schemas: of the Open Inference Protocol, and nested for `/predict`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from packager.model import Dim

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from packager.model import Signature, TensorSpec

PROTOCOL_NAMES: Final = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "bfloat16": "BF16",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "bool": "BOOL", "string": "BYTES",
}  # fmt: skip
# One server-sent event, as OpenAPI 3.1 has no word for it of its own.
EVENT: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "event": {"enum": ["message", "end", "error"]},
        "id": {"type": "string"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/StreamedAnswer"},
        },
    },
}
# How a stream ends; the event's name tells which of them it is.
_LAST_EVENTS: Final[tuple[Mapping[str, Any], ...]] = (
    {
        "title": "event: end",
        "type": "object",
        "required": ["events"],
        "properties": {"events": {"type": "integer", "minimum": 1}},
    },
    {
        "title": "event: error",
        "type": "object",
        "required": ["error", "status", "index"],
        "properties": {
            "error": {"type": "string"},
            "status": {"type": "integer"},
            "index": {"type": "integer", "minimum": 0},
        },
    },
)
# What an answer in an event says beside the model's outputs.
_OF_EVENT: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["index"],
    "properties": {
        "index": {"type": "integer", "minimum": 0},
        "non_finite": {"const": True},
    },
}
# What an engine that may change says of itself; of others there is nothing to say.
ACCELERATOR: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["wanted", "state", "reason", "notes"],
    "properties": {
        "wanted": {"type": "string"},
        "state": {"type": "string"},
        "reason": {"type": ["string", "null"]},
        "notes": {"type": "array", "items": {"type": "string"}},
        "progress": {"type": ["number", "null"]},
        "seconds_left": {"type": ["number", "null"]},
        "step": {"type": ["string", "null"]},
    },
}
_MAX_ID_CHARACTERS: Final = 1024
_MAX_SEQUENCE_ID_CHARACTERS: Final = 128


def schemas(signature: Signature, manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the schemas of requests and answers by name.

    Args:
        signature: What clients see.
        manifest: The manifest's fields: of the model its name, version, texts and labels, and
            whether it keeps state.
    """
    inputs, outputs, model = signature.inputs, signature.outputs, manifest["model"]
    # the address names the model; a client may repeat it, and every answer does
    about = {"model_name": _said(manifest["name"]), "model_version": _said(manifest["version"])}
    sequences = manifest.get("sequences")
    answer = _infer_answer(outputs, about)
    event = answer | {
        "required": [*answer["required"], "parameters"],
        "properties": answer["properties"] | {"parameters": _OF_EVENT},
    }
    longer = _in_pieces(inputs, sequences) if sequences else inputs
    return {
        "InferRequest": _infer_request(inputs, outputs, about, sequences=bool(sequences)),
        "InferAnswer": answer,
        "PredictRequest": _object({"data": _plain_inputs(inputs, texts="text" in model)}),
        "PredictAnswer": _object({"result": _plain_outputs(outputs, model)}),
        "StreamRequest": _infer_request(longer, outputs, about, sequences=bool(sequences)),
        "StreamedAnswer": {"anyOf": [event, *_LAST_EVENTS]},
        "Event": EVENT,
        "Accelerator": ACCELERATOR,
    }


def _said(value: object) -> dict[str, Any]:
    return {"type": "string", "const": str(value)}


def _in_pieces(
    inputs: Sequence[TensorSpec], sequences: Mapping[str, Any]
) -> tuple[TensorSpec, ...]:
    """Return the inputs of a request that is cut: as long as all pieces together."""
    axis = sequences["axis"] or 0
    longer = Dim(name="length", min=1)
    return tuple(
        replace(spec, shape=(*spec.shape[:axis], longer, *spec.shape[axis + 1 :]))
        if spec.name in sequences["cut"]
        else spec
        for spec in inputs
    )


def _infer_request(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    about: Mapping[str, Any],
    *,
    sequences: bool,
) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "binary_data_output": {"type": "boolean", "default": False},
        "timeout": {"type": "integer", "minimum": 0, "title": "microseconds to wait at most"},
    }
    if sequences:
        number = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}
        text = {"type": "string", "maxLength": _MAX_SEQUENCE_ID_CHARACTERS}
        parameters |= {
            "sequence_id": {"anyOf": [number, text]},
            "sequence_start": {"type": "boolean", "default": False},
            "sequence_end": {"type": "boolean", "default": False},
        }
    wanted = _object(
        {
            "name": {"enum": [spec.name for spec in outputs]},
            "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
        },
        required=["name"],
    )
    tensors = [_wire_tensor(spec, nullable=False) for spec in inputs]
    return _object(
        {
            **about,
            "id": {"type": "string", "maxLength": _MAX_ID_CHARACTERS},
            "parameters": {"type": "object", "properties": parameters},
            "inputs": {
                "type": "array",
                "minItems": len(inputs),
                "maxItems": len(inputs),
                "items": {"oneOf": tensors} if len(tensors) > 1 else tensors[0],
            },
            "outputs": {"type": "array", "items": wanted, "maxItems": len(outputs)},
        },
        required=["inputs"],
    )


def _infer_answer(outputs: Sequence[TensorSpec], about: Mapping[str, Any]) -> dict[str, Any]:
    tensors = [_wire_tensor(spec, nullable=True) for spec in outputs]
    return {
        "type": "object",
        "required": [*about, "outputs"],
        "properties": {
            **about,
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": {"oneOf": tensors}},
        },
    }


def _wire_tensor(spec: TensorSpec, *, nullable: bool) -> dict[str, Any]:
    """Return the schema of one tensor of the protocol.

    Args:
        spec: The tensor.
        nullable: An answer's: numbers that are not finite are null, and the data is missing where
            it follows in binary. A request's data may be flat or nested.
    """
    element = _element(spec.dtype, nullable=nullable)
    flat = {"type": "array", "items": element, **_count(spec)}
    data = flat
    if not nullable and len(spec.shape) > 1:
        data = {"anyOf": [flat, _nested(spec, nullable=False)]}
    required = ["name", "shape", "datatype"]
    return _object(
        {
            "name": {"const": spec.name},
            "shape": _sizes(spec, asked=not nullable),
            "datatype": {"const": PROTOCOL_NAMES[spec.dtype]},
            "parameters": {
                "type": "object",
                "properties": {"binary_data_size": {"type": "integer", "minimum": 0}},
            }
            if nullable
            else {"type": "object"},
            "data": data,
        },
        required=required if nullable else [*required, "data"],
    ) | {"title": str(spec)}


def _sizes(spec: TensorSpec, *, asked: bool) -> dict[str, Any]:
    """Return the schema of a shape; of an answer's, only what no reader stumbles over.

    Schemathesis 4.32 takes `prefixItems` in the schema of an answer for an error.
    """
    rank = len(spec.shape)
    if all(dim.size is not None for dim in spec.shape):
        return {"const": [dim.size for dim in spec.shape]}
    schema: dict[str, Any] = {"type": "array", "minItems": rank, "maxItems": rank}
    if asked:
        return schema | {"prefixItems": [_size(dim) for dim in spec.shape]}
    return schema | {"items": {"type": "integer", "minimum": 0}}


def _count(spec: TensorSpec) -> dict[str, int]:
    """Return how many elements there may be."""
    least = math.prod(dim.min if dim.size is None else dim.size for dim in spec.shape)
    sizes = [dim.max if dim.size is None else dim.size for dim in spec.shape]
    if None in sizes:
        return {"minItems": least}
    return {"minItems": least, "maxItems": math.prod(size or 0 for size in sizes)}


def _size(dim: Dim) -> dict[str, Any]:
    if dim.size is not None:
        return {"const": dim.size}
    schema: dict[str, Any] = {"type": "integer", "minimum": dim.min}
    if dim.max is not None:
        schema["maximum"] = dim.max
    if dim.name is not None:
        schema["title"] = dim.name
    return schema


def _object(
    properties: dict[str, dict[str, Any]], *, required: list[str] | None = None
) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties) if required is None else required,
        "properties": properties,
        "additionalProperties": False,
    }


def _plain_inputs(specs: Sequence[TensorSpec], *, texts: bool) -> dict[str, Any]:
    forms = [_by_name(specs, nullable=False)]
    if len(specs) == 1:
        forms.insert(0, _nested(specs[0], nullable=False))
    if texts:
        text = {"type": "string"}
        forms = [text, {"type": "array", "items": text, "minItems": 1}, *forms]
    return {"anyOf": forms} if len(forms) > 1 else forms[0]


def _plain_outputs(specs: Sequence[TensorSpec], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of `/predict`'s result; labels stand beside the numbers."""
    results = model.get("results", ())
    said = {entry["as"]: _labels(entry["kind"]) for entry in results if "labels" in entry}
    names = {spec.name for spec in specs}
    for spec in specs:  # as `runtime.results.read_words` has it
        matrix = len(spec.shape) == 2 and spec.dtype != "string"
        if spec.name in model.get("labels", {}) and matrix and f"{spec.name}_labels" not in names:
            said[f"{spec.name}_labels"] = _best(spec.dtype)
    if len(specs) == 1 and not said:
        return _nested(specs[0], nullable=True)
    schema = _by_name(specs, nullable=True)
    schema["properties"] |= said
    schema["required"] += list(said)
    return schema


def _best(dtype: str) -> dict[str, Any]:
    """Return the schema of the labels of scores: all that hold, or a row's best one."""
    label: dict[str, Any] = {"type": "string" if dtype == "bool" else ["string", "null"]}
    row = {"type": "array", "items": label} if dtype == "bool" else label
    return {"type": "array", "items": row}


def _labels(kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
    return {"type": "array", "items": row} if kind == "top_k" else row


def _by_name(specs: Iterable[TensorSpec], *, nullable: bool) -> dict[str, Any]:
    return _object({spec.name: _nested(spec, nullable=nullable) for spec in specs})


def _nested(spec: TensorSpec, *, nullable: bool) -> dict[str, Any]:
    schema = _element(spec.dtype, nullable=nullable)
    for dim in reversed(spec.shape):
        schema = {"type": "array", "items": schema}
        if dim.size is not None:
            schema |= {"minItems": dim.size, "maxItems": dim.size}
        else:
            schema["minItems"] = dim.min
            if dim.max is not None:
                schema["maxItems"] = dim.max
    return schema


def _element(dtype: str, *, nullable: bool) -> dict[str, Any]:
    if dtype == "string":
        return {"type": "string"}
    if dtype == "bool":
        return {"type": "boolean"}
    if "float" in dtype:
        return {"type": ["number", "null"] if nullable else "number"}
    bits = int(dtype.lstrip("uint"))
    if dtype.startswith("u"):
        return {"type": "integer", "minimum": 0, "maximum": 2**bits - 1}
    return {"type": "integer", "minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1}
