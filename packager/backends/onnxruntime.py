"""Turns the chosen candidate into the file that ONNX Runtime loads on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from packager.artifact import Artifact
from packager.backends.lowering import lower
from packager.checks.latency import open_session
from packager.errors import BudgetMissed, ModelUnsupported, UsageError
from packager.manifest import sha256_file
from packager.passes.contract import first_line, opset_of, tool_faults
from packager.passes.graph import all_nodes, strip_texts
from packager.passes.inputs import attach, least_opset, made_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from packager.artifact import Candidate
    from packager.data import Samples
    from packager.model import Model, Signature
    from packager.recipe import Recipe
    from packager.target import Target

_PRODUCER: Final = "edgepack"
_RUNS: Final = 2


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
    lower(
        proto,
        name=target.name,
        max_opset=target.engine.max_opset,
        max_ir_version=target.engine.max_ir_version,
        samples=samples,
    )
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
