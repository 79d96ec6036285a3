"""Refuses hostile or broken ONNX files in plain words, before anything runs or expands them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import onnx
from google.protobuf.message import DecodeError

from packager.errors import InputOutputError, ModelUnsupported
from packager.importers.external_data import check_external, external_chunks, read_external
from packager.importers.graph_walk import attribute_graphs, graphs, tensors
from packager.importers.wire import check_envelope
from packager.passes.external import past_one_file

if TYPE_CHECKING:
    from pathlib import Path

MAX_NODES: Final = 200_000
MAX_DEPTH: Final = 16
MAX_TENSOR_BYTES: Final = 1 << 33
# Of float32: 4 bits each, and a scale of 32 bits for every 32 weights.
_SMALLEST_FORM: Final = 5 / 32
MAX_IO_ELEMENTS: Final = 1 << 31
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_WHY_NOT: Final = {
    "com.microsoft.nchwc": "the file was already optimised for one kind of CPU; give the one from "
    "before that",
    "com.microsoft.experimental": "experimental operators change between versions of the engine",
    "ai.onnx.training": "give the model for inference, without its training graph",
    "ai.onnx.preview.training": "give the model for inference, without its training graph",
    "org.pytorch.aten": "export again without the ATen fallback",
}
_CUSTOM_HINT: Final = (
    "edgepack runs no operator libraries; export the model with standard operators, or as a "
    "model-local function"
)
# Which repeated field holds values that are not in raw_data, and how many entries one value takes.
_TYPED_FIELDS: Final = {
    "FLOAT": ("float_data", 1), "COMPLEX64": ("float_data", 2),
    "DOUBLE": ("double_data", 1), "COMPLEX128": ("double_data", 2),
    "INT64": ("int64_data", 1), "UINT32": ("uint64_data", 1), "UINT64": ("uint64_data", 1),
    "STRING": ("string_data", 1),
}  # fmt: skip
_BITS: Final = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64,
    "BOOL": 8, "FLOAT16": 16, "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64,
    "COMPLEX128": 128, "BFLOAT16": 16, "FLOAT8E4M3FN": 8, "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8,
    "FLOAT8E5M2FNUZ": 8, "FLOAT8E8M0": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2,
    "INT2": 2,
}  # fmt: skip


def lint_onnx(path: Path) -> None:
    """Refuse a hostile or broken ONNX file.

    Raises:
        ModelUnsupported: what is wrong with it.
        InputOutputError: it cannot be read.
    """
    _parse_and_lint(path, source=path.name)


def read_onnx(path: Path, *, source: str) -> tuple[onnx.ModelProto, str]:
    """Return the linted model with its external data inlined, and the digest of all its bytes.

    Where it is too large for one file, the initializers' data stays outside.

    Raises:
        ModelUnsupported: hostile or broken, or larger than any form in one file is made of.
        InputOutputError: it cannot be read.
    """
    model, digest = _parse_and_lint(path, source=source)
    places = [(i, t) for i, t in enumerate(tensors(model)) if is_external(t)]
    total = sum(tensor_bytes(t) for _, t in places) + model.ByteSize()
    _check_total(model, total, source)
    # The main graph's initializers come first.
    staying = len(model.graph.initializer) if past_one_file(total) else 0
    for position, tensor in places:
        size = tensor_bytes(tensor)
        if position >= staying:
            digest.update(read_external(tensor, path.parent, size=size))
            continue
        for chunk in external_chunks(tensor, path.parent, size=size):
            digest.update(chunk)
    return model, digest.hexdigest()


def _check_total(model: onnx.ModelProto, total: int, source: str) -> None:
    """Refuse what no form in one file is made of, before any of it is read."""
    floats = sum(
        tensor_bytes(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    if past_one_file(total) and past_one_file(round(total - floats * (1 - _SMALLEST_FORM))):
        raise ModelUnsupported(
            f"`{source}` holds {total / 1e9:.1f} GB, of which {floats / 1e9:.1f} GB are float32 "
            "initializers: it fits into one file of 2 GB in no smaller form",
            accepted="models up to 2 GB, or up to 13 GB of float32 initializers",
        )


def is_external(tensor: onnx.TensorProto) -> bool:
    """Tell whether a tensor's data lies in another file."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _parse_and_lint(path: Path, *, source: str) -> tuple[onnx.ModelProto, hashlib._Hash]:
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise InputOutputError(f"`{source}` cannot be read: {fault.strerror}") from fault
    check_envelope(content, source=source)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as fault:
        raise ModelUnsupported(
            f"`{source}` is damaged or nested too deeply: it does not parse as an ONNX model"
        ) from fault
    digest = hashlib.sha256(content)
    del content
    lint_model(model, source=source, folder=path.parent)
    return model, digest


def lint_model(model: onnx.ModelProto, *, source: str, folder: Path) -> None:
    """Refuse a parsed model; external data is looked up in `folder`.

    Raises:
        ModelUnsupported: what is wrong with it.
    """
    _check_frame(model, source)
    _check_depth_and_count(model, source)
    _check_domains(model, source)
    _check_expansion(model, source)
    for tensor in tensors(model):
        _check_tensor(tensor, source, folder)
    _check_io(model, source)


def _check_frame(model: onnx.ModelProto, source: str) -> None:
    graph = model.graph
    if not model.HasField("graph") or not (graph.node or graph.output):
        raise ModelUnsupported(f"`{source}` is no ONNX model: it holds no graph")
    if not graph.output:
        raise ModelUnsupported(f"`{source}` has no outputs")
    if not model.opset_import:
        raise ModelUnsupported(f"`{source}` names no operator set, so its operators mean nothing")
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= newest:
            raise ModelUnsupported(
                f"`{source}` uses operator set {entry.version}", accepted=f"1 to {newest}"
            )
    for what, values in (("input", graph.input), ("output", graph.output)):
        names = [value.name for value in values]
        for name in names:
            if not name:
                raise ModelUnsupported(f"`{source}` has an {what} without a name")
            if names.count(name) > 1:
                raise ModelUnsupported(f"`{source}` has two {what}s called `{name}`")


def _check_depth_and_count(model: onnx.ModelProto, source: str) -> None:
    count = 0
    level = [model.graph, *model.functions]
    for _ in range(MAX_DEPTH):
        below: list[onnx.GraphProto] = []
        for holder in level:
            count += len(holder.node)
            for node in holder.node:
                below.extend(attribute_graphs(node))
        if count > MAX_NODES:
            raise ModelUnsupported(f"`{source}` has more than {MAX_NODES} operators")
        if not below:
            return
        level = below
    raise ModelUnsupported(f"`{source}` nests graphs more than {MAX_DEPTH} levels deep")


def _check_domains(model: onnx.ModelProto, source: str) -> None:
    local = {(f.domain, f.name) for f in model.functions}
    for holder in graphs(model):
        for node in holder.node:
            if node.domain in _DOMAINS or (node.domain, node.op_type) in local:
                continue
            raise ModelUnsupported(
                f"`{source}` uses the custom operator `{node.domain}.{node.op_type}`",
                accepted="operators of ai.onnx, ai.onnx.ml and com.microsoft",
                hint=_WHY_NOT.get(node.domain, _CUSTOM_HINT),
            )


def _check_expansion(model: onnx.ModelProto, source: str) -> None:
    """Refuse functions that call themselves or expand to too many operators.

    The expanded size is computed from the innermost functions outwards, never by expanding.
    """
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size_of(holder: object) -> int | None:
        """Return the expanded size, None while a called function's is unknown."""
        total = 0
        pending = [holder]
        while pending:
            for node in pending.pop().node:  # type: ignore[attr-defined]
                key = (node.domain, node.op_type)
                if key in functions:
                    if key not in sizes:
                        return None
                    total += sizes[key]
                else:
                    total += 1
                pending.extend(attribute_graphs(node))
        return total

    waiting = dict(functions)
    while waiting:
        ready = {key: size for key, f in waiting.items() if (size := size_of(f)) is not None}
        if not ready:
            names = ", ".join(f"`{name}`" for _, name in list(waiting)[:3])
            raise ModelUnsupported(f"`{source}` has functions that call themselves: {names}")
        sizes.update(ready)
        for key in ready:
            del waiting[key]
    if (size_of(model.graph) or 0) > MAX_NODES:
        raise ModelUnsupported(
            f"`{source}` expands to more than {MAX_NODES} operators through its functions"
        )


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Return how many bytes the tensor's values take, from its declared type and dimensions."""
    count = 1
    for size in tensor.dims:
        count *= size
    bits = _BITS.get(_type_name(tensor), 8)
    return (count * bits + 7) // 8


def _type_name(tensor: onnx.TensorProto) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        return f"type {tensor.data_type}"


def _check_tensor(tensor: onnx.TensorProto, source: str, folder: Path) -> None:
    name = tensor.name or "a constant"
    kind = _type_name(tensor)
    where = f"`{source}`: tensor `{name}`"
    if kind not in _BITS and kind != "STRING":
        raise ModelUnsupported(f"{where} has the unknown element type {tensor.data_type}")
    if any(size < 0 for size in tensor.dims):
        raise ModelUnsupported(f"{where} has a negative dimension: {list(tensor.dims)}")
    size = tensor_bytes(tensor)
    if size > MAX_TENSOR_BYTES:
        raise ModelUnsupported(f"{where} claims {size / 1e9:.0f} GB: {list(tensor.dims)}")
    if is_external(tensor):
        if kind == "STRING":
            raise ModelUnsupported(f"{where} keeps strings in external data")
        check_external(tensor, folder, size=size, where=where)
        return
    if tensor.external_data:
        raise ModelUnsupported(f"{where} names external data but says that it has none")
    if tensor.HasField("raw_data"):
        got = len(tensor.raw_data)
        if kind == "STRING" or got != size:
            raise ModelUnsupported(
                f"{where} of shape {list(tensor.dims)} takes {size} bytes but holds {got}"
            )
        return
    field, per_value = _TYPED_FIELDS.get(kind, ("int32_data", 1))
    count = 1
    for extent in tensor.dims:
        count *= extent
    wanted = count * per_value
    if field == "int32_data" and _BITS[kind] < 8:
        wanted = size  # packed: two or four values a byte, one byte an entry
    got = len(getattr(tensor, field))
    if got != wanted:
        raise ModelUnsupported(
            f"{where} of shape {list(tensor.dims)} takes {wanted} values but holds {got}"
        )


def _check_io(model: onnx.ModelProto, source: str) -> None:
    from packager.importers.probe import dtype_name

    constants = {t.name for t in model.graph.initializer}
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if value.name in constants or (what == "output" and kind != "tensor_type"):
                continue  # initializers listed as inputs; outputs may still be a ZipMap's
            where = f"`{source}`: {what} `{value.name}`"
            if kind != "tensor_type":
                raise ModelUnsupported(f"{where} is {_kind_words(kind)}", accepted="tensors")
            if what == "input" and dtype_name(value.type.tensor_type.elem_type) is None:
                raise ModelUnsupported(f"{where} has an element type that no request can carry")
            count = 1
            for axis in value.type.tensor_type.shape.dim:
                count *= max(1, axis.dim_value)
            if count > MAX_IO_ELEMENTS:
                raise ModelUnsupported(f"{where} declares {count} elements")
    _check_bfloat16(model, source)


def _check_bfloat16(model: onnx.ModelProto, source: str) -> None:
    """Refuse what cannot be compared with its original here, though devices would serve it."""
    text = next((v.name for v in model.graph.input if _elem_type(v) == "STRING"), None)
    half = next((v.name for v in model.graph.output if _elem_type(v) == "BFLOAT16"), None)
    if text is not None and half is not None:
        raise ModelUnsupported(
            f"`{source}`: input `{text}` is of strings and output `{half}` of bfloat16: ONNX "
            "Runtime's Python binding gives bfloat16 only from `run_with_ort_values`, which takes "
            "no strings",
            hint=f"cast `{half}` to float32 at the end of the model",
        )


def _elem_type(value: onnx.ValueInfoProto) -> str:
    return str(onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type))


def _kind_words(kind: str | None) -> str:
    return {
        "sequence_type": "a sequence",
        "map_type": "a map",
        "optional_type": "optional",
        "sparse_tensor_type": "a sparse tensor",
        "opaque_type": "opaque",
    }.get(kind or "", "without a type")
