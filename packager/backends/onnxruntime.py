"""Turns the chosen candidate into the file that ONNX Runtime loads on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.artifact import Artifact
from packager.checks.latency import open_session
from packager.checks.parity import compare
from packager.errors import BudgetMissed, ModelUnsupported, UsageError
from packager.manifest import sha256_file
from packager.passes.contract import first_line, opset_of, tool_faults
from packager.passes.graph import all_nodes, strip_texts
from packager.passes.inputs import attach, least_opset, made_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.artifact import Candidate
    from packager.data import Samples
    from packager.model import Model, Signature
    from packager.recipe import Recipe
    from packager.target import Target

_PRODUCER: Final = "edgepack"
_RUNS: Final = 2
_LOWERED: Final = 1e-4


def build(
    model: Model,
    candidates: Sequence[Candidate],
    target: Target,
    recipe: Recipe,
    workdir: Path,
) -> Artifact:
    """Attach pre- and post-processing to the chosen candidate, fit it to the target, and run it.

    The file's bytes depend on the candidate, the recipe and the versions of the tools alone.

    Args:
        model: The original.
        candidates: From `search.choose`; exactly one is chosen.
        target: Its engine's highest opset and IR version.
        recipe: Its inputs and outputs.
        workdir: Where `model.onnx` goes.

    Raises:
        ModelUnsupported: an operator needs a later opset than the target's engine reads, or the
            artifact does not load and run.
        BudgetMissed: no candidate was chosen.
        UsageError: the recipe has an input or output that does not fit.
    """
    import onnx

    chosen = next((c for c in candidates if c.verdict == "chosen" and c.path is not None), None)
    if chosen is None or chosen.path is None:
        raise BudgetMissed("no candidate was chosen")
    path = workdir / "model.onnx"
    least = least_opset(recipe)
    if model.quantized and model.opset < least:
        raise UsageError(
            f"the model came in quantized with opset {model.opset}, and the recipe's inputs and "
            f"outputs need opset {least}",
            hint=f"leave them out of the recipe, or export the model with opset {least}",
        )
    signature = attach(chosen.path, model.signature, recipe, path)
    proto = onnx.load(path)
    samples = made_up(signature, recipe, _RUNS, 0)
    strip_texts(proto)
    proto.producer_name = _PRODUCER
    proto.graph.name = "model"
    _lower(proto, target, samples)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    del proto  # may be 2 GB, which the next copy and the engine's need not wait beside
    read_back = onnx.load(path, load_external_data=False)
    opset, ir_version = opset_of(read_back), int(read_back.ir_version)
    nodes = sum(1 for _ in all_nodes(read_back))
    domains = {entry.domain or "ai.onnx": entry.version for entry in read_back.opset_import}
    del read_back
    _check_runs(path, signature, samples, target)
    return Artifact(
        path=path,
        model=model,
        signature=signature,
        precision=chosen.name,
        scheme=chosen.scheme,
        opset=opset,
        ir_version=ir_version,
        candidates=tuple(candidates),
        facts={
            "sha256": sha256_file(path),
            "size_bytes": path.stat().st_size,
            "nodes": nodes,
            "domains": domains,
        },
    )


def _lower(model: Any, target: Target, samples: Samples) -> None:
    """Bring opset and IR version down to what the target's engine reads, in place."""
    from onnx import helper

    engine = target.engine
    if opset_of(model) > engine.max_opset:
        model.CopyFrom(_lowered(model, target, samples))
    if model.ir_version > engine.max_ir_version:
        least = helper.find_min_ir_version_for(
            [
                entry
                for entry in model.opset_import
                if entry.domain in ("", "ai.onnx", "ai.onnx.ml")
            ],
            ignore_unknown=True,
        )
        if least > engine.max_ir_version:
            raise ModelUnsupported(
                f"{target.name} reads IR version {engine.max_ir_version} at most, and the model's "
                f"operators need {least}"
            )
        model.ir_version = engine.max_ir_version


def _lowered(model: Any, target: Target, samples: Samples) -> Any:
    import onnx
    from onnx import version_converter

    opset, limit = opset_of(model), target.engine.max_opset
    hint = f"export the model with opset {limit}"
    missing = _missing_operators(model, limit)
    if missing:
        raise ModelUnsupported(
            f"{target.name} reads opset {limit} at most, which has no `{missing[0]}`", hint=hint
        )

    def converted() -> Any:
        return version_converter.convert_version(model, limit)

    def relabelled() -> Any:
        # Many operators changed only in the dtypes they take, and the converter knows no way back.
        draft = onnx.ModelProto()
        draft.CopyFrom(model)
        for entry in draft.opset_import:
            if entry.domain in {"", "ai.onnx"}:
                entry.version = limit
        onnx.checker.check_model(draft)
        return draft

    expected = _answers(model, samples)
    reason = "an output changes"
    for make in (converted, relabelled):
        try:
            draft = make()
            parity = compare(expected, _answers(draft, samples))
        except tool_faults() as fault:
            reason = first_line(fault)
            continue
        if parity.cosine > 1 - _LOWERED and parity.exact:
            strip_texts(draft)
            return draft
    raise ModelUnsupported(
        f"{target.name} reads opset {limit} at most, to which the model cannot be lowered from "
        f"{opset}: {reason}",
        hint=hint,
    )


def _answers(model: Any, samples: Samples) -> list[dict[str, NDArray[Any]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(s)), strict=True)) for s in samples]


def _missing_operators(model: Any, opset: int) -> list[str]:
    """Return the operators that do not exist at an opset."""
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


def _check_runs(path: Path, signature: Signature, samples: Samples, target: Target) -> None:
    try:
        session = open_session(path, 1)
        names = [value.name for value in session.get_inputs()]
        wanted = [spec.name for spec in signature.inputs]
        if names != wanted:
            raise ModelUnsupported(f"the artifact has the inputs {names}, not {wanted}")
        for sample in samples:
            session.run(None, dict(sample))
    except tool_faults() as fault:
        raise ModelUnsupported(
            f"the artifact for {target.name} does not run: {first_line(fault)}"
        ) from fault
