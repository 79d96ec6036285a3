"""Describes a model's requests and answers as JSON schemas, with an example of each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from packager.model import Dim, Signature, TensorSpec

MAX_EXAMPLE_ELEMENTS: Final = 256
_PROTOCOL_NAMES: Final = {
    "float32": "FP32", "float64": "FP64", "float16": "FP16", "bfloat16": "BF16",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "bool": "BOOL", "string": "BYTES",
}  # fmt: skip


def openapi_values(manifest: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """Return what `server/openapi.json.j2` names."""
    model = f"/v2/models/{manifest['name']}"
    server = manifest["server"]
    small = all(math.prod(_example_shape(s)) <= MAX_EXAMPLE_ELEMENTS for s in signature.inputs)
    return {
        "name": manifest["name"],
        "version": manifest["version"],
        "description": f"Open Inference Protocol v2 on {manifest['target']['name']}, engine "
        f"{manifest['engine']['name']}, precision {manifest['engine']['precision']}",
        "bases": [model, f"{model}/versions/{manifest['version']}"],
        "plain": server["plain"],
        "metrics": server["metrics"],
        "schemas": _schemas(signature, manifest["model"]),
        "infer_example": _infer_example(signature) if small else None,
        "predict_example": _example(signature, manifest["model"], small=small),
    }


def _schemas(signature: Signature, model: Mapping[str, Any]) -> dict[str, Any]:
    inputs, outputs = signature.inputs, signature.outputs
    parameters = {"type": "object"}
    wanted = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": [s.name for s in outputs]}, "parameters": parameters},
        "additionalProperties": False,
    }
    return {
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "parameters": parameters,
                "inputs": {
                    "type": "array",
                    "minItems": len(inputs),
                    "maxItems": len(inputs),
                    "items": {"oneOf": [_wire_tensor(spec) for spec in inputs]},
                },
                "outputs": {"type": "array", "items": wanted},
            },
            "additionalProperties": False,
        },
        "InferAnswer": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "outputs": {
                    "type": "array",
                    "items": {"oneOf": [_wire_tensor(spec) for spec in outputs]},
                },
            },
        },
        "PredictRequest": _plain_object("data", _plain_inputs(inputs, texts="text" in model)),
        "PredictAnswer": _plain_object("result", _plain_outputs(outputs, model.get("results", ()))),
    }


def _wire_tensor(spec: TensorSpec) -> dict[str, Any]:
    """Return the schema of one tensor of the protocol; its data may be flat or nested."""
    return {
        "title": str(spec),
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"const": spec.name},
            "shape": {
                "type": "array",
                "prefixItems": [_size(dim) for dim in spec.shape],
                "minItems": len(spec.shape),
                "maxItems": len(spec.shape),
            },
            "datatype": {"const": _PROTOCOL_NAMES[spec.dtype]},
            "parameters": {"type": "object"},
            "data": {"type": "array"},
        },
        "additionalProperties": False,
    }


def _size(dim: Dim) -> dict[str, Any]:
    if dim.size is not None:
        return {"const": dim.size}
    schema: dict[str, Any] = {"type": "integer", "minimum": dim.min}
    if dim.max is not None:
        schema["maximum"] = dim.max
    if dim.name is not None:
        schema["title"] = dim.name
    return schema


def _plain_object(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [key],
        "properties": {key: value},
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


def _plain_outputs(
    specs: Sequence[TensorSpec], results: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the schema of `/predict`'s result; labels stand beside the numbers."""
    said = {entry["as"]: _labels(entry["kind"]) for entry in results if "labels" in entry}
    if len(specs) == 1 and not said:
        return _nested(specs[0], nullable=True)
    schema = _by_name(specs, nullable=True)
    schema["properties"] |= said
    schema["required"] += list(said)
    return schema


def _labels(kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
    return {"type": "array", "items": row} if kind == "top_k" else row


def _by_name(specs: Iterable[TensorSpec], *, nullable: bool) -> dict[str, Any]:
    properties = {spec.name: _nested(spec, nullable=nullable) for spec in specs}
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


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


def _example_shape(spec: TensorSpec) -> list[int]:
    """Return the sizes of the smallest request that is at least one element large."""
    return [dim.size if dim.size is not None else max(dim.min, 1) for dim in spec.shape]


def _example_value(dtype: str) -> object:
    if dtype == "string":
        return "text"
    if dtype == "bool":
        return True
    return 0.5 if "float" in dtype else 1


def _infer_example(signature: Signature) -> dict[str, Any]:
    inputs = []
    for spec in signature.inputs:
        shape = _example_shape(spec)
        data = [_example_value(spec.dtype)] * math.prod(shape)
        datatype = _PROTOCOL_NAMES[spec.dtype]
        inputs.append({"name": spec.name, "shape": shape, "datatype": datatype, "data": data})
    return {"inputs": inputs}


def _example(
    signature: Signature, model: Mapping[str, Any], *, small: bool
) -> dict[str, Any] | None:
    if "text" in model:
        return {"data": "a text"}
    return _predict_example(signature) if small else None


def _predict_example(signature: Signature) -> dict[str, Any]:
    examples: dict[str, Any] = {}
    for spec in signature.inputs:
        value = _example_value(spec.dtype)
        for size in reversed(_example_shape(spec)):
            value = [value] * size
        examples[spec.name] = value
    if len(examples) == 1:
        return {"data": next(iter(examples.values()))}
    return {"data": examples}
