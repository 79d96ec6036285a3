"""Imports an ONNX file: lint, inline or copy, normalise, find the true signature by running."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import onnx

from packager.errors import InputOutputError, ModelUnsupported
from packager.importers.facts import graph_facts
from packager.importers.graph_walk import graphs, nodes
from packager.importers.lint import is_external, read_onnx, tensor_bytes
from packager.importers.probe import ELEM_TYPES
from packager.importers.request import MODEL_FILE, Imported, ImportRequest
from packager.importers.string_locale import use_common_locale
from packager.importers.true_shapes import find_signature
from packager.importers.zip_map import remove_zip_maps
from packager.model import Provenance
from packager.passes.external import ExternalModel, open_external, save_external
from packager.passes.fold_transposes import fold_transposes

if TYPE_CHECKING:
    from packager.model import Signature, TensorSpec

MAX_PROTOBUF_BYTES: Final = (1 << 31) - 1
_FLOOR_IR_VERSION: Final = 8
_FLOOR_OPSET: Final = 13
_QUANTIZED_OPS: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits",
     "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}
)  # fmt: skip


def import_onnx(request: ImportRequest, workdir: Path) -> Imported:
    """Import the ONNX file that the request names into `workdir`.

    Raises:
        ModelUnsupported: hostile, broken, or not runnable.
    """
    model, content = read_onnx(Path(request.path), source=request.source)
    notes, extra = normalise(model)
    if any(map(is_external, model.graph.initializer)):
        model = _copied(model, Path(request.path).parent, workdir)
    signature, shape_notes = find_signature(
        model,
        shapes=request.shapes,
        dims=request.dims,
        folder=workdir,
        limit_s=request.limits.probe_s,
        source=request.source,
    )
    notes += shape_notes
    quantized = is_quantized(model)
    if quantized:
        notes.append("the model is already quantized and is not quantized again")
    return write_model(
        model,
        signature,
        workdir=workdir,
        provenance=Provenance(
            kind="onnx",
            source=request.source,
            source_sha256=content,
            exporter="none",
            notes=tuple(notes),
        ),
        extra=extra,
    )


def _copied(model: onnx.ModelProto, source: Path, workdir: Path) -> onnx.ModelProto:
    """Return a model whose initializers lie in a file beside `workdir`'s model.

    Raises:
        InputOutputError: there is no room for them.
    """
    model, array = fold_transposes(model, ExternalModel(proto=model, folder=source).array)
    _drop_unused_initializers(model)
    wanted = sum(tensor_bytes(tensor) for tensor in model.graph.initializer)
    free = shutil.disk_usage(workdir).free
    if wanted > free:
        raise InputOutputError(
            f"the cache needs {wanted / 1e9:.1f} GB for a copy of the model and has "
            f"{free / 1e9:.1f}",
            hint="choose another with `--cache-dir DIR`",
        )
    path = workdir / MODEL_FILE
    save_external(model, path, array)
    copy: onnx.ModelProto = open_external(path).proto
    return copy


def write_model(
    model: onnx.ModelProto,
    signature: Signature,
    *,
    workdir: Path,
    provenance: Provenance,
    extra: dict[str, Any] | None = None,
) -> Imported:
    """Write `model.onnx` with the signature as its declared shapes, and load it as devices do.

    Raises:
        ModelUnsupported: past the size of a protobuf, or the engine does not load the result.
    """
    declare(model, signature)
    if model.ByteSize() > MAX_PROTOBUF_BYTES:
        raise ModelUnsupported("the model holds more than 2 GB, the most one ONNX file can")
    path = workdir / MODEL_FILE
    path.write_bytes(model.SerializeToString(deterministic=True))
    if not any(map(is_external, model.graph.initializer)):  # no device loads more than one file
        _load_as_devices_do(path, provenance.source)
    return Imported(
        signature=signature,
        opset=default_opset(model),
        ir_version=model.ir_version,
        provenance=provenance,
        quantized=is_quantized(model),
        extra={**(extra or {}), "graph": graph_facts(model)},
    )


def _load_as_devices_do(path: Path, source: str) -> None:
    import onnxruntime

    from packager.checks.latency import leave_out_optimizers
    from packager.importers.probe import engine_errors, reason

    options = onnxruntime.SessionOptions()
    leave_out_optimizers(options)
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except engine_errors() as fault:
        raise ModelUnsupported(f"ONNX Runtime does not load `{source}`: {reason(fault)}") from fault


def normalise(model: onnx.ModelProto) -> tuple[list[str], dict[str, Any]]:
    """Bring a linted, self-contained model into the one form that later stages expect.

    Returns:
        Notes on what changed, and facts to keep (`class_labels` of removed ZipMaps).

    Raises:
        ModelUnsupported: an input or output that no request can carry.
    """
    notes: list[str] = []
    _drop_initializer_inputs(model, notes)
    labels = remove_zip_maps(model, notes)
    use_common_locale(model, notes)
    strip_texts(model)
    for holder in graphs(model):
        del holder.value_info[:]  # declared by whoever wrote the file, and at times wrong
    _drop_unused_initializers(model)
    _settle_opsets(model)
    del model.training_info[:]
    return notes, ({"class_labels": labels} if labels else {})


def _drop_initializer_inputs(model: onnx.ModelProto, notes: list[str]) -> None:
    constants = {t.name for t in model.graph.initializer}
    constants |= {s.values.name for s in model.graph.sparse_initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    dropped = len(model.graph.input) - len(kept)
    if dropped:
        copies = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in kept]
        del model.graph.input[:]
        model.graph.input.extend(copies)
        notes.append(f"{dropped} initializers were listed as inputs and no longer are")
    # Before IR version 4 every initializer had to be an input.
    if model.ir_version < 4:
        model.ir_version = _FLOOR_IR_VERSION


def strip_texts(model: onnx.ModelProto) -> None:
    """Remove documentation and metadata: both can hold paths, on which bundles must not depend."""
    model.ClearField("doc_string")
    del model.metadata_props[:]
    for holder in graphs(model):
        holder.ClearField("doc_string")
        del holder.metadata_props[:]
        for node in holder.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
                if attribute.HasField("t"):
                    attribute.t.ClearField("doc_string")
        if isinstance(holder, onnx.GraphProto):
            for tensor in holder.initializer:
                tensor.ClearField("doc_string")
                del tensor.metadata_props[:]
            values = (*holder.input, *holder.output)
        else:
            values = ()
        for value in values:
            value.ClearField("doc_string")
            del value.metadata_props[:]


def _drop_unused_initializers(model: onnx.ModelProto) -> None:
    used = {name for holder in graphs(model) for node in holder.node for name in node.input}
    used |= {v.name for h in graphs(model) if isinstance(h, onnx.GraphProto) for v in h.output}
    for holder in graphs(model):
        if isinstance(holder, onnx.GraphProto):
            for i in reversed(range(len(holder.initializer))):
                if holder.initializer[i].name not in used:
                    del holder.initializer[i]


def _settle_opsets(model: onnx.ModelProto) -> None:
    used = {_plain_domain(node.domain) for node in nodes(model)}
    used |= {_plain_domain(f.domain) for f in model.functions} | {""}
    for i in reversed(range(len(model.opset_import))):
        if _plain_domain(model.opset_import[i].domain) not in used:
            del model.opset_import[i]
    # A lone tree ensemble needs no operator of ONNX's own; what passes add does.
    if not any(_plain_domain(entry.domain) == "" for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", _FLOOR_OPSET))


def _plain_domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def default_opset(model: onnx.ModelProto) -> int:
    """Return the version of the default operator domain."""
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=1)


def is_quantized(model: onnx.ModelProto) -> bool:
    """Return whether the model came in with integer arithmetic."""
    return any(
        node.op_type in _QUANTIZED_OPS or node.op_type.startswith("QLinear")
        for node in nodes(model)
    )


def declare(model: onnx.ModelProto, signature: Signature) -> None:
    """Make the graph declare the signature."""
    for values, specs in (
        (model.graph.input, signature.inputs),
        (model.graph.output, signature.outputs),
    ):
        for value, spec in zip(values, specs, strict=True):
            _declare_shape(value, spec)


def _declare_shape(value: onnx.ValueInfoProto, spec: TensorSpec) -> None:
    kind = value.type.tensor_type
    if not kind.elem_type:
        kind.elem_type = ELEM_TYPES[spec.dtype]
    shape = kind.shape
    shape.SetInParent()
    del shape.dim[:]
    for dim in spec.shape:
        axis = shape.dim.add()
        if dim.size is not None:
            axis.dim_value = dim.size
        elif dim.name is not None:
            axis.dim_param = dim.name


def file_sha256(*paths: Path) -> str:
    """Return one digest over the names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
