"""Computes ahead what depends on constants alone and what TensorRT could not compute itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.backends.tensorrt.fixed_sizes import run
from packager.backends.tensorrt.regions import outer_reads, wire
from packager.passes.contract import tool_faults

if TYPE_CHECKING:
    from collections.abc import Mapping

_LARGEST_BYTES: Final = 64 << 20


def fold_lacking(model: Any, lacking: Mapping[int, str]) -> bool:
    """Put the values of lacking nodes without inputs of the model into constants, in place.

    Args:
        model: An `onnx.ModelProto`.
        lacking: Places of the nodes that TensorRT lacks.

    Returns:
        Whether there was one; places have changed then.
    """
    import onnx

    wiring = wire(model)
    chosen = [place for place in sorted(lacking) if place in wiring.static]
    chosen = [p for p in chosen if not wiring.nodes[p].op_type.startswith("Random")]
    folded: set[int] = set()
    for place in chosen:
        needed = _all_before(wiring, place)
        nodes = [wiring.nodes[other] for other in sorted(needed)]
        reads = {name for node in nodes for name in outer_reads(node)}
        part = onnx.ModelProto()
        part.CopyFrom(model)
        part.graph.CopyFrom(
            onnx.helper.make_graph(
                nodes,
                "fold",
                [],
                [onnx.ValueInfoProto(name=name) for name in wiring.nodes[place].output if name],
                [tensor for tensor in model.graph.initializer if tensor.name in reads],
            )
        )
        try:
            values = run(part, {})
        except tool_faults():
            continue
        if sum(value.nbytes for value in values.values()) > _LARGEST_BYTES:
            continue
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(value, name) for name, value in values.items()
        )
        folded.add(place)
    if not folded:
        return False
    kept = [node for place, node in enumerate(wiring.nodes) if place not in folded]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return True


def _all_before(wiring: Any, place: int) -> set[int]:
    found, pending = {place}, [place]
    while pending:
        for name in outer_reads(wiring.nodes[pending.pop()]):
            maker = wiring.makers.get(name, -1)
            if maker >= 0 and maker not in found:
                found.add(maker)
                pending.append(maker)
    return found
