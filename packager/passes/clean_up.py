"""Removes dead nodes and identities, folds constants and BatchNorm into convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.graph import all_nodes, digest_of, interface_of, strip_texts


@dataclass(frozen=True, kw_only=True)
class CleanUp:
    """Simplifies the graph with onnxslim."""

    name: ClassVar[str] = "clean-up"
    summary: ClassVar[str] = "fold constants and BatchNorm, drop what nobody reads"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False

    def requires(self, model: Any, context: PassContext) -> str | None:
        """Refuse graphs with subgraphs, in which onnxslim resolves names across scopes."""
        if any(a.HasField("g") or a.graphs for node in all_nodes(model) for a in node.attribute):
            return "the graph has branches or loops"
        if model.functions:
            return "the graph has local functions"
        return None

    def run(self, model: Any, context: PassContext) -> PassResult:
        """Return the simplified graph; unchanged if it would be the same."""
        import onnx
        import onnxslim

        before = onnx.ModelProto()
        before.CopyFrom(model)
        strip_texts(before)
        draft = onnx.ModelProto()
        draft.CopyFrom(before)
        after = onnxslim.slim(draft)
        strip_texts(after)
        if digest_of(after) == digest_of(before):
            return PassResult(model=model, modified=False)
        counts = [len(graph.node) for graph in (before.graph, after.graph)]
        notes = (f"{counts[0]} → {counts[1]} nodes",) if counts[0] != counts[1] else ()
        return PassResult(model=after, modified=True, notes=notes)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that names, dtypes and shapes of inputs and outputs stay.

        Raises:
            PassBroken: one of them changed, or the graph grew.
        """
        if interface_of(before) != interface_of(after):
            raise PassBroken("an input or output changed its name, dtype or shape")
        if len(after.graph.node) > len(before.graph.node):
            raise PassBroken("the graph grew")
