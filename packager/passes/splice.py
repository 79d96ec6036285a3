"""Puts nodes before a model's inputs and behind its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.errors import ModelUnsupported
from packager.passes.contract import first_line, opset_of, tool_faults
from packager.passes.graph import all_nodes
from packager.passes.steps import LEAST_IR, value_info

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from packager.model import TensorSpec
    from packager.passes.steps import Steps


def raised(model: Any, opset: int, what: str) -> Any:
    """Return the model with at least an opset of the default domain.

    Args:
        model: An `onnx.ModelProto`, which may be changed.
        opset: The least.
        what: What needs it, for the message.

    Raises:
        ModelUnsupported: onnx's converter refuses the model.
    """
    from onnx import version_converter

    if opset_of(model) < opset:
        try:
            model = version_converter.convert_version(model, opset)
        except tool_faults() as fault:
            raise ModelUnsupported(
                f"{what} needs opset {opset}, to which this model cannot be raised: "
                f"{first_line(fault)}",
                hint=f"export the model with opset {opset} or later",
            ) from fault
    model.ir_version = max(model.ir_version, LEAST_IR)
    return model


def values_of(model: Any) -> set[str]:
    """Return the name of every value in a model, those of branches and loops included."""
    names = {name for node in all_nodes(model) for name in (*node.input, *node.output)}
    for group in (model.graph.initializer, model.graph.input, model.graph.output):
        names |= {entry.name for entry in group}
    return names


def fresh(name: str, taken: set[str]) -> str:
    """Return a name that is not taken, and take it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def rename(model: Any, changes: Mapping[str, str]) -> None:
    """Give values other names wherever nodes read or make them, in place.

    Inputs and outputs of the graph keep theirs: whoever renames says what makes them now.
    """
    for node in all_nodes(model):
        for group in (node.input, node.output):
            for at, name in enumerate(group):
                if name in changes:
                    group[at] = changes[name]
        for attribute in node.attribute:
            graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for graph in graphs:
                for entry in (*graph.input, *graph.output, *graph.initializer):
                    entry.name = changes.get(entry.name, entry.name)
    for tensor in model.graph.initializer:
        tensor.name = changes.get(tensor.name, tensor.name)


def put_before(model: Any, steps: Steps, spec: TensorSpec) -> None:
    """Put steps in front of everything; the input of that name is declared as `spec`, in place."""
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*steps.nodes, *rest])
    model.graph.initializer.extend(steps.constants)
    for value in model.graph.input:
        if value.name == spec.name:
            value.CopyFrom(value_info(spec))


def put_behind(model: Any, steps: Steps, outputs: Sequence[Any]) -> None:
    """Put steps behind everything and declare these outputs, `ValueInfoProto`s, in place."""
    model.graph.node.extend(steps.nodes)
    model.graph.initializer.extend(steps.constants)
    kept = list(outputs)
    del model.graph.output[:]
    model.graph.output.extend(kept)
