"""Brings a model's opset and IR version down to what an engine reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.backends.older_opset import rewrite_for
from packager.checks.bfloat16 import with_bfloat16
from packager.checks.parity import compare
from packager.errors import ModelUnsupported
from packager.passes.contract import first_line, opset_of, tool_faults
from packager.passes.graph import all_nodes, strip_texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

_CLOSE: Final = 1e-4


def lower(
    model: Any,
    *,
    name: str,
    max_opset: int,
    max_ir_version: int,
    samples: Iterable[Mapping[str, NDArray[Any]]],
) -> None:
    """Bring opset and IR version down to what an engine reads, in place.

    Args:
        model: An `onnx.ModelProto`.
        name: What reads no more, for the messages.
        max_opset: The highest opset of the default domain that it reads.
        max_ir_version: The highest IR version that it reads.
        samples: Inputs on which the outputs must stay; where there are none the result is only
            checked against the operators' own definitions.

    Raises:
        ModelUnsupported: an operator needs a later version.
    """
    from onnx import helper

    if opset_of(model) > max_opset:
        model.CopyFrom(_lowered(model, name, max_opset, list(samples)))
    if model.ir_version > max_ir_version:
        least = helper.find_min_ir_version_for(
            [
                entry
                for entry in model.opset_import
                if entry.domain in ("", "ai.onnx", "ai.onnx.ml")
            ],
            ignore_unknown=True,
        )
        if least > max_ir_version:
            raise ModelUnsupported(
                f"{name} reads IR version {max_ir_version} at most, and the model's operators "
                f"need {least}"
            )
        model.ir_version = max_ir_version


def missing_operators(model: Any, opset: int) -> list[str]:
    """Return the operators of the default domain that do not exist at an opset."""
    from onnx import defs

    found = []
    for node in all_nodes(model):
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            defs.get_schema(node.op_type, opset, "")
        except defs.SchemaError:
            found.append(node.op_type)
    return sorted(set(found))


def _lowered(model: Any, name: str, limit: int, samples: list[Mapping[str, NDArray[Any]]]) -> Any:
    import onnx
    from onnx import version_converter

    opset = opset_of(model)
    hint = f"export the model with opset {limit}"
    missing = missing_operators(model, limit)
    if missing:
        raise ModelUnsupported(
            f"{name} reads opset {limit} at most, which has no `{missing[0]}`", hint=hint
        )

    def relabelled() -> Any:
        # Many operators changed only in the dtypes they take, and the converter knows no way back.
        draft = onnx.ModelProto()
        draft.CopyFrom(model)
        rewrite_for(draft, limit)
        for entry in draft.opset_import:
            if entry.domain in {"", "ai.onnx"}:
                entry.version = limit
        onnx.checker.check_model(draft, full_check=True)
        return draft

    def converted() -> Any:
        return version_converter.convert_version(model, limit)

    expected = _answers(model, samples)
    reason = "an output changes"
    for make in (relabelled, converted):
        try:
            draft = make()
            if _same(expected, _answers(draft, samples)):
                strip_texts(draft)
                return draft
        except tool_faults() as fault:
            reason = first_line(fault)
    raise ModelUnsupported(
        f"{name} reads opset {limit} at most, to which the model cannot be lowered from "
        f"{opset}: {reason}",
        hint=hint,
    )


def _same(expected: list[dict[str, NDArray[Any]]], got: list[dict[str, NDArray[Any]]]) -> bool:
    if not expected:
        return True
    parity = compare(expected, got)
    return parity.cosine > 1 - _CLOSE and parity.exact


def _answers(
    model: Any, samples: list[Mapping[str, NDArray[Any]]]
) -> list[dict[str, NDArray[Any]]]:
    import onnxruntime

    from packager.checks.latency import leave_out_optimizers

    if not samples:
        return []
    options = onnxruntime.SessionOptions()
    leave_out_optimizers(options)
    options.log_severity_level = 3
    session = with_bfloat16(
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    )
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(s)), strict=True)) for s in samples]
