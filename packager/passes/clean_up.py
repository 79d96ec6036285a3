"""Removes dead nodes and identities, folds constants and BatchNorm into convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from packager.passes.contract import PassBroken, PassContext, PassResult
from packager.passes.graph import all_nodes, digest_of, interface_of, strip_texts

if TYPE_CHECKING:
    from collections.abc import Mapping


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
        counts = _difference(_counts(before), _counts(after))
        return PassResult(model=after, modified=True, notes=counts)

    def ensures(self, before: Any, after: Any, context: PassContext) -> None:
        """Check that names, dtypes and shapes of inputs and outputs stay.

        Raises:
            PassBroken: one of them changed, or the graph grew.
        """
        if interface_of(before) != interface_of(after):
            raise PassBroken("an input or output changed its name, dtype or shape")
        if len(after.graph.node) > len(before.graph.node):
            raise PassBroken("the graph grew")


def _counts(model: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _difference(before: Mapping[str, int], after: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(
        f"{name}: {before.get(name, 0)} → {after.get(name, 0)}"
        for name in sorted({*before, *after})
        if before.get(name, 0) != after.get(name, 0)
    )
