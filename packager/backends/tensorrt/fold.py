"""Computes ahead what depends on constants alone and what TensorRT could not compute itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from packager.backends.tensorrt.fixed_sizes import leading_to, run
from packager.backends.tensorrt.regions import wire
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
        part = leading_to(model, [name for name in wiring.nodes[place].output if name])
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
