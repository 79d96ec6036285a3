"""Writes an engine's graph in bf16 beside the float32 one that ONNX Runtime answers from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.errors import ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from packager.console import Reporter
    from packager.target import Target

_HINT: Final = "build with `--precision fp16`"


def without_rounding(path: Path, result: Path) -> Path:
    """Write a graph without the casts that round its tensors to bf16; its weights stay rounded.

    A search tries bf16 on such a graph, as ONNX Runtime's CPU kernels know no bf16. As what answers
    on a device's CPU it computes no worse without them, and faster.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    narrowed = {
        node.output[0]: node.input[0]
        for node in graph.node
        if _casts_to(node, onnx.TensorProto.BFLOAT16)
    }
    rounded = {
        node.output[0]: narrowed[node.input[0]]
        for node in graph.node
        if _casts_to(node, onnx.TensorProto.FLOAT) and node.input[0] in narrowed
    }
    kept = [node for node in graph.node if node.output[0] not in rounded]
    for node in kept:
        node.input[:] = [rounded.get(name, name) for name in node.input]
    read = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    used = [node for node in kept if node.output[0] in read or node.output[0] not in narrowed]
    del graph.node[:]
    graph.node.extend(used)
    onnx.save(model, result)
    return result


def in_bfloat16(
    core: Path,
    result: Path,
    *,
    target: Target,
    samples: Sequence[dict[str, NDArray[Any]]],
    reporter: Reporter,
) -> Path:
    """Write the graph of an engine in bf16; its inputs and outputs stay as they are.

    Args:
        core: What the engine computes, in float32.
        result: Where the graph goes.
        target: With a `[tensorrt]` table.
        samples: Inputs of the core.
        reporter: Is told what stays float32.

    Raises:
        ModelUnsupported: it cannot be written so, or the parser on this host refuses it.
    """
    import onnx

    from packager.backends.tensorrt.support import support_map
    from packager.passes.contract import PassContext, apply
    from packager.passes.float16 import BFloat16

    context = PassContext(
        target=target, samples=None, probes=samples, workdir=result.parent, reporter=reporter
    )
    model, (report,) = apply((BFloat16(),), onnx.load(core), context)
    if report.status != "applied":
        reason = "; ".join(filter(None, [report.reason, *report.notes])) or "nothing changes"
        raise ModelUnsupported(
            f"the engine's graph cannot be written in bf16: {reason}", hint=_HINT
        )
    for note in report.notes:
        reporter.note(f"engine: {note}")
    onnx.save(model, result)
    support = support_map(result)
    if support is not None and not support.parsed:
        said = [*map(str, support.unsupported), *support.general, "it does not say why"]
        raise ModelUnsupported(f"{support.parser} refuses the graph in bf16: {said[0]}", hint=_HINT)
    return result


def _casts_to(node: Any, code: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == code for a in node.attribute)
