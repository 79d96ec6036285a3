"""Describes what a bundle serves as OpenAPI: its routes, bodies, errors, and examples that work."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.schemas import PROTOCOL_NAMES, schemas

if TYPE_CHECKING:
    from collections.abc import Mapping

    from packager.model import Signature, TensorSpec

MAX_EXAMPLE_ELEMENTS: Final = 256
# What `/predict` takes beside JSON, by media type: what it is, and of which schema.
_BODIES: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "image/jpeg": ("A photo", {"contentMediaType": "image/jpeg"}),
    "image/png": ("A photo", {"contentMediaType": "image/png"}),
    "audio/wav": ("A sound", {"contentMediaType": "audio/wav"}),
    "text/csv": ("Column names, then a row a line", {"type": "string"}),
    "text/plain": ("A text a line", {"type": "string"}),
}
# Refusals that any request may meet, then those of requests that ask the model.
_ALWAYS: Final = {
    "400": "The request makes no sense as HTTP, or to this route",
    "403": "A page of another origin sent it, or the key may not do this",
    "408": "It did not arrive in time",
    "413": "Its body is larger than anything this route takes",
    "415": "Its body is compressed, or of a kind that is not served",
    "421": "It was meant for another host",
    "431": "Its head is too large",
    "503": "The server has too much to do",
}
_LOCKED: Final = {"401": "A key is missing or not valid", "429": "This caller has asked too often"}
_ASKING: Final = {"500": "The model failed", "504": "Its time was up before work on it began"}
_LATER: Final = frozenset({"429", "503"})


def openapi_values(manifest: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """Return what `server/openapi.json.j2` names.

    Args:
        manifest: The manifest's fields.
        signature: What clients see.
    """
    model = f"/v2/models/{manifest['name']}"
    server = manifest["server"]
    small = all(math.prod(_example_shape(s)) <= MAX_EXAMPLE_ELEMENTS for s in signature.inputs)
    return {
        "name": manifest["name"],
        "version": manifest["version"],
        "description": f"Open Inference Protocol v2 on {manifest['target']['name']}, engine "
        f"{manifest['engine']['name']}, precision {manifest['engine']['precision']}. Every refusal "
        "is JSON with `error`. `HEAD` is answered where `GET` is listed; another method than those "
        "listed is a 405, another path a 404. "
        "A server that was started with keys wants one; health and the page need none.",
        "bases": [model, f"{model}/versions/{manifest['version']}"],
        "plain": server["plain"],
        "metrics": server["metrics"],
        "page": server.get("page", False),
        "schemas": schemas(signature, manifest),
        "binary": _binary_form(signature),
        "infer_example": _infer_example(signature) if small else None,
        "stream_example": _infer_example(signature) if small else None,
        "predict_bodies": _predict_bodies(manifest, signature, small=small),
        "refusals": _refusals(),
        "open_errors": _errors(_ALWAYS),
        "read_errors": _errors(_ALWAYS, _LOCKED),
        "ask_errors": _errors(_ALWAYS, _LOCKED, _ASKING),
    }


def _refusals() -> dict[str, Any]:
    """Return every refusal by the name that operations refer to."""
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    found = {}
    for status, text in sorted({**_ALWAYS, **_LOCKED, **_ASKING}.items()):
        answer: dict[str, Any] = {"description": text, "content": error}
        if status in _LATER:
            answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
        if status == "401":
            answer["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
        found[f"Error{status}"] = answer
    return {**found, "Error": {"description": "Another refusal", "content": error}}


def _errors(*reasons: Mapping[str, str]) -> dict[str, Any]:
    """Return the refusals of an operation by status, and one entry for all others."""
    statuses = sorted(status for group in reasons for status in group)
    found = {status: {"$ref": f"#/components/responses/Error{status}"} for status in statuses}
    return {**found, "4XX": {"$ref": "#/components/responses/Error"}}


def _binary_form(signature: Signature) -> str:
    """Return in words what a request with binary tensors is."""
    tensors = ", then ".join(
        f"{spec.name} as {PROTOCOL_NAMES[spec.dtype]}" for spec in signature.inputs
    )
    return (
        "The JSON of the request, whose inputs have `parameters.binary_data_size` in the place of "
        f"`data`; behind it the bytes of the tensors in the order of the inputs: {tensors}, "
        "little-endian and row by row. `Inference-Header-Content-Length` is the size of the JSON."
    )


def _predict_bodies(
    manifest: Mapping[str, Any], signature: Signature, *, small: bool
) -> dict[str, Any]:
    """Return the content of `/predict`'s body by media type, with examples where they are short."""
    model = manifest["model"]
    example = {"data": "a text"} if "text" in model else None
    if example is None and small:
        example = _predict_example(signature)
    plain: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/PredictRequest"}}
    found = {"application/json": plain | ({"example": example} if example else {})}
    for kind in manifest.get("bodies", {}):
        said, schema = _BODIES.get(kind, ("As it is", {}))
        found[kind] = {"schema": {"description": said, **schema}}
    if "text/plain" in found:
        found["text/plain"]["example"] = "a text"
    if "text/csv" in found and small:
        found["text/csv"]["example"] = _table_example(signature, model)
    return found


def _table_example(signature: Signature, model: Mapping[str, Any]) -> str:
    """Return a table of one row: the columns that a recipe names, else `NAME` or `NAME.0` ..."""
    names: list[str] = []
    cells: list[str] = []
    for spec in signature.inputs:
        width = math.prod(_example_shape(spec)[1:])
        known = model.get("columns", {}).get(spec.name, {}).get("names")
        alone = len(spec.shape) < 2
        names += known or ([spec.name] if alone else [f"{spec.name}.{at}" for at in range(width)])
        cells += [str(_example_value(spec.dtype)).lower()] * width
    return ",".join(names) + "\n" + ",".join(cells) + "\n"


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
        datatype = PROTOCOL_NAMES[spec.dtype]
        inputs.append({"name": spec.name, "shape": shape, "datatype": datatype, "data": data})
    return {"inputs": inputs}


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
