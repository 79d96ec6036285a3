"""Turns weights that a graph transposes before it multiplies: no data moves until they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.passes.layer_inputs import attribute_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def fold_transposes(
    model: Any, array: Callable[[Any], NDArray[Any]]
) -> tuple[Any, Callable[[Any], NDArray[Any]]]:
    """Return a model without Transpose nodes on its matrices, and what gives its values.

    Exporters leave them on large weights and on embeddings that are multiplied with as well, where
    neither can be kept in blocks. A matrix that is read both ways is held twice afterwards.

    Args:
        model: `onnx.ModelProto`; external tensors have no data. It is not changed.
        array: Gives the values of one of its initializers.

    Returns:
        The model, whose new initializers are external without a place, and the values of each.
    """
    import onnx

    draft = onnx.ModelProto()
    draft.CopyFrom(model)
    graph = draft.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    kept_names = {output.name for output in graph.output}
    sources: dict[str, Any] = {}
    nodes = []
    for node in graph.node:
        tensor = tensors.get(node.input[0]) if node.op_type == "Transpose" else None
        if tensor is None or not _turns(node, tensor) or node.output[0] in kept_names:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        sources[node.output[0]] = onnx.TensorProto.FromString(tensor.SerializeToString())
    del graph.node[:]
    graph.node.extend(nodes)
    for name, source in sources.items():
        turned = graph.initializer.add(name=name, data_type=source.data_type)
        turned.dims.extend(reversed(source.dims))
        turned.data_location = onnx.TensorProto.EXTERNAL

    def values(tensor: Any) -> NDArray[Any]:
        source = sources.get(tensor.name)
        return array(tensor) if source is None else array(source).T

    return draft, values


def _turns(node: Any, tensor: Any) -> bool:
    # Before a matrix, no perm means the same as [1, 0].
    external = tensor.data_location == tensor.EXTERNAL
    return external and len(tensor.dims) == 2 and list(attribute_of(node, "perm", [1, 0])) == [1, 0]
